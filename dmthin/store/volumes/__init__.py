"""Changes of volumes: each one a transaction between the ledger and the pool."""
