"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images named by BENCH_TEST_DATA; the test is skipped where it is not there."""
    folder = os.environ.get("BENCH_TEST_DATA", "")
    if not folder:
        pytest.skip("real images: BENCH_TEST_DATA is not set")
    if not Path(folder).is_dir():
        pytest.skip(f"real images: BENCH_TEST_DATA={folder} is no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests keep for later is kept for this session, and not among what its user keeps."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped without a CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
