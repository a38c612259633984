"""What was seen inside encoders, and what the cards of its figures say: encoders, images, device, code."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.drawing import style
from analysis.drawing.figure import Card
from analysis.inside.encoders import About
from analysis.inside.images import Drawn
from analysis.results import canonical
from analysis.setting import short_hash

LOOKS = {"sam": style.INK, "mae": style.WINE, "random": style.GREY}
ROOM = Path(__file__).resolve().parent
COLUMNS, TITLE = 3, 28
"""Panels beside each other, one an encoder, and the characters of a line of their titles."""
_LINES = ("-", "--", ":", "-.")
_NAME = 60  # characters of a file name that say which encoders are seen


@dataclass(frozen=True)
class Seen:
    """An encoder and what was measured of it, images first."""

    about: About
    values: np.ndarray


@dataclass(frozen=True)
class Session:
    """All that a command saw.

    Attributes:
        seen: encoder by encoder.
        missing: names of encoders that were asked for and are not here.
        drawn: the images.
        precision: of the encoders, "fp32" or "bf16".
        device: "cpu", "cuda".
        command: what draws the figures again.
    """

    seen: tuple[Seen, ...]
    missing: tuple[str, ...]
    drawn: Drawn
    precision: str
    device: str
    command: str

    def card(self, kind: str, of: str, *, title: str, paper: str, sentences: Sequence[str]) -> Card:
        """A figure's card.

        Args:
            of: what distinguishes it from other figures of its kind.
            paper: the figure of the paper that it corresponds to.
            sentences: what dots and bands are, and how it was computed.
        """
        warnings = [f"NOT SHOWN, for want of weights: {', '.join(self.missing)}."] if self.missing else []
        warnings += [line for one in self.seen for line in one.about.warnings]
        return Card(
            name=f"{kind}-{of}-{self._name}",
            kind=kind,
            title=title,
            caption=" ".join([*dict.fromkeys(warnings), *sentences, self._encoders, self._images]),
            command=self.command,
            cells=tuple(one.about.cell for one in self.seen if one.about.cell),
            about={
                "paper_figure": paper,
                "encoders": {one.about.name: self._told(one.about) for one in self.seen},
                "images": f"{kind}-{self._name}-images.csv",
                "images_of": self.drawn.counts,
                "precision": self.precision,
                "device": device_name(self.device),
                **git_state(),
            },
        )

    @property
    def _name(self) -> str:
        """A part of file names, different for other encoders, sizes or images."""
        slugs = "-".join(one.about.slug for one in self.seen)
        what = [[self._told(one.about) for one in self.seen], [p.digest for p in self.drawn.pictures], self.precision]
        return f"{slugs[:_NAME].rstrip('-_')}-{short_hash(canonical(what))}"

    @staticmethod
    def _told(about: About) -> dict[str, Any]:
        return {"checkpoint": about.checkpoint, "digest": about.digest, "image_size": about.image_size}

    @property
    def _encoders(self) -> str:
        told = (
            f"{one.about.name} at {one.about.image_size} px ({_weights(one.about)}, {_tokens(one.about)})"
            for one in self.seen
        )
        return f"Encoders: {'; '.join(told)}. Computed in {self.precision} on {device_name(self.device)}."

    @property
    def _images(self) -> str:
        counts = self.drawn.counts
        of = ", ".join(f"{name} {count}" for name, count in counts.items())
        return f"n = {sum(counts.values())} test images ({of})."


def _weights(about: About) -> str:
    return "random weights" if about.digest == "random" else f"{about.checkpoint} {about.digest[:12]}"


def _tokens(about: About) -> str:
    tokens = f"{about.grid} x {about.grid} tokens"
    windows = [window for window in about.effective_windows if window]
    if not windows:
        return tokens
    return f"{tokens}, {len(windows)} of {len(about.windows)} layers in windows of {windows[0]} x {windows[0]}"


def lines(seen: Sequence[Seen]) -> dict[str, dict[str, str]]:
    """Colour and line style of each encoder by its name: those of one method share a colour and differ in the line."""
    found: dict[str, dict[str, str]] = {}
    shared: dict[str, int] = {}
    for one in seen:
        colour = LOOKS.get(one.about.look) or style.colour(one.about.look)
        found[one.about.name] = {"color": colour, "linestyle": _LINES[shared.get(colour, 0) % len(_LINES)]}
        shared[colour] = shared.get(colour, 0) + 1
    return found


def device_name(device: str) -> str:
    """The model of a card, or this machine's processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """The commit of the code and whether files differ from it; None where there is no repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOM), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}
