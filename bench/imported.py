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
from bench.metrics import METRICS
from bench.registry import UnknownName
from bench.spec import SCHEMA, Cell
from bench.store import Results, now

EXAMPLE = "--as-cell method=pranet dataset=polyps test_set=kvasir"
SHOWN = ("s_measure", "e_measure_mean", "weighted_f_measure_b03", "mae", "iou", "dice")
"""The columns of a dataset that is none of ours and so names no metrics of its own."""

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


def read_target(words: Sequence[str]) -> Target:
    """The target named by ``key=value`` words.

    Raises:
        ValueError: an unknown or missing key, a value that is no name, or a test set the dataset does not have.
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
    return target


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
    """
    cell = target.cell
    folder = Results(results).cell(cell.id)
    folder.create(cell, {})
    attempt = folder.claim()
    old = folder.result() or {}
    entries = {name: dict(old.get(name, {})) for name in ("scores", "imported")}
    for name, entry in (("scores", scores.mean), ("imported", _provenance(scores))):
        entries[name][target.test_set] = {**entries[name].get(target.test_set, {}), scores.protocol: entry}
    ours = _ours(target)
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
        "dataset_metrics": list(ours.metrics if ours else SHOWN),
        "metrics": {key: {"label": metric.label, "better": metric.better} for key, metric in METRICS.items()},
    }
    attempt.commit([], result)
    return folder.path


def _provenance(scores: MapScores) -> dict[str, Any]:
    """What the scores were made from. The date stands here and not in the cell's identity."""
    return {
        "size": scores.size,
        "quantised": scores.quantised,
        "images": len(scores.rows),
        "predictions": _digest(pair.image for pair in scores.pairs),
        "masks": _digest(pair.mask for pair in scores.pairs),
        "scored": now(),
    }


def _digest(files: Iterable[Path]) -> str:
    """One digest of the files' names and contents, wherever the folder lies."""
    lines = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
