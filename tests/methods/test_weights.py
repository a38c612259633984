"""Weights files: found in their wrapping, read without unpickling, refused when they do not fit."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torch import Tensor

from methods.sam.build import native_shapes
from methods.sam.weights import CheckpointError, looks_like, read_weights


@functools.cache
def sam(backbone: str) -> dict[str, Tensor]:
    """The state dict of segment_anything's own model, shapes only."""
    with torch.device("meta"):
        return sam_model_registry[backbone]().state_dict()


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def small_sam(width: int = 192, depth: int = 12) -> dict[str, Tensor]:
    """A few of SAM's tensors, enough to be recognised."""
    blocks = {f"image_encoder.blocks.{i}.norm1.weight": torch.randn(width) for i in range(depth)}
    return {
        "image_encoder.patch_embed.proj.weight": torch.randn(width, 3, 2, 2),
        "image_encoder.pos_embed": torch.randn(1, 4, 4, width),
    } | blocks


SMALL = small_sam()


def load(path: Path, expected: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return read_weights(path, None if expected is None else shapes(expected))


def refusal(path: Path, expected: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, expected)
    return str(caught.value)


def assert_small(state: dict[str, Tensor]) -> None:
    assert state.keys() == SMALL.keys()
    for key, value in SMALL.items():
        assert torch.equal(state[key], value), key


def as_zip(state: object, path: Path) -> None:
    torch.save(state, path)


def as_legacy(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "optimizer": {"lr": 1e-4}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    ],
)
def test_a_state_dict_is_found_in_its_wrapping(tmp_path: Path, write: Callable, wrap: Callable) -> None:
    write(wrap(SMALL), tmp_path / "mine.pt")
    assert_small(load(tmp_path / "mine.pt", SMALL))
    assert_small(load(tmp_path / "mine.pt"))


def test_of_two_state_dicts_in_a_file_the_fitting_one_is_taken(tmp_path: Path) -> None:
    torch.save({"model": {"teacher": torch.zeros(1)}, "state_dict": SMALL}, tmp_path / "mine.pth")
    assert_small(load(tmp_path / "mine.pth", SMALL))


def test_safetensors(tmp_path: Path) -> None:
    save_file(SMALL, tmp_path / "mine.safetensors")
    assert_small(load(tmp_path / "mine.safetensors", SMALL))


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in SMALL.items()}, tmp_path / "mine.pth")
    state = load(tmp_path / "mine.pth", SMALL)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(torch.equal(state[key], value.half().float()) for key, value in SMALL.items())


@pytest.mark.parametrize("kept", [0, 1, 4, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_a_truncated_file_is_refused(tmp_path: Path, write: Callable, kept: float) -> None:
    path = tmp_path / "mine.pth"
    write(SMALL, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert f"{path} ({path.stat().st_size:,} bytes) is truncated, damaged or no .pth file" in refusal(path, SMALL)


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
def test_a_web_page_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<!DOCTYPE html><html>not found</html>")
    assert "Get it again" in refusal(tmp_path / name, SMALL)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [as_zip, as_legacy, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2))])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, write: Callable) -> None:
    path, marker = tmp_path / "bomb.pth", tmp_path / "marker"
    write({**SMALL, "bomb": Bomb(marker)}, path)
    assert "never unpickled" in refusal(path, SMALL)
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert marker.exists(), "the bomb was a dud"


def test_the_foreign_object_is_named(tmp_path: Path) -> None:
    torch.save({"model": SMALL, "args": argparse.Namespace(lr=1)}, tmp_path / "mine.pth")
    message = refusal(tmp_path / "mine.pth", SMALL)
    assert "(argparse.Namespace)" in message and "torch.save(model.state_dict(), PATH)" in message


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"epoch": 3}, {}, {"model": {"a": 1}}, {0: torch.zeros(1)}]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "mine.pth")
    assert "holds no state dict" in refusal(tmp_path / "mine.pth", SMALL)


# ---------------------------------------------------------------- the wrong model


@pytest.mark.parametrize("backbone", ["vit_h", "vit_l", "vit_b"])
def test_a_sam_is_recognised(backbone: str) -> None:
    assert looks_like(sam(backbone)) == backbone


def test_what_is_no_sam_is_not_recognised() -> None:
    assert looks_like(SMALL) == "tiny"
    assert looks_like(small_sam(depth=11)) is None
    assert looks_like(small_sam(width=193)) is None
    assert looks_like({}) is None
    assert looks_like({"image_encoder.patch_embed.proj.weight": torch.zeros(())}) is None


@pytest.mark.parametrize("backbone", ["vit_h", "vit_l", "vit_b"])
def test_the_own_model_expects_what_segment_anything_saves(backbone: str) -> None:
    assert native_shapes(backbone) == shapes(sam(backbone))


def test_the_file_of_another_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(small_sam(width=768), path)
    message = refusal(path, SMALL)
    assert f"{path} does not fit tiny: it looks like vit_b." in message
    assert "image_encoder.patch_embed.proj.weight: expected (192, 3, 2, 2), found (768, 3, 2, 2)" in message
    assert "and 10 more other shapes" in message
    assert 'backbone = "vit_b"' in message and 'checkpoint = "auto"' in message


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    state = SMALL | {f"image_encoder.adapter.{n}": torch.zeros(n) for n in range(9)}
    del state["image_encoder.pos_embed"]
    torch.save(state, path)
    message = refusal(path, SMALL)
    assert "missing: image_encoder.pos_embed (1, 4, 4, 192)" in message
    assert "not in SAM: image_encoder.adapter.0 (0,)" in message and "and 5 more not in SAM" in message
    assert "14 tensors are expected, 22 found" in message


def test_the_format_of_transformers_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"vision_encoder.layers.0.attn.qkv.weight": torch.zeros(3, 1), "other": torch.zeros(2)}, path)
    message = refusal(path, SMALL)
    assert "Hugging Face transformers" in message and "layout of the segment_anything package" in message


def test_any_state_dict_is_taken_when_nothing_is_expected(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "mine.pth")
    assert load(tmp_path / "mine.pth")["a"].tolist() == [1, 1]
