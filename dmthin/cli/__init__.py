"""The `dmthin` command. To keep its start fast, each verb imports the modules that it needs when it runs."""

from dmthin.cli.program import main

__all__ = ["main"]
