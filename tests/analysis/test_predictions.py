"""Which images are shown, and what their pictures look like; trained cells are in ``test_inside_trained.py``."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.drawing import style
from analysis.inside import colouring, grids
from analysis.inside.command import parser
from analysis.inside.picks import confusion, differences, iou, means, pick
from analysis.inside.showing import PANEL, enlarged
from analysis.results import NoResults

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("lora", "conv_lora")
SCORES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.one_of(st.just(math.nan), st.integers(-8, 8).map(lambda n: n / 8)),
    min_size=1,
    max_size=12,
)


@given(by_image=SCORES, count=st.integers(1, 7))
def test_the_largest_differences_against_all_subsets_in_order(by_image, count):
    def best(sign: int, most: int) -> list[str]:
        those = {image: sign * value for image, value in by_image.items() if sign * value > 0}
        return sorted(sorted(those), key=lambda image: those[image], reverse=True)[:most]

    wanted = [*best(1, count - count // 2), *best(-1, count // 2)]
    if not wanted:
        with pytest.raises(NoResults, match="--rule random"):
            pick("difference", by_image, ROWS, count=count, seed=0)
        return
    found = pick("difference", by_image, ROWS, count=count, seed=0)
    assert [one.image for one in found] == wanted
    assert all(one.ahead == ROWS[one.difference > 0] and one.difference == by_image[one.image] for one in found)


@given(by_image=SCORES, count=st.integers(1, 20), seed=st.integers(0, 5))
def test_a_draw_depends_on_identifiers_and_seed_alone(by_image, count, seed):
    drawn = [one.image for one in pick("random", by_image, ROWS, count=count, seed=seed)]
    again = [
        one.image for one in pick("random", dict(reversed(by_image.items())), ROWS, count=len(by_image), seed=seed)
    ]
    assert drawn == again[:count] and len(set(drawn)) == min(count, len(by_image))
    fewer = {image: value for image, value in by_image.items() if image != drawn[0]}
    assert [one.image for one in pick("random", fewer, ROWS, count=count, seed=seed)] == again[1 : count + 1]


def test_draws_of_other_seeds_are_others_and_even():
    by_image = dict.fromkeys([f"{index:03d}" for index in range(100)], 0.0)
    drawn = [{one.image for one in pick("random", by_image, ROWS, count=10, seed=seed)} for seed in range(200)]
    counts = [sum(image in those for those in drawn) for image in by_image]
    assert len({frozenset(those) for those in drawn}) == 200
    assert min(counts) >= 4 and max(counts) <= 40  # a mean of 20 with a deviation of 4.2


def test_a_difference_is_that_of_means_over_seeds():
    def counts(right: int) -> np.ndarray:
        return np.array([[0, 10 - right], [0, right]])

    recorded = {
        "vpt": {0: {"a": counts(1), "b": counts(1)}, 1: {"a": counts(1), "b": counts(1)}},
        "lora": {0: {"a": counts(2), "b": counts(9)}, 1: {"a": counts(4), "b": counts(9), "c": counts(5)}},
        "conv_lora": {0: {"b": counts(9), "a": counts(8)}, 1: {"b": counts(9), "a": counts(8)}},
    }
    scores = means(recorded, binary=True)
    assert scores["lora"] == {"a": pytest.approx(0.3), "b": pytest.approx(0.9)}
    assert differences(scores) == {"a": pytest.approx(0.5), "b": 0}
    assert math.isnan(differences({"lora": scores["lora"]})["a"])


def test_the_score_of_several_classes_counts_those_in_truth_or_prediction():
    truth = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
    predicted = np.array([[0, 2, 1], [1, 3, 0]], np.uint8)
    assert iou(confusion(truth, predicted, 5), binary=False) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert math.isnan(iou(confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 5), binary=False))


def test_right_and_wrong_foreground_have_their_colours():
    truth = np.array([[1, 1, 0, 0]], np.uint8)
    predicted = np.array([[1, 0, 1, 0]], np.uint8)
    pixels = np.full((1, 4, 3), 200, np.uint8)
    right, missed, wrong, rest = colouring.errors(pixels, predicted, truth)[0].astype(int)
    assert rest[0] == rest[1] == rest[2]
    colours = (colouring.FOREGROUND, colouring.FALSE_NEGATIVE, colouring.FALSE_POSITIVE)
    for shown, colour in zip((right, missed, wrong), colours, strict=True):
        distances = [np.abs(shown - colouring.rgb(other)).sum() for other in colours]
        assert distances.index(min(distances)) == colours.index(colour)


def test_stripes_lie_where_a_class_is_wrong_and_nothing_lies_where_none_counts():
    random = np.random.default_rng(0)
    truth = random.choice([0, 1, 2, 255], (40, 30)).astype(np.uint8)
    labels = random.integers(0, 3, (40, 30)).astype(np.uint8)
    colours = colouring.class_colours(3)
    painted = colouring.classes(labels, truth, colours)
    plain = np.array([colouring.rgb(colour) for colour in colours])[labels]
    striped = (painted != plain).any(-1)
    assert (painted[truth == 255] == colouring.rgb(colouring.UNCOUNTED)).all()
    counts = truth != 255
    assert not striped[counts & (labels == truth)].any()
    assert 0.2 < striped[counts & (labels != truth)].mean() < 0.5
    assert not (colouring.classes(truth, truth, colours) == 0).all(-1).any()


@pytest.mark.parametrize("count", [2, 12, 19])
def test_classes_have_colours_of_their_own(count):
    colours = colouring.class_colours(count)
    values = np.array([colouring.rgb(colour) for colour in [*colours, colouring.UNCOUNTED]]).astype(int)
    apart = np.abs(values[:, None] - values).sum(-1)[~np.eye(count + 1, dtype=bool)]
    assert len(set(colours)) == count and apart.min() > 40


@pytest.mark.parametrize("shape", [(8, 8), (64, 48), (1, 7), (200, 150)])
def test_enlarging_keeps_every_pixel(shape):
    small = np.arange(math.prod(shape)).reshape(shape)
    large = enlarged(small)
    times = large.shape[0] // shape[0]
    np.testing.assert_array_equal(large[::times, ::times], small)
    assert PANEL / 2 < max(large.shape) <= PANEL


@pytest.mark.parametrize("name", ["ISIC_0012086", "CVC-ClinicDB/images/a_very_long_name_00149.png", "x" * 18])
def test_long_identifiers_keep_both_ends(name):
    short = grids.shortened(name)
    assert len(short) <= 17 and short[0] == name[0] and short[-1] == name[-1]
    assert (short == name) == (len(name) <= 17)


@pytest.mark.parametrize("columns", [3, 5, 10])
@pytest.mark.parametrize("shape", [(30, 40), (200, 40), (10, 200)])
def test_no_text_covers_another_or_leaves_the_figure(columns, shape):
    style.use()
    panel = np.zeros((*shape, 3), np.uint8)
    rows = [
        grids.Row(
            (f"an_identifier_that_is_long_{n}", "Conv-LoRA ahead", "by 12.3"),
            [panel] * columns,
            ["50.1 (49.9)"] * columns,
        )
        for n in range(3)
    ]
    names = ["image", "truth", *(f"SAM-Adapter (rank = {n})\ncomponents" for n in range(columns - 2))]
    legend = [("a class", "#112233"), ("another class", "#445566"), ("wrong", None)] * 4
    drawn = grids.draw(grids.Grid(names, rows, legend, grids.Scale("distance", 0.1, 12.3, "cividis")))
    drawn.canvas.draw()
    texts = [*drawn.texts, *drawn.legends[0].get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    for place, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= drawn.bbox.width + 1 and box.y1 <= drawn.bbox.height + 1, texts[place].get_text()
        for other in range(place):
            assert not box.overlaps(boxes[other]), (texts[place].get_text(), texts[other].get_text())
    pictures = [axes.get_window_extent() for axes in drawn.axes]
    assert not any(box.overlaps(picture) for box in boxes for picture in pictures)


def test_tall_images_are_narrower_and_flat_ones_lower():
    style.use()
    tall, flat = np.zeros((90, 30, 3), np.uint8), np.zeros((30, 90, 3), np.uint8)
    drawn = grids.draw(grids.Grid(["image", "truth"], [grids.Row(("a",), [tall] * 2), grids.Row(("b",), [flat] * 2)]))
    for axes, panel in zip(drawn.axes, [tall, tall, flat, flat], strict=True):
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx(panel.shape[0] / panel.shape[1], rel=0.01)


def test_help_and_bad_words_need_no_torch():
    words = "import sys; from analysis import predictions, features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=False).returncode == 0
    with pytest.raises(SystemExit):
        parser("predictions", "Words.", ROWS).parse_args(["--images", "0"])
