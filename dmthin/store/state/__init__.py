"""What a store keeps: the ledger, its records and the locks."""
