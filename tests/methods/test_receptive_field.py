"""The parts of PraNet and SINet-v2 against plain loops and the papers' formulas, and both systems as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.losses import structure
from methods.base import Context, Output
from methods.compose import create
from methods.systems.receptive_field import ConvNorm, PartialDecoder, ReceptiveField, ReverseAttentionModel

SYSTEMS = {"pranet": 32_547_319, "sinet_v2": 26_975_642}  # parameters of the released models
UNUSED = 2_049_000  # of those in the classifier that takes no part
SIDE = 64  # of images and of what the systems work on, for speed


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> ReverseAttentionModel:
    return create(request.param, {"side": SIDE}).build(Context(checkpoint="none", image_size=SIDE)).eval()


@pytest.fixture
def kvasir(test_data: Path) -> tuple[Tensor, Tensor]:
    """Four pairs: uint8 images (4, 3, 64, 64) and masks (4, 64, 64)."""
    folder = test_data / "kvasir_seg_5" / "Kvasir-SEG"
    images, masks = [], []
    for path in sorted((folder / "images").iterdir())[:4]:
        images.append(np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE))))
        masks.append(np.asarray(Image.open(folder / "masks" / path.name).convert("L").resize((SIDE, SIDE))) > 127)
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(np.stack(masks)).to(torch.uint8)


def task_loss(output: Output, target: Tensor) -> Tensor:
    return structure(output.masks, target)


def rough(module: nn.Module) -> nn.Module:
    """In evaluation, with statistics and parameters that are not neutral."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(0.5 + noise if name.endswith("running_var") else value + 0.4 * (noise - 0.5))
    return module.eval()


def slow_conv_norm(block: ConvNorm, x: np.ndarray) -> np.ndarray:
    """Convolution pixel by pixel, zeros beyond the border, then the running statistics; x is (C, h, w)."""
    conv, norm = block
    weight = conv.weight.detach().numpy()
    outputs, _, rows, columns = weight.shape
    step = conv.dilation[0]
    y = np.zeros((outputs, *x.shape[1:]))
    for i, j in np.ndindex(*x.shape[1:]):
        for r, c in np.ndindex(rows, columns):
            top, left = i + step * (r - rows // 2), j + step * (c - columns // 2)
            if 0 <= top < x.shape[1] and 0 <= left < x.shape[2]:
                y[:, i, j] += weight[:, :, r, c] @ x[:, top, left]
    mean, variance, scale, shift = (
        v.detach().numpy()[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (y - mean) / np.sqrt(variance + norm.eps) * scale + shift


def test_the_receptive_field_block_against_plain_loops() -> None:
    block = rough(ReceptiveField(6, 4))
    x = torch.randn(1, 6, 9, 11, generator=torch.Generator().manual_seed(2))
    branches = []
    for branch, reach in zip(block.branches, (1, 3, 5, 7), strict=True):
        y = x[0].numpy()
        layers = [branch] if reach == 1 else list(branch)
        for layer in layers:
            y = slow_conv_norm(layer, y)
        branches.append(y)
        shapes = [(layer[0].kernel_size, layer[0].dilation[0]) for layer in layers[1:]]
        assert reach == 1 or shapes == [((1, reach), 1), ((reach, 1), 1), ((3, 3), reach)]
    joined = slow_conv_norm(block.join, np.concatenate(branches))
    wanted = np.maximum(joined + slow_conv_norm(block.shortcut, x[0].numpy()), 0)
    assert (wanted > 0).any() and (wanted == 0).any()
    np.testing.assert_allclose(block(x)[0].detach().numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("neighbours", [False, True])
def test_the_partial_decoder_against_the_formulas(neighbours: bool) -> None:
    d = rough(PartialDecoder(4, neighbours=neighbours))
    generator = torch.Generator().manual_seed(3)
    f3, f4, f5 = (torch.randn(2, 4, side, side, generator=generator) for side in (12, 6, 3))

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    g4 = f4 * d.coarse_gates_middle(up(f5))
    if neighbours:  # SINet-v2: what reaches the finest level has passed the middle one
        g3 = f3 * d.above_gates_fine(up(g4)) * d.middle_gates_fine(up(f4))
    else:  # CPD: the product over all coarser levels
        g3 = f3 * d.above_gates_fine(up(up(f5))) * d.middle_gates_fine(up(f4))
    j4 = d.join_middle(torch.cat([g4, d.coarse_beside_middle(up(f5))], 1))
    wanted = d.answer(d.join_fine(torch.cat([g3, d.middle_beside_fine(up(j4))], 1)))
    found = d([f3, f4, f5])
    assert found.shape == (2, 1, 12, 12)
    torch.testing.assert_close(found, wanted)


def test_counts_are_those_of_the_released_models_without_their_unused_classifier() -> None:
    for name, released in SYSTEMS.items():
        method = create(name)
        with torch.device("meta"):
            model = method.build(Context(checkpoint="none"))
        wanted = released - UNUSED
        assert model.count() == {"trainable": wanted, "total": wanted}
        assert method.added_parameters(Context()) == wanted
        assert released == pytest.approx(1e6 * method.paper_trainable_m, rel=1e-3)


def test_each_stage_corrects_the_map_before_where_that_saw_nothing(
    system: ReverseAttentionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Constant(nn.Module):
        """Answers a constant and keeps what it was given."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value, self.given = value, []

        def forward(self, features: Tensor, reversed_map: Tensor) -> Tensor:
            self.given = [features, reversed_map]
            return torch.full_like(reversed_map, self.value)

    stages = [Constant(value) for value in (100.0, 10.0, 1.0)]
    monkeypatch.setitem(system._modules, "stages", nn.ModuleList(stages))
    features = system.features(torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)))
    fields = [field(level) for field, level in zip(system.fields, features, strict=True)]
    with torch.no_grad():
        maps = system.answers(features)
        first = system.decoder(fields)
    before = first
    for index, (value, side) in reversed(list(enumerate([(100.0, 8), (10.0, 4), (1.0, 2)]))):
        before = F.interpolate(before, (side, side), mode="bilinear", align_corners=False)
        seen, reversed_map = stages[index].given
        torch.testing.assert_close(reversed_map, 1 - torch.sigmoid(before))
        assert torch.equal(seen, system.refined_on(features, fields)[index])
        before = before + value
        torch.testing.assert_close(maps[index], before)
    torch.testing.assert_close(maps[3], first)


def test_pranet_refines_on_the_backbone_and_sinet_on_its_fields(system: ReverseAttentionModel) -> None:
    widths = {"PraNetModel": (512, 1024, 2048), "SINetV2Model": (32, 32, 32)}[type(system).__name__]
    features = system.features(torch.zeros(1, 3, SIDE, SIDE))
    fields = [field(level) for field, level in zip(system.fields, features, strict=True)]
    assert tuple(level.shape[1] for level in system.refined_on(features, fields)) == widths


@torch.no_grad()
@pytest.mark.parametrize("name", SYSTEMS)
def test_at_its_own_side_it_answers_at_strides_8_16_32_and_8(name: str) -> None:
    model = create(name).build(Context(checkpoint="none", image_size=SIDE)).eval()
    assert model.side == 352 and model.random_backbone
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    embedding = model.encode(images)
    levels = (embedding.features, *embedding.taps)
    assert [tuple(level.shape[1:]) for level in levels] == [(512, 44, 44), (1024, 22, 22), (2048, 11, 11)]
    assert [tuple(answer.shape) for answer in model.answers(levels)] == [(1, 1, s, s) for s in (44, 22, 11, 44)]
    output = model.decode(embedding)
    assert [mask.shape for mask in (output.masks, *output.others)] == [(1, 1, SIDE, SIDE)] * 4


@pytest.mark.parametrize("name", SYSTEMS)
def test_any_side_of_32_pixels_or_more(name: str) -> None:
    odd = create(name, {"side": 75}).build(Context(checkpoint="none", image_size=SIDE)).eval()
    with torch.no_grad():
        assert odd(torch.zeros(1, 3, SIDE, SIDE)).masks.shape == (1, 1, SIDE, SIDE)
    with pytest.raises(ValueError, match="side"):
        create(name, {"side": 31})


def test_the_loss_is_that_of_all_four_maps(
    system: ReverseAttentionModel, batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    images, masks = batch(2, SIDE)
    with torch.no_grad():
        output = system(images)
        target = system.targets(masks)
        found = system.loss(output, target, task_loss)
        # PyTorch's pooling in place of the harness's window sums
        weight = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
        wanted = torch.zeros(2)
        for logits in (output.masks, *output.others):
            p = logits.sigmoid()
            both, either = (p * target * weight).sum((1, 2, 3)), ((p + target - p * target) * weight).sum((1, 2, 3))
            bce = -(target * p.log() + (1 - target) * (1 - p).log()).mean((1, 2, 3))
            wanted += bce + 1 - (both + 1) / (either + 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_real_polyps_are_learnt_and_every_parameter_takes_part(name: str, kvasir: tuple[Tensor, Tensor]) -> None:
    images, masks = kvasir
    model = create(name, {"side": SIDE}).build(Context(checkpoint="none", image_size=SIDE)).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    silent = set(model.trainable())
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        output = model(images)
        loss = model.loss(output, model.targets(masks), task_loss)
        assert loss.shape == (4,)
        loss.mean().backward()
        silent -= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        losses.append(loss.mean().item())
    assert not silent
    assert losses[-1] < 0.9 * losses[0]
