"""Devices and slots: where cells can run, from what the machine has and the user allows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bench import cards
from bench.cards import Card

MOST_LANES = 8  # cells at a time on a card whose memory would hold more
ORDER = "CUDA_DEVICE_ORDER"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class DeviceError(RuntimeError):
    """The devices asked for cannot be used; the message says why."""


@dataclass(frozen=True)
class Slot:
    """Room for one running cell.

    Attributes:
        label: the device as shown to people, "cpu" or "gpu 0".
        device: its name inside the cell's process.
        threads: CPU threads for a cell on it.
        environment: variables of the cell's process.
    """

    label: str
    device: str
    threads: int
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    def with_threads(self, count: int) -> Slot:
        """The same place with other threads."""
        return replace(self, threads=count, environment={**self.environment, **_threads(count)})


@dataclass(frozen=True)
class Device:
    """A card or the CPU.

    Attributes:
        label: as shown to people.
        slots: one for each of its lanes.
        model: as results name it, "cpu" for this machine's processor.
        memory: bytes that its cells share; None where they are not counted.
        uuid: the card's.
    """

    label: str
    slots: tuple[Slot, ...]
    model: str = "cpu"
    memory: int | None = None
    uuid: str | None = None

    @property
    def device(self) -> str:
        """Its name inside a cell's process."""
        return self.slots[0].device

    @classmethod
    def of(cls, slot: Slot) -> Device:
        """A device for one cell at a time, which has it for itself."""
        return cls(slot.label, (slot,))

    def free_memory(self) -> int | None:
        """Bytes that no process holds now, of anyone's; None where that is not known."""
        return cards.free_memory(self.uuid) if self.uuid else None


def devices(wanted: str = "auto", *, per_gpu: int | None = None) -> list[Device]:
    """The devices that ``--devices`` names.

    Args:
        wanted: "auto" (all GPUs, else the CPU), "cpu", "cpu:N" (N cells side by side), or GPU numbers
            "0,1"; a number given twice holds two cells. Numbers count what CUDA_VISIBLE_DEVICES leaves.
        per_gpu: cells at a time on a GPU; None for as many as its memory holds.

    Raises:
        DeviceError: a GPU that is not there, or one the driver has and torch cannot use.
    """
    kind, _, count = wanted.partition(":")
    if kind == "cpu":
        if count and (not count.isdigit() or int(count) < 1):
            raise DeviceError(f"--devices {wanted!r}: write cpu, or cpu:N for N cells side by side")
        return [_cpu(int(count or 1))]
    numbers = [word.strip() for word in wanted.split(",")]
    if wanted != "auto" and not all(number.isdigit() for number in numbers):
        raise DeviceError(f"--devices {wanted!r} is unknown; allowed: auto, cpu, cpu:N, or GPU numbers such as 0,1")
    found = _usable()
    if wanted == "auto":
        chosen = Counter(range(len(found)))
    else:
        chosen = Counter(map(int, numbers))
        if max(chosen) >= len(found):
            raise DeviceError(
                f"--devices {wanted}: there are {len(found)} GPUs, numbered from 0; allowed: auto, cpu, cpu:N, numbers"
            )
    if not chosen:
        return [_cpu(1)]
    share = max(1, cores() // len(chosen))
    most = per_gpu or min(MOST_LANES, share)
    return [_gpu(n, found[n], times if times > 1 else most, share) for n, times in chosen.items()]


def slots(wanted: str = "auto") -> list[Slot]:
    """A slot on each device that ``--devices`` names, for a cell that has it for itself."""
    return [device.slots[0] for device in devices(wanted, per_gpu=1)]


def precision_for(places: Sequence[Slot | Device]) -> str:
    """What ``precision = "auto"`` means on these devices: bf16 on GPUs, fp32 on CPUs."""
    return "bf16" if any(place.device != "cpu" for place in places) else "fp32"


def _cpu(lanes: int) -> Device:
    threads = max(1, cores() // lanes)
    environment = {VISIBLE: "", **_threads(threads)}
    labels = ["cpu"] if lanes == 1 else [f"cpu {lane}" for lane in range(lanes)]
    return Device("cpu", tuple(Slot(label, "cpu", threads, environment) for label in labels))


def _gpu(number: int, card: Card, lanes: int, threads: int) -> Device:
    """A card; where its lanes run at the same time each gets less of the ``threads``."""
    environment = {ORDER: os.environ.get(ORDER, "PCI_BUS_ID"), VISIBLE: card.uuid, **_threads(threads)}
    slot = Slot(f"gpu {number}", "cuda:0", threads, environment)
    return Device(slot.label, (slot,) * lanes, card.model, card.memory, card.uuid)


def _threads(count: int) -> dict[str, str]:
    """Threads that spin briefly while they wait, then sleep.

    Measured on the tiny SAM with two threads on two cores: sleeping at once doubles the time of a step, spinning for
    long (the default) makes it several times slower as soon as another process wants a core.
    """
    return {"OMP_NUM_THREADS": str(count), "GOMP_SPINCOUNT": "10000"}


def cores() -> int:
    """The cores this process may use: on a shared cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usable() -> list[Card]:
    """The cards that the user left visible, in that order.

    Raises:
        DeviceError: torch cannot use them, or it cannot be told which ones are meant.
    """
    # Inherited by the cells and by whatever asks torch here, so that a number means the same card as in nvidia-smi.
    os.environ.setdefault(ORDER, "PCI_BUS_ID")
    value = os.environ.get(VISIBLE)
    found = cards.all_cards() if value not in cards.HIDDEN else []
    listed = "\n".join(f"GPU {card.number}: {card.model} (UUID: {card.uuid})" for card in found)
    if not found:
        return []
    if reason := cards.unusable():
        raise DeviceError(
            f"the driver sees a GPU but torch cannot use it.\n{listed}\n{reason}\n"
            "Install a torch build that fits the driver, or say --devices cpu to run without it."
        )
    by_number = value is not None and any(word.strip().isdigit() for word in value.split(","))
    if by_number and os.environ[ORDER] != "PCI_BUS_ID" and len({card.model for card in found}) > 1:
        raise DeviceError(
            f"{VISIBLE}={value} counts cards of several models in the order {os.environ[ORDER]}, which CUDA alone "
            f"knows; write their UUIDs instead, or set {ORDER}=PCI_BUS_ID:\n{listed}"
        )
    left = cards.visible(found, value)
    if not left:
        raise DeviceError(f"{VISIBLE}={value} names none of the cards that the driver has:\n{listed}")
    return left
