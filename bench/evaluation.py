"""Score a trained model on every test set under both protocols.

``paper`` compares float probabilities with the mask squashed to the cell's image size; ``literature``
brings the probabilities to the mask's own size, rounds them to 8 bits and compares with the mask itself.
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
from bench.metrics import PROTOCOLS, Scores
from bench.training import Machine
from datasets import Split
from datasets.cache import Cache
from methods.base import Model

BATCH = 4


@dataclass
class Evaluation:
    """Scores of one model.

    Attributes:
        scores: test set -> protocol -> metric -> fraction.
        images: test set -> number of images.
        rows: one for every image and protocol.
        experts: one for every test set, layer and expert, with how often it was chosen.
        degenerate: what looks wrong: predictions of one value, or the same for all images.
    """

    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)
    degenerate: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> list[str]:
        """Write ``per_image.parquet`` and, where experts were chosen, ``experts.parquet``; returns the names."""
        import pyarrow
        import pyarrow.parquet

        tables = {"per_image.parquet": self.rows, "experts.parquet": self.experts}
        written = {name: rows for name, rows in tables.items() if rows}
        for name, rows in written.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
        return list(written)


def to_native(probability: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Probabilities (S, S) at a mask's own size, in 8 bits."""
    resized = F.interpolate(probability[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return (resized * 255).round().to(torch.uint8).cpu().numpy()


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
        data = SquashedSplit(split, image_size, cache=cache)
        scores = {protocol: Scores(protocol) for protocol in PROTOCOLS}
        counts: Tensor | None = None
        areas: list[float] = []
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
            for identifier, probability, mask, native in zip(
                identifiers, probabilities, masks, native_masks, strict=True
            ):
                scores["paper"].add(identifier, probability.cpu().numpy(), mask)
                scores["literature"].add(identifier, to_native(probability, native.shape), native)
                areas.append((probability > 0.5).float().mean().item())
            watch(name, start + len(identifiers), len(split))
        evaluation.images[name] = len(split)
        evaluation.scores[name] = {protocol: score.mean() for protocol, score in scores.items()}
        evaluation.rows += [{"test_set": name, **row} for score in scores.values() for row in score.rows]
        evaluation.experts += _expert_rows(name, counts)
        evaluation.degenerate += _degenerate(name, areas)
    return evaluation


def _expert_rows(test_set: str, counts: Tensor | None) -> list[dict[str, Any]]:
    """Counts (layers, experts) as rows."""
    table = [] if counts is None else counts.to(torch.int64).tolist()
    return [
        {"test_set": test_set, "layer": layer, "expert": expert, "count": count}
        for layer, row in enumerate(table)
        for expert, count in enumerate(row)
    ]


def _degenerate(test_set: str, areas: list[float]) -> list[str]:
    """Signs of a collapsed model, from the predicted foreground share of each image."""
    if max(areas) == 0:
        return [f"{test_set}: predicts no foreground anywhere"]
    if min(areas) == 1:
        return [f"{test_set}: predicts foreground everywhere"]
    if len(areas) > 1 and max(areas) == min(areas):
        return [f"{test_set}: predicts the same area in every image"]
    return []
