"""How fast samples are read: decoded through our code, decoded with Pillow alone, and from the cache.

An ordinary test run goes once through all of it with small pictures and compares what is read. Measured is with
``pytest tests/bench/test_speed_data.py --benchmark-enable``; docs/speed-data.md has the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import datasets
from bench.data import SquashedSplit, batches
from datasets import Split
from datasets.cache import Cache, shard_path, write_shard

NAMES = {"train": "Training", "validation": "Validation", "test": "Test_v2"}


class Scale(NamedTuple):
    """Sides of a photograph, of a squashed sample, and how many samples a cache holds."""

    width: int
    height: int
    size: int
    samples: int


@pytest.fixture(scope="module")
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(4000, 6000, 1024, 64) if request.config.getoption("benchmark_enable") else Scale(200, 300, 64, 40)


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


@pytest.mark.benchmark(group="one photograph and its mask")
def test_pillow_alone(benchmark, photographs, scale):
    image, mask = benchmark.pedantic(with_pillow, (photographs, scale.size), rounds=7, warmup_rounds=1)
    assert image.shape == (scale.size, scale.size, 3)
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.benchmark(group="one photograph and its mask")
def test_ours(benchmark, photographs, scale):
    data = SquashedSplit(photographs, scale.size, budget=0)
    image, mask = benchmark.pedantic(data.__getitem__, (0,), rounds=7, warmup_rounds=1)
    expected = with_pillow(photographs, scale.size)
    assert np.array_equal(image, expected[0])
    assert np.array_equal(mask, expected[1] > 127)


@pytest.mark.benchmark(group="one photograph and its mask")
def test_scaled_decoding_changes_pixels(benchmark, photographs, scale):
    """What a JPEG decoder can shrink by itself is faster, and another picture."""
    image, _ = benchmark.pedantic(with_pillow, (photographs, scale.size), {"draft": True}, rounds=7, warmup_rounds=1)
    difference = np.abs(image.astype(int) - with_pillow(photographs, scale.size)[0])
    benchmark.extra_info["difference"] = {"mean": float(difference.mean()), "largest": int(difference.max())}
    assert difference.any()


def read_all(data: SquashedSplit) -> int:
    order = np.random.default_rng(0).permutation(len(data)).tolist()
    return sum(len(batch.indices) for batch in batches(data, order, 4, flips=(0, 1), workers=2))


@pytest.mark.benchmark(group="batches of 4 by two threads")
def test_batches_of_photographs(benchmark, photographs, scale):
    data = SquashedSplit(photographs, scale.size, budget=0)
    assert benchmark.pedantic(read_all, (data,), rounds=5, warmup_rounds=1) == 4


@pytest.mark.benchmark(group="batches of 4 by two threads")
def test_batches_from_the_cache(benchmark, cached, scale):
    assert benchmark.pedantic(read_all, (cached,), rounds=5, warmup_rounds=1) == scale.samples


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to forget what it has read")
@pytest.mark.benchmark(group="batches of 4 by two threads")
def test_batches_from_a_cache_on_disk(benchmark, cached, scale):
    """As in the first epoch, or in all of them where the cache is larger than the memory."""

    def evict() -> tuple[tuple[SquashedSplit], dict]:
        for shard in cached.cache.folder.glob("*.npy"):
            with shard.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return (cached,), {}

    assert benchmark.pedantic(read_all, setup=evict, rounds=5) == scale.samples
