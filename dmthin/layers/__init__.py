"""Tar archives and directory trees: reading, unpacking, comparing and writing. Independent of pools and stores."""
