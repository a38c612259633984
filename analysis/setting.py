"""The setting of a result: backbone, checkpoint, image size, precision and regime.

Numbers of different settings are never put into one table, but for imported scores, whose setting is not known: they
have a setting of their own, and stand, marked and never ranked, in the tables of the others too. A difference to the
paper is only worth printing in the paper's own setting: SAM ViT-H, as its parameter counts show, at 1024 pixels, as the
authors' released code trains, with the default regime.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis.results import SETTING_KEYS, canonical

NO_CHECKPOINT = "none"
PAPER = {"backbone": "vit_h", "checkpoint": "sam_vit_h_4b8939.pth", "image_size": 1024}
PAPER_PROTOCOL = "paper"
MADE_FROM = "made_from"
"""Under what a setting says which of several copies its cells were made from (:mod:`analysis.mixing`)."""


@dataclass(frozen=True)
class Setting:
    """A setting, given as the canonical JSON that the cells carry."""

    text: str

    @cached_property
    def values(self) -> dict[str, Any]:
        return json.loads(self.text)

    @cached_property
    def is_imported(self) -> bool:
        """Whether this is the setting of scores of maps made elsewhere, of which nothing is known."""
        return self.values.get("imported", False)

    @cached_property
    def overrides(self) -> list[str]:
        """What differs from the dataset's default regime, and any part of a spec this module does not know."""
        if self.is_imported:
            return []
        regime = self.values["regime"]
        changed = {key: value for key, value in regime.items() if key != "version"}
        changed |= {key: value for key, value in self.values.items() if key not in (*SETTING_KEYS, MADE_FROM)}
        return assignments(changed)

    @cached_property
    def made_from(self) -> dict[str, str]:
        """The copy behind the cells, by name, of each dataset and checkpoint of which the results have several."""
        return self.values.get(MADE_FROM, {})

    @cached_property
    def named(self) -> str:
        """The setting as its cells name it, whatever the copies behind the names."""
        return canonical({key: value for key, value in self.values.items() if key != MADE_FROM})

    @cached_property
    def is_random(self) -> bool:
        return self.values.get("checkpoint") == NO_CHECKPOINT

    def describe(self) -> str:
        """Backbone, checkpoint, size and precision in words."""
        if self.is_imported:
            return "imported"
        values = self.values
        weights = "random weights" if self.is_random else f"checkpoint {values['checkpoint']}"
        version = values["regime"].get("version", 1)
        regime = [] if version == 1 else [f"regime version {version}"]
        return ", ".join([values["backbone"], weights, f"{values['image_size']} px", values["precision"], *regime])

    def in_full(self) -> str:
        """All that tells the setting from others, in words."""
        copies = [f"{name} of {copy}" for name, copy in self.made_from.items()]
        return ", ".join([self.describe(), *self.overrides, *copies])

    def slug(self) -> str:
        """A part of a file name, readable, and different for different settings.

        What the readable part does not tell (regime, a checkpoint of the user's own) goes into a hash.
        """
        if self.is_imported:
            return "imported"
        values = self.values
        parts = [values["backbone"], str(values["image_size"]), values["precision"]]
        if self.is_random:
            parts.append("random")
        told = {"backbone", "image_size", "precision"}
        rest = {key: value for key, value in values.items() if key not in told}
        plain = {"checkpoint": values["checkpoint"], "regime": {"version": 1}}
        if rest != plain or not (self.is_random or values["checkpoint"].startswith(f"sam_{values['backbone']}_")):
            parts.append(short_hash(canonical(rest)))
        return "-".join(parts)

    def departures(self, protocol: str) -> list[str]:
        """How the setting differs from the paper's; empty where the numbers may be compared."""
        found = [
            f"{key.replace('_', ' ')} {self.values[key]} (the paper: {value})"
            for key, value in PAPER.items()
            if self.values[key] != value
        ]
        if self.overrides:
            found.append(f"changed from the default: {', '.join(self.overrides)}")
        found += [f"{name} of {copy}, one of several" for name, copy in self.made_from.items()]
        if protocol != PAPER_PROTOCOL:
            found.append(f"protocol {protocol} (the paper: {PAPER_PROTOCOL})")
        return found


def assignments(values: dict[str, Any]) -> list[str]:
    """``key = value`` for each value, by key, strings without quotes."""
    return [f"{key} = {v if isinstance(v, str) else canonical(v)}" for key, v in sorted(values.items())]


def short_hash(text: str) -> str:
    """Six hexadecimal digits that keep apart the few file names of one folder."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]
