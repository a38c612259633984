"""What runs on which device, and whether one more cell has room there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager

from bench.devices import Device
from bench.tasks import Task

FOREIGN = 0.1  # share of a card that others may hold while it counts as free: desktops, services


def has_room(needs: int | None, others: Sequence[int | None], *, memory: int, used: int, foreign: int = 0) -> bool:
    """Whether a cell may join those that are on a card.

    Args:
        needs: bytes it is expected to need; None where nothing is known: it then shares with none.
        others: the same of those that are there.
        memory: bytes of the card.
        used: bytes that are taken now, by anyone.
        foreign: bytes that were taken when no cell of ours was there.
    """
    if not others:
        # A cell that is thought to need more than there is at all is tried on a card of its own.
        return needs is None or needs + used <= memory or used <= FOREIGN * memory
    if needs is None or None in others:
        return False
    # A cell that has just started has not taken yet what it will need.
    return max(used, sum(others) + foreign) + needs <= memory


class Occupancy:
    """The cells at work on each device.

    Args:
        devices: those among which cells are spread.
        free_memory: asked for a card's free bytes; None where nobody knows.
    """

    def __init__(self, devices: Sequence[Device], free_memory: Callable[[Device], int | None]) -> None:
        self._devices, self._free_memory = devices, free_memory
        self._lanes = Counter({device.label: len(device.slots) for device in devices})
        self._running: dict[str, tuple[Task, Device]] = {}
        self.foreign: dict[str, int] = {}
        """Bytes that others held when no cell of ours was on a card, by its label."""

    def __len__(self) -> int:
        return len(self._running)

    def on(self, device: Device) -> list[Task]:
        """The cells at work there."""
        return [task for task, where in self._running.values() if where.label == device.label]

    def begin(self, task: Task, device: Device) -> None:
        """A lane has taken the cell."""
        self._running[task.id] = task, device
        self._lanes[device.label] -= 1

    def end(self, task: Task) -> Device:
        """The cell has ended; returns where."""
        _, device = self._running.pop(task.id)
        self._lanes[device.label] += 1
        return device

    def leave(self, device: Device) -> None:
        """A lane will take no more."""
        self._lanes[device.label] -= 1

    @contextmanager
    def without(self, task: Task) -> Iterator[None]:
        """As it will be when the cell has ended."""
        place = self._running.pop(task.id)
        yield
        self._running[task.id] = place

    def has_room(self, task: Task, device: Device, *, ahead: bool = False) -> bool:
        """Whether the cell may join those that are there; ``ahead``: whatever else holds the card at this moment."""
        here = self.on(device)
        if here and (task.alone or here[0].alone):
            return False
        if device.memory is None:
            return True
        free = None if ahead else self._free_memory(device)
        used = 0 if free is None else device.memory - free
        if not here and free is not None:
            self.foreign[device.label] = used
        others, foreign = [other.memory for other in here], self.foreign.get(device.label, 0)
        return has_room(task.memory, others, memory=device.memory, used=used, foreign=foreign)

    def emptier(self, task: Task, device: Device, kept: Container[str | None]) -> bool:
        """Whether another device of this model has fewer cells, a lane that waits, and room; but for those ``kept``."""
        count = len(self.on(device))
        return any(
            other.model == device.model and len(self.on(other)) < count and self.has_room(task, other)
            for other in self._devices
            if count and other.label not in kept and self._lanes[other.label] > 0
        )
