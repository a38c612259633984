"""LinkNet34MTL: its decoders, its loss, its count, and a training on real roads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods import Context, create
from methods.base import TaskLoss
from methods.complete import Answers
from methods.linknet34mtl import Decoder, soft_iou_loss
from methods.systems.orientation import BACKGROUND, orientations


def context(image_size: int) -> Context:
    return Context(image_size=image_size, checkpoint="none")


def test_the_count_is_the_published_one_but_for_one_road_class() -> None:
    with torch.device("meta"):
        model = create("linknet34mtl").build(context(64))
        second = Decoder(2)
    total, decoder = (sum(p.numel() for p in module.parameters()) for module in (model.segmentation, second))
    assert model.count()["trainable"] - total + decoder == 22_004_903
    assert model.count()["trainable"] == 22_004_903 - 129


@pytest.mark.parametrize(("image_size", "side"), [(64, None), (80, None), (64, 96)])
def test_orientation_is_answered_in_training_only(image_size: int, side: int | None) -> None:
    model = create("linknet34mtl", {"side": side}).build(context(image_size))
    assert model.random_backbone
    images = torch.randint(0, 256, (2, 3, image_size, image_size), dtype=torch.uint8)
    trained = model.train()(images)
    assert trained.masks.shape == (2, 1, image_size, image_size)
    assert [tuple(other.shape) for other in trained.others] == [(2, BACKGROUND + 1, image_size, image_size)]
    assert model.eval()(images).others == ()


def test_a_decoder_adds_each_stage_to_what_comes_from_the_coarser_one() -> None:
    decoder, generator = Decoder(3).eval(), torch.Generator().manual_seed(0)
    sides, widths = (15, 8, 4, 2), (64, 128, 256, 512)  # of an image of 60 pixels
    stages = [torch.randn(1, w, n, n, generator=generator) for w, n in zip(widths, sides, strict=True)]
    to64, from128, from256, from512 = decoder.blocks
    x = from512(stages[3]) + stages[2]
    x = from256(x) + stages[1]
    x = from128(x)[:, :, :15, :15] + stages[0]
    wanted = decoder.head(to64(x))
    assert wanted.shape == (1, 3, 60, 60)
    assert torch.equal(decoder(stages), wanted)


def test_soft_iou_is_the_mean_of_both_classes_by_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 9, 9, generator=generator)
    target = (torch.rand(3, 9, 9, generator=generator) < 0.3).float()
    target[2] = 0
    found = soft_iou_loss((logits[:, 1] - logits[:, 0]).unsqueeze(1), target.unsqueeze(1))
    likely, true = logits.softmax(1).numpy(), np.stack([1 - target.numpy(), target.numpy()], 1)
    for index in range(3):
        ious = []
        for name in range(2):
            p, t = likely[index, name], true[index, name]
            ious.append((p * t).sum() / (p + t - p * t).sum())
        assert found[index].item() == pytest.approx(1 - np.mean(ious), abs=1e-6)


def test_the_loss_is_soft_iou_and_weighted_orientation(task_loss: TaskLoss) -> None:
    model = create("linknet34mtl", {"orientation_weight": 0.3}).build(context(64)).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 20:25] = 1
    output, target = model(images), model.targets(masks)
    found = model.loss(output, target, task_loss)
    bins = orientations(masks)
    assert set(bins[0].unique().tolist()) - {BACKGROUND} <= {17, 18} and (bins[1] == BACKGROUND).all()
    iou = soft_iou_loss(output.masks, target)
    for index in range(2):
        second = F.cross_entropy(output.others[0][index : index + 1], bins[index : index + 1].long())
        assert found[index].item() == pytest.approx((iou[index] + 0.3 * second).item(), rel=1e-5)
    assert torch.equal(model.loss(Answers(output.masks), target, task_loss), iou)


def test_several_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="linknet34mtl"):
        create("linknet34mtl").build(Context(num_classes=3, image_size=64, checkpoint="none"))


def test_it_learns_real_roads(test_data: Path, task_loss: TaskLoss) -> None:
    from PIL import Image

    folder = test_data / "massachusetts_roads_3" / "valid"
    tile, truth = (Image.open(next((folder / part).glob("*.png"))) for part in ("sat", "map"))
    tile, truth = np.asarray(tile.convert("RGB")), np.asarray(truth.convert("L"))
    cells = [(slice(y, y + 64), slice(x, x + 64)) for y in range(0, 1024, 64) for x in range(0, 1024, 64)]
    cells = sorted(cells, key=lambda cell: truth[cell].mean())[-4:]
    images = torch.from_numpy(np.stack([tile[cell] for cell in cells])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([truth[cell] > 127 for cell in cells])).to(torch.uint8)
    model = create("linknet34mtl").build(context(64)).train()
    target, losses, first_task = model.targets(masks), [], []
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(11):
        output = model(images)
        loss = model.loss(output, target, task_loss).mean()
        losses.append(loss.item())
        first_task.append(soft_iou_loss(output.masks, target).mean().item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0] and first_task[-1] < 0.8 * first_task[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
