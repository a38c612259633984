"""TransLab: boundaries and losses against loops over pixels, its attention, its count, and training on real streets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Context, create
from methods.base import Output, TaskLoss
from methods.complete import Answers
from methods.randomness import image_keys
from methods.translab import BoundaryAttention, BoundaryStream, Pyramid, RegularStream, boundaries, dice_loss

RELEASED = 42_195_929 - 2_049_000  # three classes, without the backbone's classifier


def context(classes: int = 1, image_size: int = 64) -> Context:
    return Context(classes, image_size=image_size, checkpoint="none")


def test_the_count_is_the_released_models() -> None:
    with torch.device("meta"):
        counts = [create("translab").build(context(classes)).count()["trainable"] for classes in (1, 3)]
    assert counts == [create("translab").added_parameters(context(classes)) for classes in (1, 3)]
    assert counts[1] == RELEASED


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 12), st.integers(2, 12))
def test_a_boundary_is_what_sees_another_label_nearby(seed: int, reach: int, height: int, width: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.kron(random.choice([0, 0, 0, 1, 2, 255], (1, height, width)), np.ones((1, 2, 2))).astype(np.uint8)
    wanted = np.zeros(labels.shape, bool)
    for _, row, column in np.argwhere(labels != 255):
        window = labels[0, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        wanted[0, row, column] = len(set(window.flat) - {255}) > 1
    assert np.array_equal(boundaries(torch.from_numpy(labels), reach).numpy(), wanted)


@pytest.mark.parametrize(("image_size", "side", "thick"), [(64, 64, 8), (96, 64, 12), (64, 128, 4), (64, 512, 2)])
def test_an_edge_is_as_thick_as_at_the_networks_side(image_size: int, side: int, thick: int) -> None:
    with torch.device("meta"):
        model = create("translab", {"side": side}).build(context(image_size=image_size))
    halves = torch.arange(image_size).expand(1, image_size, -1) >= image_size // 2
    edge = boundaries(halves, model.reach)[0, 0]
    assert edge.sum() == thick
    assert edge[image_size // 2 - thick // 2 : image_size // 2 + thick // 2].all()


def test_dice_is_of_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 7, generator=generator)
    truth, counted = (torch.rand(2, 6, 7, generator=generator) < 0.5 for _ in range(2))
    truth[1] = False
    for index, found in enumerate(dice_loss(logits, truth, counted)):
        both = squares = 0.0
        for logit, true, counts in zip(*(x[index].flatten().tolist() for x in (logits, truth, counted)), strict=True):
            p = 1 / (1 + np.exp(-logit))
            both, squares = both + counts * p * true, squares + counts * (p * p + true)
        assert found.item() == pytest.approx(1 - (2 * both + 1) / (squares + 1), rel=1e-5)
    sure = torch.where(truth, 50.0, -50.0)
    assert dice_loss(sure, truth, counted).abs().max() < 1e-6


@pytest.mark.parametrize("classes", [1, 4])
def test_the_loss_is_of_classes_and_boundaries(classes: int, task_loss: TaskLoss) -> None:
    with torch.device("meta"):
        model = create("translab", {"side": 64, "boundary_weight": 3.0}).build(context(classes))
    generator = torch.Generator().manual_seed(1)
    logits, boundary = (torch.randn(2, channels, 64, 64, generator=generator) for channels in (classes, 1))
    masks = torch.randint(0, max(2, classes), (2, 4, 4), generator=generator, dtype=torch.uint8)
    masks = masks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    if classes > 1:
        masks[0, :20] = 255
    counted = masks != 255
    found = model.loss(Answers(logits, others=(boundary,)), model.targets(masks), task_loss)
    edges = boundaries(masks, 4)
    assert 0 < edges.float().mean() < 1
    for index in range(2):
        if classes > 1:
            own = F.cross_entropy(logits[index : index + 1], masks[index : index + 1].long(), ignore_index=255)
        else:
            own = task_loss(Output(logits), model.targets(masks))[index]
        dice = dice_loss(boundary[:, 0], edges, counted)[index]
        assert found[index].item() == pytest.approx((own + 3 * dice).item(), rel=1e-5)


def test_attention_weighs_by_the_boundary() -> None:
    block = BoundaryAttention(32).eval()
    generator = torch.Generator().manual_seed(2)
    features, boundary = torch.randn(1, 32, 8, 8, generator=generator), torch.rand(1, 1, 8, 8, generator=generator)
    mixed = block.mix(torch.cat([features, torch.einsum("bchw,bohw->bchw", features, boundary)], 1))
    narrow = (block.weigh[0].weight[:, :, 0, 0] @ mixed[0].mean((1, 2)) + block.weigh[0].bias).clamp(min=0)
    weights = torch.sigmoid(block.weigh[2].weight[:, :, 0, 0] @ narrow + block.weigh[2].bias)
    torch.testing.assert_close(block(features, boundary)[0], mixed[0] * weights[:, None, None])
    assert torch.equal(block(features, torch.zeros(1, 1, 2, 2)), block(features, torch.zeros(1, 1, 8, 8)))


def levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(256, 16), (512, 8), (2048, 4)]
    return [torch.randn(1, channels, side, side, generator=generator) for channels, side in shapes]


def up(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


@torch.no_grad()
def test_a_pyramid_sees_rates_6_12_and_18_and_the_mean() -> None:
    pyramid, (_, _, x) = Pyramid(2048, 256).eval(), levels()
    parts = [pyramid.branches[0](x)]
    for branch, rate in zip(list(pyramid.branches)[1:], (6, 12, 18), strict=True):
        each = F.conv2d(x, branch[0].weight, padding=rate, dilation=rate, groups=2048)
        parts.append(nn.Sequential(*list(branch)[1:])(each))
    parts.append(pyramid.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, 4, 4))
    torch.testing.assert_close(pyramid(x), pyramid.join(torch.cat(parts, 1)))


@torch.no_grad()
def test_the_streams_join_levels_as_released() -> None:
    boundary, regular, (fine, middle, coarse) = BoundaryStream().eval(), RegularStream(5).eval(), levels()
    b = boundary.answer(torch.cat([up(boundary.pyramid(coarse), 16), boundary.reduce(fine)], 1))
    torch.testing.assert_close(boundary([fine, middle, coarse]), b)
    b = b.sigmoid()
    f, m, c = (attend(x, b) for attend, x in zip(regular.attend, (fine, middle, coarse), strict=True))
    x = torch.cat([up(regular.pyramid(c), 8), regular.reduce_middle(m)], 1)
    assert x.shape[1] == 256 + 24
    x = regular.join(regular.attend_joined[0](x, b))
    x = torch.cat([up(x, 16), regular.reduce_fine(f)], 1)
    assert x.shape[1] == 256 + 24 + 48
    found = regular([fine, middle, coarse], b)
    assert found.shape == (1, 5, 16, 16)
    torch.testing.assert_close(found, regular.answer(regular.attend_joined[1](x, b)))


@pytest.mark.parametrize(("parameters", "side"), [({"side": 96}, 96), ({}, 512)])
def test_levels_are_at_strides_4_8_and_16_of_its_own_side(parameters: dict[str, int], side: int) -> None:
    model = create("translab", parameters).build(context()).eval()
    with torch.no_grad():
        embedding = model.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        output = model.decode(embedding)
    shapes = [tuple(level.shape[1:]) for level in (embedding.features, *embedding.taps)]
    assert shapes == [(c, side // stride, side // stride) for c, stride in ((256, 4), (512, 8), (2048, 16))]
    assert [tuple(answer.shape) for answer in (output.masks, *output.others)] == [(1, 1, 64, 64)] * 2


def test_it_learns_real_streets(test_data: Path) -> None:
    images, masks = streets(test_data)
    model = create("translab", {"side": 64}).build(context(11)).train()
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for step in range(5):
        output = model(images, image_keys(0, step, [0, 1]))
        loss = model.loss(output, model.targets(masks), lambda *_: pytest.fail("the regime's loss was asked")).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = model(images)
    assert model.loss(output, model.targets(masks), lambda *_: None).isfinite().all()


def streets(test_data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Two CamVid frames of 64 pixels a side; their labels 0 to 10, and 255 for void."""
    from PIL import Image

    folder = test_data / "camvid_val_101" / "CamVid"
    names = sorted(path.name for path in (folder / "val").iterdir())[::60][:2]
    picture, truth = (
        np.stack([np.asarray(Image.open(folder / kind / name).resize((64, 64), 0)) for name in names])
        for kind in ("val", "valannot")
    )
    masks = torch.from_numpy(np.where(truth > 10, 255, truth).astype(np.uint8))
    assert masks[masks != 255].unique().numel() > 4
    return torch.from_numpy(picture).permute(0, 3, 1, 2), masks
