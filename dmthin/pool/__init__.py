"""Thin pools and their volumes as the kernel has them. What a volume is for, only the store knows."""
