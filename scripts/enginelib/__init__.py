"""Engines as processes, their clients, and how to wait for them: what `scripts/bench` and the tests share."""
