"""How much of a run a device was at work, from the times at which its cells began and ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from bench.durations import duration


@dataclass
class Busy:
    """The work of one device; safe for the threads of its lanes.

    Attributes:
        label: the device's.
        began: when the run did, in the seconds of some clock.
        spans: beginning and end of every cell's work.
    """

    label: str
    began: float
    spans: list[tuple[float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, start: float, end: float) -> None:
        """Count a cell."""
        with self._lock:
            self.spans.append((start, end))

    def gaps(self) -> list[float]:
        """The seconds without any cell, before the first one and between them."""
        found, until = [], self.began
        with self._lock:
            spans = sorted(self.spans)
        for start, end in spans:
            found += [start - until] if start > until else []
            until = max(until, end)
        return found

    def __str__(self) -> str:
        if not self.spans:
            return f"{self.label}: no cells"
        total, gaps = max(end for _, end in self.spans) - self.began, self.gaps()
        share = 1 - sum(gaps) / total if total > 0 else 1.0
        first = min(start for start, _ in self.spans) - self.began
        between = max((gap for gap in gaps if gap != first), default=0.0)
        count = len(self.spans)
        line = (
            f"{self.label}: busy {100 * share:.0f} % of {duration(total)}, {count} {'cell' if count == 1 else 'cells'}"
        )
        return line + (f", waited at most {between:.1f} s between two" if count > 1 else "")
