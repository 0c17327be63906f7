"""The life of a store's pool: activation, growth, trim, removal."""
