"""The `dmthin` command. Start-up is paid by every call, so each command imports what it needs when it runs."""

from dmthin.cli.program import main

__all__ = ["main"]
