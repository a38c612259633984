"""Measurements of speed: read from the results folder, compared with LoRA's, exported.

Rates are in images per second, an iteration of the paper being one image. Each is the median of several repeats, with
the lowest and the highest beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.results import DONE, SCHEMA, SPEED, canonical, read_json
from analysis.setting import assignments
from analysis.source import in_words

REFERENCE = "lora"
RATES = ("train_it_per_s", "inference_it_per_s")
DIGITS = 6  # significant, in an export


@dataclass(frozen=True)
class Measurement:
    """The result of one cell of kind "speed".

    Attributes:
        id: the cell's.
        spec: what was measured, on which model of device.
        result: ``result.json``.
    """

    id: str
    spec: dict[str, Any]
    result: dict[str, Any]

    @property
    def device(self) -> str:
        return self.spec["device"]

    @property
    def method(self) -> str:
        return self.spec["method"]["name"]

    @property
    def version(self) -> Any:
        return self.spec["method"]["version"]

    @property
    def parameters(self) -> dict[str, Any]:
        """Those that differ from the defaults."""
        return self.spec["method"].get("parameters", {})

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with it: LoRA as it is by default."""
        return self.method == REFERENCE and not self.parameters

    @property
    def values(self) -> dict[str, Any]:
        """The figures by name, as ``train_it_per_s``."""
        return self.result["speed"]

    @cached_property
    def label(self) -> str:
        """Method and parameters in words."""
        return in_words(self.method, *assignments(self.parameters))

    @cached_property
    def setting(self) -> str:
        """Device, backbone, weights, size and precision, as canonical JSON: what one table holds."""
        return canonical({key: self.spec[key] for key in self.spec if key not in ("kind", "method", "machine")})

    @cached_property
    def machine(self) -> str:
        """How the device computed, in words: the micro-batch, and what else differs from the default."""
        return ", ".join(f"{key.replace('_', '-')} {value}" for key, value in sorted(self.spec["machine"].items()))

    def spread(self, rate: str) -> float:
        """How far the lowest or the highest repeat of a rate lies from the median, as a share of that."""
        repeats, median = self.values[f"{rate}_repeats"], self.values[rate]
        return max(max(repeats) - median, median - min(repeats)) / median


def read_measurements(folder: Path) -> tuple[list[Measurement], list[str]]:
    """All measurements below ``folder / "cells"`` by id, of each method its newest version, and a line for each unread.

    What is no measurement, or has no ``cell.json``, is a matter of :func:`analysis.results.read_results`.
    """
    found, skipped = [], []
    cells = folder / "cells"
    for path in sorted(cells.iterdir()) if cells.is_dir() else []:
        try:
            card = read_json(path / "cell.json")
            if card["spec"]["kind"] != SPEED:
                continue
        except (OSError, ValueError, TypeError, KeyError):
            continue
        try:
            if read_json(path / "status.json")["state"] == DONE:
                found.append(Measurement(card["id"], card["spec"], read_json(path / "result.json")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            skipped.append(f"{path}: {error}; the measurement is left out")
    newest: dict[str, Any] = {}
    for one in found:
        newest[one.method] = max(newest.get(one.method, one.version), one.version)
    return [one for one in found if one.version == newest[one.method]], skipped


def reference_of(one: Measurement, measured: Iterable[Measurement]) -> Measurement | None:
    """The reference in the same setting on the same machine."""
    for other in measured:
        alike = (other.setting, other.machine) == (one.setting, one.machine)
        if alike and other.is_reference:
            return other
    return None


def ratio(one: Measurement, reference: Measurement | None, rate: str) -> float | None:
    """A rate beside the reference's; None where either was not measured."""
    if reference is None or rate not in one.values or rate not in reference.values:
        return None
    return one.values[rate] / reference.values[rate]


def export(measured: Sequence[Measurement]) -> dict[str, Any]:
    """The measurements of one device as plain JSON values, without the host's name: what is committed and quoted."""
    return {
        "device": measured[0].device,
        "schema": SCHEMA,
        "unit": "images per second; an iteration is one image, an epoch 2,000 images, GB are 2^30 bytes",
        "measurements": {one.id: _exported(one, reference_of(one, measured)) for one in measured},
    }


def _exported(one: Measurement, reference: Measurement | None) -> dict[str, Any]:
    environment = one.result["environment"]
    kept = {key: value for key, value in one.spec.items() if key not in ("kind", "device")}
    ratios = {rate: value for rate in RATES if (value := ratio(one, reference, rate)) is not None}
    return _rounded(
        kept
        | {key: environment[key] for key in ("commit", "dirty", "torch", "threads")}
        | {key: one.result[key] for key in ("measured", "parameters", "random_backbone")}
        | {"speed": one.values, "ratio_to_lora": ratios}
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def file_name(text: str) -> str:
    """A device's model, or a setting, as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
