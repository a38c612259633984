"""Every way to compute attention against segment_anything's own and against scores written out, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention as Official
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from methods.base import EXECUTIONS
from methods.sam import attention_variants, tiled_attention
from methods.sam.attention import Attention
from methods.sam.attention_variants import VARIANTS, choose

ON_CPU = [name for name in VARIANTS if name != "flex"]
GRIDS = {"window of tiny": (8, 8), "window of vit_h": (14, 14), "wide": (3, 7), "tall": (9, 2), "one row": (1, 5)}

SOME, ALL = 200, tiled_attention.NUMBERS
CASES = [(name, ALL) for name in ON_CPU] + [("tiled", 1), ("tiled", SOME)]

each_variant = pytest.mark.parametrize(("name", "numbers"), CASES, ids=lambda value: str(value))
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@pytest.fixture
def tiles(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many scores a tile has."""
    monkeypatch.setattr(tiled_attention, "NUMBERS", numbers)


def gradients(layer: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of the input and all parameters for a fixed loss."""
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return {"out": out.detach(), "x": leaf.grad} | {name: p.grad.clone() for name, p in layer.named_parameters()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], relative: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # In a map of one row its table adds the same to all scores: the true gradient is zero, and rounding is not.
        scale = expected.abs().max().clamp(min=1.0)
        assert (ours[name] - expected).abs().max() <= relative * scale, name


@each_variant
@each_grid
@pytest.mark.usefixtures("tiles")
def test_equals_segment_anything(name: str, grid: tuple[int, int], roughen: Callable) -> None:
    theirs = roughen(Official(24, 3, use_rel_pos=True, input_size=grid), deviation=0.3)
    ours = Attention(24, 3, grid)
    ours.load_state_dict(theirs.state_dict())
    ours.variant = name
    x = torch.randn(3, *grid, 24, generator=torch.Generator().manual_seed(1))
    assert_same(gradients(ours, x), gradients(theirs, x), 1e-5)
    assert_same(gradients(ours.double(), x.double()), gradients(theirs.double(), x.double()), 1e-12)


def written_out(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    """Attention as the formula says it, the score matrix in memory."""
    height, width = (len(rel_h) + 1) // 2, (len(rel_w) + 1) // 2
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    scores = scores + torch.einsum("mhqc,qkc->mhqk", query, rel_h[rows[:, None] - rows + height - 1])
    scores = scores + torch.einsum("mhqc,qkc->mhqk", query, rel_w[columns[:, None] - columns + width - 1])
    if extra is not None:
        loose = extra[:, None].expand(-1, len(qkv), -1, -1, -1)
        scores = torch.cat([scores, query @ loose[0].transpose(2, 3) * query.shape[-1] ** -0.5], dim=3)
        value = torch.cat([value, loose[1]], dim=2)
    return (scores.softmax(3) @ value).transpose(1, 2).flatten(2)


def inputs(grid: tuple[int, int], loose: int, maps: int = 3) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(maps, grid[0] * grid[1], 3, 2, 8), (2 * grid[0] - 1, 8), (2 * grid[1] - 1, 8), (2, 2, loose, 8)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return made if loose else [*made[:3], None]


def answer(function: Callable, given: list[Tensor | None]) -> dict[str, Tensor]:
    leaves = [part for part in given if part is not None]
    out = function(*given)
    generator = torch.Generator().manual_seed(3)
    found = torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=generator, dtype=out.dtype))
    return {"out": out.detach()} | {str(index): gradient for index, gradient in enumerate(found)}


@each_variant
@each_grid
@pytest.mark.parametrize("loose", [0, 1, 5])
@pytest.mark.usefixtures("tiles")
def test_loose_keys_and_values(name: str, grid: tuple[int, int], loose: int) -> None:
    given = inputs(grid, loose)
    assert_same(answer(VARIANTS[name], given), answer(written_out, given), 1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("loose", [0, 5])
def test_the_scores_of_flex(loose: int) -> None:
    """Without the compiled kernel, which needs a GPU."""

    def flex(*given: Tensor | None) -> Tensor:
        return attention_variants.flex(*given, kernel=flex_attention)

    with torch.no_grad():
        given = [None if part is None else part.float() for part in inputs((3, 4), loose)]
        assert_same({"out": flex(*given)}, {"out": written_out(*given)}, 1e-5)


def test_flex_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="needs a GPU.*cpu.*auto"):
        VARIANTS["flex"](*inputs((2, 2), 0))


@pytest.mark.parametrize("name", ON_CPU)
def test_half_precision(name: str) -> None:
    """Nothing is lost beyond what rounding the operands loses."""
    given = [None if part is None else part.detach().bfloat16() for part in inputs((8, 8), 3)]
    exact = written_out(*(part.double() for part in given))
    out = VARIANTS[name](*given)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() <= 0.04 * exact.abs().max()


@pytest.mark.parametrize("loose", [0, 5])
def test_the_tiled_operator_keeps_the_rules_of_operators(loose: int) -> None:
    given = inputs((3, 4), loose)
    torch.library.opcheck(tiled_attention.tiled, tuple(given))
    assert torch.autograd.gradcheck(tiled_attention.tiled, tuple(given))


@pytest.mark.parametrize("loose", [0, 5])
def test_operations_of_the_tiled_operator_are_counted(loose: int) -> None:
    """As its products: scores and answers forward, those and their gradients backward, and the terms by distance."""
    given = inputs((3, 4), loose)
    scores, terms = 2 * 3 * 2 * 12 * (12 + loose) * 8, 2 * 3 * 2 * 12 * (5 + 7) * 8
    with FlopCounterMode(display=False) as counter:
        out = tiled_attention.tiled(*given)
    assert counter.get_total_flops() == 2 * scores + terms
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * scores + 3 * terms


def test_a_variant_is_chosen_by_name_or_for_the_device() -> None:
    for name, variant in VARIANTS.items():
        assert choose(name, "cpu", windowed=True) is variant
    for device, names in (attention_variants.AUTO | {"mps": ("folded", "folded")}).items():
        for windowed, expected in zip((True, False), names, strict=True):
            assert choose("auto", device, windowed=windowed) is VARIANTS[expected]
    assert EXECUTIONS["attention"] == ("auto", *VARIANTS)
