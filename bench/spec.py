"""A cell's identity: what defines one training, and the name that follows from it.

The specification holds only what differs from the plugins' defaults, plus a version of each plugin and of
the regime, so that a new option re-keys no old cell and a changed default does (it bumps the version).
Paths, hosts, workers, micro-batch, protocols and test sets are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import regime as regimes

if TYPE_CHECKING:
    from datasets.base import Dataset
    from methods.base import Context, Method

SCHEMA = 1


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; numbers that are equal are written equally."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(k): plain(v) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [plain(v) for v in item]
        # 224 and 224.0 are one value and must be one identity.
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True)
class Cell:
    """One training with all its evaluations.

    Attributes:
        spec: the minimal description that defines it, plain JSON values.
    """

    spec: dict[str, Any]

    @property
    def id(self) -> str:
        """``<dataset>-<method>-s<seed>-<hash8>``, safe as a folder's name."""
        digest = hashlib.sha256(canonical(self.spec).encode()).hexdigest()[:8]
        return f"{self.spec['dataset']['name']}-{self.spec['method']['name']}-s{self.spec['seed']}-{digest}"

    def method(self) -> Method:
        """The method with its parameters."""
        from methods import create

        return create(self.spec["method"]["name"], self.spec["method"].get("parameters"))

    def dataset(self) -> Dataset:
        """The dataset with its parameters."""
        import datasets

        return datasets.load(self.spec["dataset"]["name"], **self.spec["dataset"].get("parameters", {}))

    def regime(self) -> regimes.Regime:
        """The complete training recipe."""
        overrides = {k: v for k, v in self.spec["regime"].items() if k != "version"}
        return regimes.resolve(self.dataset().recipe(self.spec["dataset"].get("shots")), overrides)[0]

    def context(self) -> Context:
        """What the method is built for."""
        from methods import Context

        return Context(
            num_classes=self.dataset().num_classes,
            image_size=self.spec["image_size"],
            backbone=self.spec["backbone"],
            checkpoint=self.spec["checkpoint"],
            seed=self.spec["seed"],
            mask_tokens=self.regime().mask_tokens,
        )

    def resolved(self) -> dict[str, Any]:
        """Every value the cell ran with, defaults included, for the record."""
        from methods.compose import parameters_of

        method, dataset = self.method(), self.dataset()
        return {
            "kind": self.spec["kind"],
            "method": {"name": method.name, "title": method.title, "parameters": parameters_of(method)},
            "dataset": {
                "name": dataset.name,
                "title": dataset.title,
                "parameters": dataset.model_dump(mode="json"),
                "shots": self.spec["dataset"].get("shots"),
            },
            **{key: self.spec[key] for key in ("seed", "backbone", "checkpoint", "image_size", "precision")},
            "regime": self.regime().model_dump(mode="json"),
        }


def make_cell(
    *,
    method: Method,
    dataset: Dataset,
    seed: int,
    backbone: str,
    checkpoint: str,
    image_size: int,
    precision: str,
    regime: Mapping[str, Any] | None = None,
    shots: int | None = None,
    kind: str = "accuracy",
) -> Cell:
    """The cell of these choices.

    Args:
        method: a method, its parameters given.
        dataset: a dataset, its parameters given.
        seed: seeds everything random in training.
        backbone: a size of SAM.
        checkpoint: the resolved checkpoint's name, "none" for random weights.
        image_size: side in pixels.
        precision: "fp32" or "bf16", already resolved from "auto".
        regime: overrides of the dataset's recipe.
        shots: labelled images per class, None for all.
        kind: what is measured.
    """
    from methods.compose import parameters_of, version_of

    if shots is not None and (type(shots) is not int or shots < 1):
        raise ValueError(f"shots = {shots!r}: a positive number of images for each class, or leave it out for all")
    _, changed = regimes.resolve(dataset.recipe(shots), regime or {})
    parts = {
        "method": {
            "name": method.name,
            "version": version_of(method),
            "parameters": parameters_of(method, changed_only=True),
        },
        "dataset": {
            "name": dataset.name,
            "version": dataset.version,
            "shots": shots,
            "parameters": dataset.model_dump(mode="json", exclude_defaults=True),
        },
    }
    parts = {part: {k: v for k, v in values.items() if v not in (None, {})} for part, values in parts.items()}
    return Cell(
        {
            "kind": kind,
            **parts,
            "seed": seed,
            "backbone": backbone,
            "checkpoint": checkpoint,
            "image_size": image_size,
            "precision": precision,
            "regime": {"version": regimes.VERSION, **changed},
        }
    )
