"""What scripts/setup does for the engine tests: other systems' roots, and archives of other programs' tests."""
