"""The command line: one file a command group. It turns words into calls and results into tables or JSON, and decides nothing.

`medssl --help` must answer at once, so nothing here imports torch, MONAI or a room before the command that needs it runs.
"""

from medssl.cli.app import main

__all__ = ["main"]
