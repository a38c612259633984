"""TransFuse-S: its modules against the paper's formulas, its count, its loss, and a training on real lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bench.losses import structure
from methods import Context, create
from methods.base import Output
from methods.dropout import KeyedDropout
from methods.randomness import image_keys
from methods.transfuse import AttentionGate, BiFusion, Bottleneck, TransFuseModel

RELEASED = 26_248_725
SIDE = 64  # of images and of what the network works on, for speed


@pytest.fixture(scope="module")
def system() -> TransFuseModel:
    return create("transfuse", {"side": SIDE}).build(Context(checkpoint="none", image_size=SIDE)).eval()


@pytest.fixture
def isic(test_data: Path) -> tuple[Tensor, Tensor]:
    """Four pairs: uint8 images (4, 3, 64, 64) and masks (4, 64, 64)."""
    folder = test_data / "isic2017_512"
    images, masks = [], []
    for path in sorted((folder / "ISIC-2017_Test_v2_Part1_GroundTruth").glob("*.png"))[:4]:
        picture = folder / "ISIC-2017_Test_v2_Data" / f"{path.stem.removesuffix('_segmentation')}.jpg"
        images.append(np.asarray(Image.open(picture).convert("RGB").resize((SIDE, SIDE))))
        masks.append(np.asarray(Image.open(path).convert("L").resize((SIDE, SIDE))) > 127)
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(np.stack(masks)).to(torch.uint8)


def task_loss(output: Output, target: Tensor) -> Tensor:
    return structure(output.masks, target)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_fusion_is_the_bottleneck_of_places_channels_and_product() -> None:
    fusion = BiFusion(6, 8, 4, reduction=2).eval()
    g, t = noise(2, 6, 5, 5), noise(2, 8, 5, 5, seed=1)
    _, squeeze, _, excite, _ = fusion.channels
    mean = t.mean((2, 3))
    inner = (mean @ squeeze.weight[:, :, 0, 0].T + squeeze.bias).clamp(min=0)
    channel = (inner @ excite.weight[:, :, 0, 0].T + excite.bias).sigmoid()
    places = fusion.places[0](torch.stack([g.max(1).values, g.sum(1) / 6], 1)).sigmoid()
    b = fusion.product(fusion.project_convolved(g) * fusion.project_attended(t))
    wanted = fusion.join(torch.cat([g * places, t * channel[:, :, None, None], b], 1))
    assert wanted.shape == (2, 4, 5, 5)
    torch.testing.assert_close(fusion(g, t), wanted)


@torch.no_grad()
def test_a_gate_weighs_each_pixel_by_one_number_between_0_and_1() -> None:
    gate, x, guidance = AttentionGate(6, 10).eval(), noise(2, 6, 4, 4), noise(2, 10, 4, 4, seed=1)
    share = gate(x, guidance) / x
    torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=1e-4, atol=1e-5)
    assert share.min() > 0 and share.max() < 1 and share.std() > 0
    assert not torch.equal(gate(x, guidance), gate(x, -guidance))


@torch.no_grad()
def test_the_transformer_is_the_first_eight_blocks_without_class_token(system: TransFuseModel) -> None:
    tokens, images = system.tokens, noise(1, 3, SIDE, SIDE)
    assert len(tokens.blocks) == 8 and tokens.positions.shape == (1, 16, 384)
    conv = tokens.patches.proj
    cells = [images[0, :, y : y + 16, x : x + 16].flatten() for y in range(0, SIDE, 16) for x in range(0, SIDE, 16)]
    x = torch.stack(cells) @ conv.weight.flatten(1).T + conv.bias + tokens.positions[0]
    for block in tokens.blocks:
        x = block(x[None])[0]
    wanted = F.layer_norm(x, (384,), tokens.norm.weight, tokens.norm.bias, 1e-6)
    found = tokens(images)
    assert found.shape == (1, 384, 4, 4)
    for index in range(16):
        torch.testing.assert_close(found[0, :, index // 4, index % 4], wanted[index], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_bottleneck_norms_before_each_convolution() -> None:
    layer, x = Bottleneck(6, 8).eval(), noise(2, 6, 5, 5)
    for norm in layer.layers[::3]:
        norm.running_mean += 0.3
    y = x
    for norm, _, conv in zip(layer.layers[::3], layer.layers[1::3], layer.layers[2::3], strict=True):
        y = ((y - 0.3) / (1 + norm.eps) ** 0.5).clamp(min=0)
        y = F.conv2d(y, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    assert [tuple(conv.weight.shape) for conv in layer.layers[2::3]] == [(4, 6, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)]
    torch.testing.assert_close(layer(x), y + F.conv2d(x, layer.shortcut.weight, layer.shortcut.bias))


def test_the_count_is_the_released_models() -> None:
    method = create("transfuse")
    with torch.device("meta"):
        model = method.build(Context(checkpoint="none"))
    count = model.count()["trainable"]
    assert count == model.count()["total"] == method.added_parameters(Context())
    more_patches = (14 * 14 - 12 * 16) * 384
    class_token = 384
    assert count - more_patches + class_token == RELEASED
    assert method.idle_parameters(Context()) == class_token
    assert pytest.approx(1e6 * method.paper_trainable_m, rel=0.003) == RELEASED


def test_whole_channels_are_dropped_by_the_images_keys(isic: tuple[Tensor, Tensor]) -> None:
    model = create("transfuse", {"side": SIDE}).build(Context(checkpoint="none", image_size=SIDE))
    layers = [layer for layer in model.modules() if isinstance(layer, KeyedDropout)]
    assert sorted(layer.p for layer in layers) == [0.1] * 3 + [0.2] * 6, "behind three fusions and six branches"
    assert len({layer.salt for layer in layers}) == 9 and all(layer.whole_channels for layer in layers)
    keys = torch.tensor([5, 6])
    for layer in layers:
        layer.random_keys = keys
        kept = layer.train()(torch.ones(2, 400, 3, 3))
        assert torch.equal(kept, kept[..., :1, :1].expand_as(kept)), "a channel is dropped as a whole"
        share = (kept == 0).float().mean((1, 2, 3))
        assert (share - layer.p).abs().max() < 0.1 and not torch.equal(kept[0], kept[1])
        torch.testing.assert_close(kept.max(), torch.tensor(1 / (1 - layer.p)))
    images, _ = isic
    first, again = (model.train().encode(images, torch.arange(4)).features for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, model.encode(images, torch.arange(4) + 9).features)


@torch.no_grad()
def test_at_its_own_side_it_answers_at_strides_4_4_and_16() -> None:
    model = create("transfuse").build(Context(checkpoint="none", image_size=SIDE)).eval()
    assert model.side == 224 and model.random_backbone
    embedding = model.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    levels = (embedding.features, *embedding.taps)
    assert [tuple(x.shape[1:]) for x in levels] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (384, 14, 14)]
    assert [tuple(answer.shape) for answer in model.answers(levels)] == [(1, 1, s, s) for s in (56, 56, 14)]
    output = model.decode(embedding)
    assert [mask.shape for mask in (output.masks, *output.others)] == [(1, 1, SIDE, SIDE)] * 3


@torch.no_grad()
def test_the_second_answer_is_the_transformers_and_the_third_the_coarsest_fusions(system: TransFuseModel) -> None:
    levels = list(system.features(noise(1, 3, SIDE, SIDE)))
    before = system.answers(levels)
    finest = system.answers([levels[0] + 1, *levels[1:]])
    assert [torch.equal(*pair) for pair in zip(before, finest, strict=True)] == [False, True, True]
    coarsest = system.answers([*levels[:2], levels[2] + noise(*levels[2].shape), levels[3]])
    assert [torch.equal(*pair) for pair in zip(before, coarsest, strict=True)] == [False, True, False]


@pytest.mark.parametrize("side", [16, 72])
def test_a_side_is_a_number_of_patches(side: int) -> None:
    with pytest.raises(ValueError, match="side"):
        create("transfuse", {"side": side})


@torch.no_grad()
def test_the_loss_weighs_the_three_answers(system: TransFuseModel, isic: tuple[Tensor, Tensor]) -> None:
    images, masks = isic
    output, target = system(images), system.targets(masks)
    # PyTorch's pooling in place of the harness's window sums
    weight = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    wanted = torch.zeros(4)
    for share, logits in zip((0.5, 0.3, 0.2), (output.masks, *output.others), strict=True):
        p = logits.sigmoid()
        both, either = (p * target * weight).sum((1, 2, 3)), ((p + target - p * target) * weight).sum((1, 2, 3))
        bce = -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits)).mean((1, 2, 3))
        wanted += share * (bce + 1 - (both + 1) / (either + 1))
    torch.testing.assert_close(system.loss(output, target, task_loss), wanted, rtol=1e-4, atol=1e-4)


def test_real_lesions_are_learnt_and_every_parameter_takes_part(isic: tuple[Tensor, Tensor]) -> None:
    images, masks = isic
    model = create("transfuse", {"side": SIDE}).build(Context(checkpoint="none", image_size=SIDE)).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    silent, losses = set(model.trainable()), []
    for step in range(6):
        optimiser.zero_grad()
        loss = model.loss(model(images, image_keys(0, step, range(4))), model.targets(masks), task_loss)
        assert loss.shape == (4,)
        loss.mean().backward()
        silent -= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        losses.append(loss.mean().item())
    assert not silent
    assert losses[-1] < 0.9 * losses[0]
