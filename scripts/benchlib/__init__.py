"""What `scripts/bench` is made of: how runs are timed, and one module for each thing that is measured."""
