"""Our encoder and attention against segment_anything's own and against loops over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods.lora import LoRALinear
from methods.sam.attention import Attention
from methods.sam.build import resize_position_tables
from methods.sam.encoder import Block, ImageEncoder, partition, unpartition
from methods.sam.sizes import SIZES, Size

VIT_B_LIKE = Size(width=48, depth=4, heads=3, global_blocks=(1, 3), window=14, decoder_width=32, native=224)

each_size = pytest.mark.parametrize(
    ("size", "side"),
    [
        pytest.param(SIZES["tiny"], 128, id="tiny, whole windows"),
        pytest.param(SIZES["tiny"], 144, id="tiny, padded windows"),
        pytest.param(VIT_B_LIKE, 224, id="vit_b-like, whole windows"),
        pytest.param(VIT_B_LIKE, 256, id="vit_b-like, padded windows"),
    ],
)


def pixels(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_close(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Equal up to ``relative`` times the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def twins(size: Size, side: int, segment_anything: Callable, roughen: Callable) -> tuple[ImageEncoder, nn.Module]:
    """Our encoder and segment_anything's with the same rough weights."""
    theirs = roughen(segment_anything(size, side).image_encoder)
    ours = ImageEncoder(size, side)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@each_size
def test_equals_segment_anything(size: Size, side: int, segment_anything: Callable, roughen: Callable) -> None:
    ours, theirs = twins(size, side, segment_anything, roughen)
    with torch.no_grad():
        embedding = ours(pixels(side))
        assert_close(embedding.features, theirs(pixels(side)), 1e-5)
    assert embedding.aux_losses == {} and embedding.expert_counts is None


@each_size
def test_gradients_equal_segment_anything(size: Size, side: int, segment_anything: Callable, roughen: Callable) -> None:
    images, gradients = pixels(side, count=1).double(), []
    for encoder in twins(size, side, segment_anything, roughen):
        leaf = images.clone().requires_grad_()
        out = encoder.double()(leaf)
        out = out.features if isinstance(encoder, ImageEncoder) else out
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        gradients.append({"images": leaf.grad} | {name: p.grad for name, p in encoder.named_parameters()})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_close(ours[name], theirs[name], 1e-9)


@pytest.mark.parametrize("side", [128, 192, 336])
def test_at_another_size_equals_segment_anything_interpolating_as_it_runs(
    side: int, segment_anything: Callable, roughen: Callable
) -> None:
    theirs = roughen(segment_anything(VIT_B_LIKE, VIT_B_LIKE.native))
    state = resize_position_tables(theirs.state_dict(), VIT_B_LIKE, side)
    # segment_anything interpolates the relative tables when it runs, the absolute one it cannot.
    theirs.image_encoder.pos_embed = nn.Parameter(state["image_encoder.pos_embed"])
    ours = ImageEncoder(VIT_B_LIKE, side)
    prefix = "image_encoder."
    ours.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
    with torch.no_grad():
        assert_close(ours(pixels(side)).features, theirs.image_encoder(pixels(side)), 1e-5)


@pytest.mark.parametrize(("height", "width", "window"), [(6, 6, 3), (7, 4, 3), (2, 9, 4), (5, 5, 8)])
def test_windows_are_cut_row_by_row_and_put_together_again(height: int, width: int, window: int) -> None:
    x = torch.arange(2 * height * width * 3, dtype=torch.float32).view(2, height, width, 3) + 1
    windows = partition(x, window)
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    assert windows.shape == (2, rows * columns, window, window, 3)
    for index in range(rows * columns):
        top, left = window * (index // columns), window * (index % columns)
        inside = x[:, top : top + window, left : left + window]
        assert torch.equal(windows[:, index, : inside.shape[1], : inside.shape[2]], inside)
    assert windows.count_nonzero() == x.numel()
    assert torch.equal(unpartition(windows, height, width), x)


class Prompts(nn.Module):
    """Loose tokens (n, C) for every window."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(count, width))

    def forward(self) -> Tensor:
        return self.tokens


def attend(layer: Attention, x: Tensor, extra: Tensor) -> Tensor:
    """One map (H, W, C) and loose tokens (n, C), score by score and softmax by softmax."""
    height, width, channels = x.shape
    per_head = channels // layer.heads
    tokens = layer.qkv(torch.cat([x.flatten(0, 1), extra])).view(-1, 3, layer.heads, per_head)
    out = torch.zeros(height, width, layer.heads, per_head, dtype=x.dtype)
    for head in range(layer.heads):
        query, key, value = tokens[:, :, head].unbind(1)
        for place in range(height * width):
            row, column = divmod(place, width)
            scores = key @ query[place] / math.sqrt(per_head)
            for other in range(height * width):
                down, right = row - other // width, column - other % width
                scores[other] += query[place] @ layer.rel_pos_h[down + height - 1]
                scores[other] += query[place] @ layer.rel_pos_w[right + width - 1]
            out[row, column, head] = scores.softmax(0) @ value
    return layer.proj(out.flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_attention_equals_loops_over_tokens(extra: int, lead: tuple[int, ...], roughen: Callable) -> None:
    layer = roughen(Attention(12, 3, (3, 4)), deviation=0.5).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*lead, 3, 4, 12, generator=generator, dtype=torch.float64)
    loose = torch.randn(extra, 12, generator=generator, dtype=torch.float64)
    expected = torch.stack([attend(layer, one, loose) for one in x.view(-1, 3, 4, 12)]).view_as(x)
    assert_close(layer(x, loose if extra else None), expected, 1e-12)


@torch.no_grad()
def test_an_adapted_projection_adapts_the_loose_tokens_too(roughen: Callable) -> None:
    layer = Attention(12, 3, (3, 4))
    layer.qkv = LoRALinear(layer.qkv)
    roughen(layer, deviation=0.5).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, 12, generator=generator, dtype=torch.float64)
    loose = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    assert_close(layer(x, loose), attend(layer, x, loose), 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("window", [0, 2, 3])
def test_the_slots_of_a_block(window: int, roughen: Callable) -> None:
    block = Block(12, 3, window=window, grid=4)
    block.extra_kv = Prompts(2, 12)
    block.before_block, block.after_attention, block.after_mlp = (nn.Linear(12, 12) for _ in range(3))
    block.beside_attention, block.beside_mlp = (nn.Bilinear(12, 12, 12) for _ in range(2))
    roughen(block, deviation=0.5).double()
    x = torch.randn(1, 4, 4, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    entered = block.before_block(x)
    extra, tokens = block.norm1(block.extra_kv()), block.norm1(entered)
    windows = partition(tokens, window or 4)[0]
    attended = unpartition(torch.stack([attend(block.attn, one, extra) for one in windows])[None], 4, 4)
    halfway = entered + block.after_attention(attended) + block.beside_attention(entered, tokens)
    tokens = block.norm2(halfway)
    expected = halfway + block.after_mlp(block.mlp(tokens)) + block.beside_mlp(halfway, tokens)
    out, decisions = block(x)
    assert_close(out, expected, 1e-12)
    assert decisions == []
