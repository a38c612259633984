"""The machine and the code a result was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.spec import Cell

PROJECT = Path(__file__).resolve().parent.parent


def git_state() -> dict[str, Any]:
    """The commit the code is at and whether files differ from it; None where there is no repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def describe(device: str, cell: Cell | None = None) -> dict[str, Any]:
    """What a record says of its surroundings; ``plugins`` where those of the cell are not all ours."""
    import torch

    packages = ("torch", "segment-anything", "numpy", "pysodmetrics")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        **git_state(),
        **({"plugins": foreign} if cell and (foreign := plugins(cell)) else {}),
    }


def plugins(cell: Cell) -> dict[str, str]:
    """The distributions, with their versions, of those of a cell's plugins that other packages brought, by name."""
    import datasets
    import methods

    spec = cell.spec
    used = [(methods.registry, name) for name in spec["method"]["name"].split("+")]
    used += [(datasets.registry, spec["dataset"]["name"])] if "dataset" in spec else []
    return {name: package for registry, name in used if (package := registry.package(name))}


def device_name(device: str) -> str:
    """The model of a device, as records name it: a card's as torch gives it, or this machine's processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{processor()} ({os.cpu_count()} cores)"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: str) -> int:
    """Bytes at the highest: the device's own allocations, or this process's resident memory on a CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
