"""What `scripts/test` is made of: its command line, which test runs where, processes and guests that share tests."""
