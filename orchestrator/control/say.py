"""A line of a supervisor's, worker's or sentinel's own log."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """Write it to stderr at once, with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
