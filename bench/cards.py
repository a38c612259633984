"""The graphics cards that the driver has, as NVML tells it: neither torch nor CUDA is loaded for it."""

from __future__ import annotations

import importlib.util
import os
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

HIDDEN = ("", "-1", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES: there is to be no card


@dataclass(frozen=True)
class Card:
    """A card, or one instance of a card that is divided (MIG).

    Attributes:
        number: the card's, in the order of the bus.
        uuid: names it for CUDA_VISIBLE_DEVICES.
        model: its name, as torch gives it too.
        memory: bytes in all; None where the driver does not say.
    """

    number: int
    uuid: str
    model: str
    memory: int | None


@cache
def nvml() -> ModuleType | None:
    """NVML, ready to be asked; None on a machine without its driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def all_cards() -> list[Card]:
    """The machine's cards in the order of the bus; the instances of a divided card in its place."""
    library = nvml()
    if library is None:
        return []
    found = []
    for number in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(number)
        for part in _instances(library, handle) or [handle]:
            total = _memory(library, part)
            found.append(
                Card(
                    number,
                    library.nvmlDeviceGetUUID(part),
                    library.nvmlDeviceGetName(part),
                    total.total if total else None,
                )
            )
    return found


def _instances(library: ModuleType, handle: object) -> list[object]:
    """The handles of a divided card's instances."""
    try:
        current, _ = library.nvmlDeviceGetMigMode(handle)
        count = library.nvmlDeviceGetMaxMigDeviceCount(handle) if current else 0
    except library.NVMLError:
        return []  # a model that cannot be divided
    found = []
    for index in range(count):
        try:
            found.append(library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except library.NVMLError:
            continue  # a place that is not taken
    return found


def _memory(library: ModuleType, handle: object) -> object | None:
    try:
        return library.nvmlDeviceGetMemoryInfo(handle)
    except library.NVMLError:
        return None  # memory that is shared with the processor is not counted


def visible(found: Sequence[Card], value: str | None) -> list[Card]:
    """What a value of CUDA_VISIBLE_DEVICES leaves of the cards, in its order; numbers count whole cards.

    As CUDA has it, a word that names no card hides all that follow.
    """
    if value is None:
        return list(found)
    chosen: list[Card] = []
    for word in value.split(","):
        named = [card for card in found if _names(word.strip(), card)]
        if not named:
            break
        chosen.append(named[0])
    return chosen


def _names(word: str, card: Card) -> bool:
    # The beginning of a UUID is enough, as it is for CUDA.
    return card.number == int(word) if word.isdigit() else len(word) > 4 and card.uuid.startswith(word)


def free_memory(uuid: str) -> int | None:
    """Bytes of a card that no process holds; None where nobody says."""
    library = nvml()
    if library is None:
        return None
    try:
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
    except library.NVMLError:
        return None  # a card that fell off the bus: its next cell will say so
    memory = _memory(library, handle)
    return memory.free if memory else None


def unusable() -> str | None:
    """Why torch cannot use the driver's cards, as far as can be told without loading it; None if it seems to."""
    library = nvml()
    version, built = _torch_build()
    if built is None:
        return f"This torch {version} is built without CUDA."
    supported = library.nvmlSystemGetCudaDriverVersion() if library else 0
    # Within a major version newer libraries run on older drivers.
    if supported and int(built.split(".")[0]) > supported // 1000:
        shown = f"{supported // 1000}.{supported % 1000 // 10}"
        return f"This torch {version} is built for CUDA {built}, the driver goes up to CUDA {shown}."
    return None


def _torch_build() -> tuple[str, str | None]:
    """Torch's version and the CUDA it is built for, from its files: loading it takes seconds."""
    folder = Path(importlib.util.find_spec("torch").origin).parent
    built = runpy.run_path(os.fspath(folder / "version.py"))
    return built["__version__"], built["cuda"]
