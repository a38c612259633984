"""Mean attention distance: closed forms, what counts, memory, and the weights of segment_anything and timm."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.inside import attention_distance, encoders
from analysis.inside.attention_distance import (
    Asked,
    distances,
    farthest_distance,
    layer_distances,
    uniform_distance,
)
from analysis.inside.encoders import About, SamEncoder, VitEncoder
from methods.base import Context
from methods.compose import create
from methods.sam.encoder import ImageEncoder
from methods.sam.sizes import Size

SHARP = 1e4


def far(side: int) -> np.ndarray:
    """(tokens, tokens) distances, one by one."""
    places = list(itertools.product(range(side), repeat=2))
    return np.array([[math.dist(a, b) for b in places] for a in places])


def asked(side: int, *, maps: int = 1, heads: int = 1, loose: int = 0, **more) -> Asked:
    """All scores are zero but for what ``more`` adds."""
    tokens = side * side
    return Asked(side, torch.zeros(maps, heads, tokens, 2), torch.zeros(maps, heads, tokens + loose, 2), **more)


def looks_at(side: int, row: torch.Tensor, column: torch.Tensor) -> Asked:
    """Every query of the grid gives all its attention to one key, (side, side) each."""
    terms = [SHARP * torch.nn.functional.one_hot(to, side).float().reshape(1, 1, -1, side) for to in (row, column)]
    return asked(side, by_row=terms[0], by_column=terms[1])


@given(side=st.integers(1, 7))
def test_uniform_attention_is_the_mean_distance_of_all_pairs(side):
    expected = far(side).mean()
    assert float(layer_distances(asked(side))[0, 0]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert uniform_distance(side) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert far(side).max() == pytest.approx(farthest_distance(side))


@given(side=st.integers(1, 6))
def test_a_token_that_looks_at_itself_has_the_distance_zero_exactly(side):
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    assert layer_distances(looks_at(side, row, column))[0, 0] == 0


def test_a_token_that_looks_at_its_right_neighbour():
    side = 5
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    neighbour = looks_at(side, row, (column + 1).clamp(max=side - 1))
    assert float(layer_distances(neighbour)[0, 0]) == pytest.approx((side - 1) / side)
    corner = looks_at(side, torch.zeros_like(row), torch.zeros_like(column))
    assert float(layer_distances(corner)[0, 0]) == pytest.approx(far(side)[0].mean(), rel=1e-6)


def test_tokens_without_a_place_are_left_out_and_their_weight_is_told():
    side, loose = 3, 4
    query, key = torch.ones(1, 1, 9, 1), torch.zeros(1, 1, 9 + loose, 1)
    key[:, :, 9:] = math.log(3)
    distance, padding, elsewhere = layer_distances(Asked(side, query, key))[0].tolist()
    assert distance == pytest.approx(far(side).mean(), rel=1e-6)
    assert padding == 0
    assert elsewhere == pytest.approx(3 * loose / (9 + 3 * loose), rel=1e-6)
    key[:, :, 9:] = SHARP
    distance, _, elsewhere = layer_distances(Asked(side, query, key))[0].tolist()
    assert (distance, elsewhere) == (pytest.approx(far(side).mean(), rel=1e-6), 1)


def test_padding_neither_asks_nor_is_counted_and_its_weight_is_told():
    real = torch.tensor([[True] * 9, [True, True, False] * 3])
    left = real[1].numpy()
    full, part = far(3), far(3)[np.ix_(left, left)]
    distance, padding, loose = layer_distances(asked(3, maps=2, real=real))[0].tolist()
    assert distance == pytest.approx((full.mean(1).sum() + part.mean(1).sum()) / 15, rel=1e-6)
    assert padding == pytest.approx(6 * (3 / 9) / 15, rel=1e-6)
    assert loose == 0
    assert uniform_distance(3, real) == pytest.approx(distance, rel=1e-6)


def test_numbers_do_not_depend_on_the_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 16, size, generator=generator) for size in (8, 4, 4)]
    key = torch.randn(2, 3, 18, 8, generator=generator)
    one = Asked(4, parts[0], key, parts[1], parts[2], torch.rand(2, 16, generator=generator) > 0.3)
    whole = layer_distances(one)
    monkeypatch.setattr(attention_distance, "CHUNK", 5 * 2 * 18)
    torch.testing.assert_close(layer_distances(one), whole, rtol=1e-6, atol=1e-7)


def test_no_tensor_is_larger_than_a_chunk(monkeypatch):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), options=None):
            made = function(*given, **(options or {}))
            sizes.append(made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    side, heads = 24, 4
    tokens = side * side
    one = Asked(side, *(torch.randn(1, heads, tokens, width) for width in (8, 8, side, side)))
    monkeypatch.setattr(attention_distance, "CHUNK", tokens * 50)
    with Watch():
        layer_distances(one)
    assert max(sizes) <= tokens * 50 < heads * tokens * tokens


def reference_distances(weights: torch.Tensor, real: np.ndarray, side: int) -> float:
    """A head's mean distance from weights (maps, tokens, tokens), padding left out, with no shared code."""
    total, queries = 0.0, 0
    for one, inside in zip(weights.double().numpy(), real, strict=True):
        kept = one[np.ix_(inside, inside)]
        total += ((kept / kept.sum(1, keepdims=True)) * far(side)[np.ix_(inside, inside)]).sum()
        queries += inside.sum()
    return total / queries


@pytest.fixture(scope="module")
def theirs() -> ImageEncoderViT:
    """segment_anything's encoder: a grid of 5 tokens in windows of 3, the last block over the whole image."""
    torch.manual_seed(3)
    encoder = ImageEncoderViT(
        img_size=80, embed_dim=32, depth=3, num_heads=4, out_chans=16, use_rel_pos=True, window_size=3,
        global_attn_indexes=(2,), norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    for name, table in encoder.named_parameters():
        torch.nn.init.normal_(table, std=0.6 if "rel_pos" in name else 0.2)
    return encoder.eval()


class Ours(torch.nn.Module):
    """The same weights in this project's encoder."""

    def __init__(self, theirs: ImageEncoderViT) -> None:
        super().__init__()
        size = Size(width=32, depth=3, heads=4, global_blocks=(2,), window=3, decoder_width=16, native=80)
        self.image_encoder = ImageEncoder(size, 80)
        self.image_encoder.load_state_dict(theirs.state_dict())

    def encode(self, image: torch.Tensor):
        return self.image_encoder(image)


def test_distances_are_those_of_segment_anythings_own_attention(theirs):
    torch.manual_seed(4)
    image = torch.randn(1, 3, 80, 80)
    weights: dict[int, torch.Tensor] = {}

    def attend(layer, module, given, made):
        (x,) = given
        maps, height, width, channels = x.shape
        qkv = module.qkv(x).reshape(maps, height * width, 3, 4, channels // 4).permute(2, 0, 3, 1, 4)
        q, k, _ = qkv.reshape(3, maps * 4, height * width, channels // 4).unbind(0)
        scores, size = (q * module.scale) @ k.transpose(-2, -1), (height, width)
        scores = add_decomposed_rel_pos(scores, q, module.rel_pos_h, module.rel_pos_w, size, size)
        weights[layer] = scores.softmax(-1).reshape(maps, 4, height * width, -1)

    handles = [
        block.attn.register_forward_hook(lambda m, g, o, layer=layer: attend(layer, m, g, o))
        for layer, block in enumerate(theirs.blocks)
    ]
    encoder = SamEncoder(About("ours", "ours", "sam", 80, "none", "random"), Ours(theirs))
    with torch.no_grad():
        theirs(image)
        found = distances(encoder, image)
    for handle in handles:
        handle.remove()
    grid = np.pad(np.ones((5, 5), bool), (0, 1)).reshape(2, 3, 2, 3).transpose(0, 2, 1, 3).reshape(4, 9)
    for layer in range(3):
        side, real = (3, grid) if layer < 2 else (5, np.ones((1, 25), bool))
        for head in range(4):
            assert found[layer, head, 0] == pytest.approx(
                reference_distances(weights[layer][:, head], real, side), rel=1e-4
            )
        padded = sum(float(weights[layer][i, 0][real[i]][:, ~real[i]].sum()) for i in range(len(real))) / 25
        assert found[layer, 0, 1] == pytest.approx(padded, rel=1e-4)
        assert (padded > 0) == (layer < 2)
    assert found[:2, :, 0].max() < farthest_distance(3) < farthest_distance(5)
    assert not found[..., 2].any()


def test_distances_are_those_of_timms_own_attention_without_its_class_token():
    torch.manual_seed(5)
    vit = timm.models.VisionTransformer(
        img_size=48, patch_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=0
    ).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    image, weights = torch.rand(1, 3, 48, 48) * 255, []
    encoder = VitEncoder(About("vit", "vit", "mae", 48, "none", "random"), vit)
    with torch.no_grad():
        found = distances(encoder, image)
        for block in vit.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, given, made: weights.append(made))
        encoder(image)
    for layer, head in itertools.product(range(2), range(3)):
        patches = weights[layer][:, head, 1:, 1:]
        expected = reference_distances(patches, np.ones((1, 9), bool), 3)
        assert found[layer, head, 0] == pytest.approx(expected, rel=1e-4)
        assert found[layer, head, 2] == pytest.approx(float(weights[layer][0, head, 1:, 0].mean()), rel=1e-4)
    assert not found[..., 1].any()


@pytest.mark.parametrize("name", ["lora", "conv_lora", "vpt", "sam_adapter", "lst"])
def test_watching_changes_no_bit_of_what_a_model_computes(name):
    model = create(name, {}).build(Context(backbone="tiny", checkpoint="none", image_size=80)).eval()
    image = torch.randint(0, 256, (1, 3, 80, 80), dtype=torch.uint8)
    encoder = SamEncoder(About(name, name, name, 80, "none", "random"), model)
    made = []
    model.image_encoder.neck.register_forward_hook(lambda module, given, out: made.append(out))
    with torch.no_grad():
        encoder(image)
        found = distances(encoder, image)
        encoder(image)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert found.shape == (12, 3, 3)
    assert (found[..., 2] > 0).all() == (name == "vpt")
    windowed = np.array(encoder.about.windows) > 0
    assert (found[windowed, :, 1] > 0).all() and not found[~windowed, :, 1].any()


def test_prompts_of_vpt_take_the_weight_that_a_plain_softmax_gives_them():
    model = create("vpt", {"num_tokens": 5}).build(Context(backbone="tiny", checkpoint="none", image_size=64)).eval()
    encoder = SamEncoder(About("vpt", "vpt", "vpt", 64, "none", "random"), model)
    block, given = model.image_encoder.blocks[2], []
    with torch.no_grad():
        block.extra_kv.tokens.normal_(std=2)
        block.attn.register_forward_hook(lambda module, args, made: given.append(args))
        image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        found = distances(encoder, image)[2]
        tokens, extra = given[0]
        block.attn.rel_pos_h.zero_(), block.attn.rel_pos_w.zero_()
        plain = layer_distances(encoder.asked(2, given[0]))
        project = block.attn.qkv
        query = project(tokens.reshape(16, -1))[:, :192].reshape(16, 3, 64)
        key = torch.cat([project(tokens.reshape(16, -1)), project(extra)])[:, 192:384].reshape(21, 3, 64)
        weights = (torch.einsum("qhc,khc->hqk", query, key) / 8).softmax(-1)
    assert found[:, 2].min() > 0
    np.testing.assert_allclose(plain[:, 2], weights[..., 16:].sum(-1).mean(-1), rtol=1e-4)
    for head in range(3):
        expected = reference_distances(weights[head : head + 1, :, :16], np.ones((1, 16), bool), 4)
        assert float(plain[head, 0]) == pytest.approx(expected, rel=1e-4)


def test_half_precision_is_near():
    encoder = encoders.sam("tiny", "auto", 128)
    image = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        full = distances(encoder, image)
        with torch.autocast("cpu", torch.bfloat16):
            half = distances(encoder, image)
    assert half.dtype == np.float64
    np.testing.assert_allclose(half[..., 0], full[..., 0], atol=0.25)
    assert not np.array_equal(half, full)
