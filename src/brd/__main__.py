"""``python -m brd``."""

from brd.cli import entry

entry()
