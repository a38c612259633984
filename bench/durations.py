"""Lengths of time as people write and read them: 45s, 3m05s, 2h07m."""

from __future__ import annotations

import re

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def duration(seconds: float | None) -> str:
    """Seconds in words, rounded down; nothing for None."""
    if seconds is None:
        return ""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def seconds_of(text: str) -> float:
    """The seconds that "8h", "1h30m", "45m" or "2d" mean.

    Raises:
        ValueError: other words, or no time at all.
    """
    parts = WRITTEN.findall(text)
    seconds = sum(float(amount) * UNITS[unit] for amount, unit in parts)
    if "".join(map("".join, parts)) != text or seconds <= 0:
        raise ValueError(f"{text!r} is no length of time; write e.g. 8h, 45m or 1h30m")
    return seconds
