"""Score a trained model on every test set under both protocols.

``paper`` compares float probabilities with the mask squashed to the cell's image size; ``literature``
brings the probabilities to the mask's own size, rounds them to 8 bits and compares with the mask itself.
Of several classes the one with the largest score is compared, decided at the size at which it is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data import SquashedSplit, as_tensor
from bench.metrics import PROTOCOLS, scores_of
from bench.training import Machine, decided
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


def to_native(probabilities: Tensor, size: tuple[int, int]) -> np.ndarray:
    """What metrics take at a mask's own size: probabilities (S, S) in 8 bits, of scores (K, S, S) the leading class."""
    channels = probabilities if probabilities.dim() == 3 else probabilities[None]
    resized = F.interpolate(channels[None], size, mode="bilinear", align_corners=False)[0]
    decision = resized.argmax(0) if probabilities.dim() == 3 else (resized[0] * 255).round()
    return decision.to(torch.uint8).cpu().numpy()


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
    evaluation = Evaluation()
    for name, split in test_sets.items():
        data = SquashedSplit(split, image_size, cache=cache, num_classes=model.num_classes)
        scores = {protocol: scores_of(protocol, model.num_classes) for protocol in PROTOCOLS}
        counts: Tensor | None = None
        shares: list[list[float]] = []
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
            shares += _shares(probabilities, model.num_classes)
            for identifier, probability, decision, mask, native in zip(
                identifiers, probabilities, decided(probabilities).cpu().numpy(), masks, native_masks, strict=True
            ):
                scores["paper"].add(identifier, decision, mask)
                scores["literature"].add(identifier, to_native(probability, native.shape), native)
            watch(name, start + len(identifiers), len(split))
        evaluation.images[name] = len(split)
        evaluation.scores[name] = {protocol: score.mean() for protocol, score in scores.items()}
        evaluation.rows += [{"test_set": name, **row} for score in scores.values() for row in score.rows]
        evaluation.experts += _expert_rows(name, counts)
        evaluation.degenerate += [f"{name}: {sign}" for sign in _degenerate(shares)]
        if model.num_classes > 1 and evaluation.scores[name]["paper"]["miou_all"] is not None:
            label, constant = scores["paper"].best_constant()
            evaluation.constants[name] = {"class": label, "miou_all": constant}
            if evaluation.scores[name]["paper"]["miou_all"] <= constant:
                evaluation.degenerate.append(f"{name}: no better than class {label} everywhere")
    return evaluation


def _expert_rows(test_set: str, counts: Tensor | None) -> list[dict[str, Any]]:
    """Counts (layers, experts) as rows."""
    table = [] if counts is None else counts.to(torch.int64).tolist()
    return [
        {"test_set": test_set, "layer": layer, "expert": expert, "count": count}
        for layer, row in enumerate(table)
        for expert, count in enumerate(row)
    ]


def _shares(probabilities: Tensor, num_classes: int) -> list[list[float]]:
    """The share of each image that every class is predicted for, (B, K); of binary masks background and foreground."""
    labels = (probabilities > 0.5).long() if num_classes == 1 else probabilities.argmax(1)
    counted = [torch.bincount(image.flatten(), minlength=max(2, num_classes)) / image.numel() for image in labels]
    return torch.stack(counted).tolist()


def _degenerate(shares: list[list[float]]) -> list[str]:
    """Signs of a collapsed model, from the shares of the classes in every image."""
    binary = len(shares[0]) == 2
    for label, of_class in enumerate(zip(*shares, strict=True)):
        if min(of_class) == 1:
            constant = ("predicts no foreground anywhere", "predicts foreground everywhere")
            return [constant[label] if binary else f"predicts class {label} everywhere"]
    if len(shares) > 1 and all(image == shares[0] for image in shares):
        return ["predicts the same area in every image"]
    return []
