"""Scoring in worker processes: when they are started, that work overlaps, and that nothing hangs or is left behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench import scoring
from bench.metrics import ClassScores, score_classes
from bench.scoring import WAITING, Scoring, View

ROOT = Path(__file__).resolve().parents[2]


def empty() -> ClassScores:
    """Scores of two classes, which are quick to compute and to import."""
    return ClassScores("paper", 2)


def views(scores: ClassScores, number: int = 0) -> list[View]:
    """An image of its own for each number; ``number`` of its pixels are predicted as class 1."""
    mask = np.random.default_rng(number).integers(0, 2, (8, 8), dtype=np.uint8)
    return [View(scores, (np.arange(64) < number).astype(np.uint8).reshape(8, 8), mask)]


def plain(count: int) -> list[dict[str, Any]]:
    """The rows without anything that is tested here."""
    shown = [views(empty(), number)[0] for number in range(count)]
    return [
        {"image": f"n{number}", **score_classes(view.prediction, view.mask, "paper", 2)}
        for number, view in enumerate(shown)
    ]


def own_children() -> list[multiprocessing.process.BaseProcess]:
    """Living processes of this one, but for joblib's, which stay for whoever wants them next."""
    return [child for child in multiprocessing.active_children() if "Loky" not in type(child).__name__]


@pytest.fixture
def own_scorer(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Puts a function ``score`` in the place of the one that scores images, in workers too, which start at once."""

    def put(source: str) -> None:
        header = "import multiprocessing, os, signal, time\nfrom bench.scoring import _score as real\n"
        (tmp_path / "own_scorer.py").write_text(header + textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "own_scorer", raising=False)
        import own_scorer

        monkeypatch.setattr(scoring, "_score", own_scorer.score)
        monkeypatch.setattr(Scoring, "_worth", lambda self: self._workers > 0)

    return put


@pytest.fixture
def pools(monkeypatch) -> list[Lazy]:
    """The pools that are made; they score when a result is asked for, in this process."""
    made: list[Lazy] = []
    monkeypatch.setattr(scoring, "ProcessPoolExecutor", lambda *given: made.append(Lazy(*given)) or made[-1])
    return made


class Lazy:
    """Stands in for a pool; ``most`` is how many images it held at once."""

    def __init__(self, workers: int, *rest: Any) -> None:
        self.workers, self.waiting, self.most, self.closed = workers, 0, 0, False

    def submit(self, score: Callable, *work: Any) -> Future:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        future: Future = Future()

        def result() -> Any:
            self.waiting -= 1
            return score(*work)

        future.result = result
        return future

    def shutdown(self, **options: bool) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("seconds", "images", "started"),
    [
        ([9.0, 0.1, 0.1], 50, False),  # the first one imports
        ([9.0, 0.1], 103, True),
        ([9.0, 0.1, 5.0, 5.0], 30, False),  # the fewest seconds count
        ([9.0], 1, False),
    ],
)
def test_workers_are_started_where_what_is_left_is_worth_them(monkeypatch, pools, seconds, images, started):
    clock = iter(moment for number, taken in enumerate(seconds) for moment in (100.0 * number, 100.0 * number + taken))
    last = 100.0 * len(seconds)
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: next(clock, last))
    scores = empty()
    with Scoring(images, 2, workers=3) as here:
        for number in range(len(seconds) + 1 if images > 1 else 1):
            here.add(f"n{number}", views(scores, number))
    assert [pool.workers for pool in pools] == ([3] if started else [])
    assert all(pool.closed for pool in pools)
    assert len(scores.rows) == number + 1


def test_without_workers_none_are_started(monkeypatch, pools):
    monkeypatch.setattr(scoring, "WORTH_SECONDS", 0.0)
    with Scoring(1000, 2) as here:
        for number in range(4):
            here.add("n", views(empty(), number))
    assert pools == []


def test_few_images_wait_in_memory(monkeypatch, pools):
    monkeypatch.setattr(scoring, "WORTH_SECONDS", 0.0)
    scores = empty()
    with Scoring(40, 2, workers=3) as here:
        for number in range(40):
            here.add(f"n{number}", views(scores, number))
    assert pools[0].most == WAITING * 3
    assert scores.rows == plain(40)


def test_scoring_overlaps_with_what_comes_meanwhile(own_scorer, tmp_path):
    """The first image is scored once the fourth one was given: whoever waits for it never gets there."""
    own_scorer(
        f"""
        def score(*work):
            for _ in range(3000):
                if os.path.exists({str(tmp_path / "given")!r}):
                    return real(*work)
                time.sleep(0.01)
            raise TimeoutError("nobody went on")
        """
    )
    scores = empty()
    with Scoring(4, 2, workers=2) as here:
        for number in range(4):
            here.add(f"n{number}", views(scores, number))
        assert scores.rows == []
        (tmp_path / "given").touch()
    assert scores.rows == plain(4)


def test_results_are_entered_in_order_whoever_is_ready_first(own_scorer):
    own_scorer(
        """
        def score(num_classes, views):
            time.sleep(0.2 * (views[0][1].sum() % 3 == 0))
            return real(num_classes, views)
        """
    )
    scores = empty()
    with Scoring(8, 2, workers=3) as here:
        for number in range(8):
            here.add(f"n{number}", views(scores, number))
    assert scores.rows == plain(8)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_image(own_scorer, workers):
    own_scorer("score = real")
    scores = empty()
    with (
        pytest.raises(ValueError, match="^image bad: prediction holds 2; its classes are 0 to 1$"),
        Scoring(9, 2, workers=workers) as here,
    ):
        here.add("good", views(scores))
        here.add("bad", [views(scores)[0]._replace(prediction=np.full((8, 8), 2, np.uint8))])
        here.add("never scored", [])
    assert own_children() == []


def test_what_no_metric_expects_names_the_image_too(own_scorer):
    own_scorer(
        """
        def score(*work):
            raise IndexError("out of nowhere")
        """
    )
    with pytest.raises(ValueError, match="^image odd: out of nowhere$"), Scoring(1, 2, workers=1) as here:
        here.add("odd", views(empty()))


@pytest.mark.parametrize("when", [0, 3])
def test_when_a_worker_is_killed_this_process_scores_the_rest(own_scorer, caplog, when):
    """As the kernel does for want of memory."""
    own_scorer(
        f"""
        def score(num_classes, views):
            if multiprocessing.parent_process() and views[0][1].sum() == {when}:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(num_classes, views)
        """
    )
    scores = empty()
    with caplog.at_level(logging.WARNING), Scoring(8, 2, workers=2) as here:
        for number in range(8):
            here.add(f"n{number}", views(scores, number))
    assert scores.rows == plain(8)
    assert [record.getMessage() for record in caplog.records].count(
        "a process that scored images was killed, perhaps for want of memory; this one scores the rest"
    ) == 1
    assert own_children() == []


def test_an_interrupt_ends_the_workers_and_enters_nothing(own_scorer):
    own_scorer("score = real")
    scores = empty()
    with pytest.raises(KeyboardInterrupt), Scoring(50, 2, workers=2) as here:
        for number in range(4):
            here.add(f"n{number}", views(scores, number))
        raise KeyboardInterrupt
    assert len(scores.rows) < 4
    assert own_children() == []


PARENT = """
import os, signal, sys, time
import numpy as np
from bench import scoring
from bench.metrics import ClassScores

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
    scoring.Scoring._worth = lambda self: True
    with scoring.Scoring(9, 2, workers=2) as here:
        picture = np.zeros((8, 8), np.uint8)
        view = scoring.View(ClassScores("paper", 2), picture, picture)
        for _ in range(6):
            here.add("n", [view])
        print(*here._pool._processes, flush=True)
        time.sleep(300)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, end):
    """However it ends; a Ctrl-C reaches the workers as well."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    workers = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    (os.kill if end == signal.SIGKILL else os.killpg)(process.pid, end)
    said = process.communicate(timeout=120)[1].decode()
    assert psutil.wait_procs(workers, timeout=120)[1] == []
    if end == signal.SIGINT:
        assert said.endswith("KeyboardInterrupt\n")
