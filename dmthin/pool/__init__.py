"""Thin pools and their volumes on a real kernel: what is there now, not what it is for (that is the store's)."""
