"""Conv-LoRA's layer alone, against a literal formulation map by map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import erf, softmax
from scipy.stats import norm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.conv_lora import ConvLoRALinear
from methods.lora import LoRALinear
from methods.randomness import image_keys, normal
from methods.sam.sizes import SIZES

IMAGES, WINDOWS, HEIGHT, WIDTH, INPUTS, OUTPUTS = 2, 3, 5, 4, 6, 9
SALT = 17


def make(*, training: bool = True, **options: object) -> ConvLoRALinear:
    """A layer without a neutral value, with keys for the images of :func:`features`."""
    torch.manual_seed(0)
    layer = ConvLoRALinear(nn.Linear(INPUTS, OUTPUTS), **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    layer.random_keys, layer.salt = image_keys(0, 0, range(IMAGES)), SALT
    return layer.train(training)


def features() -> Tensor:
    return torch.randn(IMAGES, WINDOWS, HEIGHT, WIDTH, INPUTS, generator=torch.Generator().manual_seed(1))


class Literal(NamedTuple):
    output: np.ndarray
    balance: list[float]
    counts: np.ndarray


class LiteralLayer:
    """Sections 3.2 to 3.4 of the reference in float64, for one layer's parameters."""

    def __init__(self, layer: ConvLoRALinear, bicubic: Callable, *, paper: bool, top_k: int, scales: tuple[int, ...]):
        self.values = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
        self.bicubic, self.paper, self.top_k, self.scales = bicubic, paper, top_k, scales

    def expert(self, index: int, z: np.ndarray) -> np.ndarray:
        """Expert ``index`` on one map (r, H, W)."""
        weight, bias = self.values["experts.weight"][index], self.values["experts.bias"][index]
        scale = self.scales[index]
        up = [self.bicubic(n, scale * n) for n in z.shape[1:]]
        down = [self.bicubic(scale * n, n) for n in z.shape[1:]]
        large = up[0] @ z @ up[1].T
        t = np.stack([
            sum(correlate2d(large[i], kernels[i], mode="same") for i in range(len(z))) + b
            for kernels, b in zip(weight, bias, strict=True)
        ])  # fmt: skip
        if not self.paper:
            t = t / 2 * (1 + erf(t / math.sqrt(2)))
        return down[0] @ t @ down[1].T

    def project(self, x: np.ndarray, z: np.ndarray, t: np.ndarray) -> np.ndarray:
        """One map's output (H, W, out) from its input and the r-channel maps z and t."""
        base = x @ self.values["base.weight"].T + self.values["base.bias"]
        inner = t if self.paper else z + t
        return base + (1.0 if self.paper else 32 / len(z)) * np.moveaxis(inner, 0, -1) @ self.values["lora_B"].T

    def image(self, x: np.ndarray, epsilon: np.ndarray | None, per_image: bool) -> Literal:
        """One image's windows (S, H, W, C); ``epsilon`` (decisions, E) in training."""
        low = np.moveaxis(x @ self.values["lora_A"].T, -1, 1)
        groups = [list(range(len(x)))] if per_image else [[s] for s in range(len(x))]
        experts, chosen_by = len(self.scales), {}
        importance, load, counts = np.zeros(experts), np.zeros(experts), np.zeros(experts)
        for decision, group in enumerate(groups):
            pooled = low[group].mean((0, 2, 3))
            clean = noisy = pooled @ self.values["gate"]
            if epsilon is not None:
                sigma = np.log1p(np.exp(pooled @ self.values["noise"])) + (0.0 if self.paper else 1e-2)
                noisy = clean + epsilon[decision] * sigma
            order = np.argsort(-noisy)
            best = order[: self.top_k]
            weights = softmax(noisy[best])
            importance[best] += weights
            counts[best] += 1
            if epsilon is not None and self.top_k < experts:
                for e in range(experts):
                    threshold = noisy[order[self.top_k]] if e in best else noisy[order[self.top_k - 1]]
                    load[e] += norm.cdf((clean[e] - threshold) / sigma[e])
            else:
                load[best] += 1
            chosen_by |= {s: list(zip(best, weights, strict=True)) for s in group}
        output = [
            self.project(x[s], low[s], sum(g * self.expert(e, low[s]) for e, g in chosen_by[s])) for s in range(len(x))
        ]
        variation = [v.var(ddof=1) / (v.mean() ** 2 + 1e-10) for v in (importance, load)]
        return Literal(np.stack(output), [(1.0 if self.paper else 1e-2) * sum(variation)], counts[None])


def compare(layer: ConvLoRALinear, literal: LiteralLayer, *, per_image: bool) -> None:
    output, x = layer(features()), features().double().numpy()
    noise = normal(layer.random_keys, (1 if per_image else WINDOWS, len(literal.scales)), SALT).double().numpy()
    expected = [literal.image(x[b], noise[b] if layer.training else None, per_image) for b in range(IMAGES)]
    assert np.abs(output.detach().numpy() - np.stack([e.output for e in expected])).max() < 2e-4
    assert torch.equal(layer.expert_counts, torch.tensor(np.concatenate([e.counts for e in expected])).float())
    if layer.training:
        assert layer.balance_loss.tolist() == pytest.approx([e.balance[0] for e in expected], rel=1e-3, abs=1e-6)
    else:
        assert layer.balance_loss is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", ["window", "image"])
@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_equals_the_literal_formulation(variant: str, top_k: int, gate: str, training: bool, bicubic: Callable) -> None:
    layer = make(variant=variant, top_k=top_k, gate=gate, training=training)
    literal = LiteralLayer(layer, bicubic, paper=variant == "paper", top_k=top_k, scales=tuple(range(1, 9)))
    compare(layer, literal, per_image=gate == "image")


def test_other_ranks_and_scales_equal_the_literal_formulation(bicubic: Callable) -> None:
    layer = make(rank=2, scales=(4, 1, 3), top_k=2)
    compare(layer, LiteralLayer(layer, bicubic, paper=False, top_k=2, scales=(4, 1, 3)), per_image=False)


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize(
    ("options", "scales"), [({"routing": "sum"}, range(1, 9)), ({"scales": (4,)}, (4,)), ({"num_experts": 1}, (1,))]
)
def test_without_a_choice_all_experts_add_up(options: dict, scales: range, variant: str, bicubic: Callable) -> None:
    layer = make(variant=variant, **options)
    literal = LiteralLayer(layer, bicubic, paper=variant == "paper", top_k=1, scales=tuple(scales))
    output = layer(features()).detach().numpy()
    for place in np.ndindex(IMAGES, WINDOWS):
        x = features()[place].double().numpy()
        z = np.moveaxis(x @ literal.values["lora_A"].T, -1, 0)
        t = sum(literal.expert(e, z) for e in range(len(scales)))
        assert np.abs(output[place] - literal.project(x, z, t)).max() < 2e-4
    assert layer.balance_loss is None and layer.expert_counts is None
    assert not any(name in ("gate", "noise") for name, _ in layer.named_parameters())


def test_the_parameter_layout_is_frozen() -> None:
    layer = ConvLoRALinear(nn.Linear(20, 12), rank=3, num_experts=8)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters() if not name.startswith("base.")} == {
        "lora_A": (3, 20), "lora_B": (12, 3), "gate": (3, 8), "noise": (3, 8),
        "experts.weight": (8, 3, 3, 3, 3), "experts.bias": (8, 3),
    }  # fmt: skip
    assert not layer.lora_B.any() and not layer.gate.any() and not layer.noise.any()
    assert (layer.in_features, layer.out_features) == (20, 12)
    assert not layer.state_dict().keys() ^ dict(layer.named_parameters()).keys()


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_is_the_base_layer_until_trained(variant: str) -> None:
    layer = ConvLoRALinear(nn.Linear(INPUTS, OUTPUTS), variant=variant)
    assert torch.equal(layer(features()), layer.base(features()))


@pytest.mark.parametrize("training", [True, False])
def test_leading_axes(training: bool) -> None:
    layer = make(training=training)
    windows = layer(features())
    nested = features().view(IMAGES, 1, WINDOWS, HEIGHT, WIDTH, INPUTS)
    assert torch.equal(layer(nested), windows.view(IMAGES, 1, WINDOWS, HEIGHT, WIDTH, OUTPUTS))
    whole = features()[:, 0]
    assert torch.equal(layer(whole), layer(whole[:, None])[:, 0])
    layer.random_keys = layer.random_keys[:1]
    assert torch.equal(layer(whole[0]), layer(whole[:1])[0])
    assert torch.allclose(layer(features()[:1]), windows[:1], atol=1e-4)


def test_every_expert_can_be_chosen() -> None:
    layer = make(training=False)
    with torch.no_grad():
        layer.lora_A.abs_()
    x = features().abs()
    z = (x @ layer.lora_A.t()).movedim(-1, 2)
    for expert in range(8):
        with torch.no_grad():
            layer.gate.zero_()[:, expert] = 1.0
        output = layer(x)
        t = layer.experts.expert(expert, z.flatten(0, 1)).view_as(z)
        expected = layer.base(x) + 32 / 3 * (z + t).movedim(2, -1) @ layer.lora_B.t()
        assert torch.allclose(output, expected, atol=1e-4)
        assert layer.expert_counts.tolist() == [[WINDOWS * (e == expert) for e in range(8)]] * IMAGES


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_loose_tokens_take_the_low_rank_path(variant: str) -> None:
    layer = make(variant=variant)
    tokens = torch.randn(7, INPUTS)
    scaling = 32 / 3 if variant == "released" else 1.0
    expected = layer.base(tokens) + scaling * tokens @ layer.lora_A.t() @ layer.lora_B.t()
    assert torch.allclose(layer.forward_tokens(tokens), expected, atol=1e-4)
    outer = LoRALinear(layer, rank=2)
    assert torch.equal(outer.forward_tokens(tokens), layer.forward_tokens(tokens))


def test_noise_is_a_function_of_keys_and_salt_alone() -> None:
    layer = make(top_k=2)
    torch.manual_seed(1)
    first, balance = layer(features()), layer.balance_loss
    torch.manual_seed(2)
    assert torch.equal(layer(features()), first) and torch.equal(layer.balance_loss, balance)
    layer.salt += 1
    assert not torch.equal(layer(features()), first)
    layer.salt -= 1
    layer.random_keys = layer.random_keys + 1
    assert not torch.equal(layer(features()), first)
    layer.random_keys = layer.random_keys.flip(0) - 1
    assert torch.allclose(layer(features().flip(0)), first.flip(0), atol=1e-5)


def test_without_keys_the_running_generator_is_used() -> None:
    layer = make(top_k=2)
    layer.random_keys = None
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(features()))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_evaluation_is_deterministic_and_forgets_the_balance_loss() -> None:
    layer = make()
    layer(features())
    assert layer.balance_loss is not None
    layer.eval()
    torch.manual_seed(1)
    first = layer(features())
    assert layer.balance_loss is None
    layer.random_keys = None
    torch.manual_seed(2)
    assert torch.equal(layer(features()), first)


def test_under_autocast_routing_stays_in_float32() -> None:
    layer = make()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(features())
        low = nn.functional.linear(features(), layer.lora_A)
    assert output.dtype == low.dtype == torch.bfloat16
    clean, deviation, noise = layer.decision[:3]
    assert {t.dtype for t in (clean, deviation, noise, layer.balance_loss)} == {torch.float32}
    assert torch.equal(clean, low.float().mean((2, 3)) @ layer.gate)
    (output.float().sum() + layer.balance_loss.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_another_precision(dtype: torch.dtype) -> None:
    layer = make(training=False)
    expected = layer(features())
    output = layer.to(dtype)(features().to(dtype))
    assert output.dtype == dtype
    if dtype == torch.float64:
        assert torch.allclose(output.float(), expected, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"routing": "summ"}, {"gate": "images"}, {"variant": "papers"}, {"implementation": "slow"}, {"top_k": 0},
        {"top_k": 9}, {"top_k": 2, "scales": (4,)}, {"scales": ()}, {"scales": (0, 1)},
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ConvLoRALinear(nn.Linear(INPUTS, OUTPUTS), **options)


def test_works_in_segment_anythings_own_encoder(segment_anything: Callable, roughen: Callable) -> None:
    """A vision transformer that is not ours, with the windows of all images in its batch axis."""
    encoder = segment_anything(SIZES["tiny"], 64).image_encoder
    images = torch.randn(2, 3, 64, 64)
    before = encoder(images)
    for block in encoder.blocks:
        block.attn.qkv = ConvLoRALinear(block.attn.qkv)
    assert torch.equal(encoder(images), before)
    roughen(encoder)
    torch.manual_seed(0)
    encoder.train()(images).square().mean().backward()
    for block in encoder.blocks:
        assert block.attn.qkv.expert_counts.sum() == 2
        assert block.attn.qkv.lora_A.grad.any() and block.attn.qkv.experts.weight.grad.any()


class Operations(TorchDispatchMode):
    """Counts what is computed; views of what is there are not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        self.count += not (operator.is_view or operator.name() in ("aten::detach", "aten::_unsafe_view"))
        return operator(*arguments, **(named or {}))


def test_a_layer_takes_few_operations() -> None:
    """Small maps cost operations, not arithmetic: forward and backward of a layer in a model, LoRA's beside it."""
    found = {}
    for cls, more in ((LoRALinear, {}), (ConvLoRALinear, {"grid": (8, 8)})):
        layer = cls(nn.Linear(12, 36).requires_grad_(False), **more)
        layer.noise_drawn, layer.random_keys = torch.randn(4, 4, 8), None
        x = torch.randn(4, 4, 8, 8, 12, requires_grad=True)
        with Operations() as operations:
            y = layer(x)
            decided = [layer.decision.clean, layer.decision.deviation] if hasattr(layer, "decision") else []
            outputs = [y, *decided]
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        found[cls.__name__] = operations.count - len(outputs)  # the gradients it is given
    print(found)
    assert found["LoRALinear"] <= 14 and found["ConvLoRALinear"] <= 65
