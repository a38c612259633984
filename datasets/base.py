"""The contract between a dataset and everything that uses it.

A dataset is a frozen model whose fields are its own parameters and whose class attributes say what it
is: its classes, its test sets, its metrics, how its training differs from the default. Opened, it gives
named splits; a split gives images and masks one at a time and reads nothing before it is asked.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bench.registry import Registry
from bench.squash import squash_image

IGNORE = 255
"""The mask value of pixels that neither train nor count."""

SEVERAL_CLASSES: Mapping[str, Any] = {"loss": "set_prediction", "validation_metric": "miou_all"}
"""The regime of datasets with several classes."""


class DatasetMissing(FileNotFoundError):
    """A dataset's files are not where they were looked for."""


class DatasetBroken(ValueError):
    """Some of a dataset's files cannot be used; the message lists all of them."""


class Sample(NamedTuple):
    """An image (H, W, 3) in uint8 RGB, its mask (H, W) of uint8 class indices (0 is background), its identifier."""

    image: np.ndarray
    mask: np.ndarray
    identifier: str


class Split(ABC):
    """An ordered set of samples, each read when asked for.

    A subclass sets ``identifiers`` and reads one image and one mask. Instances travel to worker
    processes, so they hold paths and numbers, never open files.
    """

    identifiers: tuple[str, ...]

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """The image at its native size: (H, W, 3), uint8, RGB."""

    @abstractmethod
    def mask(self, index: int) -> np.ndarray:
        """The mask of that image: (H, W), uint8 class indices, :data:`IGNORE` where nothing counts."""

    def squashed(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The image squashed to (size, size, 3), and its mask at its own size; each is read once."""
        image, mask, _ = self[index]
        return squash_image(image, size), mask

    def digest(self, index: int) -> str:
        """What stands for the sample's content in :func:`evidence`; here the digest of its pixels."""
        image, mask = self.image(index), self.mask(index)
        content = hashlib.sha256(repr((image.shape, mask.shape)).encode())
        content.update(np.ascontiguousarray(image))
        content.update(np.ascontiguousarray(mask))
        return content.hexdigest()

    def labels(self, index: int) -> frozenset[int]:
        """The classes that the sample holds, the background among them and :data:`IGNORE` not."""
        return frozenset(np.unique(self.mask(index)).tolist()) - {IGNORE}

    def __len__(self) -> int:
        return len(self.identifiers)

    def __getitem__(self, index: int) -> Sample:
        identifier = self.identifiers[index]
        return Sample(self.image(index), self.mask(index), identifier)

    def subset(self, indices: Iterable[int]) -> Split:
        """The samples at ``indices``, in that order."""
        return _Subset(self, indices)


class _Subset(Split):
    def __init__(self, whole: Split, indices: Iterable[int]) -> None:
        self._whole = whole
        self._indices = tuple(range(len(whole))[index] for index in indices)
        self.identifiers = tuple(whole.identifiers[index] for index in self._indices)

    def image(self, index: int) -> np.ndarray:
        return self._whole.image(self._indices[index])

    def mask(self, index: int) -> np.ndarray:
        return self._whole.mask(self._indices[index])

    def squashed(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return self._whole.squashed(self._indices[index], size)

    def digest(self, index: int) -> str:
        return self._whole.digest(self._indices[index])

    def labels(self, index: int) -> frozenset[int]:
        return self._whole.labels(self._indices[index])

    def __getitem__(self, index: int) -> Sample:
        return self._whole[self._indices[index]]


class Dataset(BaseModel, ABC):
    """A dataset and its own parameters, which are the model's fields.

    Class attributes:
        name: set by :func:`register`.
        version: raised when a changed default or a changed reading changes what the splits hold.
        title: what tables call it.
        classes: all class names, the background first; empty for a binary dataset.
        test_sets: the names of its test splits.
        split_seed: of whatever split or content the dataset draws itself. Fixed, so that the seed of a
            training never changes which images it is scored on.
        regime: what differs from the harness's default regime.
        few_shot_regime: what differs from ``regime`` when a few-shot set is trained on.
        metrics: the keys of the metrics the paper prints for it, the first one leading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str]
    classes: ClassVar[tuple[str, ...]] = ()
    test_sets: ClassVar[tuple[str, ...]] = ("test",)
    split_seed: ClassVar[int]
    regime: ClassVar[Mapping[str, Any]] = {}
    few_shot_regime: ClassVar[Mapping[str, Any]] = {}
    metrics: ClassVar[tuple[str, ...]]

    @property
    def num_classes(self) -> int:
        """How many mask channels a model needs: 1 for a binary dataset, else one a class."""
        return len(self.classes) or 1

    def recipe(self, shots: int | None) -> dict[str, Any]:
        """The regime for a training set of ``shots`` images a class, None for all images."""
        return {**self.regime, **(self.few_shot_regime if shots else {})}

    def find(self, root: Path | None = None) -> Any:
        """Where its files lie, by names alone (:class:`datasets.layout.Found`); None for a generated dataset.

        Raises:
            DatasetMissing: see :meth:`open`.
        """
        return None

    @abstractmethod
    def open(self, root: Path | None = None, *, allow_broken: bool = False) -> dict[str, Split]:
        """The splits ``train``, ``validation`` and those of ``test_sets`` that are there, one at least.

        Args:
            root: the folder that holds the dataset's folder, or that folder itself; the environment's
                BENCH_DATA_ROOT where none is given. Generated datasets need none.
            allow_broken: leave out files that cannot be used, with a warning, instead of refusing.

        Raises:
            DatasetMissing: its folders are not there; says where it looked and where to get them.
            DatasetBroken: some files cannot be used; one report of all of them.
        """


registry: Registry[Dataset] = Registry(
    "dataset",
    contract=Dataset,
    package="datasets",
    folder=Path(__file__).parent,
    entry_points="sam_peft_bench.datasets",
)
register = registry.register


def load(name: str, **parameters: Any) -> Dataset:
    """The dataset ``name`` with these parameters; nothing is read before it is opened.

    Raises:
        UnknownName: no dataset has that name.
        ValueError: an unknown parameter or a value it does not take; names the allowed ones.
    """
    kind = registry[name]
    try:
        return kind(**parameters)
    except ValidationError as error:
        raise ValueError(_parameter_message(kind, error)) from None


def _parameter_message(kind: type[Dataset], error: ValidationError) -> str:
    fields = kind.model_fields
    lines = []
    for problem in error.errors():
        parameter = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parameter, fields, n=1, cutoff=0.5)
            lines.append(f"unknown parameter {parameter!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            lines.append(f"parameter {parameter!r} cannot be {problem['input']!r}: {reason}.")
    allowed = ", ".join(f"{field}={info.default!r}" for field, info in fields.items()) or "none"
    return f"dataset {kind.name!r}: {' '.join(lines)} Parameters and their defaults: {allowed}."


def manifest(splits: Mapping[str, Split]) -> dict[str, list[list[str]]]:
    """The identifier and the content digest of every sample of each split, in order."""
    return {
        name: [[identifier, split.digest(index)] for index, identifier in enumerate(split.identifiers)]
        for name, split in splits.items()
    }


def evidence(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What a result was made from, to be stored with it and compared later.

    ``data`` has one digest for each split, over the lines "identifier digest" of its :func:`manifest`: split by
    split, so that a further test set changes nothing for a training. ``images`` counts the samples. Neither
    depends on where the files lie.
    """
    listed = manifest(splits)
    return {
        "data": {name: _digest([" ".join(sample) for sample in samples]) for name, samples in listed.items()},
        "images": {name: len(samples) for name, samples in listed.items()},
    }


def _digest(lines: Sequence[str]) -> str:
    # Names that are no UTF-8 count by their bytes.
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
