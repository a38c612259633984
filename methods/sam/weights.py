"""A weights file read as tensors and nothing else, and held against the model it is meant for.

Whatever does not fit is refused here, with what was expected and what the file looks like, before half a
model is loaded from it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.sam.sizes import SIZES

Shapes = Mapping[str, Sequence[int]]

_BACKBONES = {(size.width, size.depth): name for name, size in SIZES.items()}
_PATCH_EMBEDDING = "image_encoder.patch_embed.proj.weight"
_WRAPPERS = ("model", "state_dict")
_SHOWN = 4


class CheckpointError(ValueError):
    """A checkpoint that is unknown, missing, damaged or of another model; the message says what to do."""


def looks_like(state: Mapping[str, Tensor]) -> str | None:
    """The backbone a SAM state dict belongs to, by the width of its patch embedding and its number of blocks."""
    return _backbone(_shapes(state))


def read_weights(path: Path, expected: Shapes | None) -> dict[str, Tensor]:
    """The state dict, in float32, of a .safetensors file or one of ``torch.save``; memory-mapped where possible.

    A training checkpoint that keeps it under "model" or "state_dict", or with the "module." of
    DistributedDataParallel before each key, is unwrapped.

    Args:
        expected: shapes of the whole SAM at its native image size, before anything is reduced or added;
            ``None`` takes any.

    Raises:
        CheckpointError: the file is damaged, holds other Python objects (never unpickled), or does not have
            exactly the expected keys and shapes.
    """
    candidates = list(_state_dicts(_read(path)))
    if not candidates:
        raise CheckpointError(
            f'{path} holds no state dict, neither directly nor under "model" or "state_dict". '
            "Save one with torch.save(model.state_dict(), PATH)."
        )
    if expected is None:
        return candidates[0]
    state = max(candidates, key=lambda state: len(state.keys() & expected.keys()))
    differences = _differences(expected, _shapes(state))
    if differences:
        raise CheckpointError("\n  ".join([_verdict(path, expected, state), *differences, _remedy(expected, state)]))
    return state


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes make the readers raise almost any type
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path} holds Python objects besides tensors ({foreign[1]}), and those are never unpickled. "
                "Save the tensors alone, torch.save(model.state_dict(), PATH), where the file comes from."
            ) from error
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated, damaged or no {path.suffix} file "
            f"({type(error).__name__}). Get it again, and compare its size and sha256 with the source's."
        ) from error


def _state_dicts(loaded: object) -> Iterator[dict[str, Tensor]]:
    """The state dicts in what a file holds: itself or one level down."""
    if not isinstance(loaded, Mapping):
        return
    for state in (loaded, *(loaded.get(key) for key in _WRAPPERS)):
        if not isinstance(state, Mapping) or not state:
            continue
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
            prefix = "module." if all(key.startswith("module.") for key in state) else ""
            yield {key.removeprefix(prefix): value.float() for key, value in state.items()}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _backbone(shapes: Shapes) -> str | None:
    blocks = {key.split(".")[2] for key in shapes if key.startswith("image_encoder.blocks.")}
    width = shapes.get(_PATCH_EMBEDDING, ())[:1]
    return _BACKBONES.get((*width, len(blocks)))


def _differences(expected: Shapes, found: Shapes) -> list[str]:
    """What distinguishes the two, a line each, the first few of each sort; empty where the file fits."""
    shapes = [
        f"{key}: expected {tuple(shape)}, found {found[key]}"
        for key, shape in expected.items()
        if key in found and tuple(shape) != found[key]
    ]
    missing = [f"missing: {key} {tuple(shape)}" for key, shape in expected.items() if key not in found]
    surplus = [f"not in SAM: {key} {shape}" for key, shape in found.items() if key not in expected]
    return [*_first(shapes, "other shapes"), *_first(missing, "missing"), *_first(surplus, "not in SAM")]


def _first(lines: list[str], what: str) -> list[str]:
    left = len(lines) - _SHOWN
    return lines[:_SHOWN] + ([f"and {left} more {what}"] if left > 0 else [])


def _verdict(path: Path, expected: Shapes, state: Mapping[str, Tensor]) -> str:
    wanted, found = _backbone(expected) or "the model", looks_like(state)
    if any(key.startswith("vision_encoder.") for key in state):
        guess = "its keys are those of Hugging Face transformers"
    elif found:
        guess = f"it looks like {found}"
    else:
        guess = "it looks like no SAM that is known here"
    return f"{path} does not fit {wanted}: {guess}. {len(expected)} tensors are expected, {len(state)} found."


def _remedy(expected: Shapes, state: Mapping[str, Tensor]) -> str:
    wanted, found = _backbone(expected), looks_like(state)
    own = 'checkpoint = "auto" takes the official weights'
    if found and found != wanted:
        return f'Either backbone = "{found}" is meant, or another file: {own}.'
    return f"Weights in the layout of the segment_anything package are needed; {own}."
