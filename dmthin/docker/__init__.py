"""The front end for dockerd: a graphdriver plugin, https://docs.docker.com/engine/extend/plugins_graphdriver/."""
