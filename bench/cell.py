"""Run one cell: ``python -m bench.cell ID``.

The cell claims itself, so it does not matter who starts it: a scheduler, a cluster's job, a person.
``--evaluate`` scores the saved adapter again without training.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.guard import WrongPackage, check_packages
from bench.signs import ENDING, PARENT_PIPE, READY, WORKED, listen_to_parent, say
from bench.spec import Cell, SpeedCell, cell_of
from bench.store import HEARTBEAT_SECONDS, AlreadyRunning, Attempt, CellFolder, Results, Revoked
from bench.timing.clock import Pace

if TYPE_CHECKING:
    from bench.training import Progress

log = logging.getLogger("bench.cell")
# Exit codes; 2 is a usage error, as argparse's.
FAILED, CLAIMED, REVOKED, INTERRUPTED = 1, 3, 4, 130
DEVICE_LABEL = "BENCH_DEVICE_LABEL"  # which card it is for those outside, where this process sees one alone

ENDING_SECONDS = 60.0  # before the end of a training, in which the next cell can be prepared
NO_MEMORY = ("out of memory", "ALLOC_FAILED")  # in errors of CUDA's libraries, which have no class of their own


class Interrupted(BaseException):
    """The process was asked to stop."""


class Reporter:
    """Heartbeat and progress of an attempt: a thread writes them even while training says nothing."""

    def __init__(self, attempt: Attempt, device: str) -> None:
        self._attempt, self._device = attempt, device
        self._state: dict[str, Any] = {"stage": "starting"}
        self._changed = threading.Event()
        self._ended = False
        threading.Thread(target=self._beat, daemon=True).start()

    def progress(self, progress: Progress) -> None:
        """Take over a training's progress."""
        self._state = asdict(progress)
        self._changed.set()
        if progress.seconds_left is not None and progress.seconds_left < ENDING_SECONDS:
            say(ENDING)

    def scoring(self, test_set: str, done: int, total: int) -> None:
        """Take over an evaluation's progress."""
        self._state = {**self._state, "stage": f"scoring {test_set} {done}/{total}"}
        self._changed.set()
        say(ENDING)

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def _beat(self) -> None:
        while not self._ended:
            try:
                self._attempt.beat({**self._state, "device": self._device, "at": time.time()})
            except OSError as error:  # a full disk must not end a training that may outlive it
                log.warning("no heartbeat: %s", error)
            self._changed.wait(HEARTBEAT_SECONDS)
            self._changed.clear()
            time.sleep(0.2)


def outcome(error: BaseException) -> tuple[str, str]:
    """The state an error leaves a cell in, and the reason as one line."""
    paragraph = f"{type(error).__name__}: {error}".split("\n\n")[0]
    reason = " ".join(paragraph.split())
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted", "stopped by a signal"
    of_cuda = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or of_cuda:
        return "oom", reason
    return "failed", reason


def run(folder: CellFolder, options: argparse.Namespace, free: threading.Event) -> int:
    """Claim the cell, do its work, record how it ended; returns the exit code.

    Args:
        folder: the cell's.
        options: of the command line.
        free: set when a held process is to go on.
    """
    cell = cell_of(folder.read()["spec"])
    if cell.spec.get("imported"):
        raise ValueError(f"{cell.id} was imported and has no training; python -m bench.score --as-cell enters it anew")
    if cell.id != folder.id:
        raise ValueError(f"{folder.path} holds the cell {cell.id}; the folder was renamed or its cell.json edited")
    if options.evaluate and isinstance(cell, SpeedCell):
        raise ValueError(f"{cell.id} measures speed and has nothing to score; --again measures it once more")
    prepared = _prepare(cell, options, free) if options.hold else None
    folder.recover()
    before = folder.status()
    if before["state"] == "done" and not (options.evaluate or options.again or options.join):
        log.info("%s is done already; --again runs it once more, --evaluate scores it again", cell.id)
        return 0
    try:
        attempt = folder.claim(device=os.environ.get(DEVICE_LABEL, options.device))
    except AlreadyRunning as error:
        log.error("%s", error)
        return CLAIMED
    folder.set_state("running", attempt=attempt.number)
    with log_file(folder):
        return _work(folder, cell, attempt, options, before, prepared)


def _prepare(cell: Cell, options: argparse.Namespace, free: threading.Event) -> Any:
    """Do what needs neither claim nor device, wait until there is a device, and return what the work takes over."""
    prepared = None
    if not (options.evaluate or isinstance(cell, SpeedCell) or free.is_set()):
        try:
            from bench import work

            prepared = work.prepare(cell, options)
        except Exception as error:  # comes again under the claim, where it is recorded
            log.warning("could not be prepared: %s", error)
    say(READY)
    free.wait()
    return prepared


@contextmanager
def log_file(folder: CellFolder) -> Iterator[None]:
    """Add to the cell's ``log.txt``; a scheduler has sent all output of its cells there already."""
    if os.environ.get(PARENT_PIPE):
        yield
        return
    handler = logging.FileHandler(folder.path / "log.txt")
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _work(
    folder: CellFolder,
    cell: Cell,
    attempt: Attempt,
    options: argparse.Namespace,
    before: dict[str, Any],
    prepared: Any = None,
) -> int:
    """Do a claimed cell's work and record how it ended; returns the exit code."""
    reporter = Reporter(attempt, options.device)
    options.stale = before.get("stale", [])
    try:
        more = {} if prepared is None else {"prepared": prepared}
        _task(cell, evaluate=options.evaluate)(cell, attempt, options, reporter, **more)
        say(WORKED)
    except Revoked as error:
        log.error("%s", error)
        return REVOKED
    except BaseException as error:
        # Once a commit has begun the cell is done, whatever interrupts the moving of its files.
        if not attempt.settle():
            return _record_failure(folder, attempt, error, before if options.evaluate else None)
    finally:
        reporter.end()
    log.info("%s done: %s", cell.id, headline(folder.result() or {}))
    return 0


def _task(cell: Cell, *, evaluate: bool) -> Callable[..., None]:
    """What is done; imported under the claim: whoever looks sees that the cell is taken while torch loads."""
    if isinstance(cell, SpeedCell):
        from bench.timing.work import measure

        return measure
    from bench import work

    return work.score_again if evaluate else work.train_and_score


def _record_failure(
    folder: CellFolder, attempt: Attempt, error: BaseException, before: Mapping[str, Any] | None
) -> int:
    """Record how an attempt failed; returns the exit code.

    Args:
        folder: the cell's.
        attempt: the one that failed, revoked already.
        error: why.
        before: the status of a done cell whose result stays: only its scoring failed.
    """
    state, reason = outcome(error)
    log.error("%s: %s", state, reason, exc_info=error if state != "interrupted" else None)
    if before and before["state"] == "done":
        marks = {"stale": before["stale"]} if before.get("stale") else {}
        folder.set_state("done", attempt=before["attempt"], reason=f"scoring again {state}: {reason}", **marks)
    else:
        folder.set_state(state, reason=reason, attempt=attempt.number)
    return INTERRUPTED if state == "interrupted" else FAILED


def headline(result: Mapping[str, Any]) -> str:
    """The scores a dataset's tables print and what looks wrong about them, in one line; or the rates measured."""
    if speed := result.get("speed"):
        done = {"trained": speed.get("train_it_per_s"), "predicted": speed["inference_it_per_s"]}
        return "images/s: " + ", ".join(f"{rate:.4g} {what}" for what, rate in done.items() if rate)
    lines = []
    for test_set, protocols in result.get("scores", {}).items():
        values = {key: protocols["paper"][key] for key in result["dataset_metrics"]}
        if constant := result.get("constants", {}).get(test_set):
            values["miou_all of a constant"] = constant["miou_all"]
        shown = (f"{key} {_said(value)}" for key, value in values.items() if not isinstance(value, list))
        lines.append(f"{test_set}: {', '.join(shown)}")
    return "; ".join(lines + [f"DEGENERATE, {sign}" for sign in result.get("degenerate", [])])


def _said(score: float | None) -> str:
    return "of no pixel" if score is None else f"{score:.4f}"


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line of ``python -m bench.cell``."""
    parser = argparse.ArgumentParser(prog="python -m bench.cell", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "id", help="a folder's name under results/cells, where `python -m bench.run --matrix NAME` plans them"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--data-root", type=Path, help="where datasets lie (default: $BENCH_DATA_ROOT)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--micro-batch", type=int, default=0, help="images a forward pass; changes speed and memory only"
    )
    parser.add_argument("--attention", default="auto", help="a way to compute attention (default: the fastest known)")
    parser.add_argument(
        "--checkpointing", default="none", help="none, blocks or selective: what is computed twice to save memory"
    )
    parser.add_argument("--compile", action="store_true", help="compile the encoder's blocks")
    parser.add_argument(
        "--checkpoint", help="path of the checkpoint on this machine, where the cell's was given as a path"
    )
    parser.add_argument(
        "--allow-broken", action="store_true", help="use a dataset although some of its files are broken"
    )
    parser.add_argument("--evaluate", action="store_true", help="score the saved adapter again, train nothing")
    parser.add_argument("--again", action="store_true", help="run a cell that is done once more")
    parser.add_argument("--hold", action="store_true", help="prepare, then wait for a line on standard input")
    parser.add_argument(
        "--oom-retries", type=int, default=0, help="how often it ran out of memory before, for its record"
    )
    parser.add_argument("--join", action="store_true", help="measure speed once more: all repeats count together")
    parser.add_argument("--repeats", type=int, default=Pace.repeats, help="how often a cell of kind speed times each")
    parser.add_argument("--seconds", type=float, default=Pace.seconds, help="how long each of these times is")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Entry point of ``python -m bench.cell``."""
    options = parse(words)
    free = listen_to_parent(hold=options.hold)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)

    def stop(number: int, frame: Any) -> None:
        raise Interrupted

    signal.signal(signal.SIGTERM, stop)
    try:
        check_packages()
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        return run(Results(options.results).cell(options.id), options, free)
    except (WrongPackage, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    ended = main()
    logging.shutdown()
    sys.stdout.flush()
    # Python would first take torch apart, for a second in which the device waits.
    os._exit(ended)
