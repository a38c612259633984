"""What figures are made with: colours that stay apart, places for labels, fronts, stretches of ranks, files."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from analysis.drawing import choices, style
from analysis.drawing.figure import Card, Figure, read_cards, write
from analysis.drawing.layout import log_ticks, spread
from analysis.drawing.pareto import front
from analysis.drawing.ranks import alike

PAPERS = (
    "conv_lora", "lora", "vpt", "adapter", "sam_adapter", "ssf", "bitfit", "lst", "decoder_only", "scratch",
    "full_finetune", "inception", "sam_zero_shot",
)  # fmt: skip
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
SEEN = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as someone sees it."""
    coded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    ratio = TO_XYZ @ np.clip(seen @ linear, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("who", SEEN)
def test_colours_of_methods_stay_apart_for_the_colour_blind(who: str) -> None:
    colours = sorted({style.colour(method) for method in PAPERS})
    assert len(colours) == 10
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(lab(one, SEEN[who]) - lab(other, SEEN[who])) > 12, (one, other)


def test_every_method_has_one_look() -> None:
    assert len({style.marker(method) for method in PAPERS}) == len(PAPERS)
    assert style.palette(["lora", "unheard_of"]) == {m: style.colour(m) for m in ("lora", "unheard_of")}
    assert style.marker("unheard_of") == style.marker("unheard_of")
    rows = {"lora (rank = 6)": "lora", "vpt": "vpt", "lora": "lora"}
    assert style.variants(rows) == {"lora (rank = 6)": 1, "vpt": 0, "lora": 0}
    assert style.row_points(rows)["lora"] == style.points("lora")
    assert style.points("lora")["fillstyle"] == "full" and style.points("lora", 1)["fillstyle"] == "none"


numbers = st.floats(-100, 100, allow_nan=False)


@given(st.lists(st.tuples(st.one_of(numbers, st.just(math.nan)), st.integers(-3, 3)), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(cost: float, gain: float) -> bool:
        return any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)

    expected = [not math.isnan(cost) and not dominated(cost, gain) for cost, gain in points]
    assert front([cost for cost, _ in points], [gain for _, gain in points]) == expected


@given(st.lists(st.floats(1, 13), min_size=1, max_size=13).map(sorted), st.floats(0.01, 13))
def test_stretches_join_every_pair_that_is_not_told_apart_and_no_other(averages: list[float], critical: float) -> None:
    found = alike(averages, critical)
    for low, high in combinations(averages, 2):
        joined = any(start <= low and high <= end for start, end in found)
        assert joined == (high - low < critical)
    assert not any(a != b and a[0] <= b[0] and b[1] <= a[1] for a in found for b in found), "one lies within another"


@given(st.lists(numbers, max_size=15), st.floats(0.1, 30))
def test_labels_are_spread_in_order_and_within_bounds(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, -100, 100)
    gap = min(gap, 200 / max(1, len(wanted) - 1))
    assert all(-100 - 1e-6 <= place <= 100 + 1e-6 for place in placed)
    ordered = sorted(zip(wanted, placed, strict=True))
    by_place = sorted(placed)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(by_place))
    assert all(a[1] < b[1] for a, b in combinations(ordered, 2) if a[0] < b[0])


def test_labels_with_room_stay_where_they_are_and_close_ones_share_their_distance() -> None:
    assert spread([3.0, 1.0, 2.0], 0.5, 0, 10) == [3.0, 1.0, 2.0]
    assert spread([5.0, 5.0, 9.0], 1, 0, 10) == [4.5, 5.5, 9.0]
    assert spread([], 1, 0, 1) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.9, 1500, [1, 10, 100, 1000]), (0.8, 7, [1, 2, 5]), (0.85, 0.93, [0.86, 0.88, 0.9, 0.92]), (2, 60, [3, 10, 30])],
)
def test_ticks_of_a_logarithmic_axis_are_round_and_more_than_one(low: float, high: float, expected: list) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_entropy_is_that_of_scipy(counts: list[int]) -> None:
    if sum(counts):
        assert choices.entropy(counts) == pytest.approx(float(scipy_entropy(counts, base=2)), abs=1e-12)
    else:
        assert math.isnan(choices.entropy(counts))


def test_entropy_of_even_and_of_single_choices() -> None:
    assert choices.entropy([5] * 8) == 3 and choices.entropy([0, 7, 0]) == 0


def _figure(name: str = "runs-a") -> Figure:
    def draw(data: pd.DataFrame):
        from matplotlib import pyplot

        drawn, axes = pyplot.subplots()
        axes.plot(data["x"], data["y"], "o-")
        axes.text(1, 3, "words")
        return drawn

    return Figure(
        Card(name, "runs", "A", "n = 2.", "python -m x", ("b", "a")), pd.DataFrame({"x": [1, 2], "y": 3}), draw
    )


def test_a_figure_is_the_same_files_each_time(tmp_path) -> None:
    for place in ("one", "two"):
        paths = write(_figure(), tmp_path / place)
    assert [path.suffix for path in paths] == [".svg", ".pdf", ".png", ".csv", ".json"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.name
    assert paths[3].read_text() == "x,y\n1,3\n2,3\n"
    assert b"words" in paths[0].read_bytes(), "text stays text"


def test_cards_are_read_back_and_what_is_none_is_named(tmp_path) -> None:
    written = _figure()
    write(written, tmp_path, formats=["png"])
    write(_figure("runs-lost"), tmp_path, formats=["svg"])
    (tmp_path / "runs-lost.svg").unlink()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps({"schema": 9}))
    cards, skipped = read_cards(tmp_path)
    assert cards == [written.card]
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in skipped] == ["broken.json", "other.json", "runs-lost.json"]
    with pytest.raises(ValueError, match="allowed: svg, pdf, png"):
        write(written, tmp_path, formats=["jpg"])
