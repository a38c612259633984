"""FDRNet: its decomposition, its consistency losses, its count, and a training on real shadows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from methods import Context, create
from methods.base import Embedding, TaskLoss
from methods.fdrnet import LEVELS, FDRNetModel
from methods.randomness import image_keys

RELEASED = 10_768_970
SIDE = 64  # of images and of what the network works on, for speed
KEYS = image_keys(0, 2, range(4))


def build(**parameters: object) -> FDRNetModel:
    return create("fdrnet", {"side": SIDE, **parameters}).build(Context(checkpoint="none", image_size=SIDE))


@pytest.fixture(scope="module")
def system() -> FDRNetModel:
    return build()


@pytest.fixture
def sbu(test_data: Path) -> tuple[Tensor, Tensor]:
    """Four quarters of a pair: uint8 images (4, 3, 64, 64) and masks (4, 64, 64)."""
    folder = test_data / "sbu_shadow_2" / "SBU-Test"
    path = sorted((folder / "ShadowImages").iterdir())[0]
    truth = next((folder / "ShadowMasks").glob(f"{path.stem}.*"))
    image = np.asarray(Image.open(path).convert("RGB").resize((2 * SIDE, 2 * SIDE)))
    mask = np.asarray(Image.open(truth).convert("L").resize((2 * SIDE, 2 * SIDE))) > 127
    cells = [(slice(y, y + SIDE), slice(x, x + SIDE)) for y in (0, SIDE) for x in (0, SIDE)]
    images = torch.tensor(np.stack([image[cell] for cell in cells])).permute(0, 3, 1, 2)
    return images, torch.tensor(np.stack([mask[cell] for cell in cells])).to(torch.uint8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_levels_are_every_second_block_of_the_backbone(system: FDRNetModel) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("tf_efficientnet_b3").eval()
    x, seen = noise(1, 3, SIDE, SIDE), []
    for index, block in enumerate(block for stage in whole.blocks for block in stage):
        block.register_forward_hook(lambda _, __, out, index=index: seen.append((index, out)))
    whole(x)
    found = system.eval().backbone(x)
    wanted = [out for index, out in seen if index % 2 == 0]
    assert len(seen) == 26 and len(wanted) == 13
    assert [level.shape[1] for level in found] == list(LEVELS)
    for level, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(level, other)


@torch.no_grad()
def test_both_kinds_of_features_have_unit_length_and_are_mixed_by_the_share(system: FDRNetModel) -> None:
    invariant, variant = system.eval().features(noise(2, 3, SIDE, SIDE))
    assert invariant.shape == variant.shape == (2, 32, SIDE // 2, SIDE // 2)
    for features in (invariant, variant):
        torch.testing.assert_close((features**2).sum(1), torch.ones(2, SIDE // 2, SIDE // 2))
    (logits,) = system.answers((invariant, variant))
    mixed = 0.4 * variant + 0.6 * invariant
    wanted = torch.einsum("bchw,c->bhw", mixed, system.head.weight[0, :, 0, 0]) + system.head.bias
    torch.testing.assert_close(logits[:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_the_count_is_the_released_models_without_what_takes_no_part() -> None:
    method = create("fdrnet")
    with torch.device("meta"):
        model, whole = method.build(Context(checkpoint="none")), timm.create_model("tf_efficientnet_b3")
    idle = (whole.blocks[-1][-1], whole.conv_head, whole.bn2)
    count = model.count()["trainable"]
    assert count + sum(p.numel() for module in idle for p in module.parameters()) == RELEASED
    assert count == model.count()["total"] == method.added_parameters(Context())
    assert pytest.approx(1e6 * method.paper_trainable_m, rel=1e-3) == RELEASED


@torch.no_grad()
def test_at_its_own_side_it_answers_at_stride_2() -> None:
    model = create("fdrnet").build(Context(checkpoint="none", image_size=SIDE)).eval()
    assert model.side == 512 and model.random_backbone
    embedding = model.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    assert embedding.features.shape == (1, 32, 256, 256)
    output = model.decode(embedding)
    assert output.masks.shape == (1, 1, SIDE, SIDE) and output.others == () and output.aux_losses == {}


def test_the_losses_compare_with_shifted_copies(sbu: tuple[Tensor, Tensor], task_loss: TaskLoss) -> None:
    images, masks = sbu
    model = build(invariance_weight=0.7, variance_weight=0.2, largest_shift=0.4).train()
    given: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    output = model(images, KEYS)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    plain, shifted = (x * std + mean for x in given)
    torch.testing.assert_close(plain, images / 255, rtol=1e-4, atol=1e-5)
    shift = []
    for before, after in zip(plain, shifted, strict=True):  # read off where nothing was cut
        inside = (after > 1e-4) & (after < 1 - 1e-4)
        shift.append((after - before)[inside].median())
        torch.testing.assert_close(after, (before + shift[-1]).clamp(0, 1), rtol=1e-4, atol=1e-4)
    shift = torch.stack(shift)
    assert shift.abs().max() <= 0.4 and shift.unique().numel() == 4 and shift.min() < 0 < shift.max()

    with torch.no_grad():  # in training mode: each pass takes its statistics from its own batch
        (invariant, _), (other, variant) = (model.features((x - mean) / std) for x in (plain, shifted))
        inv = (other - invariant).abs().flatten(1).mean(1)
        told = variant.mean((2, 3)) @ model.shift.weight[0] + model.shift.bias
    for name, wanted in (("invariance", inv), ("variance", (told - shift).abs())):
        torch.testing.assert_close(output.aux_losses[name].detach(), wanted, rtol=1e-3, atol=1e-4)
    target = model.targets(masks)
    wanted = task_loss(output, target) + 0.7 * output.aux_losses["invariance"] + 0.2 * output.aux_losses["variance"]
    torch.testing.assert_close(model.loss(output, target, task_loss), wanted)


def test_shifts_follow_the_keys_and_evaluation_has_none(system: FDRNetModel) -> None:
    images = (255 * torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    with torch.no_grad():
        one, same, other = (
            system.train()(images, keys).aux_losses["variance"] for keys in (KEYS, KEYS, image_keys(0, 1, range(4)))
        )
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert system(images).aux_losses == {}
        assert system.eval()(images, KEYS).aux_losses == {}


def test_features_without_the_shift_are_what_the_others_move_towards(system: FDRNetModel) -> None:
    shift = torch.zeros(2, 1)
    invariant, moved, variant = (noise(2, 32, 4, 4, seed=seed).requires_grad_() for seed in range(3))
    values = system.consistency(invariant, Embedding(moved, {}, taps=(variant,)), shift)
    sum(value.sum() for value in values.values()).backward()
    assert invariant.grad is None and moved.grad.any() and variant.grad.any()


def test_real_shadows_are_learnt_and_every_parameter_takes_part(
    sbu: tuple[Tensor, Tensor], task_loss: TaskLoss
) -> None:
    images, masks = sbu
    model = build().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    silent, losses = set(model.trainable()), []
    for step in range(8):
        optimiser.zero_grad()
        loss = model.loss(model(images, image_keys(0, step, range(4))), model.targets(masks), task_loss)
        assert loss.shape == (4,)
        loss.mean().backward()
        silent -= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        losses.append(loss.mean().item())
    assert not silent
    assert losses[-1] < 0.9 * losses[0], losses
