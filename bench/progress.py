"""What a run shows: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.durations import duration
from bench.scheduler import Outcome, Running, Scheduler

LINE_SECONDS = 60.0
COLOURS = {"done": "green", "failed": "red", "oom": "red", "timeout": "red", "interrupted": "yellow"}


class Display:
    """Shows a run while it goes on.

    Args:
        total: cells to execute.
        console: where to; decides between a live table and lines.
    """

    def __init__(self, total: int, console: Console) -> None:
        self._total, self._console = total, console
        self._scheduler: Scheduler | None = None
        self._states: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=2) if console.is_terminal else None
        )
        self._left = threading.Event()

    @contextmanager
    def showing(self, scheduler: Scheduler) -> Iterator[None]:
        """Show what a scheduler, or what stands for one, says of the cells at work."""
        self._scheduler = scheduler
        if self._live:
            self._live.start()
        else:
            threading.Thread(target=self._report, daemon=True).start()
        try:
            yield
        finally:
            self._left.set()
            if self._live:
                self._live.stop()

    def started(self, running: Running) -> None:
        """A cell's process was started."""
        if not self._live:
            self._line(f"start   {running.planned.id} on {running.slot.label}")

    def remark(self, line: str) -> None:
        """Something that whoever waits should know."""
        self._line(line)

    def ended(self, outcome: Outcome, score: str) -> None:
        """A cell ended; ``score`` is its headline."""
        self._states[outcome.state] += 1
        if outcome.state == "done":
            self._seconds.append(outcome.seconds)
        took = duration(outcome.seconds) if outcome.slot else "elsewhere"
        text = Text(f"{outcome.state:<7} {outcome.id} {took} {score or outcome.reason}")
        text.stylize(COLOURS.get(outcome.state, ""), 0, len(outcome.state))
        self._console.print(text, soft_wrap=True)

    def _report(self) -> None:
        """Without a terminal: a line for every running cell now and then."""
        while not self._left.wait(LINE_SECONDS):
            for running, progress in self._scheduler.running():
                stage, epoch, step, loss, rate, left = _columns(progress)
                parts = [stage, epoch and f"epoch {epoch}", step and f"step {step}", loss and f"loss {loss}"]
                parts += [rate and f"{rate} images/s", left and f"{left} left"]
                self._line(f"        {running.planned.id} on {running.slot.label}: " + ", ".join(filter(None, parts)))

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("cell", "device", "stage", "epoch", "step", "loss", "images/s", "ETA"):
            table.add_column(
                column, no_wrap=True, justify="right" if column in ("epoch", "step", "loss", "images/s") else "left"
            )
        at_work = self._scheduler.running()
        for running, progress in at_work:
            table.add_row(running.planned.id, running.slot.label, *_columns(progress))
        left = self._total - sum(self._states.values())
        parts = [f"{count} {state}" for state, count in sorted(self._states.items())]
        parts += [f"{len(at_work)} running", f"{left - len(at_work)} waiting"]
        summary = f"{self._total} cells: " + ", ".join(parts)
        if self._seconds and at_work:
            mean = sum(self._seconds) / len(self._seconds)
            summary += f"; about {duration(mean * left / len(at_work))} left"
        return Group(table, Text(summary, style="bold"))


def _columns(progress: dict[str, Any]) -> list[str]:
    """The changing part of a running cell's row."""
    rate, loss = progress.get("images_per_second"), progress.get("loss")
    steps, step = progress.get("steps") or 0, progress.get("step") or 0
    left = progress.get("seconds_left") if progress.get("stage") == "training" else None
    return [
        progress.get("stage", "starting"),
        f"{progress.get('epoch')}/{progress.get('epochs')}" if progress.get("epochs") else "",
        f"{step}/{steps}" if steps else "",
        f"{loss:.4f}" if loss is not None else "",
        f"{rate:.1f}" if rate else "",
        duration(left),
    ]
