"""Order, flips and subsets are functions of their keys; memory, cache and workers change the speed of reading alone."""

from __future__ import annotations

import io
import logging
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import datasets
import methods
from bench import cell as cells
from bench.data import Batch, SquashedSplit, batches, fixed_subset, open_cache, open_splits, shuffled
from bench.spec import make_cell
from bench.store import CellFolder, Results
from datasets import Sample, Split, few_shot
from datasets.cache import Cache
from datasets.prepared import prepare

SIZE = 16


class Noise(Split):
    """Images of several native sizes, other ones at every index; remembers how often each was read."""

    def __init__(self, count: int, delay: float = 0.0) -> None:
        self.identifiers = tuple(f"n{number}" for number in range(count))
        self.reads: list[int] = []
        self._delay = delay

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        # The first images of a batch come last, so that readers overtake each other.
        time.sleep(self._delay * (3 - index % 4))
        generator = np.random.default_rng(index)
        height, width = 20 + index, 30
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Sample(image, generator.integers(0, 2, (height, width), dtype=np.uint8), self.identifiers[index])

    def image(self, index: int) -> np.ndarray:
        return self[index].image

    def mask(self, index: int) -> np.ndarray:
        return self[index].mask


def read(
    count: int = 10, *, budget: int = 1 << 20, order: list[int] | None = None, delay: float = 0.0, **options
) -> list[Batch]:
    data = SquashedSplit(Noise(count, delay), SIZE, budget=budget)
    return list(batches(data, list(range(count)) if order is None else order, 4, **options))


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        a.indices == b.indices and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) for a, b in pairs
    )


def test_batches_hold_what_a_plain_loop_reads():
    order = [3, 0, 9, 4, 4, 1]
    found, split = read(order=order), Noise(10)
    assert [batch.indices for batch in found] == [[3, 0, 9, 4], [4, 1]]
    assert {batch.images.dtype for batch in found} == {batch.masks.dtype for batch in found} == {torch.uint8}
    images, masks = torch.cat([batch.images for batch in found]), torch.cat([batch.masks for batch in found])
    assert images.shape == (6, 3, SIZE, SIZE)
    assert masks.shape == (6, SIZE, SIZE)
    for position, index in enumerate(order):
        sample = split[index]
        image = Image.fromarray(sample.image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        mask = Image.fromarray(sample.mask).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        assert np.array_equal(images[position].permute(1, 2, 0), np.array(image))
        assert np.array_equal(masks[position], np.array(mask))


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_number_of_workers_changes_nothing(workers):
    assert same(read(flips=(0, 1), workers=workers, delay=0.002), read(flips=(0, 1), workers=1))


def test_memory_changes_nothing_but_how_often_images_are_decoded():
    room_for = 4 * SIZE * SIZE
    results, reads = [], {}
    for budget in (0, 3 * room_for, 1 << 20):
        split = Noise(10)
        data = SquashedSplit(split, SIZE, budget=budget)
        results.append(
            [
                *batches(data, range(10), 4, flips=(0, 1), workers=1),
                *batches(data, range(10), 4, flips=(0, 2), workers=1),
            ]
        )
        reads[budget] = len(split.reads)
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    assert list(reads.values()) == [20, 17, 10]


def test_a_flip_mirrors_image_and_mask_together_and_leaves_what_is_kept():
    data = SquashedSplit(Noise(12), SIZE)
    plain = next(batches(data, range(12), 12))
    flipped = next(batches(data, range(12), 12, flips=(0, 1)))
    mirrored = []
    for index in range(12):
        image, mask = plain.images[index], plain.masks[index]
        if torch.equal(flipped.images[index], image):
            assert torch.equal(flipped.masks[index], mask)
        else:
            assert torch.equal(flipped.images[index], image.flip(-1))
            assert torch.equal(flipped.masks[index], mask.flip(-1))
            mirrored.append(index)
    assert 0 < len(mirrored) < 12
    assert same([plain], list(batches(data, range(12), 12)))


def flips(seed: int, epoch: int, order: list[int]) -> dict[int, bool]:
    """Which images are mirrored, told from their pixels."""
    plain = {i: image for batch in read(order=order) for i, image in zip(batch.indices, batch.images, strict=True)}
    found = read(order=order, flips=(seed, epoch))
    return {
        i: not torch.equal(image, plain[i])
        for batch in found
        for i, image in zip(batch.indices, batch.images, strict=True)
    }


def test_flips_are_a_function_of_seed_epoch_and_index():
    order = list(range(10))
    first = flips(0, 1, order)
    torch.manual_seed(5)
    np.random.seed(5)
    assert flips(0, 1, order) == first
    assert flips(0, 1, order[::-1]) == first, "the place in the order does not count"
    assert flips(0, 1, [2, 7]) == {2: first[2], 7: first[7]}
    assert flips(1, 1, order) != first
    assert flips(0, 2, order) != first


@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_of_its_own(count, seed, epoch):
    order = shuffled(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == shuffled(count, seed, epoch)
    if count > 20:
        assert order != shuffled(count, seed, epoch + 1)
        assert order != shuffled(count, seed + 1, epoch)


def test_an_epochs_order_stays_what_it_was():
    """Whoever trains again next year gets the same batches."""
    assert shuffled(8, 0, 1) == [1, 3, 7, 6, 0, 4, 2, 5]


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 9))
def test_a_fixed_subset_lies_in_every_larger_one(count, small, large, seed):
    split = Noise(count)
    small, large = sorted((small, large))
    a, b = fixed_subset(split, small, seed), fixed_subset(split, large, seed)
    assert a.identifiers == fixed_subset(split, small, seed).identifiers
    assert len(b) == (large if 0 < large < count else count)
    if small:
        assert set(a.identifiers) <= set(b.identifiers)
    assert list(b.identifiers) == [name for name in split.identifiers if name in b.identifiers], "in their old order"


def test_a_fixed_subset_is_drawn_from_the_whole_set():
    chosen = fixed_subset(Noise(100), 10, 7).identifiers
    assert chosen != Noise(100).identifiers[:10]
    assert chosen != fixed_subset(Noise(100), 10, 8).identifiers


def test_shots_cut_down_the_training_images_alone():
    dataset = datasets.load("shapes", train_images=12, validation_images=4, test_images=4, size=64)
    sets = []
    for seed in (0, 0, 1):
        cell = make_cell(
            method=methods.create("lora"),
            dataset=dataset,
            seed=seed,
            backbone="tiny",
            checkpoint="none",
            image_size=64,
            precision="fp32",
            shots=3,
        )
        splits = open_splits(cell, None)
        assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 4, "test": 4}
        sets.append(splits["train"].identifiers)
    assert sets[0] == sets[1] != sets[2]


def test_an_error_while_reading_reaches_the_training_and_leaves_no_thread():
    class Broken(Noise):
        def __getitem__(self, index: int) -> Sample:
            if index == 5:
                raise OSError("n5.png is truncated")
            return super().__getitem__(index)

    before = set(threading.enumerate())
    with pytest.raises(OSError, match=r"n5\.png"):
        list(batches(SquashedSplit(Broken(10), SIZE), range(10), 4))
    reader = batches(SquashedSplit(Noise(30), SIZE), range(30), 4)
    next(reader)
    reader.close()
    assert set(threading.enumerate()) <= before


COUNTS = {"train": 6, "validation": 3, "test": 5}
SIDE = 64


def encoded(array: np.ndarray, format_: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=format_)
    return stream.getvalue()


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature of ISIC 2017 whose files were looked at before; no sample of it is prepared."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    rng, base = np.random.default_rng(0), tmp_path / "isic2017"
    for split, name in {"train": "Training", "validation": "Validation", "test": "Test_v2"}.items():
        images, masks = base / f"ISIC-2017_{name}_Data", base / f"ISIC-2017_{name}_Part1_GroundTruth"
        images.mkdir(parents=True)
        masks.mkdir()
        for number in range(COUNTS[split]):
            image = rng.integers(0, 256, (80 + number, 100, 3), dtype=np.uint8)
            mask = np.zeros(image.shape[:2], np.uint8)
            mask[20 : 50 + number, 10 : 60 + len(split)] = 255
            (images / f"{split}{number}.jpg").write_bytes(encoded(image, "JPEG"))
            (masks / f"{split}{number}_segmentation.png").write_bytes(encoded(mask, "PNG"))
    datasets.load("isic2017").open(base)
    return base


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened as a picture, by its name."""
    counts: Counter[str] = Counter()
    plain = Image.open

    def counted(file, *words, **options):
        counts[Path(file).name] += 1
        return plain(file, *words, **options)

    monkeypatch.setattr(Image, "open", counted)
    return counts


def run_cell(results: Path, method: str, data: Path, *words: str) -> CellFolder:
    """``python -m bench.cell`` in this process."""
    cell = make_cell(
        method=methods.create(method),
        dataset=datasets.load("isic2017"),
        seed=0,
        backbone="tiny",
        checkpoint="none",
        image_size=SIDE,
        precision="fp32",
        regime={"epochs": 2},
    )
    folder = Results(results).cell(cell.id)
    if not words:
        folder.create(cell, {})
    assert cells.main([cell.id, "--results", str(results), "--data-root", str(data), "--threads", "1", *words]) == 0
    return folder


def test_a_cell_decodes_every_file_once_and_no_image_that_was_prepared(photographs, decoded, tmp_path, caplog):
    """Over two epochs, the validation after each, and the scoring under both protocols."""
    caplog.set_level(logging.INFO)
    plain = run_cell(tmp_path / "plain", "lora", photographs)
    every = {path.name for path in photographs.rglob("*.*")}
    assert decoded == Counter(every), "each once"
    assert len(every) == 2 * 14
    assert "python -m datasets prepare isic2017 --image-size 64" in caplog.text

    dataset = datasets.load("isic2017")
    prepare(dataset, dataset.open(photographs), SIDE, workers=1)
    native = Counter({name for name in every if name.startswith("test") and name.endswith(".png")})
    decoded.clear()
    caplog.clear()
    cached = run_cell(tmp_path / "cached", "lora", photographs)
    assert decoded == native, "the masks that the literature's protocol compares with, at their own size"
    told = [record.getMessage() for record in caplog.records if "from the cache" in record.getMessage()]
    assert told == [f"reads 14 of 14 images from the cache {Cache.of(dataset, SIDE).folder}"]

    assert cached.result()["scores"] == plain.result()["scores"]
    assert cached.read() == plain.read(), "identity and evidence"
    assert cached.status()["state"] == plain.status()["state"] == "done"
    for file in ("adapter.safetensors", "per_image.parquet"):
        assert (cached.path / file).read_bytes() == (plain.path / file).read_bytes()

    decoded.clear()
    run_cell(tmp_path / "cached", "lora", photographs, "--evaluate")
    assert decoded == native
    assert "stale" not in cached.status()


def test_an_oracle_decodes_nothing_more(photographs, decoded, tmp_path):
    """Zero-shot SAM is prompted by the mask itself."""
    run_cell(tmp_path / "plain", "sam_zero_shot", photographs)
    assert decoded == Counter({path.name for path in photographs.rglob("test*.*")})
    dataset = datasets.load("isic2017")
    prepare(dataset, dataset.open(photographs), SIDE, workers=1)
    decoded.clear()
    run_cell(tmp_path / "cached", "sam_zero_shot", photographs)
    assert decoded == Counter({path.name for path in photographs.rglob("test*.png")})


def test_subsets_are_read_from_the_cache_of_the_whole(photographs, decoded):
    dataset = datasets.load("isic2017")
    splits = dataset.open(photographs)
    cache = prepare(dataset, splits, SIDE, workers=1)
    train = splits["train"]
    decoded.clear()
    for subset in (
        train,
        fixed_subset(train, 3, 1),
        few_shot(train, 2, 0, 1),
        fixed_subset(train, 5, 2).subset([4, 0]),
    ):
        plain, cached = SquashedSplit(subset, SIDE), SquashedSplit(subset, SIDE, cache=cache)
        order = range(len(subset))
        decoded.clear()
        found = list(batches(cached, order, 2, flips=(0, 1)))
        assert not decoded
        assert same(found, list(batches(plain, order, 2, flips=(0, 1))))


def test_what_the_cache_lacks_is_decoded_and_kept(photographs, decoded):
    dataset = datasets.load("isic2017")
    splits = dataset.open(photographs)
    part = {"train": splits["train"].subset([0, 3, 4])}
    data = SquashedSplit(splits["train"], SIDE, cache=prepare(dataset, part, SIDE, workers=1))
    plain = list(batches(SquashedSplit(splits["train"], SIDE), range(6), 4))
    decoded.clear()
    for _ in range(3):
        assert same(list(batches(data, range(6), 4)), plain)
    assert decoded == Counter({f"train{index}{end}" for index in (1, 2, 5) for end in (".jpg", "_segmentation.png")})


def test_a_cache_that_goes_away_in_the_middle_stops_no_training(photographs, decoded, tmp_path):
    dataset = datasets.load("isic2017")
    splits = dataset.open(photographs)
    data = SquashedSplit(splits["test"], SIDE, cache=prepare(dataset, splits, SIDE, workers=1))
    before = list(batches(data, range(5), 2))
    shutil.rmtree(tmp_path / "cache")
    with pytest.warns(RuntimeWarning, match="decoded from its file") as caught:
        assert same(list(batches(data, range(5), 2)), before)
    assert len(caught) == 1
    image, mask, native = data.with_native_mask(2)
    assert np.array_equal(native, splits["test"].mask(2))
    assert np.array_equal(image, data[2][0])
    assert np.array_equal(mask, data[2][1])


def test_generated_images_are_not_looked_for_in_a_cache(caplog):
    caplog.set_level(logging.INFO)
    dataset = datasets.load("shapes", train_images=1, validation_images=1, test_images=1, size=64)
    cell = make_cell(
        method=methods.create("lora"),
        dataset=dataset,
        seed=0,
        backbone="tiny",
        checkpoint="none",
        image_size=64,
        precision="fp32",
    )
    assert open_cache(cell, open_splits(cell, None)) is None
    assert not caplog.records
