"""What `scripts/vm` is made of: the request, a module for each engine, the host's side of a running guest."""
