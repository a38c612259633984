"""A cell's identity: what defines one training, and the name that follows from it.

The specification holds only what differs from the plugins' defaults, plus a version of each plugin and of
the regime, so that a new option re-keys no old cell and a changed default does (it bumps the version).
Paths, hosts, workers, micro-batch, protocols and test sets are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench import regime as regimes

if TYPE_CHECKING:
    from datasets.base import Dataset
    from methods.base import Context, Method

SPEED = "speed"  # the kind of cells that measure speed; all others train and score
WALL = "wall"  # the clock of a measurement


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
        names = f"{self.spec['dataset']['name']}-{self.spec['method']['name']}"
        return f"{_safe(names)}-s{self.spec['seed']}-{self._hash}"

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(canonical(self.spec).encode()).hexdigest()[:8]

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


@dataclass(frozen=True)
class SpeedCell(Cell):
    """One measurement of how fast a method trains and predicts on one model of device.

    It has no dataset and no seed, which change no speed. How the machine computes is what is measured: the device's
    model and the values of :class:`bench.machine.Machine`, the micro-batch first, are part of it.
    """

    @property
    def id(self) -> str:
        """``speed-<method>-b<micro-batch>-<hash8>``."""
        return f"speed-{_safe(self.spec['method']['name'])}-b{self.spec['machine']['micro_batch']}-{self._hash}"

    def regime(self) -> regimes.Regime:
        """The released recipe, with its batch raised to the next multiple of the micro-batch."""
        micro_batch, released = self.spec["machine"]["micro_batch"], regimes.Regime().batch_size
        return regimes.Regime(batch_size=-(-released // micro_batch) * micro_batch)

    def context(self) -> Context:
        """The method for binary masks."""
        from methods import Context

        return Context(**{key: self.spec[key] for key in ("image_size", "backbone", "checkpoint")})

    def resolved(self) -> dict[str, Any]:
        """Every value the cell ran with, defaults included, for the record."""
        from methods.compose import parameters_of

        method = self.method()
        return {
            **self.spec,
            "method": {"name": method.name, "title": method.title, "parameters": parameters_of(method)},
            "regime": self.regime().model_dump(mode="json"),
        }


def cell_of(spec: dict[str, Any]) -> Cell:
    """The cell that a recorded specification describes."""
    return SpeedCell(spec) if spec.get("kind") == SPEED else Cell(spec)


def _safe(name: str) -> str:
    """Plugins' names as a part of a file's name: "peft:lora" is ``peft_lora``. The hash tells cells apart."""
    return re.sub(r"[^\w+.-]", "_", name)


def _described(method: Method) -> dict[str, Any]:
    """A method in a specification: name, version, and the parameters that are not at their defaults."""
    from methods.compose import parameters_of, version_of

    changed = parameters_of(method, changed_only=True)
    return {"name": method.name, "version": version_of(method)} | ({"parameters": changed} if changed else {})


def make_speed_cell(
    *,
    method: Method,
    backbone: str,
    checkpoint: str,
    image_size: int,
    precision: str,
    device: str,
    machine: Mapping[str, Any],
    clock: str = WALL,
) -> SpeedCell:
    """The measurement of these choices; those that a training has too are as for :func:`make_cell`.

    Args:
        device: the model of the device, as :func:`bench.timing.surroundings.device_model` names it.
        machine: values of :class:`bench.machine.Machine`, ``micro_batch`` at least.
        clock: "wall", or "processor" for the time of all its threads together, which other processes lengthen less.
    """
    return SpeedCell(
        {
            "kind": SPEED,
            "method": _described(method),
            "backbone": backbone,
            "checkpoint": checkpoint,
            "image_size": image_size,
            "precision": precision,
            "device": device,
            "machine": dict(machine),
            **({"clock": clock} if clock != WALL else {}),
        }
    )


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
    if shots is not None and (type(shots) is not int or shots < 1):
        raise ValueError(f"shots = {shots!r}: a positive number of images for each class, or leave it out for all")
    _, changed = regimes.resolve(dataset.recipe(shots), regime or {})
    described = {
        "name": dataset.name,
        "version": dataset.version,
        "shots": shots,
        "parameters": dataset.model_dump(mode="json", exclude_defaults=True),
    }
    return Cell(
        {
            "kind": kind,
            "method": _described(method),
            "dataset": {key: value for key, value in described.items() if value not in (None, {})},
            "seed": seed,
            "backbone": backbone,
            "checkpoint": checkpoint,
            "image_size": image_size,
            "precision": precision,
            "regime": {"version": regimes.VERSION, **changed},
        }
    )
