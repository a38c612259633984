"""VPT-deep against the textbook form: prompts prepended in every window, put through the block, thrown away."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn

from methods import Context, Model, create
from methods.sam.encoder import Block
from methods.sam.sizes import SIZES, Size

PADDED = Size(width=24, depth=4, heads=3, global_blocks=(1, 3), window=3, decoder_width=32, native=112)


def build(backbone: str, image_size: int = 64, **parameters: object) -> Model:
    return create("vpt", parameters).build(Context(backbone=backbone, checkpoint="none", image_size=image_size))


def prepended(block: nn.Module, x: Tensor, prompts: Tensor) -> Tensor:
    """A block of segment_anything on the sequence [prompts, window] of every window; returns the image's tokens."""
    height, width, n = *x.shape[1:3], len(prompts)
    windows, padded = window_partition(block.norm1(x), block.window_size or height)
    rows, columns = windows.shape[1:3]
    own_copies = block.norm1(prompts).expand(len(windows), -1, -1)
    tokens = torch.cat([own_copies, windows.flatten(1, 2)], dim=1)

    heads = block.attn.num_heads
    query, key, value = block.attn.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    positions = torch.zeros(len(windows), heads, n + rows * columns, n + rows * columns, dtype=x.dtype)
    queries = query[:, :, n:].unflatten(2, (rows, columns))
    vertical = torch.einsum("bnhwc,hkc->bnhwk", queries, get_rel_pos(rows, rows, block.attn.rel_pos_h))
    horizontal = torch.einsum("bnhwc,wkc->bnhwk", queries, get_rel_pos(columns, columns, block.attn.rel_pos_w))
    positions[:, :, n:, n:] = (vertical[..., None] + horizontal[..., None, :]).flatten(4, 5).flatten(2, 3)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + positions
    attended = block.attn.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    # The prompts as queries take part up to here; the next block brings its own.
    image = attended[:, n:].unflatten(1, (rows, columns))
    x = x + window_unpartition(image, block.window_size or height, padded, (height, width))
    return x + block.mlp(block.norm2(x))


@torch.no_grad()
@pytest.mark.parametrize("side", [96, 112])
@pytest.mark.parametrize("num_tokens", [1, 12])
def test_equals_prompts_prepended_in_every_window(
    monkeypatch: pytest.MonkeyPatch, side: int, num_tokens: int, segment_anything: Callable, roughen: Callable
) -> None:
    monkeypatch.setitem(SIZES, "padded", PADDED)
    ours = roughen(build("padded", side, num_tokens=num_tokens)).double().image_encoder
    theirs = segment_anything(PADDED, side).image_encoder.double()
    state = {name: value for name, value in ours.state_dict().items() if "extra_kv" not in name}
    theirs.load_state_dict(state)

    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = theirs.patch_embed(images) + theirs.pos_embed
    for block, own in zip(theirs.blocks, ours.blocks, strict=True):
        assert own.extra_kv.tokens.shape == (num_tokens, 24)
        x = prepended(block, x, own.extra_kv.tokens)
    expected = theirs.neck(x.permute(0, 3, 1, 2))
    assert (ours(images).features - expected).abs().max() < 1e-10 * expected.abs().max()
    assert (theirs(images) - expected).abs().max() > 1e-3 * expected.abs().max(), "the prompts say nothing"


@torch.no_grad()
def test_all_windows_see_the_same_prompts(mini: str, roughen: Callable) -> None:
    block: Block = roughen(build(mini)).image_encoder.blocks[0]
    assert block.window == 3
    tile = torch.randn(1, 3, 3, 32, generator=torch.Generator().manual_seed(1))
    alone, tiled = block(tile)[0], block(tile.repeat(1, 2, 2, 1))[0]
    assert torch.allclose(tiled, alone.repeat(1, 2, 2, 1), atol=1e-5)
    block.extra_kv.tokens += torch.linspace(-1, 1, 32)
    assert ((block(tile.repeat(1, 2, 2, 1))[0] - tiled).abs().amax(-1) > 1e-4).all()


def test_initial_values_and_count() -> None:
    with torch.device("meta"):
        model = create("vpt").build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": 3_997_056, "total": 640_670_416 + 12 * 32 * 1280}

    prompts = [block.extra_kv.tokens for block in build("tiny").image_encoder.blocks]
    bound = math.sqrt(6 / (3 * 16 * 16 + 192))
    values = torch.stack(prompts).detach()
    assert values.shape == (12, 12, 192) and len({p.sum().item() for p in prompts}) == 12
    assert 0.99 * bound < values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_only_the_prompts_and_the_decoder_are_trained(mini: str) -> None:
    trained = {name for name in build(mini).trainable() if not name.startswith("mask_decoder.")}
    assert trained == {f"image_encoder.blocks.{i}.extra_kv.tokens" for i in range(3)}
