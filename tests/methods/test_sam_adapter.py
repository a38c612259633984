"""SAM-Adapter: its high pass against numpy, its additions against a literal formulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods import Context, Model, create
from methods.sam.sizes import SIZES
from methods.sam_adapter import PromptGenerator, high_pass


def build(backbone: str, image_size: int = 64, **parameters: object) -> Model:
    method = create("sam_adapter", parameters)
    return method.build(Context(backbone=backbone, checkpoint="none", image_size=image_size))


def pixels(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rate", [0.25, 0.01, 0.8])
@pytest.mark.parametrize("shape", [(64, 64), (112, 112), (48, 80), (33, 33), (1, 1)])
def test_high_pass_equals_numpy(shape: tuple[int, int], rate: float) -> None:
    """Frequency by frequency: those with -half <= f < half on both axes go."""
    height, width = shape
    image = np.random.default_rng(0).normal(size=(2, 3, height, width))
    half = int((height * width * rate) ** 0.5 // 2)
    rows, columns = np.fft.fftfreq(height, 1 / height).round(), np.fft.fftfreq(width, 1 / width).round()
    low = np.outer((-half <= rows) & (rows < half), (-half <= columns) & (columns < half))
    expected = np.abs(np.fft.ifft2(np.where(low, 0, np.fft.fft2(image))).real)
    assert np.abs(high_pass(torch.from_numpy(image), rate).numpy() - expected).max() < 1e-12


def test_high_pass_keeps_edges_and_drops_what_is_smooth() -> None:
    smooth = torch.cos(torch.arange(64) * 2 * math.pi * 3 / 64).expand(1, 1, 64, 64)
    assert high_pass(smooth, 0.25).max() < 1e-5
    fine = torch.cos(torch.arange(64) * 2 * math.pi * 25 / 64).expand(1, 1, 64, 64)
    assert torch.allclose(high_pass(fine, 0.25), fine.abs(), atol=1e-5)
    before = fine.clone()
    high_pass(fine, 0.25)
    assert torch.equal(fine, before)


@pytest.mark.parametrize("side", [48, 112, 128])
def test_half_precision_transforms_in_float32(side: int) -> None:
    images = pixels(side)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(high_pass(images, 0.25), high_pass(images.clone(), 0.25))
        assert high_pass(images.bfloat16(), 0.25).dtype == torch.float32
    assert torch.equal(high_pass(images.bfloat16(), 0.25), high_pass(images.bfloat16().float(), 0.25))


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 112])
def test_every_block_gets_its_addition(mini: str, side: int, segment_anything: Callable, roughen: Callable) -> None:
    ours = roughen(build(mini, side, scale_factor=4), deviation=0.2).double().image_encoder
    state = ours.state_dict()
    theirs = segment_anything(SIZES[mini], side).image_encoder.double()
    theirs.load_state_dict({name: value for name, value in state.items() if not name.startswith("block_prompts.")})
    images = pixels(side).double()

    def layer(name: str) -> tuple[Tensor, Tensor]:
        return state[f"block_prompts.{name}.weight"], state[f"block_prompts.{name}.bias"]

    fine = F.conv2d(high_pass(images, 0.25), *layer("prompt_generator"), stride=16)
    embedded = F.linear(theirs.patch_embed(images), *layer("embedding_generator"))
    features = fine.permute(0, 2, 3, 1) + embedded
    plain = theirs(images)
    for index, block in enumerate(theirs.blocks):
        addition = F.linear(F.gelu(F.linear(features, *layer(f"lightweight_mlps.{index}"))), *layer("shared_mlp"))
        block.register_forward_pre_hook(lambda _, inputs, addition=addition: (inputs[0] + addition,))
    expected = theirs(images)
    assert (ours(images).features - expected).abs().max() < 1e-10 * expected.abs().max()
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()


def test_additions_are_made_one_at_a_time(mini: str) -> None:
    generator = build(mini).image_encoder.block_prompts
    made: list[int] = []
    generator.shared_mlp.register_forward_hook(lambda *_: made.append(1))
    additions = generator(pixels(64), torch.zeros(2, 4, 4, 32))
    for index in range(3):
        assert len(made) == index
        assert next(additions).shape == (2, 4, 4, 32)
    assert next(additions, None) is None


@pytest.mark.parametrize(
    ("backbone", "scale_factor", "trainable"), [("vit_h", 16, 3_980_576), ("vit_h", 32, 3_692_496)]
)
def test_count(backbone: str, scale_factor: int, trainable: int) -> None:
    with torch.device("meta"):
        method = create("sam_adapter", {"scale_factor": scale_factor})
        model = method.build(Context(backbone=backbone, checkpoint="none"))
    assert model.count()["trainable"] == trainable


def test_initial_values() -> None:
    torch.manual_seed(0)
    generator = PromptGenerator(SIZES["vit_b"], scale_factor=4, freq_nums=0.25)
    assert generator.prompt_generator.weight.std().item() == pytest.approx(math.sqrt(2 / (16 * 16 * 192)), rel=0.02)
    linear = [generator.embedding_generator, *generator.lightweight_mlps, generator.shared_mlp]
    assert len(linear) == 14
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not any(layer.bias.any() for layer in [*linear, generator.prompt_generator])


def test_a_scale_factor_beyond_the_width_is_refused(mini: str) -> None:
    assert build(mini, scale_factor=32).image_encoder.block_prompts.shared_mlp.in_features == 1
    with pytest.raises(ValueError, match="scale_factor = 33; allowed: 1 to 32"):
        build(mini, scale_factor=33)
