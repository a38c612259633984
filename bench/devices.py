"""Slots: places where a cell can run, from what the machine has and the user allows."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field


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


def slots(wanted: str = "auto") -> list[Slot]:
    """The slots that ``--devices`` names.

    Args:
        wanted: "auto" (all GPUs, else the CPU), "cpu", "cpu:N" (N cells side by side), or GPU numbers
            "0,1"; a number given twice holds two cells. Numbers count what CUDA_VISIBLE_DEVICES leaves.

    Raises:
        DeviceError: a GPU that is not there, or one the driver sees and torch does not.
    """
    kind, _, count = wanted.partition(":")
    if kind == "cpu":
        if count and (not count.isdigit() or int(count) < 1):
            raise DeviceError(f"--devices {wanted!r}: write cpu, or cpu:N for N cells side by side")
        return _cpu_slots(int(count or 1))
    visible = _torch_gpus()
    numbers = wanted.split(",")
    if wanted == "auto" or all(number.strip().isdigit() for number in numbers):
        unusable = None if visible else _unusable_gpus()
        if unusable:
            raise DeviceError(
                f"the driver sees a GPU but torch cannot use it.\n{unusable}\n"
                "Install a torch build that fits the driver, or say --devices cpu to run without it."
            )
    if wanted == "auto":
        return _gpu_slots(range(visible)) if visible else _cpu_slots(1)
    if not all(number.strip().isdigit() for number in numbers):
        raise DeviceError(f"--devices {wanted!r} is unknown; allowed: auto, cpu, cpu:N, or GPU numbers such as 0,1")
    chosen = [int(number) for number in numbers]
    if max(chosen) >= visible:
        raise DeviceError(
            f"--devices {wanted}: torch sees {visible} GPUs, numbered from 0; allowed: auto, cpu, cpu:N, numbers"
        )
    return _gpu_slots(chosen)


def precision_for(places: list[Slot]) -> str:
    """What ``precision = "auto"`` means on these slots: bf16 on GPUs, fp32 on CPUs."""
    return "bf16" if any(slot.device != "cpu" for slot in places) else "fp32"


def _cpu_slots(count: int) -> list[Slot]:
    threads = max(1, cores() // count)
    hidden = {"CUDA_VISIBLE_DEVICES": "", **_threads(threads)}
    return [Slot("cpu" if count == 1 else f"cpu {i}", "cpu", threads, hidden) for i in range(count)]


def _gpu_slots(numbers) -> list[Slot]:
    """One slot for every number; the outer CUDA_VISIBLE_DEVICES decides what a number means."""
    numbers = list(numbers)
    outer = [token for token in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if token]
    threads = max(1, cores() // len(numbers))
    order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    shared = {"CUDA_DEVICE_ORDER": order, **_threads(threads)}
    return [
        Slot(f"gpu {n}", "cuda:0", threads, {**shared, "CUDA_VISIBLE_DEVICES": outer[n] if outer else str(n)})
        for n in numbers
    ]


def _threads(count: int) -> dict[str, str]:
    """Threads that spin briefly while they wait, then sleep.

    Measured on the tiny SAM with two threads on two cores: sleeping at once doubles the time of a step, spinning for
    long (the default) makes it several times slower as soon as another process wants a core.
    """
    return {"OMP_NUM_THREADS": str(count), "GOMP_SPINCOUNT": "10000"}


def cores() -> int:
    """The cores this process may use: on a shared cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_gpus() -> int:
    # Inherited by the cells, so that a number means the same card there and in nvidia-smi.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _unusable_gpus() -> str | None:
    """What the driver lists although torch can use none of it; None where there is nothing."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if listed.returncode or "GPU" not in listed.stdout:
        return None
    import torch

    built = torch.version.cuda
    why = (
        f"This torch {torch.__version__} is built for CUDA {built}."
        if built
        else f"This torch {torch.__version__} is built without CUDA."
    )
    return f"{listed.stdout.strip()}\n{why}"
