"""How fast samples are read: decoded through our code, decoded with Pillow alone, and from the cache.

An ordinary test run goes once through all of it with small pictures and compares what is read. docs/speed-data.md has
the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import datasets
from bench.data import SquashedSplit, batches
from datasets import Split
from datasets.cache import Cache, shard_path, write_shard
from methods.randomness import coin

BATCH = 4
NAMES = {"train": "Training", "validation": "Validation", "test": "Test_v2"}


class Scale(NamedTuple):
    """Sides of a photograph, of a squashed sample, and how many samples a cache holds."""

    width: int
    height: int
    size: int
    samples: int


@pytest.fixture(scope="module")
def scale(measuring: bool) -> Scale:
    return Scale(4000, 6000, 1024, 64) if measuring else Scale(200, 300, 64, 40)


@pytest.fixture(scope="module")
def photographs(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Four equal photographs: smooth, with grain, 3 bits a pixel as JPEG."""
    base, rng = tmp_path_factory.mktemp("isic2017"), np.random.default_rng(0)
    size = (scale.width, scale.height)
    ground = Image.fromarray(rng.integers(60, 220, (15, 10, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.integers(-14, 15, (scale.height, scale.width, 1), dtype=np.int16)
    photograph = Image.fromarray((np.asarray(ground) + grain).clip(0, 255).astype(np.uint8))
    rows, columns = np.ogrid[-1 : 1 : scale.height * 1j, -1 : 1 : scale.width * 1j]
    outline = Image.fromarray(np.where(rows**2 + columns**2 < 0.4, 255, 0).astype(np.uint8))
    for name in NAMES.values():
        images, masks = base / f"ISIC-2017_{name}_Data", base / f"ISIC-2017_{name}_Part1_GroundTruth"
        images.mkdir()
        masks.mkdir()
        for number in range(4 if name == "Training" else 1):
            photograph.save(images / f"{name}{number}.jpg", quality=92)
            outline.save(masks / f"{name}{number}_segmentation.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(base / "cache"))
        return datasets.load("isic2017").open(base)["train"]


@pytest.fixture(scope="module")
def cached(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> SquashedSplit:
    """Noise at the cell's size, all of it in the cache."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    noise = Noise(scale.samples)

    def pairs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _ in range(count):
            sample = rng.integers(0, 256, (scale.size, scale.size, 4), dtype=np.uint8)
            yield sample[..., :3], sample[..., 3]

    for start in range(0, scale.samples, 32):
        digests = noise.identifiers[start : start + 32]
        write_shard(shard_path(folder, digests), scale.size, digests, pairs(len(digests)))
    return SquashedSplit(noise, scale.size, cache=Cache(folder, scale.size))


class Noise(Split):
    """Samples that exist in the cache alone."""

    def __init__(self, count: int) -> None:
        self.identifiers = tuple(f"n{number}" for number in range(count))

    def image(self, index: int) -> np.ndarray:
        raise AssertionError("decoded")

    mask = image

    def digest(self, index: int) -> str:
        return self.identifiers[index]


def with_pillow(split: Split, size: int, *, draft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    pair = split._pairs[0]
    with Image.open(pair.image) as picture:
        if draft:
            picture.draft("RGB", (size, size))
        image = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    with Image.open(pair.mask) as picture:
        return image, np.asarray(picture.convert("L").resize((size, size), Image.Resampling.NEAREST))


photograph = partial(dict, group="one photograph of 4000 x 6000 and its mask", reference="Pillow alone", rounds=5)


def test_pillow_alone(compare, photographs, scale):
    image, mask = compare(lambda: with_pillow(photographs, scale.size), **photograph(candidate="Pillow alone"))
    assert image.shape == (scale.size, scale.size, 3)
    assert set(np.unique(mask)) == {0, 255}


def test_ours(compare, photographs, scale):
    data = SquashedSplit(photographs, scale.size, budget=0)
    image, mask = compare(lambda: data[0], **photograph(candidate="ours"))
    expected = with_pillow(photographs, scale.size)
    assert np.array_equal(image, expected[0])
    assert np.array_equal(mask, expected[1] > 127)


def test_scaled_decoding_changes_pixels(compare, benchmark, photographs, scale):
    """What a JPEG decoder can shrink by itself is faster, and another picture."""
    call = partial(with_pillow, photographs, scale.size, draft=True)
    image, _ = compare(call, **photograph(candidate="Pillow, scaled decoding"))
    difference = np.abs(image.astype(int) - with_pillow(photographs, scale.size)[0])
    benchmark.extra_info["difference"] = {"mean": float(difference.mean()), "largest": int(difference.max())}
    assert difference.any()


batch = partial(dict, group="a batch of 4 of 1024 x 1024 by two threads", reference="decoded")


def read(data: SquashedSplit) -> np.ndarray:
    """The images (4, 3, S, S) of one batch, of samples all over the split, each as likely flipped as not."""
    order = np.random.default_rng(0).permutation(len(data)).tolist()[:BATCH]
    (found,) = batches(data, order, BATCH, flips=(0, 1), workers=2)
    return found.images.numpy()


def flipped(data: SquashedSplit) -> np.ndarray:
    """The same one by one, without threads."""
    order = np.random.default_rng(0).permutation(len(data)).tolist()[:BATCH]
    images = [data[index][0][:, ::-1] if coin(0, 1, index) else data[index][0] for index in order]
    return np.stack(images).transpose(0, 3, 1, 2)


def test_a_batch_of_photographs(compare, photographs, scale):
    data = SquashedSplit(photographs, scale.size, budget=0)
    images = compare(lambda: read(data), **batch(candidate="decoded", rounds=3))
    assert np.array_equal(images, flipped(data))


def test_a_batch_from_the_cache(compare, cached):
    images = compare(lambda: read(cached), **batch(candidate="cached"))
    assert np.array_equal(images, flipped(cached))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to forget what it has read")
def test_a_batch_from_a_cache_on_disk(compare, cached):
    """As in the first epoch, or in all of them where the cache is larger than the memory."""

    def evict() -> None:
        for shard in cached.cache.folder.glob("*.npy"):
            with shard.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    images = compare(lambda: read(cached), **batch(candidate="cached, on disk", rounds=50, setup=evict))
    assert np.array_equal(images, flipped(cached))
