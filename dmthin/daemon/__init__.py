"""One process that serves the faces asked for."""
