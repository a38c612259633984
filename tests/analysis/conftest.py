"""A factory of results folders: cells with known scores, as bench writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.agreement import IMAGES

METRICS = {
    "iou": {"label": "IoU", "better": "higher"},
    "t_jaccard": {"label": "T-Jaccard", "better": "higher"},
    "dice": {"label": "Dice", "better": "higher"},
    "accuracy": {"label": "Acc", "better": "higher"},
    "s_measure": {"label": "S", "better": "higher"},
    "e_measure_mean": {"label": "E", "better": "higher"},
    "weighted_f_measure_b03": {"label": "F", "better": "higher"},
    "mae": {"label": "MAE", "better": "lower"},
    "ber_image": {"label": "BER", "better": "lower"},
    "accuracy_foreground": {"label": "Acc foreground", "better": "higher"},
    "miou_foreground": {"label": "mIoU foreground", "better": "higher"},
    "miou_all": {"label": "mIoU", "better": "higher"},
    "label_mae": {"label": "label MAE", "better": "lower"},
    "mber": {"label": "mBER", "better": "lower"},
}
DEFAULTS = {
    "lora": {"rank": 3},
    "conv_lora": {"rank": 3, "num_experts": 8, "routing": "moe", "scales": None},
    "vpt": {"num_tokens": 12},
    "conv_lora+vpt": {"rank": 3, "num_experts": 8, "routing": "moe", "scales": None, "vpt.num_tokens": 12},
}


class ResultsFolder:
    """Writes cells below ``path / "cells"``; the defaults are the paper's setting and numbers of images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        *,
        method: str = "conv_lora",
        dataset: str = "isic2017",
        seed: int = 0,
        scores: Mapping[str, Any] | None = None,
        classes: tuple[str, ...] = (),
        test_sets: tuple[str, ...] = ("test",),
        state: str = "done",
        stale: tuple[str, ...] = (),
        parameters: Mapping[str, Any] | None = None,
        dataset_parameters: Mapping[str, Any] | None = None,
        shots: int | None = None,
        version: int | list[int] = 1,
        dataset_version: int = 1,
        regime: Mapping[str, Any] | None = None,
        train_images: int | None = None,
        train_images_available: int | None = None,
        dataset_metrics: tuple[str, ...] | None = None,
        protocol: str = "paper",
        random_backbone: bool = False,
        images: int | None = None,
        evidence: Mapping[str, Any] | None = None,
        **setting: Any,
    ) -> Path:
        """One cell's folder; it has the same scores on each of its test sets."""
        parameters, scores = dict(parameters or {}), dict(scores or {"iou": 0.5})
        papers = IMAGES.get(dataset, {})
        train_images_available = train_images_available or papers.get("train", 2000)
        spec = {
            "kind": "accuracy",
            "method": {"name": method, "version": version, "parameters": parameters},
            "dataset": {"name": dataset, "version": dataset_version},
            "seed": seed,
            "backbone": "vit_h",
            "checkpoint": "sam_vit_h_4b8939.pth",
            "image_size": 1024,
            "precision": "bf16",
            "regime": {"version": 1, **(regime or {})},
        } | setting
        if dataset_parameters:
            spec["dataset"]["parameters"] = dict(dataset_parameters)
        if shots:
            spec["dataset"]["shots"] = shots
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{dataset}-{method}-s{seed}-{digest}"
        folder = self.path / "cells" / name
        folder.mkdir(parents=True)
        self.write(folder / "cell.json", {"id": name, "spec": spec, "evidence": dict(evidence or {})})
        status = {"state": state, "reason": None, "attempt": 1, "stale": list(stale), "updated": "2026-01-02T03:04:05"}
        self.write(folder / "status.json", status)
        if state == "done":
            result = self._result(name, spec, scores, test_sets, protocol)
            result["random_backbone"] |= random_backbone
            result["classes"] = list(classes)
            result["dataset_metrics"] = list(scores if dataset_metrics is None else dataset_metrics)
            result["images"] = {test_set: images or papers.get(test_set, 600) for test_set in test_sets}
            result["training"] = {
                "train_images": train_images or train_images_available,
                "train_images_available": train_images_available,
                "seconds": 1.0,
            }
            result["evaluation"] = {"seconds": 2.0}
            result["environment"] = {
                "device": "abacus", "threads": 1, "commit": "0123456789abcdef", "dirty": False,
                "torch": "2.11", "python": "3.12",
            }  # fmt: skip
            self.write(folder / "result.json", result)
        return folder

    def add_imported(
        self,
        *,
        method: str = "pranet",
        dataset: str = "polyps",
        test_set: str = "kvasir",
        scores: Mapping[str, float],
        protocol: str = "paper",
        size: int | None = None,
        quantised: bool = False,
        seed: int = 0,
    ) -> Path:
        """The folder of a cell with scores of maps made elsewhere, as ``bench.imported`` writes it."""
        plugins = {"method": {"name": method}, "dataset": {"name": dataset}}
        spec = {"kind": "accuracy", **plugins, "seed": seed, "imported": True}
        name = f"{dataset}-{method}-s{seed}-imported"
        folder = self.path / "cells" / name
        folder.mkdir(parents=True)
        self.write(folder / "cell.json", {"id": name, "spec": spec, "evidence": {}})
        self.write(folder / "status.json", {"state": "done", "reason": None, "attempt": 1})
        resolved = {"method": {"name": method, "parameters": {}}, "dataset": {"name": dataset, "title": dataset}}
        self.write(folder / "result.json", {
            "resolved": resolved,
            "scores": {test_set: {protocol: dict(scores)}},
            "imported": {test_set: {protocol: {"size": size, "quantised": quantised, "images": 90}}},
            "images": {test_set: 90},
            "dataset_metrics": list(scores),
            "metrics": {key: METRICS[key] for key in scores},
        })  # fmt: skip
        return folder

    @staticmethod
    def write(path: Path, values: Mapping[str, Any]) -> None:
        path.write_text(json.dumps({"schema": 1, **values}), encoding="utf-8")

    @staticmethod
    def _result(
        name: str,
        spec: dict[str, Any],
        scores: dict[str, Any],
        test_sets: tuple[str, ...],
        protocol: str,
    ) -> dict[str, Any]:
        method, dataset = spec["method"], spec["dataset"]["name"]
        resolved = {"name": method["name"], "parameters": DEFAULTS.get(method["name"], {}) | method["parameters"]}
        return {
            "id": name,
            "resolved": {"method": resolved, "dataset": {"name": dataset, "title": dataset.upper()}},
            "scores": {test_set: {protocol: scores} for test_set in test_sets},
            "parameters": {"trainable": 4_020_096, "total": 641_090_000},
            "environment": {"device": "cpu"},
            "random_backbone": spec["checkpoint"] == "none",
            "metrics": {key: METRICS[key] for key in scores},
        }


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    """An empty results folder to fill with cells."""
    return ResultsFolder(tmp_path / "results")
