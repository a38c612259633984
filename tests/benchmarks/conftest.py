"""What every benchmark of this folder says of itself: its group, its name in it, and what the group is compared with.

An ordinary test run calls each benchmark once, at a small scale, and checks its result. ``make bench`` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.timing.surroundings import device_model


@pytest.fixture(scope="session")
def measuring(request: pytest.FixtureRequest) -> bool:
    """Whether times are taken, so that the scale matters."""
    return bool(request.config.getoption("benchmark_enable"))


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., Any]:
    """compare(call, group=, candidate=, reference=): time ``call`` and return its last result.

    A group has one reference, which is a candidate itself and which all others are measured by. ``rounds`` is for what
    takes a second or more, and ``setup`` is called before each of them.
    """

    def timed(
        call: Callable[[], Any],
        *,
        group: str,
        candidate: str,
        reference: str,
        rounds: int = 0,
        setup: Callable[[], None] | None = None,
    ) -> Any:
        benchmark.group = group
        benchmark.extra_info.update(candidate=candidate, reference=reference)
        if rounds:
            return benchmark.pedantic(call, setup=setup, rounds=rounds, warmup_rounds=1)
        return benchmark(call)

    return timed


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Random weights and inputs are the same for all candidates."""
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a stored ratio is of."""
    machine_info.update(device=device_model("cpu", torch.get_num_threads()), torch=torch.__version__)
