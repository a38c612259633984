"""Score a trained model on every test set under both protocols.

``paper`` compares with the mask squashed to the cell's image size, ``literature`` with the mask itself; what of a
prediction is compared says :mod:`bench.prediction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.data import Batch, SquashedSplit, batches_to_score, nothing
from bench.embeddings import Encoder, answers_from_images
from bench.machine import Machine
from bench.metrics import PROTOCOLS, ClassScores, scores_of
from bench.prediction import at_image_size, at_mask_size, class_areas
from bench.scoring import Scoring, View
from datasets import Split
from datasets.cache import Cache
from methods.base import Model, Output

T = TypeVar("T")
BATCH = 4
MOST_WORKERS = 16


@dataclass
class Evaluation:
    """Scores of one model.

    Attributes:
        scores: test set -> protocol -> metric -> fraction; "iou" of several classes is a list, a place a class.
        images: test set -> number of images.
        rows: one for every image and protocol.
        experts: one for every test set, layer and expert, with how often it was chosen.
        degenerate: what looks wrong: predictions of one value, or the same for all images.
        constants: test set -> the class that is the best one to predict everywhere, with its mean IoU under ``paper``;
            of several classes only.
    """

    scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)
    degenerate: list[str] = field(default_factory=list)
    constants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> list[str]:
        """Write ``per_image.parquet`` and, where experts were chosen, ``experts.parquet``; returns the names."""
        import pyarrow
        import pyarrow.parquet

        tables = {"per_image.parquet": self.rows, "experts.parquet": self.experts}
        written = {name: rows for name, rows in tables.items() if rows}
        for name, rows in written.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
        return list(written)

    def compare_with_constant(self, test_set: str, scores: ClassScores) -> None:
        """Enter the best constant prediction, and a sign where the model is no better; nothing if no pixel counts."""
        reached = self.scores[test_set]["paper"]["miou_all"]
        if reached is None:
            return
        label, constant = scores.best_constant()
        self.constants[test_set] = {"class": label, "miou_all": constant}
        if reached <= constant:
            self.degenerate.append(f"{test_set}: no better than class {label} everywhere")


def workers_for(machine: Machine) -> int:
    """Processes that may score: the threads of a GPU's slot but one. A CPU's are busy predicting."""
    return 0 if machine.device == "cpu" else min(MOST_WORKERS, torch.get_num_threads() - 1)


@torch.no_grad()
def evaluate(
    model: Model,
    test_sets: dict[str, Split],
    machine: Machine,
    *,
    image_size: int,
    cache: Cache | None = None,
    encoder: Encoder | None = None,
    workers: int | None = None,
    watch: Callable[[str, int, int], None] = lambda test_set, done, total: None,
) -> Evaluation:
    """Predict and score all test sets.

    Args:
        model: a trained model on its device.
        test_sets: the dataset's test splits by name.
        machine: device and precision.
        image_size: side of the model's input.
        cache: prepared samples of that size.
        encoder: embeds the images, see :func:`bench.embeddings.encoder_of`; the model itself where none is given.
        workers: processes that may score beside this one; None for :func:`workers_for` the machine.
        watch: called with (test set, images predicted, images in all).
    """
    model.eval()
    encoder = encoder or Encoder(model, machine)
    workers = workers_for(machine) if workers is None else workers
    tested = [_TestSet(name, split, model.num_classes) for name, split in test_sets.items()]
    with Scoring(sum(map(len, test_sets.values())), model.num_classes, workers=workers) as scoring:
        for test_set in tested:
            data = SquashedSplit(test_set.split, image_size, cache=cache, num_classes=model.num_classes)
            for predicted in _one_behind(_predictions(model, data, machine, encoder)):
                test_set.take(predicted, scoring)
                watch(test_set.name, len(test_set.areas), len(data))
    evaluation = Evaluation()
    for test_set in tested:
        test_set.enter(evaluation)
    return evaluation


class _Predicted:
    """A batch's predictions on their way from the device.

    Nothing waits for them before :meth:`arrive`, so that the device has the next batch by then.

    Attributes:
        indices: of its images in the split.
        counts: how often each expert was chosen, (layers, experts), on the device; None without a router.
    """

    def __init__(self, batch: Batch, natives: list[np.ndarray], output: Output, model: Model) -> None:
        self.indices, self._natives, self._masks = batch.indices, natives, batch.masks.numpy()
        self.counts = None if output.expert_counts is None else output.expert_counts.sum(0)
        self._num_classes = model.num_classes
        probabilities = model.probabilities(output)
        answers = [
            at_mask_size(one, native.shape, model.num_classes)
            for one, native in zip(probabilities, natives, strict=True)
        ]
        on_device = [at_image_size(probabilities, model.num_classes), *answers]
        self._sent = [tensor.to("cpu", non_blocking=True) for tensor in on_device]
        self._done = torch.cuda.Event() if probabilities.is_cuda else None
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(probabilities.device))

    def arrive(self) -> tuple[list[list[int]], list[dict[str, tuple[np.ndarray, np.ndarray]]]]:
        """The areas of the classes in each image, and by protocol its prediction with the mask to compare."""
        if self._done is not None:
            self._done.synchronize()
        small, *large = (tensor.numpy() for tensor in self._sent)
        compared = [
            {"paper": (one, mask), "literature": (answer, native)}
            for one, mask, answer, native in zip(small, self._masks, large, self._natives, strict=True)
        ]
        return class_areas(small, self._num_classes), compared


def _predictions(model: Model, data: SquashedSplit, machine: Machine, encoder: Encoder) -> Iterator[_Predicted]:
    """What the model answers to each batch, on its way."""
    oracle = answers_from_images(model)
    for batch, natives in batches_to_score(data, BATCH, find=nothing if oracle else encoder.find):
        with machine.autocast():
            if oracle:
                output = model.answer(batch.images.to(machine.device), batch.masks.to(machine.device))
            else:
                output = model.decode(encoder(batch.images, found=batch.found))
        yield _Predicted(batch, natives, output, model)


def _one_behind(items: Iterable[T]) -> Iterator[T]:
    """Each item when the next one has been made."""
    for item, _ in pairwise(chain(items, [None])):
        yield item


class _TestSet:
    """What becomes of one test set."""

    def __init__(self, name: str, split: Split, num_classes: int) -> None:
        self.name, self.split, self._num_classes = name, split, num_classes
        self.scores = {protocol: scores_of(protocol, num_classes) for protocol in PROTOCOLS}
        self.areas: list[list[int]] = []
        self._counts: Tensor | None = None

    def take(self, predicted: _Predicted, scoring: Scoring) -> None:
        """Hand a batch to those who score."""
        if predicted.counts is not None:
            self._counts = predicted.counts if self._counts is None else self._counts + predicted.counts
        areas, compared = predicted.arrive()
        self.areas += areas
        for index, protocols in zip(predicted.indices, compared, strict=True):
            views = [View(self.scores[protocol], *arrays) for protocol, arrays in protocols.items()]
            scoring.add(self.split.identifiers[index], views)

    def enter(self, evaluation: Evaluation) -> None:
        """Sum up, once everything is scored."""
        name, scores = self.name, {protocol: score.mean() for protocol, score in self.scores.items()}
        evaluation.images[name], evaluation.scores[name] = len(self.split), scores
        evaluation.rows += [{"test_set": name, **row} for score in self.scores.values() for row in score.rows]
        evaluation.experts += _expert_rows(name, self._counts)
        evaluation.degenerate += [f"{name}: {sign}" for sign in _degenerate(self.areas, self._num_classes)]
        if self._num_classes > 1:
            evaluation.compare_with_constant(name, self.scores["paper"])


def _expert_rows(test_set: str, counts: Tensor | None) -> list[dict[str, Any]]:
    """Counts (layers, experts) as rows."""
    table = [] if counts is None else counts.to(torch.int64).tolist()
    return [
        {"test_set": test_set, "layer": layer, "expert": expert, "count": count}
        for layer, row in enumerate(table)
        for expert, count in enumerate(row)
    ]


def _degenerate(areas: list[list[int]], num_classes: int) -> list[str]:
    """Signs of a collapsed model, from the areas of the classes in every image; all images have one size."""
    for label, of_class in enumerate(zip(*areas, strict=True)):
        if min(of_class) == sum(areas[0]):
            constant = ("predicts no foreground anywhere", "predicts foreground everywhere")
            return [constant[label] if num_classes == 1 else f"predicts class {label} everywhere"]
    if len(areas) > 1 and all(image == areas[0] for image in areas):
        return ["predicts the same area in every image"]
    return []
