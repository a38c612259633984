"""Miniatures of published datasets, a few tiny files each; and what tests of running processes have in common."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


class DataRoot:
    """A data folder that is filled dataset by dataset; every image in it is another one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images = 0

    def isic2017(self, train: int = 6) -> Path:
        """The challenge's archives."""
        base = self.path / "isic2017"
        for split, count in (("Training", train), ("Validation", 2), ("Test_v2", 3)):
            folders = (base / f"ISIC-2017_{split}_Data", base / f"ISIC-2017_{split}_Part1_GroundTruth")
            self._pairs(*folders, count, image="ISIC_{:07d}.jpg", mask="ISIC_{:07d}_segmentation.png")
        return base

    def polyps(self, *test_sets: str, train: int = 10) -> Path:
        """PraNet's re-pack with the test sets of these folders; called again it adds to what is there."""
        base = self.path / "polyps"
        if not (base / "TrainDataset").exists():
            self._pairs(base / "TrainDataset" / "image", base / "TrainDataset" / "mask", train)
        for name in test_sets:
            self._pairs(base / "TestDataset" / name / "images", base / "TestDataset" / name / "masks", 3)
        return base

    def _pairs(self, images: Path, masks: Path, count: int, image: str = "{}.png", mask: str = "{}.png") -> None:
        for folder in (images, masks):
            folder.mkdir(parents=True)
        for number in range(count):
            self._images += 1
            outline = np.zeros((24, 32), dtype=np.uint8)
            outline[4:14, 6 : 10 + self._images % 16] = 255
            pixels = np.stack([outline, np.full_like(outline, self._images), 255 - outline], axis=-1)
            Image.fromarray(pixels).save(images / image.format(number))
            Image.fromarray(outline).save(masks / mask.format(number))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Several threads that wait for each other on a busy machine take ten times as long, and may round otherwise."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """A cell that is run in this process takes over SIGTERM and leaves its number of threads behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    """An empty place for datasets, where they are looked for; what is found out about them is remembered nearby."""
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return DataRoot(tmp_path / "data")


@pytest.fixture
def wait_for() -> Callable[..., object]:
    """wait_for(what): the first true answer of ``what``; fails if there is none so long that none will come."""

    def wait(what: Callable[[], object]) -> object:
        deadline = time.monotonic() + 300
        while not (answer := what()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)
        return answer

    return wait


@pytest.fixture
def stub_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """stub_matrix(count, seconds, until): the file of a matrix whose cells are, in all processes, stubs.

    They wait until there is a file ``until``, and then take so many seconds.
    """

    def write(count: int, seconds: float = 0.0, until: Path | None = None) -> Path:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "stubs"))
        monkeypatch.setenv("STUB_SECONDS", str(seconds))
        if until:
            monkeypatch.setenv("STUB_UNTIL", str(until))
        path = tmp_path / "stubs.toml"
        path.write_text(
            f'name = "stubs"\nbackbone = "tiny"\nimage_size = 64\nseeds = {list(range(count))}\n[[cells]]\n'
            'datasets = [{ name = "shapes", train_images = 2, validation_images = 1, test_images = 1, size = 64 }]\n'
            'methods = ["decoder_only"]\n'
        )
        return path

    return write


@pytest.fixture
def logged() -> Callable[[Path], list[str]]:
    """logged(database): the cells that have a whole run in MLflow."""

    def read(database: Path) -> list[str]:
        with closing(sqlite3.connect(database)) as store:
            rows = store.execute(
                "select value from tags join runs using (run_uuid) where key = 'cell' and status = 'FINISHED' "
                "and runs.lifecycle_stage = 'active'"
            )
            return sorted(cell for (cell,) in rows)

    return read
