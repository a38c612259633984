"""What a cell's process does between claiming the cell and its end: train, score, commit.

Imports torch and the plugins; :mod:`bench.cell` imports it only once the cell is claimed.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import datasets
import methods
from bench import environment, evidence
from bench.data import SquashedSplit, fixed_subset, open_cache, open_splits
from bench.embeddings import Encoder, encoder_of, folder_of
from bench.evaluation import Evaluation, evaluate
from bench.machine import Machine
from bench.metrics import metrics_of
from bench.saved import SavedStates
from bench.signs import WORKING, say
from bench.spec import Cell
from bench.store import SCHEMA, Attempt
from bench.training import NonFiniteLoss, Progress, Trainer, Training
from datasets.cache import Cache
from methods.delta import CARD, WEIGHTS
from methods.sam.checkpoints import Checkpoint, CheckpointError, resolve

log = logging.getLogger("bench.cell")


class Watcher(Protocol):
    """Whoever wants to know how far a cell is."""

    def progress(self, progress: Progress) -> None: ...

    def scoring(self, test_set: str, done: int, total: int) -> None: ...


def machine_of(cell: Cell, options: argparse.Namespace) -> Machine:
    """Where and how the options have the cell computed."""
    how = {name: getattr(options, name) for name in ("micro_batch", "attention", "checkpointing", "compile")}
    return Machine(options.device, cell.spec["precision"], **how)


@dataclass(frozen=True)
class Prepared:
    """What a training starts from; making it takes seconds, but neither the claim nor the device.

    Attributes:
        checkpoint: of the backbone.
        splits, cache: the images.
        model: still on the CPU.
        made: the evidence of all of them.
    """

    context: methods.Context
    checkpoint: Checkpoint
    splits: dict[str, datasets.Split]
    cache: Cache | None
    model: methods.Model
    made: dict[str, Any]


def prepare(cell: Cell, options: argparse.Namespace) -> Prepared:
    """Open the data and build the model on the CPU.

    Raises:
        CheckpointError: there is no such checkpoint on this machine.
    """
    torch.manual_seed(cell.spec["seed"])
    context = cell.context()
    if options.checkpoint:
        context = replace(context, checkpoint=options.checkpoint)
    try:
        checkpoint = resolve(context.backbone, context.checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Where it lies on this machine: --checkpoint PATH") from None
    splits = open_splits(cell, options.data_root, allow_broken=options.allow_broken)
    cache = open_cache(cell, splits)
    model = cell.method().build(context)
    made = evidence.collect(cell, datasets.evidence(splits), checkpoint.digest())
    return Prepared(context, checkpoint, splits, cache, model, made)


def train_and_score(
    cell: Cell, attempt: Attempt, options: argparse.Namespace, watcher: Watcher, prepared: Prepared | None = None
) -> None:
    """The whole work of a cell, committed at its end.

    Args:
        cell: what to train.
        attempt: this process's claim on it.
        options: of ``python -m bench.cell``; none of them changes a number beyond rounding.
        watcher: told about progress.
        prepared: what was made ahead.
    """
    regime, machine = cell.regime(), machine_of(cell, options)
    prepared = prepared or prepare(cell, options)
    context, checkpoint, splits, cache = prepared.context, prepared.checkpoint, prepared.splits, prepared.cache
    say(WORKING)
    model, digest = prepared.model.to(options.device), prepared.made["checkpoint"]
    model.set_execution(machine.execution)
    log.info("%s: trainable parameters %s of %s", cell.id, *model.count().values())
    encoder = _encoder(cell, model, machine, splits, digest)
    micro_batch = 0 if model.batch_statistics else options.micro_batch
    execution = {"micro_batch": micro_batch or regime.batch_size, **asdict(machine.execution)}
    surroundings = environment.describe(options.device, cell)

    history = attempt.path / "history.jsonl"
    history.touch()
    record = Training()
    if model.trainable():
        told = {"watch": watcher.progress, "history": history}
        trainer = Trainer(model, regime, machine, seed=cell.spec["seed"], encoder=encoder, **told)
        rounding = {name: surroundings[name] for name in ("torch", "device", "threads")} | execution
        record = _train(cell, trainer, prepared, attempt.cell.checkpoints, rounding)
    scored, evaluation = _score(cell, model, splits, cache, encoder, machine, watcher)
    if record.epochs and record.best_validation is None:
        scored["degenerate"].append("no pixel of a validation counts: the last epoch was taken")
    if record.epochs > 1 and record.first_loss == record.last_loss:
        scored["degenerate"].append("the training loss never moved")

    method = {"parameters": {}, **cell.spec["method"]}
    computed = {"context": asdict(context), "precision": machine.precision}
    card = {"cell": cell.id, "method": method, **computed, "backbone_digest": digest}
    methods.save(model, attempt.path, card)
    result = {
        "schema": SCHEMA,
        "id": cell.id,
        "attempt": attempt.number,
        "resolved": cell.resolved(),
        "parameters": model.count(),
        "random_backbone": checkpoint.random if model.random_backbone is None else model.random_backbone,
        "caveats": list(cell.method().caveats(context)),
        "training": {
            **asdict(record),
            "train_images_available": len(splits["train"]) if model.trainable() else 0,
            **execution,
            "oom_retries": options.oom_retries,
            "peak_memory_bytes": max(record.peak_memory_bytes, environment.peak_memory(options.device)),
        },
        "environment": surroundings,
        **scored,
    }
    files = [history.name, WEIGHTS, CARD, *evaluation.write(attempt.path)]
    attempt.commit(files, result, evidence=prepared.made)


def _train(
    cell: Cell, trainer: Trainer, prepared: Prepared, checkpoints: Path, surroundings: dict[str, Any]
) -> Training:
    """Train a cell from its start, or from where an attempt that was interrupted has got to.

    Args:
        cell, trainer, prepared: what to train.
        checkpoints: the cell's folder of saved states.
        surroundings: as for :class:`bench.saved.SavedStates`.
    """
    regime, context = cell.regime(), prepared.context
    parts = [("train", regime.max_train_images), ("validation", regime.max_validation_images)]
    used = [fixed_subset(prepared.splits[name], limit, cell.dataset().split_seed) for name, limit in parts]
    kind = {"cache": prepared.cache, "num_classes": context.num_classes}
    saved = SavedStates(checkpoints, cell=cell.id, evidence=prepared.made, surroundings=surroundings)
    try:
        return trainer.fit(*(SquashedSplit(split, context.image_size, **kind) for split in used), saved=saved)
    except NonFiniteLoss:
        saved.forget()  # whoever runs it once more wants another training, not the end of this one
        raise


def score_again(cell: Cell, attempt: Attempt, options: argparse.Namespace, watcher: Watcher) -> None:
    """Score the committed adapter with today's metrics; nothing is trained.

    Raises:
        FileNotFoundError: the cell has no result yet, or one with scores of a test set that is not here.
    """
    folder, machine = attempt.cell, machine_of(cell, options)
    old = folder.result()
    if old is None:
        raise FileNotFoundError(f"{cell.id} has no result to score again; run it first: python -m bench.cell {cell.id}")
    splits = open_splits(cell, options.data_root, allow_broken=options.allow_broken)
    lost = sorted(old["scores"].keys() - splits.keys())
    if lost:
        raise datasets.DatasetMissing(
            f"{cell.id} has scores of {', '.join(lost)}, not found here: scoring again would lose them. "
            f"Bring these images back: python -m datasets fetch {cell.spec['dataset']['name']}"
        )
    model, cache = methods.load(folder.path).to(options.device), open_cache(cell, splits)
    model.set_execution(machine.execution)
    before = folder.read()["evidence"]
    encoder = _encoder(cell, model, machine, splits, before["checkpoint"])
    scored, evaluation = _score(cell, model, splits, cache, encoder, machine, watcher)
    made = evidence.rescored(before, evidence.collect(cell, datasets.evidence(splits), before["checkpoint"]))
    stale = [mark for mark in options.stale if not evidence.of_scores(mark)]
    result = {**old, "attempt": attempt.number, **scored}
    attempt.commit(evaluation.write(attempt.path), result, evidence=made, stale=stale)


def _encoder(
    cell: Cell, model: methods.Model, machine: Machine, splits: dict[str, datasets.Split], checkpoint: str
) -> Encoder:
    """What embeds the cell's images; a training image that is flipped is another one."""
    images = len(splits["train"]) + sum(map(len, splits.values()))
    folder = folder_of(cell.spec["backbone"], checkpoint)
    return encoder_of(model, machine, image_size=cell.spec["image_size"], folder=folder, images=images)


def _score(
    cell: Cell,
    model: methods.Model,
    splits: dict[str, datasets.Split],
    cache: Cache | None,
    encoder: Encoder,
    machine: Machine,
    watcher: Watcher,
) -> tuple[dict[str, Any], Evaluation]:
    """The part of a result that an evaluation decides, and the evaluation."""
    dataset, began = cell.dataset(), time.perf_counter()
    test_sets = {name: splits[name] for name in dataset.test_sets if name in splits}
    evaluation = evaluate(
        model,
        test_sets,
        machine,
        image_size=cell.spec["image_size"],
        cache=cache,
        encoder=encoder,
        watch=watcher.scoring,
    )
    return {
        "scores": evaluation.scores,
        "images": evaluation.images,
        "degenerate": evaluation.degenerate,
        "constants": evaluation.constants,
        "classes": list(dataset.classes),
        "dataset_metrics": list(dataset.metrics),
        "metrics": {
            key: {"label": metric.label, "better": metric.better}
            for key, metric in metrics_of(dataset.num_classes).items()
        },
        "evaluation": {"seconds": time.perf_counter() - began},
    }, evaluation
