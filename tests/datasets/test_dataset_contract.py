"""What holds for every dataset, and the base class's own behaviour."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import datasets
from datasets import Dataset, Sample, Split, evidence, load, registry
from datasets.encoding import threshold
from datasets.files import FileSplit
from datasets.inspection import Inspected
from datasets.pairing import Pair


class Plain(Split):
    """The least a split has to define."""

    def __init__(self, count: int, shift: int = 0) -> None:
        self.identifiers = tuple(f"n{number}" for number in range(count))
        self._shift = shift

    def image(self, index: int) -> np.ndarray:
        return np.full((4, 6, 3), index + self._shift, dtype=np.uint8)

    def mask(self, index: int) -> np.ndarray:
        return np.full((4, 6), index % 2, dtype=np.uint8)


@pytest.mark.parametrize("name", registry.names())
def test_every_dataset_says_what_it_is(name: str) -> None:
    required = {"of": "lungs"} if "of" in registry[name].model_fields else {}
    dataset = load(name, **required)
    assert isinstance(dataset, Dataset) and dataset.name == name
    assert dataset.title and isinstance(dataset.split_seed, int) and dataset.version >= 1
    assert dataset.metrics and dataset.test_sets
    assert dataset.num_classes == (len(dataset.classes) or 1) and len(dataset.classes) != 1
    assert load(name, **required) == dataset and hash(load(name, **required)) == hash(dataset)
    with pytest.raises(ValidationError):
        dataset.split_seed_of_mine = 3


def test_known_datasets() -> None:
    assert {"isic2017", "shapes"} <= set(registry.names())


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown dataset 'shape'.*Did you mean 'shapes'.*isic2017"):
        load("shape")


def test_unknown_parameter_names_the_allowed() -> None:
    with pytest.raises(ValueError, match="'shapes'.*'siz'.*Did you mean 'size'.*train_images=160.*style='mixed'"):
        load("shapes", siz=3)
    with pytest.raises(ValueError, match="'isic2017'.*'size'.*: none"):
        load("isic2017", size=3)


@pytest.mark.parametrize("wrong", [{"size": "big"}, {"size": 1}, {"style": "huge"}, {"train_images": 0}])
def test_wrong_value_is_named(wrong: dict) -> None:
    ((parameter, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"parameter '{parameter}' cannot be {value!r}"):
        load("shapes", **wrong)


def test_split_is_a_sequence() -> None:
    split = Plain(3)
    samples = list(split)
    assert len(split) == len(samples) == 3
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.identifier for sample in samples] == ["n0", "n1", "n2"]
    with pytest.raises(IndexError):
        split[3]


def test_subset_keeps_the_given_order() -> None:
    split = Plain(5)
    part = split.subset([4, 0, -2])
    assert part.identifiers == ("n4", "n0", "n3")
    assert [int(part.image(index)[0, 0, 0]) for index in range(3)] == [4, 0, 3]
    assert part[2].identifier == "n3" and part.digest(0) == split.digest(4)
    assert part.subset([1]).identifiers == ("n0",)
    with pytest.raises(IndexError):
        split.subset([5])


def test_evidence_of_a_plain_split() -> None:
    first = evidence({"train": Plain(3), "test": Plain(2)})
    assert first == evidence({"train": Plain(3), "test": Plain(2)})
    assert first["images"] == {"train": 3, "test": 2}
    assert {name: len(digest) for name, digest in first["data"].items()} == {"train": 64, "test": 64}
    for changed in (Plain(3, shift=1), Plain(3).subset([2, 1, 0]), Plain(3).subset([0, 1])):
        other = evidence({"train": changed, "test": Plain(2)})
        assert other["data"]["train"] != first["data"]["train"]
        assert other["data"]["test"] == first["data"]["test"]
    assert evidence({"train": Plain(3)})["data"] == {"train": first["data"]["train"]}


def test_evidence_takes_names_by_their_bytes() -> None:
    split = Plain(1)
    for name in (b"caf\xe9", "caf\u00e9".encode()):
        split.identifiers = (os.fsdecode(name),)
        line = name + b" " + split.digest(0).encode()
        assert evidence({"train": split})["data"]["train"] == hashlib.sha256(line).hexdigest()


def test_a_file_that_became_deeper_is_refused_when_read(tmp_path: Path) -> None:
    image, mask = tmp_path / "a.png", tmp_path / "b.png"
    split = FileSplit([Pair("a", image, mask)], {image: Inspected()}, {mask: Inspected()}, threshold())
    for read, path, mode in ((split.image, image, "RGB"), (split.mask, mask, "L")):
        Image.new(mode, (3, 2)).save(path)
        assert read(0).shape[:2] == (2, 3)
        assert cv2.imwrite(str(path), np.full((2, 3, 3), 255, dtype=np.uint16))
        with pytest.raises(ValueError, match="16 bits a channel or more: convert it to 8"):
            read(0)


def test_opening_a_dataset_needs_no_heavy_package() -> None:
    code = (
        "import sys, datasets; datasets.load('shapes').open()['train'][0]; datasets.load('isic2017');"
        "print(*({'torch', 'pandas', 'scipy', 'cv2', 'matplotlib', 'mlflow'} & set(sys.modules)))"
    )
    root = Path(datasets.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
