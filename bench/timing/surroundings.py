"""What a measurement is made on, and what else goes on there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.devices import Slot, cores
from bench.environment import processor

QUIET_LOAD = 0.3  # processes that want a core, for each core: above it something else is at work


def device_model(device: str, threads: int) -> str:
    """The model of a device, as it enters a measurement's identity; threads count where they compute.

    Args:
        device: "cpu" or a name of torch's, as "cuda:0".
        threads: of a process that computes on the CPU.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def others_on(slot: Slot) -> list[str]:
    """What would disturb a measurement, a line for each: processes on the slot's GPU, or the load of the CPU.

    Ask before this process uses the GPU itself. A driver that does not say, or a container that hides the processes
    of others, leaves it empty.
    """
    if slot.device == "cpu":
        load = os.getloadavg()[0]
        return [f"load average {load:.1f} on {cores()} cores"] if load > QUIET_LOAD * cores() else []
    command, number = shutil.which("nvidia-smi"), slot.environment.get("CUDA_VISIBLE_DEVICES", "")
    if command is None:
        return []
    words = [command, "-i", number, "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    try:
        listed = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [f"process {line}" for line in listed.stdout.splitlines() if line.strip()] if not listed.returncode else []


@contextmanager
def busy_elsewhere() -> Iterator[dict[str, float]]:
    """Fills ``cores_busy_elsewhere``: how many of the machine's cores worked for other processes on average."""
    import psutil

    def busy() -> float:
        times = psutil.cpu_times()._asdict()
        return sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))

    found: dict[str, float] = {}
    all_before, own_before, began = busy(), time.process_time(), time.perf_counter()
    yield found
    others = busy() - all_before - (time.process_time() - own_before)
    found["cores_busy_elsewhere"] = max(0.0, others / (time.perf_counter() - began))
