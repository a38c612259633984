"""What a queue hands out and how it ends; the rules about one cell that need no queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.plan import Planned
from bench.spec import SpeedCell

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.estimates import Estimates


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        id: the cell.
        state: a state of the store; "elsewhere" if another scheduler still has it, "not started" after a stop or for
            want of time.
        reason: one line, empty for done cells.
        seconds: wall-clock time.
        slot: label of the device, empty if it was none of ours.
    """

    id: str
    state: str
    reason: str
    seconds: float
    slot: str


@dataclass(eq=False)
class Task:
    """A cell on its way through the queue.

    Attributes:
        planned: the cell.
        rank: its place in the order; a cell that is run once more comes before all others.
        memory, seconds: what it is expected to need; None where nothing is known.
        micro_batch: images a forward pass after it ran out of memory; 0: as the run's options say.
        retries: how often it ran out of memory.
        device: label of the only device that may run it; that device starts nothing else before.
        alone: whether it shares its device with no other cell.
        overtaken: how often a smaller cell was started in its place.
    """

    planned: Planned
    rank: int
    memory: int | None = None
    seconds: float | None = None
    micro_batch: int = 0
    retries: int = 0
    device: str | None = None
    alone: bool = False
    overtaken: int = 0
    asked: int = -1

    @property
    def id(self) -> str:
        return self.planned.id


class Outside:
    """What a queue asks and tells; this one knows of no other process and of free cards only."""

    def status(self, cell_id: str) -> Mapping[str, Any]:
        """The cell's ``status.json`` as it reads now."""
        return {"state": "planned"}

    def free_memory(self, device: Device) -> int | None:
        """Bytes of a card that nobody holds."""
        return device.memory

    def ended_elsewhere(self, outcome: Outcome) -> None:
        """Another process brought one of the cells to its end."""

    def once_more(self, task: Task, reason: str) -> None:
        """A cell will be run once more; called before anyone can take it."""

    def remark(self, line: str) -> None:
        """Something that whoever waits for the run should know."""


def order(cells: Sequence[Planned], estimates: Estimates | None = None) -> list[Planned]:
    """Seeds breadth-first, longest first within a seed, what failed before last.

    A cell of unknown length may be the longest, so it comes before the known ones, at its place in the matrix.
    """

    def key(planned: Planned) -> tuple[bool, int, float]:
        images = (planned.evidence or {}).get("images")
        seconds = estimates.of(planned.entered.cell, images=images).seconds if estimates else None
        failed = planned.state in ("failed", "oom", "timeout")
        return failed, planned.entered.cell.spec.get("seed", 0), -seconds if seconds is not None else -float("inf")

    return sorted(cells, key=key)


def dealt(cells: Sequence[Planned], share: tuple[int, int]) -> list[Planned]:
    """The cells as one of several runs takes them: its share first, then those of the others from their ends.

    Runs that all began with the same cell would prepare it in vain, all but one.

    Args:
        cells: in order.
        share: which of how many runs.
    """
    place, places = share
    others = [cell for number, cell in enumerate(cells) if number % places != place]
    return [*cells[place::places], *reversed(others)]


def smaller_batch(task: Task, given: int) -> int:
    """Half the images a forward pass that a cell has now, 0 if it cannot be halved.

    Args:
        task: the cell.
        given: of the run's options; 0 for the whole batch.
    """
    batch = task.planned.entered.cell.regime().batch_size
    return min(task.micro_batch or given or batch, batch) // 2


def may_retry(task: Task) -> bool:
    """Whether anything else can be tried with a cell that ran out of memory."""
    # The micro-batch of a measurement of speed is what it measures.
    return not isinstance(task.planned.entered.cell, SpeedCell)
