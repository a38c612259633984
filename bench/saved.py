"""Saved states: what a training needs to go on after an interruption, written after each epoch.

They lie in ``results/cells/<id>/checkpoints/`` as ``epoch-<n>.ckpt`` and belong to all attempts of the cell. In the
code they are called saved states, since checkpoints are SAM's weights there, and checkpointing is what an
``Execution`` does with activations.

A file holds a SHA-256 of all that follows it, and says what it was made from. It is written aside, synced and renamed,
and two are kept: what is truncated, damaged or of another training is passed over for the one before. As everything
random is a function of keys, a training that goes on is bit for bit the one that was never interrupted, on a CPU with
the same number of threads.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bench.evidence import differing, of_scores
from bench.training import Trainer, Training

log = logging.getLogger(__name__)
MAGIC = b"sam-peft-bench saved state 1\n"
KEPT = 2
SHARE, ALWAYS_SECONDS = 0.05, 0.25
"""A state is left out while saving takes more than this share of the time since the last, and longer than this."""


class Unusable(ValueError):
    """A file that this training cannot go on from; the message ends a sentence that begins with its path."""


class SavedStates:
    """The saved states of one cell, for one attempt at it.

    Args:
        folder: where they lie; it is made here and not again, so that one who was given up for dead and is not
            leaves nothing behind when another has committed.
        cell: the cell's id.
        evidence: what the cell is made from today. States made from anything else are passed over, whatever their
            test sets were.
        surroundings: what moves numbers by rounding only, by name; the record of a training that goes on in others
            says so.
        clock: seconds from any point on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cell: str,
        evidence: Mapping[str, Any],
        surroundings: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self._clock = folder, clock
        self._made_from = {"cell": cell, "evidence": dict(evidence), "surroundings": dict(surroundings)}
        self._good: list[Path] = []
        self._cost, self._since = 0.0, clock()
        self._fails = False
        folder.mkdir(exist_ok=True)

    def resume(self, trainer: Trainer) -> dict[str, Tensor]:
        """Take a trainer to the newest state that can be used, if there is one; the log says why others cannot.

        Nothing is deleted before another state is saved.

        Returns:
            The state of the best epoch so far, by name; none where training starts anew.
        """
        files = self._files()
        for path in sorted(files, key=files.__getitem__, reverse=True):
            try:
                made_from, state = self._load(path, trainer)
            except (Unusable, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                log.warning("%s %s", path, error if isinstance(error, Unusable) else f"cannot be read: {error}")
                continue
            self._good = [path]
            record = trainer.record = Training(**state["record"])
            changed = _changed(made_from["surroundings"], self._made_from["surroundings"])
            record.resumed = [*record.resumed, {"epoch": record.epochs, "changed": changed}]
            trainer.progress.step, trainer.progress.epoch = record.steps, record.epochs
            for line in state["history"]:
                trainer.note(line)
            trainer.put(state["weights"])
            if not trainer.over:
                trainer.optimiser.load_state_dict(state["optimiser"])
            others = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items())
            log.info("goes on after epoch %s%s", record.epochs, others and f", numbers may move by rounding: {others}")
            return state["best"]
        if files:
            log.warning("starts anew: no saved state can be used")
        return {}

    def offer(self, trainer: Trainer, best: dict[str, Tensor]) -> None:
        """Save a trainer's state, unless this would take too large a share of the time; its last is always saved.

        A full disk stops no training: the log says so once, and the next state is tried again.

        Args:
            trainer: at the end of an epoch.
            best: the state of its best epoch so far, by name.
        """
        if not trainer.over and self._cost > max(ALWAYS_SECONDS, SHARE * (self._clock() - self._since)):
            return
        record, began = trainer.record, self._clock()
        path = self.folder / f"epoch-{record.epochs}.ckpt"
        now = {name: value.detach() for name, value in trainer.model.state().items()}
        state = {
            "record": asdict(record),
            "history": trainer.lines,
            # A tensor that is there twice is written once.
            "weights": best if best and (trainer.over or record.best_epoch == record.epochs) else now,
            "best": best,
            "optimiser": {} if trainer.over else trainer.optimiser.state_dict(),
        }
        try:
            _write(path, {"made_from": self._made_from, "state": state})
            self._good.append(path)
            self._tidy()
            self._fails = False
        except OSError as error:
            if not self._fails:
                log.warning("the state after epoch %s is not saved, training goes on: %s", record.epochs, error)
            self._fails = True
        self._since = self._clock()
        self._cost = self._since - began

    def forget(self) -> None:
        """Delete all, so that the next attempt starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> dict[Path, int]:
        """Each file with its epoch."""
        numbers = {path: path.stem.removeprefix("epoch-") for path in self.folder.glob("epoch-*.ckpt")}
        return {path: int(number) for path, number in numbers.items() if number.isdecimal()}

    def _tidy(self) -> None:
        """Delete all but the newest of those that are known to be good."""
        self._good = self._good[-KEPT:]
        for path in self.folder.iterdir():
            if path not in self._good:
                path.unlink(missing_ok=True)

    def _load(self, path: Path, trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the state in a file was made from, and the state."""
        content = _read(path)
        made_from, state = content["made_from"], content["state"]
        if made_from["cell"] != self._made_from["cell"]:
            raise Unusable(f"is of the cell {made_from['cell']}")
        pieces = differing(made_from["evidence"], self._made_from["evidence"])
        # A validation is a score too, so that metrics count; test sets do not.
        if odd := [piece for piece in pieces if piece == "source.evaluation" or not of_scores(piece)]:
            raise Unusable(f"was made from other {', '.join(odd)}")
        if _shapes(state["weights"]) != _shapes(trainer.model.state()):
            raise Unusable("is of another model")
        return made_from, state


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Old and new value of what differs."""
    return {name: [old.get(name), value] for name, value in new.items() if old.get(name) != value}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


class _Digesting(io.RawIOBase):
    """Writes to a file and digests what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self.total = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        self.total.update(content)
        return self._file.write(content)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all; tensors pass through one by one, wherever they are."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            digesting = _Digesting(file)
            file.write(MAGIC + bytes(digesting.total.digest_size))
            try:
                torch.save(content, digesting)
            except RuntimeError as error:
                # The archive's writer hides what stopped it, be it a full disk or a signal.
                raise error.__context__ or error from None
            file.seek(len(MAGIC))
            file.write(digesting.total.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """What :func:`_write` has written.

    Raises:
        Unusable: the file is anything else.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise Unusable("is no saved state of this version")
        expected, start = file.read(hashlib.sha256().digest_size), file.tell()
        if hashlib.file_digest(file, "sha256").digest() != expected:
            raise Unusable("is damaged")
        file.seek(start)
        return torch.load(file, map_location="cpu", weights_only=True)
