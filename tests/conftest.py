"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, and how long it takes to draw one, says more about a busy machine than about the code.
settings.register_profile("bench", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bench")
# A shell starts its background jobs deaf to Ctrl-C, and what they start would be deaf to it too.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """Tests marked ``gpu`` are skipped without a CUDA device, and those of peft's methods without peft."""
    if find_spec("peft") is None:
        for item in items:
            if "peft:" in item.name:
                item.add_marker(pytest.mark.skip(reason="peft is not installed: pip install 'sam-peft-bench[peft]'"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
