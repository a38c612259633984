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
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.guard import WrongPackage, check_packages
from bench.spec import SCHEMA, Cell
from bench.store import HEARTBEAT_SECONDS, AlreadyRunning, Attempt, CellFolder, Results, Revoked

if TYPE_CHECKING:
    from bench.training import Progress
    from methods.base import Context

log = logging.getLogger("bench.cell")
PARENT_PIPE = "BENCH_PARENT_PIPE"  # set by whoever holds the other end of standard input


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

    def scoring(self, test_set: str, done: int, total: int) -> None:
        """Take over an evaluation's progress."""
        self._state = {**self._state, "stage": f"scoring {test_set} {done}/{total}"}
        self._changed.set()

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


def end_with_parent() -> None:
    """End this process when the one that holds our standard input is gone, however it died."""

    def watch() -> None:
        while os.read(0, 1024):
            continue
        os._exit(130)

    if os.environ.get(PARENT_PIPE):
        threading.Thread(target=watch, daemon=True).start()


def outcome(error: BaseException) -> tuple[str, str]:
    """The state an error leaves a cell in, and the reason as one line."""
    reason = f"{type(error).__name__}: {error}".strip().split("\n\n")[0]
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted", "stopped by a signal"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "oom", reason
    return "failed", reason


def train_and_score(cell: Cell, attempt: Attempt, options: argparse.Namespace, reporter: Reporter) -> None:
    """The whole work of a cell, committed at its end."""
    import torch

    import datasets
    import methods
    from bench import environment, evidence
    from bench.data import SquashedSplit, fixed_subset, open_splits
    from bench.evaluation import evaluate
    from bench.training import Machine, Trainer
    from methods.sam.checkpoints import resolve

    torch.manual_seed(cell.spec["seed"])
    machine = Machine(options.device, cell.spec["precision"], options.micro_batch)
    dataset, method, regime, context = cell.dataset(), cell.method(), cell.regime(), context_for(cell, options)
    splits = open_splits(cell, options.data_root, allow_broken=options.allow_broken)
    train = fixed_subset(splits["train"], regime.max_train_images, dataset.split_seed)
    validation = fixed_subset(splits["validation"], regime.max_validation_images, dataset.split_seed)
    checkpoint = resolve(context.backbone, context.checkpoint)
    model = method.build(context).to(options.device)
    log.info("%s, trainable %s of %s", cell.id, *model.count().values())

    trainer = Trainer(
        model, regime, machine, seed=cell.spec["seed"], watch=reporter.progress, history=attempt.path / "history.jsonl"
    )
    record = trainer.fit(SquashedSplit(train, context.image_size), SquashedSplit(validation, context.image_size))
    began = time.perf_counter()
    evaluation = evaluate(
        model, {name: splits[name] for name in dataset.test_sets}, machine, image_size=context.image_size, watch=reporter.scoring
    )
    digest = checkpoint.digest()
    card = {"method": cell.spec["method"], "context": asdict(context), "backbone_digest": digest, "cell": cell.id}
    methods.save(model, attempt.path, {**card, "method": {"parameters": {}, **card["method"]}})
    result = {
        "schema": SCHEMA, "id": cell.id, "resolved": cell.resolved(), "attempt": attempt.number,
        "parameters": model.count(), "random_backbone": checkpoint.random,
        "training": {
            **asdict(record), "train_images_available": len(splits["train"]),
            "micro_batch": options.micro_batch or regime.batch_size, "peak_memory_bytes": environment.peak_memory(options.device),
        },
        "environment": environment.describe(options.device),
        **scores_of(evaluation, dataset, time.perf_counter() - began),
    }  # fmt: skip
    attempt.cell.create(cell, evidence.collect(cell, datasets.evidence(splits), digest))
    files = ["history.jsonl", methods.adapter.WEIGHTS, methods.adapter.CARD, *evaluation.write(attempt.path)]
    attempt.commit(files, result)


def score_again(cell: Cell, attempt: Attempt, options: argparse.Namespace, reporter: Reporter) -> None:
    """Score the committed adapter with today's metrics and data; nothing is trained."""
    import datasets
    import methods
    from bench import evidence
    from bench.data import open_splits
    from bench.evaluation import evaluate
    from bench.training import Machine

    folder, dataset = attempt.cell, cell.dataset()
    old = folder.result()
    if old is None:
        raise FileNotFoundError(f"{cell.id} has no result to score again; run it first: python -m bench.cell {cell.id}")
    splits = open_splits(cell, options.data_root, allow_broken=options.allow_broken)
    model = methods.load(folder.path).to(options.device)
    began = time.perf_counter()
    evaluation = evaluate(
        model, {name: splits[name] for name in dataset.test_sets}, Machine(options.device, cell.spec["precision"]),
        image_size=cell.spec["image_size"], watch=reporter.scoring,
    )  # fmt: skip
    made = folder.read()["evidence"]
    made["source"] = {**made.get("source", {}), "evaluation": evidence.source_evidence(cell)["evaluation"]}
    made |= datasets.evidence(splits)
    folder.create(cell, made)
    result = {**old, "attempt": attempt.number, **scores_of(evaluation, dataset, time.perf_counter() - began)}
    attempt.commit(evaluation.write(attempt.path), result)


def context_for(cell: Cell, options: argparse.Namespace) -> Context:
    """The cell's context, with the checkpoint's path on this machine where one was given."""
    context = cell.context()
    return replace(context, checkpoint=options.checkpoint) if options.checkpoint else context


def scores_of(evaluation: Any, dataset: Any, seconds: float) -> dict[str, Any]:
    """The part of a result that an evaluation decides."""
    from bench.metrics import METRICS

    return {
        "scores": evaluation.scores, "images": evaluation.images, "degenerate": evaluation.degenerate,
        "dataset_metrics": list(dataset.metrics), "evaluation": {"seconds": seconds},
        "metrics": {key: {"label": metric.label, "better": metric.better} for key, metric in METRICS.items()},
    }  # fmt: skip


def run(folder: CellFolder, options: argparse.Namespace) -> int:
    """Claim the cell, do its work, record how it ended; returns the exit code."""
    cell = Cell(folder.read()["spec"])
    if cell.id != folder.id:
        raise ValueError(f"{folder.path} holds the cell {cell.id}; the folder was renamed or its cell.json edited")
    if folder.status()["state"] == "done" and not (options.evaluate or options.again):
        log.info("%s is done already; --again runs it once more, --evaluate scores it again", cell.id)
        return 0
    try:
        attempt = folder.claim()
    except AlreadyRunning as error:
        log.error("%s", error)
        return 3
    before = folder.status()
    folder.set_state("running", attempt=attempt.number)
    reporter = Reporter(attempt, options.device)
    try:
        (score_again if options.evaluate else train_and_score)(cell, attempt, options, reporter)
    except Revoked as error:
        log.error("%s", error)
        return 4
    except BaseException as error:
        attempt.revoke()
        state, reason = outcome(error)
        log.error("%s: %s", state, reason, exc_info=not isinstance(error, Interrupted | KeyboardInterrupt))
        if options.evaluate and before["state"] == "done":
            folder.set_state("done", attempt=before["attempt"], reason=f"scoring again {state}: {reason}")
        else:
            folder.set_state(state, reason=reason, attempt=attempt.number)
        return 130 if state == "interrupted" else 1
    finally:
        reporter.end()
    log.info("%s done: %s", cell.id, headline(folder.result() or {}))
    return 0


def headline(result: Mapping[str, Any]) -> str:
    """The scores a dataset's tables print, in one line."""
    keys = result.get("dataset_metrics", [])
    return "; ".join(
        f"{test_set}: " + ", ".join(f"{key} {protocols['paper'][key]:.4f}" for key in keys)
        for test_set, protocols in result.get("scores", {}).items()
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cell", description=__doc__.split("\n\n")[0])
    parser.add_argument("id", help="a folder's name under results/cells; `python -m bench.run --matrix NAME --dry-run` makes them")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--data-root", type=Path, help="where datasets lie (default: $BENCH_DATA_ROOT)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--micro-batch", type=int, default=0, help="images a forward pass; changes speed and memory only")
    parser.add_argument("--checkpoint", help="path of the checkpoint on this machine, where the cell's was given as a path")
    parser.add_argument("--allow-broken", action="store_true", help="use a dataset although some of its files are broken")
    parser.add_argument("--evaluate", action="store_true", help="score the saved adapter again, train nothing")
    parser.add_argument("--again", action="store_true", help="run a cell that is done once more")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Entry point of ``python -m bench.cell``."""
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = parse(words)

    def stop(number: int, frame: Any) -> None:
        raise Interrupted

    signal.signal(signal.SIGTERM, stop)
    try:
        check_packages()
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        return run(Results(options.results).cell(options.id), options)
    except (WrongPackage, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
