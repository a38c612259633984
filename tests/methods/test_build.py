"""Segmenters from random and stored weights: what fixes them, and position tables at other sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.registry import UnknownName
from methods import Context, create
from methods.sam.build import build_segmenter, parts, random_parts, resize_position_tables
from methods.sam.checkpoints import CheckpointError
from methods.sam.decoder import ReducedMaskDecoder
from methods.sam.model import SamSegmenter
from methods.sam.sizes import SIZES, Size


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def size(mini: str) -> Size:
    """Three blocks, the second of which attends over the whole map."""
    return SIZES[mini]


def native_state(size: Size) -> dict[str, Tensor]:
    return random_parts(size, size.native).state_dict()


def test_tables_of_the_native_size_stay(size: Size) -> None:
    state = native_state(size)
    resized = resize_position_tables(state, size, size.native)
    assert resized.keys() == state.keys()
    assert all(torch.equal(resized[name], state[name]) for name in state)


@pytest.mark.parametrize("side", [16, 64, 80, 128, 192])
def test_tables_get_the_shapes_of_the_image(size: Size, side: int) -> None:
    resized = resize_position_tables(native_state(size), size, side)
    assert {name: value.shape for name, value in resized.items()} == {
        name: value.shape for name, value in parts(size, side).state_dict().items()
    }


def test_only_tables_of_the_whole_map_change_and_the_state_given_stays(size: Size) -> None:
    state = native_state(size)
    kept = {name: value.clone() for name, value in state.items()}
    resized = resize_position_tables(state, size, 128)
    assert {name for name in state if resized[name] is not state[name]} == {
        "image_encoder.pos_embed", "image_encoder.blocks.1.attn.rel_pos_h", "image_encoder.blocks.1.attn.rel_pos_w",
    }  # fmt: skip
    assert all(torch.equal(state[name], kept[name]) for name in state)


@pytest.mark.parametrize("side", [32, 64, 128, 160])
def test_constant_tables_stay_constant(size: Size, side: int) -> None:
    state = native_state(size)
    for name, table in state.items():
        if "pos_embed" in name or "rel_pos" in name:
            state[name] = torch.arange(table.shape[-1], dtype=torch.float32).expand(table.shape)
    for name, table in resize_position_tables(state, size, side).items():
        if "pos_embed" in name or "rel_pos" in name:
            assert torch.allclose(table, torch.arange(table.shape[-1], dtype=torch.float32), atol=1e-4)


@pytest.mark.parametrize("side", [64, 128])
def test_tables_are_resized_bicubically_and_linearly(size: Size, side: int, bicubic: Callable) -> None:
    state = native_state(size)
    resized = resize_position_tables(state, size, side)
    grid, native = side // 16, size.native // 16
    matrix = bicubic(native, grid)
    table = state["image_encoder.pos_embed"][0].double().numpy()
    expected = np.einsum("yh,xw,hwc->yxc", matrix, matrix, table)
    assert np.abs(resized["image_encoder.pos_embed"][0].numpy() - expected).max() < 1e-6

    before, after = 2 * native - 1, 2 * grid - 1
    centres = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    for axis in "hw":
        name = f"image_encoder.blocks.1.attn.rel_pos_{axis}"
        columns = state[name].double().numpy().T
        expected = np.stack([np.interp(centres, np.arange(before), column) for column in columns], axis=1)
        assert np.abs(resized[name].numpy() - expected).max() < 1e-6


def test_a_random_backbone_is_the_same_for_every_seed_and_leaves_the_generator(mini: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = build_segmenter(Context(backbone=mini, checkpoint="none", image_size=64, seed=0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_same(one, build_segmenter(Context(backbone=mini, checkpoint="none", image_size=64, seed=1)))


def test_a_random_backbone_has_positions(size: Size) -> None:
    tables = [value for name, value in native_state(size).items() if "pos_embed" in name or "rel_pos" in name]
    assert len(tables) == 1 + 2 * 3
    assert all(table.std() > 0.01 for table in tables)


@pytest.mark.parametrize("name", ["lora", "conv_lora", "conv_lora+vpt"])
def test_initial_values_depend_on_the_seed_and_not_on_earlier_draws(mini: str, name: str) -> None:
    def build(seed: int, draws: int) -> SamSegmenter:
        torch.manual_seed(draws)
        model = create(name).build(Context(backbone=mini, checkpoint="none", image_size=64, seed=seed))
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(draws).get_state())
        return model

    assert_same(build(seed=0, draws=1), build(seed=0, draws=2))
    changed = {
        key for (key, a), b in zip(build(0, 1).named_parameters(), build(1, 1).parameters(), strict=True)
        if not torch.equal(a, b)
    }  # fmt: skip
    random = ("lora_A", *(["experts.weight"] if "conv" in name else []), *(["tokens"] if "vpt" in name else []))
    assert changed == {key for key, _ in build(0, 1).named_parameters() if key.endswith(random)}


@pytest.mark.parametrize("checkpoint", ["none", "file"])
@pytest.mark.parametrize("side", [0, -16, 8, 100])
def test_a_size_that_the_patches_do_not_divide_is_refused(
    mini: str, side: int, checkpoint: str, tmp_path: Path
) -> None:
    path = tmp_path / "sam.pth"
    torch.save(native_state(SIZES[mini]), path)
    with pytest.raises(ValueError, match=f"image_size {side} .*16; try [0-9]+"):
        build_segmenter(
            Context(backbone=mini, checkpoint="none" if checkpoint == "none" else str(path), image_size=side)
        )


def test_unknown_backbones_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"'vit_hh'\. Did you mean 'vit_h'"):
        build_segmenter(Context(backbone="vit_hh", checkpoint="none"))


@pytest.mark.parametrize("name", ["decoder_only", "lora", "scratch"])
def test_the_class_head_is_drawn_from_the_seed_and_the_tokens_are_copies(mini: str, name: str) -> None:
    def build(seed: int, classes: int = 4) -> SamSegmenter:
        context = Context(classes, 64, mini, checkpoint="none", seed=seed, mask_tokens=3)
        return create(name).build(context)

    one, other, binary = build(0), build(1), build(0, classes=1)
    assert_same(one, build(0))
    head = one.mask_decoder.class_head
    assert head.weight.shape == (5, 32) and head.weight.std() > 0.05
    assert not torch.equal(head.weight, other.mask_decoder.class_head.weight)
    assert not any(torch.equal(head.weight.flatten()[:32], p.flatten()[:32]) for p in binary.parameters())
    assert torch.equal(one.mask_decoder.mask_tokens.weight, binary.mask_decoder.mask_tokens.weight.repeat(3, 1))
    # Everything else starts as it does for binary masks.
    shared = {key: value for key, value in one.state_dict().items() if "class_head" not in key}
    theirs = binary.state_dict()
    assert shared.keys() == theirs.keys()
    assert [key for key in theirs if "mask_tokens" not in key and not torch.equal(shared[key], theirs[key])] == []


@pytest.mark.parametrize("write", [torch.save, save_file], ids=["pth", "safetensors"])
@pytest.mark.parametrize("side", [96, 64, 128])
def test_a_stored_sam_is_built_as_it_was(
    mini: str, side: int, write: Callable, tmp_path: Path, batch: Callable
) -> None:
    size, images = SIZES[mini], batch(2, side)[0]
    native = random_parts(size, size.native)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.mul_(1.01)
    path = tmp_path / f"sam.{'pth' if write is torch.save else 'safetensors'}"
    write(native.state_dict(), path)
    before = hashlib.sha256(path.read_bytes()).digest()

    sam = parts(size, side)
    sam.load_state_dict(resize_position_tables(native.state_dict(), size, side))
    decoder = ReducedMaskDecoder(sam["mask_decoder"])
    expected = SamSegmenter(sam["image_encoder"], sam["prompt_encoder"], decoder, image_size=side)

    model = build_segmenter(Context(backbone=mini, checkpoint=str(path), image_size=side))
    assert_same(model, expected)
    assert model.trainable().keys() == expected.trainable().keys()
    with torch.no_grad():
        assert torch.equal(model(images).masks, expected(images).masks)
        for parameter in model.parameters():
            parameter.zero_()
    assert hashlib.sha256(path.read_bytes()).digest() == before, "training would change the file"


def test_a_checkpoint_of_another_size_is_refused(mini: str, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(native_state(replace(SIZES[mini], depth=4)), path)
    with pytest.raises(CheckpointError, match=r"not in SAM: image_encoder\.blocks\.3"):
        build_segmenter(Context(backbone=mini, checkpoint=str(path), image_size=64))
