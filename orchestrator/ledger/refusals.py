"""Which nodes a cloud has refused a Ray cluster, as its autoscaler has logged it.

The autoscaler's own state keeps the type of such a node, and often not why there is none.
"""

from __future__ import annotations

import re
from pathlib import Path

MONITOR_LOG = "monitor.log"
"""In the folder of the logs of Ray's session, on the head."""
_TAIL_BYTES = 200_000
_REFUSED = re.compile(r"Failed to launch \d+ nodes of type (\S+): (.+)")


def refusals(log_file: Path) -> dict[str, str]:
    """Node type to why it was refused last; empty where the log is on another machine."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return {}
    return {match[1]: match[2].strip() for match in _REFUSED.finditer(text)}
