"""Reads a results folder into frames: one row per cell, one row per score.

The files are the contract (``cell.json``, ``status.json``, ``result.json`` in ``cells/<id>/``); nothing of
``bench`` is imported, so that tables can be made where the benchmark cannot run. A folder that cannot be
read is named and left out, never fatal: a crash may have half-written one among thousands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

SCHEMA = 1
DONE = "done"
SPEED = "speed"
SETTING_KEYS = ("backbone", "checkpoint", "image_size", "precision", "regime")
_IDENTITY = ("kind", "method", "dataset", "seed")
"""What tells cells of one setting apart; everything else in a spec is the setting."""

CELL_COLUMNS = (
    "id", "state", "kind", "seed", "setting", "method", "method_version", "parameters", "resolved_parameters",
    "dataset", "dataset_version", "dataset_parameters", "shots", "title", "stale", "random_backbone",
    "trainable", "total", "train_images", "train_images_available", "images", "dataset_metrics",
    "imported", "provenance", "caveats", "evidence",
)  # fmt: skip
SCORE_COLUMNS = ("id", "test_set", "protocol", "metric", "value")


class NoResults(ValueError):
    """There is nothing to make a table from; the message names the folder and the next command."""


@dataclass(frozen=True)
class Metric:
    """How a metric is printed; ``better`` is "higher", "lower", or empty where a result does not say."""

    label: str
    better: str

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower", ""):
            raise ValueError(f"the metric {self.label!r} is better when {self.better!r}; allowed: higher, lower")


@dataclass(frozen=True)
class Results:
    """What a results folder holds.

    ``cells`` has the columns ``CELL_COLUMNS`` and ``old_method`` and ``old_dataset``: a newer version of the cell's
    method or dataset is among the cells. A version is a tuple: a composed method has that of each of its parts. Those
    after ``stale`` are filled for done accuracy cells only, but for ``evidence`` and ``imported``: a cell that was not
    trained here, which has a ``provenance`` and neither versions nor counts nor evidence.
    ``scores`` has ``SCORE_COLUMNS`` and holds the finite scores of done cells, as fractions; ``metrics`` says how each
    is printed. The IoU of a class is a metric of its own, ``iou:<class>``.
    ``skipped`` has a line for each thing that could not be used.
    """

    cells: pd.DataFrame
    scores: pd.DataFrame
    metrics: dict[str, Metric]
    skipped: tuple[str, ...]


def read_results(folder: Path, *, needed: bool = True) -> Results:
    """All cells below ``folder / "cells"``, in the order of their ids whatever the order on disk.

    Measurements of speed are left out.

    Args:
        needed: False to get empty results where no cell is done, or none is there.

    Raises:
        NoResults: the folder is missing or, where they are needed, holds no done cell.
    """
    cells_folder = folder / "cells"
    if needed and not cells_folder.is_dir():
        raise NoResults(f"{cells_folder} is no folder: no cell has run yet. {next_command(folder)}")
    cells, scores, metrics, skipped = [], [], {}, []
    there = cells_folder.iterdir() if cells_folder.is_dir() else []
    for path in sorted(p for p in there if p.is_dir() and not p.name.startswith(".")):
        try:
            if read_json(path / "cell.json")["spec"]["kind"] == SPEED:
                continue  # read by analysis.speed
            cell, result = _read_cell(path)
            found, not_finite = _read_scores(path.name, result)
            metrics.update({key: Metric(m["label"], m["better"]) for key, m in result.get("metrics", {}).items()})
        except KeyError as error:
            skipped.append(f"{path}: the key {error} is missing; the cell is left out")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            skipped.append(f"{path}: {error}; the cell is left out")
        else:
            cells.append(cell)
            scores.extend(found)
            if not_finite:
                skipped.append(f"{path}: no finite number in {', '.join(not_finite)}; these scores are left out")
    _fill_defaults(cells)
    frame = pd.DataFrame(cells, columns=list(CELL_COLUMNS))
    for plugin in ("method", "dataset"):
        frame[f"old_{plugin}"] = _superseded(frame[plugin], frame[f"{plugin}_version"])
    if needed and not (frame["state"] == DONE).any():
        raise NoResults(_nothing_done(folder, frame, skipped))
    return Results(frame, pd.DataFrame(scores, columns=list(SCORE_COLUMNS)), metrics, tuple(skipped))


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def next_command(folder: Path, matrix: str = "smoke", module: str = "bench.run") -> str:
    """The command that fills ``folder``, as a sentence for a message."""
    option = "" if folder == Path("results") else f" --results {folder}"
    return f"Next: python -m {module} --matrix {matrix}{option}"


def _read_cell(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cell's row and its ``result.json`` (empty where the cell is not done or is no accuracy cell)."""
    record, status = read_json(path / "cell.json"), read_json(path / "status.json")
    if record["id"] != path.name:
        raise ValueError(f"cell.json is that of {record['id']!r}: a copied or renamed folder")
    spec, method, dataset = record["spec"], record["spec"]["method"], record["spec"]["dataset"]
    parameters = method.get("parameters", {})
    imported = spec.get("imported", False)
    known = {} if imported else {key: spec[key] for key in SETTING_KEYS}
    setting = known | {key: value for key, value in spec.items() if key not in _IDENTITY}
    cell = {
        "id": record["id"],
        "state": status["state"],
        "kind": spec["kind"],
        "seed": int(spec["seed"]),
        "setting": canonical(setting),
        "method": method["name"],
        "method_version": () if imported else _version(method),
        "parameters": parameters,
        "resolved_parameters": parameters,
        "dataset": dataset["name"],
        "dataset_version": () if imported else _version(dataset),
        "dataset_parameters": dataset.get("parameters", {}),
        "shots": str(dataset.get("shots") or ""),
        "title": dataset["name"],
        "stale": tuple(status.get("stale") or ()),
        "imported": imported,
        "evidence": _evidence(record),
    }
    if status["state"] != DONE or spec["kind"] != "accuracy":
        return cell, {}
    result = _by_class(read_json(path / "result.json"))
    cell |= {
        "resolved_parameters": result["resolved"]["method"]["parameters"],
        "title": result["resolved"]["dataset"]["title"],
        "images": result["images"],
        "dataset_metrics": tuple(result["dataset_metrics"]),
    }
    if imported:
        return cell | {"random_backbone": False, "provenance": result["imported"], "caveats": ()}, result
    cell |= {
        "random_backbone": bool(result["random_backbone"]),
        "caveats": tuple(result.get("caveats", ())),
        "trainable": result["parameters"]["trainable"],
        "total": result["parameters"]["total"],
        "train_images": result["training"]["train_images"],
        "train_images_available": result["training"]["train_images_available"],
    }
    return cell, result


def _evidence(record: dict[str, Any]) -> dict[str, Any]:
    """What the cell was made from; empty for an imported one."""
    evidence = record.get("evidence") or {}
    if not isinstance(evidence, dict) or not all(isinstance(evidence.get(k, {}), dict) for k in ("images", "source")):
        raise ValueError("cell.json has evidence, or images or source of it, that is no object")
    return evidence


def _version(plugin: dict[str, Any]) -> tuple[int, ...]:
    """A plugin's version, of each part of a composed one."""
    version = plugin["version"]
    return tuple(version) if isinstance(version, list) else (version,)


def _superseded(names: Iterable[str], versions: Iterable[tuple[int, ...]]) -> list[bool]:
    """Which of the versions are older than another of the same name."""
    named = list(zip(names, versions, strict=True))
    newest: dict[str, tuple[int, ...]] = {}
    for name, version in named:
        newest[name] = max(newest.get(name, ()), version)
    return [bool(version) and version < newest[name] for name, version in named]


def _fill_defaults(cells: list[dict[str, Any]]) -> None:
    """Give cells that are not done the defaults of their method, which only a result says: that of its plain cell."""
    defaults = {
        (cell["method"], cell["method_version"]): cell["resolved_parameters"]
        for cell in cells
        if cell["state"] == DONE and not cell["parameters"]
    }
    for cell in cells:
        known = defaults.get((cell["method"], cell["method_version"]), {})
        cell["resolved_parameters"] = known | cell["resolved_parameters"]


def _by_class(result: dict[str, Any]) -> dict[str, Any]:
    """The result with a metric ``iou:<class>`` for each of its classes in place of one whose score is a list.

    A class that no image of a test set holds may have no score there, which is no defect.
    """
    classes, listed = result.get("classes", []), set()
    for scores in (scores for protocols in result["scores"].values() for scores in protocols.values()):
        for metric in [metric for metric, value in scores.items() if isinstance(value, list)]:
            values = scores.pop(metric)
            if len(values) != len(classes):
                raise ValueError(f"result.json has {len(values)} values of {metric} for {len(classes)} classes")
            scores |= {f"{metric}:{name}": v for name, v in zip(classes, values, strict=True) if v is not None}
            listed.add(metric)
    for metric in sorted(listed & result["metrics"].keys()):
        whole = result["metrics"].pop(metric)
        result["metrics"] |= {f"{metric}:{name}": {**whole, "label": f"{whole['label']} {name}"} for name in classes}
    result["dataset_metrics"] = [
        name
        for metric in result["dataset_metrics"]
        for name in ([f"{metric}:{of}" for of in classes] if metric in listed else [metric])
    ]
    return result


def _read_scores(cell: str, result: dict[str, Any]) -> tuple[list[tuple], list[str]]:
    """The finite scores of a result, and the names of those that are not finite."""
    scores, not_finite = [], []
    for test_set, protocols in result.get("scores", {}).items():
        for protocol, metrics in protocols.items():
            for metric, value in metrics.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    scores.append((cell, test_set, protocol, metric, float(value)))
                elif value is None or isinstance(value, float):
                    not_finite.append(f"{test_set}/{protocol}/{metric}")
    return scores, not_finite


def read_json(path: Path) -> dict[str, Any]:
    """A file of a cell's folder.

    Raises:
        ValueError: it is missing, no JSON, or of another schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"{path.name} does not have the schema {SCHEMA} that this version reads")
    return value


def _nothing_done(folder: Path, cells: pd.DataFrame, skipped: list[str]) -> str:
    """Why no table can be made from ``folder``: what lies there, and the next command."""
    states = cells["state"].value_counts().sort_index()
    counts = ", ".join(f"{n} {state}" for state, n in states.items()) or "no cell that can be read"
    unread = "".join(f"\n  {line}" for line in skipped)
    return f"{folder / 'cells'} holds no done cell ({counts}). {next_command(folder)}{unread}"
