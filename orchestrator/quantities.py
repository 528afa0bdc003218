"""Physical units: the constants the field agrees on, and how quantities are shown to people."""

from __future__ import annotations

SAMPLE_RATE_HZ = 16_000
"""Every encoder of the HuBERT family reads mono audio at this rate."""


def format_bytes(num_bytes: float) -> str:
    """Decimal bytes, as disks and clouds count them: ``21.0 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if round(abs(num_bytes), 1) < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} PB"


def format_duration(seconds: float) -> str:
    """The two leading units of a duration: ``3 d 4 h``, ``12 min 5 s``, ``4.2 s``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest_s} s"


def format_count(count: float) -> str:
    """A count with an SI suffix: ``10.5 G``, ``134.5 M``, ``512``."""
    for suffix in ("", " k", " M", " G"):
        if round(abs(count), 1) < 1000:
            return f"{count:.0f}" if not suffix else f"{count:.1f}{suffix}"
        count /= 1000
    return f"{count:.1f} T"


def format_several(count: int, what: str) -> str:
    """A count of things: ``1 CPU``, ``16 CPUs``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
