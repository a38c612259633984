"""The experts without resizing against the explicit ones: outputs, all gradients, and that no data is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from methods.conv_experts import ScaledConvolutions
from methods.conv_lora import ConvLoRALinear
from methods.fused_experts import FusedConvolutions, enlargement, tables
from methods.randomness import image_keys

SCALES = tuple(range(1, 9))
SIZES = [(14, 14), (8, 8), (64, 64), (16, 16), (5, 9), (2, 3), (1, 1)]
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]
# The explicit form in float32 is itself off by up to 1e-5 where it enlarges 8 times: it is the measure in float64.


def pair(
    scales: tuple[int, ...] = SCALES, *, gelu: bool = True, dtype: torch.dtype = torch.float64, grid=None
) -> tuple[FusedConvolutions, ScaledConvolutions]:
    """Both forms with the same weights, whose biases are not 0; the explicit one in float64."""
    torch.manual_seed(0)
    fused = FusedConvolutions(3, scales, gelu=gelu, grid=grid).to(dtype)
    torch.nn.init.normal_(fused.bias)
    explicit = ScaledConvolutions(3, scales, gelu=gelu).double()
    explicit.load_state_dict(fused.state_dict())
    return fused, explicit


def maps(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def results(layer: ScaledConvolutions, call: str, *given: Tensor) -> list[Tensor]:
    """The output, and the gradients of a weighted sum of it for all inputs that are floats and all parameters."""
    own = layer.weight.dtype
    given = tuple(x.to(own, copy=True).requires_grad_() if x.is_floating_point() else x for x in given)
    layer.zero_grad()
    out = getattr(layer, call)(*given)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (weight.to(own) * out).sum().backward()
    return [out, *(x.grad for x in (*given, *layer.parameters()) if x.is_floating_point() and x.grad is not None)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1.0)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
def test_each_expert_forced_in_turn(size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    fused, explicit = pair(dtype=dtype)
    given = maps(2, size), torch.ones(2, 1)
    for expert in range(len(SCALES)):
        chosen = torch.full((2, 1), expert)
        ours = results(fused, "routed", given[0], chosen, given[1])
        theirs = results(explicit, "routed", given[0], chosen, given[1])
        assert_same(ours, theirs, tolerance)
        assert torch.equal(fused.routed(given[0].to(dtype), chosen), ours[0])  # without weights they are 1


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("grid", [None, (14, 14), (14, 9)])
def test_a_mixture_and_the_sum_of_all(grid: tuple[int, int] | None, gelu: bool) -> None:
    for dtype, tolerance in PRECISIONS:
        fused, explicit = pair(gelu=gelu, dtype=dtype, grid=grid)
        generator = torch.Generator().manual_seed(3)
        x = maps(9, grid or (14, 14))
        chosen = torch.rand(9, 8, generator=generator).argsort(1)[:, :2]
        weights = torch.rand(9, 2, generator=generator)
        given = x, chosen, weights
        assert_same(results(fused, "routed", *given), results(explicit, "routed", *given), tolerance)
        assert_same(results(fused, "summed", x), results(explicit, "summed", x), tolerance)


@pytest.mark.parametrize("scales", [(1,), (2,), (4,), (7,), (8,), (3, 5), (2, 2), (6, 1)])
def test_other_sets_of_scales(scales: tuple[int, ...]) -> None:
    fused, explicit = pair(scales)
    assert_same(results(fused, "summed", maps(3, (7, 10))), results(explicit, "summed", maps(3, (7, 10))), 1e-10)
    for index in range(len(scales)):
        x = maps(3, (7, 10)).double()
        assert torch.allclose(fused.expert(index, x), explicit.expert(index, x))


def test_phases_are_no_more_than_the_scales_need() -> None:
    assert tables((1, 3, 5), 6)[1].shape == (3, 1)
    combinations, weights = tables(SCALES, 6)
    assert combinations.shape == (8, 4, 6, 3, 6) and weights.shape == (8, 4)
    assert np.allclose(weights.sum(1), 1)


@pytest.mark.parametrize("scale", SCALES)
def test_enlarging_is_torchs(scale: int) -> None:
    unit = torch.eye(6, dtype=torch.float64)[None, None]
    expected = F.interpolate(unit, (6 * scale, 6), mode="bicubic", align_corners=False)[0, 0]
    assert np.abs(enlargement(6, scale) - expected.numpy()).max() < 1e-12


def test_tables_are_no_part_of_an_adapter() -> None:
    fused, explicit = pair(grid=(8, 8))
    assert fused.state_dict().keys() == explicit.state_dict().keys() == {"weight", "bias"}


def layers(**options: object) -> tuple[ConvLoRALinear, ConvLoRALinear]:
    """A fused and an explicit Conv-LoRA layer with the same weights, none of them neutral."""
    torch.manual_seed(0)
    both = [
        ConvLoRALinear(torch.nn.Linear(12, 18), implementation=name, **options).double()
        for name in ("fused", "explicit")
    ]
    for parameter in both[0].parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    both[1].load_state_dict(both[0].state_dict())
    return both[0], both[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid": (8, 8)},
        {"top_k": 2},
        {"routing": "sum"},
        {"scales": (4,)},
        {"variant": "paper", "gate": "image"},
        {"num_experts": 4, "rank": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_a_whole_layer(options: dict, training: bool) -> None:
    outputs = []
    for layer in layers(**options):
        layer.train(training)
        layer.random_keys = image_keys(0, 0, range(2))
        x = torch.randn(2, 5, 8, 8, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        x.requires_grad_()
        out = layer(x)
        loss = out.square().sum() + (layer.balance_loss.sum() if layer.balance_loss is not None else 0)
        loss.backward()
        own = {name: p for name, p in layer.named_parameters() if not name.startswith("base.")}
        # No gradient and one of zeros are the same: a single expert's weight is 1 whatever the gate says.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.values()]
        outputs.append([out, x.grad, *gradients])
    assert_same(*outputs, 1e-10)


@pytest.mark.parametrize(
    "options", [{"grid": (8, 8)}, {"grid": (8, 8), "top_k": 2}, {"grid": (8, 8), "routing": "sum"}]
)
def test_nothing_depends_on_the_data(options: dict) -> None:
    """Forward and backward run on tensors that have no values: where a value is asked for, this raises."""
    with FakeTensorMode():
        layer = ConvLoRALinear(torch.nn.Linear(12, 18), **options).train()
        x = torch.randn(2, 5, 8, 8, 12, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == x.shape and layer.experts.weight.grad is not None


@pytest.mark.filterwarnings("ignore")
def test_it_compiles_into_one_graph() -> None:
    layer = layers(grid=(8, 8))[0].float().train()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 8, 8, 12, generator=torch.Generator().manual_seed(5))
    found = []
    for call in (layer, compiled):
        layer.zero_grad()
        layer.random_keys = image_keys(0, 0, range(2))
        out = call(x)
        out.sum().backward()
        found.append([out.detach().clone(), layer.experts.weight.grad.clone(), layer.lora_A.grad.clone()])
    assert_same(found[1], found[0], 1e-5)


def test_half_precision_under_autocast() -> None:
    fused, explicit = pair(dtype=torch.float32, grid=(14, 14))
    x, chosen, weights = maps(8, (14, 14)), torch.arange(8)[:, None], torch.ones(8, 1)
    exact = explicit.routed(x.double(), chosen, weights)
    explicit.float()
    with torch.autocast("cpu", torch.bfloat16):
        error, theirs = (
            (layer.routed(x.bfloat16(), chosen, weights).float() - exact).abs().mean() for layer in (fused, explicit)
        )
    assert error <= 1.5 * theirs < 0.05
