"""Scores of maps made elsewhere, entered among the results as a cell that was never trained here.

The cell is one method on one dataset. Its specification says ``imported`` and nothing of backbone, size or
regime, which are not known; each of its test sets keeps, for each protocol, the last scores entered, with
digests of the files they came from. Tables show it in every setting, marked, and never rank it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from bench.maps import MapScores
from bench.metrics import metrics_of
from bench.registry import UnknownName
from bench.spec import Cell
from bench.store import SCHEMA, CellFolder, Results, now

EXAMPLE = "--as-cell method=pranet dataset=polyps test_set=kvasir"
SHOWN = ("s_measure", "e_measure_mean", "weighted_f_measure_b03", "mae", "iou", "dice")
"""The columns of a dataset that is none of ours and so names no metrics of its own."""
SHOWN_OF_SEVERAL = ("miou_foreground", "miou_all", "accuracy", "iou")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_KEYS = ("method", "dataset", "test_set", "seed")


@dataclass(frozen=True)
class Target:
    """Where scores belong. The method may be anybody's; a dataset of ours must have the test set."""

    method: str
    dataset: str
    test_set: str
    seed: int = 0

    @property
    def cell(self) -> Cell:
        return Cell({
            "kind": "accuracy",
            "method": {"name": self.method},
            "dataset": {"name": self.dataset},
            "seed": self.seed,
            "imported": True,
        })  # fmt: skip


def read_target(words: Sequence[str], num_classes: int = 1) -> Target:
    """The target named by ``key=value`` words, for maps of so many classes; 1 stands for binary ones.

    Raises:
        ValueError: an unknown or missing key, a value that is no name, a test set the dataset does not have, or
            another number of classes than it has.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in _KEYS:
            raise UnknownName("word of --as-cell", key, _KEYS)
        if not _NAME.fullmatch(value):
            raise ValueError(f"--as-cell {word}: the value must be a name of letters, digits, '_', '-', '.'; {EXAMPLE}")
        values[key] = value
    missing = [key for key in _KEYS[:3] if key not in values]
    if missing:
        raise ValueError(f"--as-cell lacks {', '.join(missing)}; for example {EXAMPLE}")
    if not values.setdefault("seed", "0").isdecimal():
        raise ValueError(f"--as-cell seed={values['seed']}: the seed must be a whole number, 0 or more")
    target = Target(**values | {"seed": int(values["seed"])})
    ours = _ours(target)
    if ours and target.test_set not in ours.test_sets:
        raise UnknownName(f"test set of {target.dataset}", target.test_set, ours.test_sets)
    if ours and num_classes != ours.num_classes:
        option = f" --classes {ours.num_classes}" if ours.classes else ""
        raise ValueError(
            f"{target.dataset} has {_kind(ours.num_classes)}, not {_kind(num_classes)}; type: "
            f"python -m bench.score --pred DIR --gt DIR{option} --as-cell {' '.join(words)}"
        )
    return target


def class_names(target: Target | None, num_classes: int) -> list[str]:
    """The names of the classes: those of a dataset of ours, else made from their indices; none of binary masks."""
    if num_classes == 1:
        return []
    ours = _ours(target) if target else None
    return list(ours.classes) if ours else [f"class {label}" for label in range(num_classes)]


def _ours(target: Target) -> datasets.Dataset | None:
    """The dataset where it is one of ours, and one that its name alone describes."""
    try:
        return datasets.load(target.dataset) if target.dataset in datasets.registry else None
    except ValueError:
        return None


def enter(target: Target, scores: MapScores, results: Path) -> Path:
    """Write the scores into their cell, in place of older ones of that test set and protocol.

    Returns:
        The cell's folder.

    Raises:
        AlreadyRunning: another process is writing the cell.
        ValueError: the cell has scores of another number of classes.
    """
    cell = target.cell
    folder = Results(results).cell(cell.id)
    _check_classes(folder, scores.num_classes)
    folder.create(cell, {})
    attempt = folder.claim()
    old = folder.result() or {}
    entries = {name: dict(old.get(name, {})) for name in ("scores", "imported")}
    for name, entry in (("scores", scores.mean), ("imported", _provenance(scores))):
        entries[name][target.test_set] = {**entries[name].get(target.test_set, {}), scores.protocol: entry}
    ours, classes = _ours(target), class_names(target, scores.num_classes)
    shown = ours.metrics if ours else SHOWN_OF_SEVERAL if classes else SHOWN
    metrics = metrics_of(scores.num_classes)
    result = {
        "schema": SCHEMA,
        "id": cell.id,
        "attempt": attempt.number,
        "resolved": {
            "kind": "accuracy",
            "method": {"name": target.method, "parameters": {}},
            "dataset": {"name": target.dataset, "title": ours.title if ours else target.dataset},
            "seed": target.seed,
            "imported": True,
        },
        **entries,
        "images": {**old.get("images", {}), target.test_set: len(scores.rows)},
        "classes": classes,
        "dataset_metrics": list(shown),
        "metrics": {key: {"label": metric.label, "better": metric.better} for key, metric in metrics.items()},
    }
    attempt.commit([], result)
    return folder.path


def _check_classes(folder: CellFolder, num_classes: int) -> None:
    """Refuse to mix, in one cell, scores of which metrics of one name mean different things."""
    old = folder.result()
    before = len(old.get("classes", [])) or 1 if old else num_classes
    if before != num_classes:
        raise ValueError(
            f"{folder.path} has scores of {_kind(before)}, and these are of {_kind(num_classes)}: "
            "name another dataset or method in --as-cell, or take that folder away"
        )


def _kind(num_classes: int) -> str:
    return "binary masks" if num_classes == 1 else f"{num_classes} classes"


def _provenance(scores: MapScores) -> dict[str, Any]:
    """What the scores were made from. The date stands here and not in the cell's identity."""
    return {
        "size": scores.size,
        "quantised": scores.quantised,
        "ignored": list(scores.ignored),
        "images": len(scores.rows),
        "predictions": _digest(pair.image for pair in scores.pairs),
        "masks": _digest(pair.mask for pair in scores.pairs),
        "scored": now(),
    }


def _digest(files: Iterable[Path]) -> str:
    """One digest of the files' names and contents, wherever the folder lies."""
    lines = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
