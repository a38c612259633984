"""Drawn splits are a function of names and seed alone, and move little when files come or go."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets import load
from datasets.pairing import Pair
from datasets.splitting import as_found, draw, hold_out, rank

PROJECT = Path(__file__).parents[2]

names = st.lists(st.text(min_size=1, max_size=6, alphabet="aAbé 漢._-0"), unique=True, max_size=25)
shares = st.sampled_from([0.1, 0.2, 14 / 1108, 0.5, 0.9])
seeds = st.integers(0, 10**6)


def pairs_of(identifiers: Sequence[str]) -> list[Pair]:
    return [Pair(name, Path(f"images/{name}.png"), Path(f"masks/{name}.png")) for name in identifiers]


def place(name: str, seed: int) -> tuple[str, str]:
    small = unicodedata.normalize("NFC", name).lower()
    return hashlib.sha256(f"{seed} {small}".encode()).hexdigest(), name


def lowest(identifiers: Sequence[str], count: int, seed: int) -> set[str]:
    """The names whose hash with the seed is lowest, found one after another."""
    left, chosen = list(identifiers), set()
    for _ in range(min(count, len(left))):
        first = left[0]
        for name in left:
            if place(name, seed) < place(first, seed):
                first = name
        left.remove(first)
        chosen.add(first)
    return chosen


@given(names, st.integers(0, 30), seeds)
def test_drawn_are_the_lowest_hashes(identifiers: list[str], count: int, seed: int) -> None:
    pairs = pairs_of(identifiers)
    chosen, others = draw(pairs, count, seed)
    expected = lowest(identifiers, count, seed)
    assert chosen == [pair for pair in pairs if pair.identifier in expected]
    assert others == [pair for pair in pairs if pair.identifier not in expected]


@given(st.text(min_size=1, max_size=6, alphabet="aÄéßǅ漢가 1"), seeds)
def test_a_rank_is_that_of_the_name_in_any_case_and_form(name: str, seed: int) -> None:
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, name)
        assert rank(other, seed)[0] == rank(other.lower(), seed)[0] == rank(name, seed)[0]
        assert rank(other, seed)[1] == other


def test_a_name_that_is_no_text_has_a_rank() -> None:
    assert rank(os.fsdecode(b"t\xe9"), 1)[0] == hashlib.sha256(b"1 t\xe9").digest()


@given(names, shares, seeds)
def test_held_out_is_the_nearest_whole_number(identifiers: list[str], share: float, seed: int) -> None:
    parts = {"train": pairs_of(identifiers), "test": pairs_of(["a", "b"])}
    splits = hold_out(share)(parts, seed)
    assert list(splits) == ["train", "validation", "test"]
    wanted = Fraction(share).limit_denominator(2000) * len(identifiers)
    assert abs(len(splits["validation"]) - wanted) <= Fraction(1, 2)
    assert sorted(splits["train"] + splits["validation"]) == sorted(parts["train"])
    assert splits["test"] == parts["test"]


@pytest.mark.parametrize(
    ("share", "images", "held_out"),
    [(0.2, 1450, 290), (0.1, 4040, 404), (0.1, 4085, 408), (0.2, 498, 100), (14 / 1108, 1108, 14)],
    ids=["polyps", "camouflage", "sbu", "leaf", "road"],
)
def test_the_counts_of_the_paper(share: float, images: int, held_out: int) -> None:
    splits = hold_out(share)({"train": pairs_of([str(number) for number in range(images)])}, 1)
    assert (len(splits["train"]), len(splits["validation"])) == (images - held_out, held_out)


def test_a_published_validation_set_stays() -> None:
    parts = {"train": pairs_of("abcdefgh"), "validation": pairs_of("x"), "test": pairs_of("y")}
    assert hold_out(0.5)(parts, 1) == as_found(parts, 1) == parts


@given(names, shares, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_files_changes_nothing(
    identifiers: list[str], share: float, seed: int, shuffling: random.Random
) -> None:
    splits = hold_out(share)({"train": pairs_of(identifiers)}, seed)
    shuffling.shuffle(identifiers)
    again = hold_out(share)({"train": pairs_of(identifiers)}, seed)
    for split, pairs in splits.items():
        assert sorted(again[split]) == sorted(pairs)
        assert [pair.identifier for pair in again[split]] == [
            name for name in identifiers if name in {pair.identifier for pair in pairs}
        ]


@given(names.filter(len), shares, seeds)
def test_one_more_file_moves_one_other_at_most(identifiers: list[str], share: float, seed: int) -> None:
    *fewer, new = identifiers
    held_out = [
        {pair.identifier for pair in hold_out(share)({"train": pairs_of(some)}, seed)["validation"]}
        for some in (fewer, identifiers)
    ]
    assert len((held_out[0] ^ held_out[1]) - {new}) <= 1


@given(names, st.integers(0, 30), seeds)
def test_a_smaller_draw_lies_within_a_larger_one(identifiers: list[str], count: int, seed: int) -> None:
    pairs = pairs_of(identifiers)
    assert set(draw(pairs, count, seed)[0]) <= set(draw(pairs, count + 1, seed)[0])


def test_another_seed_draws_others_and_all_names_alike() -> None:
    identifiers = [f"ISIC_{number:07d}" for number in range(200)]
    drawn = [{pair.identifier for pair in draw(pairs_of(identifiers), 40, seed)[0]} for seed in range(400)]
    assert len({frozenset(one) for one in drawn}) == len(drawn)
    often = np.array([sum(name in one for one in drawn) for name in identifiers])
    # Binomial: 80 on average, standard deviation 8.
    assert often.mean() == 80 and often.min() > 40 and often.max() < 120 and 6 < often.std() < 10


DRAWN = """
from pathlib import Path
from datasets.pairing import Pair
from datasets.splitting import draw
names = [f"image {number}" for number in range(12)] + ["Bär", "漢"]
pairs = {Pair(name, Path(name), Path(name)) for name in names}
print(ascii(sorted(pair.identifier for pair in draw(list(pairs), 5, 1450)[0])))
"""


def test_a_draw_is_the_same_in_every_process() -> None:
    known = "['image 11', 'image 3', 'image 4', 'image 8', '\\u6f22']"
    for seed in ("0", "1", "31415"):
        surroundings = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C", "PYTHONPATH": str(PROJECT)}
        found = subprocess.run(
            [sys.executable, "-c", DRAWN], env=surroundings, cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == known


def plant(base: Path, count: int) -> Path:
    for number in range(count):
        for folder, mode in (("ShadowImages", "RGB"), ("ShadowMasks", "L")):
            for split in ("SBUTrain4KRecoveredSmall", "SBU-Test"):
                path = base / split / folder / f"lssd{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new(mode, (3, 2), 200 + number).save(path)
    return base


def test_a_split_of_files_travels(tmp_path: Path) -> None:
    splits = load("sbu").open(plant(tmp_path / "sbu", 12))
    for name, split in splits.items():
        copy = pickle.loads(pickle.dumps(split))
        assert len(copy) == len(split) > 0, name
        for index in range(len(split)):
            for there, here in zip(copy[index], split[index], strict=True):
                np.testing.assert_array_equal(there, here)
            assert copy.digest(index) == split.digest(index) and copy.labels(index) == split.labels(index) == {1}


def test_the_order_of_a_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "sbu", 30)
    splits = {name: split.identifiers for name, split in load("sbu").open(tmp_path).items()}
    listing = os.scandir

    class Backwards:
        def __init__(self, path: os.PathLike) -> None:
            with listing(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry]:
            return self._entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("datasets.pairing.os.scandir", Backwards)
    assert {name: split.identifiers for name, split in load("sbu").open(tmp_path).items()} == splits


def test_the_case_of_a_copys_names_changes_no_draw(tmp_path: Path) -> None:
    drawn = []
    for change in (str.lower, str.upper):
        base = plant(tmp_path / change("copy") / "sbu", 30)
        for path in [*base.glob("*/*/*.png")]:
            path.rename(path.with_name(f"{change(path.stem)}.new"))
        for path in [*base.glob("*/*/*.new")]:
            path.rename(path.with_suffix(".png"))
        splits = load("sbu").open(base)
        drawn.append({name: [stem.lower() for stem in split.identifiers] for name, split in splits.items()})
    assert drawn[0] == drawn[1] and len(drawn[0]["validation"]) == 3
