"""The face to dockerd: a graphdriver plugin, https://docs.docker.com/engine/extend/plugins_graphdriver/."""
