"""Score a trained model on every test set under both protocols.

``paper`` compares with the mask squashed to the cell's image size, ``literature`` with the mask itself; what of a
prediction is compared says :mod:`bench.prediction`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data import SquashedSplit, as_tensor
from bench.metrics import PROTOCOLS, ClassScores, scores_of
from bench.prediction import at_image_size, at_mask_size, class_areas
from bench.training import Machine
from datasets import Split
from datasets.cache import Cache
from methods.base import Model

BATCH = 4


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


@torch.no_grad()
def evaluate(
    model: Model,
    test_sets: dict[str, Split],
    machine: Machine,
    *,
    image_size: int,
    cache: Cache | None = None,
    watch: Callable[[str, int, int], None] = lambda test_set, done, total: None,
) -> Evaluation:
    """Predict and score all test sets.

    Args:
        model: a trained model on its device.
        test_sets: the dataset's test splits by name.
        machine: device and precision.
        image_size: side of the model's input.
        cache: prepared samples of that size.
        watch: called with (test set, images scored, images in all).
    """
    model.eval()
    evaluation, num_classes = Evaluation(), model.num_classes
    for name, split in test_sets.items():
        data = SquashedSplit(split, image_size, cache=cache, num_classes=num_classes)
        scores = {protocol: scores_of(protocol, num_classes) for protocol in PROTOCOLS}
        counts: Tensor | None = None
        areas: list[list[int]] = []
        for start in range(0, len(split), BATCH):
            identifiers = split.identifiers[start : start + BATCH]
            read = [data.with_native_mask(start + offset) for offset in range(len(identifiers))]
            images, masks, native_masks = zip(*read, strict=True)
            pixels = torch.stack([as_tensor(image) for image in images]).to(machine.device)
            truth = torch.from_numpy(np.stack(masks)).to(machine.device)
            with machine.autocast():
                output = model.answer(pixels, truth)
            probabilities = model.probabilities(output)
            if output.expert_counts is not None:
                batch_counts = output.expert_counts.sum(0).cpu()
                counts = batch_counts if counts is None else counts + batch_counts
            predictions = at_image_size(probabilities, num_classes)
            areas += class_areas(predictions, num_classes)
            for identifier, probability, prediction, mask, native in zip(
                identifiers, probabilities, predictions, masks, native_masks, strict=True
            ):
                scores["paper"].add(identifier, prediction, mask)
                scores["literature"].add(identifier, at_mask_size(probability, native.shape, num_classes), native)
            watch(name, start + len(identifiers), len(split))
        evaluation.images[name] = len(split)
        evaluation.scores[name] = {protocol: score.mean() for protocol, score in scores.items()}
        evaluation.rows += [{"test_set": name, **row} for score in scores.values() for row in score.rows]
        evaluation.experts += _expert_rows(name, counts)
        evaluation.degenerate += [f"{name}: {sign}" for sign in _degenerate(areas, num_classes)]
        if num_classes > 1:
            evaluation.compare_with_constant(name, scores["paper"])
    return evaluation


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
