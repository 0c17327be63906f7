"""How a store is set up: storage options, and where its files lie."""
