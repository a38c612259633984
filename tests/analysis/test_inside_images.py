"""The draw of images over several datasets: equal shares, the same ones everywhere, and the list of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import datasets
from analysis.inside import images
from analysis.inside.images import DOWNSTREAM, NoImages, draw, shares
from bench.registry import UnknownName


@given(available=st.dictionaries(st.text(min_size=1), st.integers(0, 50), min_size=1), count=st.integers(1, 120))
def test_shares_are_equal_but_for_what_a_dataset_lacks(available, count):
    taken = shares(available, count)
    assert sum(taken.values()) == min(count, sum(available.values()))
    most = max(taken.values())
    assert all(taken[name] == available[name] or taken[name] >= most - 1 for name in available)
    assert all(0 <= taken[name] <= available[name] for name in available)


class Renamed(NamedTuple):
    """A dataset of generated images under a name of its own."""

    test_sets: tuple[str, ...]
    images: int

    def open(self, root, *, allow_broken):
        return datasets.load("shapes", test_images=self.images, validation_images=10).open(root)


@pytest.fixture
def two(monkeypatch):
    """The datasets ``large``, with two test sets, and ``small``."""
    there = {"large": Renamed(("test", "validation"), 20), "small": Renamed(("test",), 3)}
    monkeypatch.setattr(images, "datasets", SimpleNamespace(load=there.get, DatasetMissing=datasets.DatasetMissing))


def names(drawn):
    return [(picture.dataset, picture.test_set, picture.identifier) for picture in drawn.pictures]


def test_a_draw_is_a_function_of_the_seed(two):
    first = draw(["large", "small"], None, 10)
    assert first.counts == {"large": 7, "small": 3}
    assert {picture.test_set for picture in first.pictures} == {"test", "validation"}
    assert names(first) == names(draw(["large", "small"], None, 10))
    assert names(first) != names(draw(["large", "small"], None, 10, seed=1))
    alone = draw(["large"], None, 7)
    assert names(alone) == names(first)[:7]
    assert names(draw(["large"], None, 12))[:7] == names(alone)


def test_the_list_names_content_and_each_picture_once(two):
    drawn = draw(["large", "small", "large"], None, 9)
    table = drawn.table()
    assert list(table.columns) == ["dataset", "test_set", "identifier", "digest"]
    assert table["dataset"].value_counts().to_dict() == {"large": 6, "small": 3}
    assert not table[["dataset", "test_set", "identifier"]].duplicated().any()
    assert table["digest"].str.len().eq(64).all()


def test_pixels_are_the_squashed_image():
    picture = draw(["shapes"], None, 1).pictures[0]
    pixels = picture.pixels(48)
    expected = datasets.squash_image(picture.split.image(picture.index), 48)
    assert pixels.shape == (1, 3, 48, 48)
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0), expected)


def test_datasets_that_are_not_there_are_told(tmp_path):
    drawn = draw(["isic2017", "shapes"], tmp_path, 4)
    assert drawn.counts == {"shapes": 4}
    assert drawn.skipped == (
        f"the dataset 'isic2017' is not there. Next: python -m datasets verify isic2017 --data-root {tmp_path}",
    )
    with pytest.raises(NoImages, match=r"'camvid' is not there.*'isic2017' is not there"):
        draw(["camvid", "isic2017"], tmp_path, 4)
    with pytest.raises(UnknownName, match="Did you mean 'shapes'"):
        draw(["shape"], tmp_path, 4)


def test_the_papers_datasets_are_known():
    assert set(DOWNSTREAM) < set(datasets.registry.names())


def test_real_images_are_drawn_from_the_test_split(test_data):
    root = test_data / "isic2017_512"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    drawn = draw(["isic2017", "shapes"], root, 6)
    test = datasets.load("isic2017").open(root)["test"]
    own = [picture for picture in drawn.pictures if picture.dataset == "isic2017"]
    assert len(own) == 3
    assert all(picture.identifier in test.identifiers for picture in own)
    assert own[0].pixels(64).float().std() > 1
