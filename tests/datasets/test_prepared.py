"""The cache gives what decoding gives, whatever happened while it was made and whatever happened to it since."""

from __future__ import annotations

import hashlib
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image

import datasets
from datasets import Dataset, Split, load, prepared, squash_image, squash_mask
from datasets.cache import Cache, is_whole, shard_path
from datasets.encoding import threshold
from datasets.files import FileSplit
from datasets.isic2017 import Isic2017
from datasets.prepared import PrepareError, prepare, prepare_command

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
FOLDERS = {
    "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
    "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
}
# A preparation that is held up at the image that is named second.
HELD_UP = f"""
import os, sys
from pathlib import Path
from datasets import load
from datasets.prepared import prepare

data, image = map(Path, sys.argv[1:])
splits = load("isic2017").open(data)
image.unlink()
os.mkfifo(image)
prepare(load("isic2017"), splits, {SIZE}, workers=1)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a space in its name; shards of four samples in this process."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "my cache"))
    monkeypatch.delenv("BENCH_DATA_ROOT", raising=False)
    monkeypatch.setattr(prepared, "SHARD", 4)
    return tmp_path / "my cache"


def encoded(array: np.ndarray, format_: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=format_, **options)
    return stream.getvalue()


def plant(base: Path, train: int = 6) -> Path:
    """ISIC in miniature: ``train`` training pairs, two to validate and three to test, all different."""
    rng = np.random.default_rng(0)
    numbers = {"train": range(train), "validation": range(1000, 1002), "test": range(2000, 2003)}
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = encoded(np.asarray(small.resize((90, 70), Image.Resampling.BICUBIC)), "JPEG")
    for split, (images, masks) in FOLDERS.items():
        (base / images).mkdir(parents=True)
        (base / masks).mkdir(parents=True)
        for number in numbers[split]:
            mask = np.zeros((70, 90), np.uint8)
            mask[5 : 20 + number % 40, 8:45] = 255
            # What follows the end of a JPEG makes it another file and no other picture.
            (base / images / f"ISIC_{number:07d}.jpg").write_bytes(image + number.to_bytes(2, "big"))
            (base / masks / f"ISIC_{number:07d}_segmentation.png").write_bytes(encoded(mask, "PNG"))
    return base


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return plant(tmp_path / "my data" / "isic2017")


Ready = tuple[Dataset, dict[str, Split], Cache]


def make_ready(data: Path, size: int = SIZE) -> Ready:
    dataset = load("isic2017")
    splits = dataset.open(data)
    return dataset, splits, prepare(dataset, splits, size, workers=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The miniature, prepared: its folder and that of the cache; tests leave both as they are."""
    base = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(base / "cache"))
        patch.setattr(prepared, "SHARD", 4)
        make_ready(plant(base / "isic2017"))
    return base / "isic2017", base / "cache"


@pytest.fixture
def ready(made: tuple[Path, Path], own_cache: Path) -> Ready:
    """The prepared miniature with a copy of its cache, to be damaged."""
    shutil.copytree(made[1], own_cache)
    dataset = load("isic2017")
    return dataset, dataset.open(made[0]), Cache.of(dataset, SIZE)


def found(cache: Cache, splits: dict[str, Split]) -> int:
    """How many samples the cache holds, each of them compared with its files, bit for bit."""
    count = 0
    for split in splits.values():
        for index in range(len(split)):
            pair = cache.get(split.digest(index))
            if pair is not None:
                image, mask, _ = split[index]
                np.testing.assert_array_equal(pair[0], squash_image(image, cache.size))
                np.testing.assert_array_equal(pair[1], squash_mask(mask, cache.size))
                assert pair[0].dtype == pair[1].dtype == np.uint8
                count += 1
    return count


def shards(cache: Cache) -> dict[str, tuple[int, int]]:
    """The shards that count, each with what tells it from one that was written anew."""
    files = sorted(path for path in cache.folder.glob("*.npy") if is_whole(path))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def start(data: Path, *, held_up_at: Path | None = None, limit: int = 0) -> subprocess.Popen:
    """The command in a process group of its own, with files of at most ``limit`` bytes."""
    command = ["-m", "datasets", "prepare", "isic2017", "--data-root", data, "--image-size", SIZE, "--workers", 1]
    return subprocess.Popen(
        [sys.executable, *map(str, ["-c", HELD_UP, data, held_up_at] if held_up_at else command)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_what_was_prepared_equals_what_is_decoded(data: Path, capsys: pytest.CaptureFixture) -> None:
    _, splits, cache = make_ready(data)
    assert found(cache, splits) == len(cache) == 11
    assert len(shards(cache)) == 3
    assert not list(cache.folder.glob("*.part"))
    said = capsys.readouterr().err
    assert "0 of 11 images are prepared at 64 px" in said
    assert re.search(r"11 of 11 images, [\d.]+ images/s, 0 s left", said)


def test_class_indices_and_ignored_pixels_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder, shape in ((split, (36, 48, 3)), (f"{split}annot", (36, 48))):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
            levels = rng.integers(0, 12, shape, dtype=np.uint8)
            Image.fromarray(levels).save(tmp_path / "CamVid" / folder / "a.png")
    dataset = load("camvid")
    splits = dataset.open(tmp_path / "CamVid")
    cache = prepare(dataset, splits, 32, workers=1)
    assert found(cache, splits) == 3
    values = {int(value) for split in splits.values() for value in np.unique(cache.get(split.digest(0))[1])}
    assert values == {*range(11), datasets.base.IGNORE}


def test_a_sample_that_occurs_twice_is_prepared_once(data: Path) -> None:
    for kind, name in enumerate(("ISIC_{}.jpg", "ISIC_{}_segmentation.png")):
        source = data / FOLDERS["train"][kind] / name.format("0000000")
        shutil.copy(source, data / FOLDERS["test"][kind] / name.format("0002009"))
    _, splits, cache = make_ready(data)
    assert len(cache) == 11
    assert found(cache, splits) == 12


def test_a_second_preparation_makes_nothing(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, splits, cache = ready
    before = shards(cache)
    shard = prepared._Shard(cache.folder / next(iter(before)), ())
    assert prepared._make_shard(shard, SIZE), "somebody else was quicker"
    monkeypatch.setattr(prepared, "_make_shard", None)
    assert len(prepare(dataset, splits, SIZE)) == 11
    assert shards(cache) == before


def test_a_changed_file_is_decoded_and_prepared_anew(data: Path) -> None:
    dataset, _, cache = make_ready(data)
    before = shards(cache)
    path = data / FOLDERS["train"][0] / "ISIC_0000002.jpg"
    path.write_bytes(encoded(np.full((70, 90, 3), 200, np.uint8), "JPEG"))
    splits = dataset.open(data)
    assert splits["train"].digest(2) not in cache
    assert cache.get(splits["train"].digest(2)) is None
    assert found(cache, splits) == 10
    cache = prepare(dataset, splits, SIZE, workers=1)
    assert found(cache, splits) == 11
    assert before.items() < shards(cache).items(), "only the changed one is made"
    assert len(shards(cache)) == 4


def test_another_reading_or_size_finds_nothing(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, splits, cache = ready
    assert Cache.of(dataset, SIZE).folder == cache.folder
    assert len(Cache.of(dataset, SIZE)) == 11
    places = {cache.folder, Cache.of(dataset, 2 * SIZE).folder}
    for name, value in (("encoding", threshold(200)), ("version", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(Isic2017, name, value)
            places.add(Cache.of(dataset, SIZE).folder)
            assert len(Cache.of(dataset, SIZE)) == 0
    for name in ("_FORMAT", "pillow_version"):
        with monkeypatch.context() as patch:
            patch.setattr(f"datasets.cache.{name}", "other")
            places.add(Cache.of(dataset, SIZE).folder)
    assert len(places) == 6
    assert found(cache, splits) == 11


def test_a_changed_squash_needs_a_changed_format() -> None:
    """Whoever changes the squash raises _FORMAT in datasets/cache.py, and only then this digest."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (10, 7, 3)), np.ones((9, 13, 1))).astype(np.uint8)
    squashed = squash_image(image, 24).tobytes() + squash_mask(image[..., 0], 24).tobytes()
    assert (datasets.cache._FORMAT, hashlib.sha256(squashed).hexdigest()[:16]) == (1, "7adcc6ea9d1527f2")


def flip_a_byte(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(128 + 4 * SIZE * SIZE + 77)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "a byte": (flip_a_byte, 3),
    "cut short": (lambda shard: os.truncate(shard, shard.stat().st_size - 1), 0),
    "empty": (lambda shard: os.truncate(shard, 0), 0),
    "no array": (lambda shard: shard.write_bytes(b"<html>" * 9999), 0),
    "another shape": (lambda shard: np.save(shard, np.zeros((2, 4, SIZE, SIZE), np.uint8)), 0),
    "half an index": (lambda shard: os.truncate(shard.with_suffix(".json"), 100), 0),
    "an index of something else": (lambda shard: shard.with_suffix(".json").write_text("[1, 2]"), 0),
    "no shard": (lambda shard: shard.unlink(), 0),
    "no index": (lambda shard: shard.with_suffix(".json").unlink(), 0),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.filterwarnings("ignore:.*repair the cache:RuntimeWarning")
def test_damage_is_found_and_repaired(kind: str, ready: Ready) -> None:
    dataset, splits, cache = ready
    damage, left = DAMAGE[kind]
    shard = shard_path(cache.folder, [splits["train"].digest(index) for index in range(4)])
    assert shard.name in shards(cache)
    before = shards(cache)
    damage(shard)
    assert found(Cache(cache.folder, SIZE), splits) == 7 + left
    assert found(prepare(dataset, splits, SIZE, workers=1), splits) == 11
    after = shards(cache)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {shard.name}, "only the damaged one is made"


def test_damage_after_opening_is_warned_about_once(ready: Ready) -> None:
    _, splits, cache = ready
    for shard in shards(cache):
        os.truncate(cache.folder / shard, 1000)
    with pytest.warns(RuntimeWarning, match=r"decoded from its file; .* python -m datasets prepare") as caught:
        assert found(cache, splits) == 0
    assert len(caught) == 1


def test_a_cache_may_be_deleted_while_it_is_read(ready: Ready, own_cache: Path) -> None:
    _, splits, cache = ready
    image, _ = cache.get(splits["test"].digest(0))
    shutil.rmtree(own_cache)
    np.testing.assert_array_equal(image, squash_image(splits["test"].image(0), SIZE))
    with pytest.warns(RuntimeWarning, match="No such file"):
        assert cache.get(splits["test"].digest(1)) is None


def test_a_killed_preparation_goes_on(tmp_path: Path) -> None:
    data = plant(tmp_path / "isic2017", 90)
    dataset = load("isic2017")
    splits = dataset.open(data)
    cache = Cache.of(dataset, SIZE)
    image = data / FOLDERS["train"][0] / "ISIC_0000040.jpg"
    content = image.read_bytes()
    process = start(data, held_up_at=image)
    until(lambda: shards(cache) and any(path.stat().st_size > 0 for path in cache.folder.glob("*.part")))
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert family
    assert not psutil.wait_procs(family, timeout=60)[1], "workers outlived the process that was killed"
    image.unlink()
    image.write_bytes(content)
    before = shards(cache)
    assert list(cache.folder.glob("*.part"))
    assert found(Cache(cache.folder, SIZE), splits) == 32
    second = start(data)
    assert "32 of 95 images are prepared" in second.communicate(timeout=300)[1]
    assert second.returncode == 0
    assert before.items() < shards(cache).items(), "what is whole is not made again"
    assert found(Cache(cache.folder, SIZE), splits) == 95
    assert not list(cache.folder.glob("*.part"))


def test_a_killed_worker_is_reported(data: Path) -> None:
    folder = Cache.of(load("isic2017"), SIZE).folder
    process = start(data, held_up_at=data / FOLDERS["train"][0] / "ISIC_0000004.jpg")
    until(lambda: list(folder.glob("*.part")))
    for worker in psutil.Process(process.pid).children():
        if any("spawn_main" in word for word in worker.cmdline()):
            worker.kill()
    assert "PrepareError: a worker process was killed" in process.communicate(timeout=300)[1]


def test_ctrl_c_stops_at_once_and_keeps_what_is_whole(tmp_path: Path) -> None:
    data = plant(tmp_path / "isic2017", 90)
    dataset = load("isic2017")
    splits = dataset.open(data)
    cache = Cache.of(dataset, SIZE)
    cache.folder.mkdir(parents=True)
    last = [split.digest(index) for split in splits.values() for index in range(len(split))][64:]
    with FileLock(shard_path(cache.folder, last).with_suffix(".lock")):
        process = start(data)
        until(lambda: shards(cache) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert "isic2017: stopped. What is prepared stays" in said
    assert "Traceback" not in said
    assert not list(cache.folder.glob("*.part"))
    assert found(Cache(cache.folder, SIZE), splits) in (32, 64)


def test_two_processes_at_once(tmp_path: Path) -> None:
    data = plant(tmp_path / "isic2017", 120)
    dataset = load("isic2017")
    splits = dataset.open(data)
    both = [start(data), start(data)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert found(Cache.of(dataset, SIZE), splits) == 125
    assert all("125 of 125 images, " in text for text in said)


def test_what_another_process_makes_is_left_to_it_and_waited_for(data: Path) -> None:
    dataset = load("isic2017")
    splits = dataset.open(data)
    folder = Cache.of(dataset, SIZE).folder
    folder.mkdir(parents=True)
    first = shard_path(folder, [splits["train"].digest(index) for index in range(4)])
    results: list[Cache] = []
    thread = threading.Thread(target=lambda: results.append(prepare(dataset, splits, SIZE, workers=1)))
    with FileLock(first.with_suffix(".lock")):
        thread.start()
        until(lambda: len(shards(Cache(folder, SIZE))) == 2)
        assert not is_whole(first)
        assert thread.is_alive()
    thread.join(timeout=300)
    assert found(results[0], splits) == 11


def test_a_full_disk_is_reported_and_nothing_half_written_counts(tmp_path: Path) -> None:
    data = plant(tmp_path / "isic2017", 35)
    dataset = load("isic2017")
    splits = dataset.open(data)
    # A shard of 32 does not fit; that of the last 8 does.
    process = start(data, limit=20 * 4 * SIZE * SIZE)
    said = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    cache = Cache.of(dataset, SIZE)
    assert re.search(rf"error: {re.escape(str(cache.folder))}/\w+\.part: File too large\. Make room", said)
    assert "BENCH_CACHE" in said
    assert "--image-size" in said
    assert "Traceback" not in said
    assert not list(cache.folder.glob("*.part"))
    assert found(cache, splits) in (0, 8)
    assert found(prepare(dataset, splits, SIZE, workers=1), splits) == 40


def test_too_little_room_is_told_beforehand(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load("isic2017")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 40_000, 40_000))
    told = r"my cache.*0\.2 MB are needed and 0\.0 MB are free.*BENCH_CACHE.*--image-size"
    with pytest.raises(PrepareError, match=told):
        prepare(dataset, dataset.open(data), SIZE)
    assert len(Cache.of(dataset, SIZE)) == 0


def test_an_unwritable_cache(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert len(Cache.of(load("isic2017"), SIZE)) == 0, "it can be asked for"
    told = rf"{re.escape(str(tmp_path / 'file' / 'cache'))}.*Not a directory.*BENCH_CACHE"
    with pytest.warns(RuntimeWarning, match="inspection"), pytest.raises(PrepareError, match=told):
        prepare_command("isic2017", data, image_size=SIZE)


def test_an_image_that_went_away_is_named(data: Path) -> None:
    dataset = load("isic2017")
    splits = dataset.open(data)
    (data / FOLDERS["train"][0] / "ISIC_0000003.jpg").unlink()
    with pytest.raises(PrepareError, match=r"train ISIC_0000003 cannot be read .*No such file"):
        prepare(dataset, splits, SIZE, workers=1)
    assert not list(Cache.of(dataset, SIZE).folder.glob("*.part"))


def test_a_worker_that_was_told_to_stop_begins_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(prepared, "_stop", stop, raising=False)
    monkeypatch.setattr(prepared, "_splits", load("shapes").open())
    samples = prepared._squash([("a", "train", 0), ("b", "train", 1)], SIZE)
    assert next(samples)[0].shape == (SIZE, SIZE, 3)
    stop.set()
    with pytest.raises(prepared._Stopped):
        next(samples)


def test_a_copy_of_zeros_and_ones_is_prepared_as_it_is_read(data: Path) -> None:
    for path in data.glob("*GroundTruth/*.png"):
        mask = np.asarray(Image.open(path)) // 255
        path.write_bytes(encoded(mask, "PNG"))
    _, splits, cache = make_ready(data)
    assert found(cache, splits) == 11
    assert cache.get(splits["train"].digest(0))[1].any()


def test_parameters_that_change_the_reading_have_a_cache_of_their_own() -> None:
    def place(**parameters) -> Path:
        return Cache.of(load("folder", of="mine", **parameters), SIZE).folder

    assert place() == place(validation_share=0.3)
    assert len({place(), place(threshold=9), place(class_names=("ground", "leaf"))}) == 3


@pytest.mark.parametrize(
    ("name", "size", "parameters", "told"),
    [
        ("shapes", 32, {}, "generated as it is read and needs no cache"),
        ("shapes", 32, {"styl": 1}, "Did you mean 'style'"),
        ("isic2016", 32, {}, "isic2017"),
        ("isic2017", 0, {}, "--image-size 0"),
        ("isic2017", 32, {}, "was not found"),
    ],
)
def test_what_cannot_be_prepared(name: str, size: int, parameters: dict, told: str, data: Path) -> None:
    root = data / "nowhere" if "found" in told else data
    with pytest.raises((PrepareError, ValueError, datasets.DatasetMissing), match=told):
        prepare_command(name, root, image_size=size, parameters=parameters)


def test_a_number_of_workers_is_needed(data: Path) -> None:
    with pytest.raises(PrepareError, match=r"--workers -3: .* 0 for one on each core"):
        prepare_command("isic2017", data, image_size=SIZE, workers=-3)


def test_the_real_sample(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "isic2017"
    for images, masks in FOLDERS.values():
        (base / images).mkdir(parents=True)
        (base / masks).mkdir()
        for image in sorted((test_data / "isic2017_512" / images).glob("*.jpg"))[:10]:
            mask = f"{image.stem}_segmentation.png"
            (base / images / image.name).symlink_to(image)
            (base / masks / mask).symlink_to(test_data / "isic2017_512" / masks / mask)
    _, splits, cache = make_ready(base, 128)
    assert found(cache, splits) == len(cache) == 30
    monkeypatch.setattr(FileSplit, "image", None)
    monkeypatch.setattr(FileSplit, "mask", None)
    for split in splits.values():
        for index in range(len(split)):
            image, mask = cache.get(split.digest(index))
            assert image.shape == (128, 128, 3)
            assert set(np.unique(mask)) <= {0, 1}
