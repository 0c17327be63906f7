"""The store: ledger, transactions, options, locks, and what images and containers are. Faces talk to `Store`."""
