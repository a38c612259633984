"""Images and masks of your own: two folders or a table of pairs, described by a few parameters.

The parameters are part of a cell's identity, so they hold no path of a machine: ``of`` names the dataset's
folder below the data root, and everything else is relative to it. ``docs/datasets.md`` has examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from datasets.base import IGNORE, SEVERAL_CLASSES, register
from datasets.encoding import THRESHOLD, Encoding, UnknownColour, threshold, valued
from datasets.files import FileDataset
from datasets.layout import Found, Layout, locate
from datasets.pairing import Pair, folded
from datasets.parts import Folders, Listing, Part
from datasets.splitting import Parts, draw

_SPLIT = "{split}"
_NAMES = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def stored(picture: Image.Image) -> np.ndarray:
    """The numbers in the file: a palette's indices, not its colours, and one of several equal channels.

    Raises:
        UnknownColour: the channels differ, or a number is not a whole one from 0 to 255.
    """
    numbers = np.asarray(picture)
    if numbers.ndim == 3:
        numbers = numbers[..., [place for place, band in enumerate(picture.getbands()) if band != "A"]]
        if (numbers != numbers[..., :1]).any():
            raise UnknownColour("it is coloured, where a class is an index or a grey value")
        numbers = numbers[..., 0]
    levels = numbers.astype(np.uint8)
    if (levels != numbers).any():
        raise UnknownColour(f"its values, {numbers.min()} to {numbers.max()}, are not all whole numbers from 0 to 255")
    return levels


@register("folder")
class Folder(FileDataset):
    """Images and masks of your own, binary unless ``class_names`` says otherwise.

    Args:
        of: the dataset's folder below the data root; the data root may also be that folder itself.
        images, masks: two folders in it. ``{split}`` in both of them stands for train (or training), val (valid,
            validation) and test (testing).
        mask_name: a mask's name without suffix, ``{}`` being that of its image: ``"{}_mask"``. Other files are
            passed over.
        lists: in place of folders, CSV tables with the columns ``image`` and ``label``, paths relative to the
            table: ``"{split}.csv"``, or one for all images.
        test_share: of all images, where they are not split.
        validation_share: of the training images, where none are set apart. Both are drawn, one image at least.
        threshold: foreground of binary masks is brighter than that.
        class_names: of all classes, the background first. Masks then hold the index of a class in each pixel.
        values: the class that each value in the masks means, where these are no indices.
        ignore: the value of pixels that do not count.
    """

    split_seed = 1
    steps = "it is yours: 'of' says in which folder, 'images', 'masks' and 'lists' what is in there (docs/datasets.md)"

    of: str = Field("", validate_default=True)
    images: str = "images"
    masks: str = Field("masks", validate_default=True)
    mask_name: str = "{}"
    lists: str = ""
    test_share: float = Field(0.2, gt=0, lt=1)
    validation_share: float = Field(0.1, gt=0, lt=1)
    threshold: int = Field(THRESHOLD, ge=0, le=254)
    class_names: tuple[str, ...] = ()
    values: dict[int, int] = Field({})
    ignore: int | None = Field(None, ge=0, le=255)

    @field_validator("of")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not _is_plain(value) or "{" in value:
            raise ValueError(
                "it names the dataset's folder below the data root, such as 'lungs' or 'hospital/lungs'; "
                "the data root itself is given by --data-root or BENCH_DATA_ROOT"
            )
        return value

    @field_validator("images", "masks", "lists")
    @classmethod
    def _names_a_place(cls, value: str, info: ValidationInfo) -> str:
        plain = value.replace(_SPLIT, "")
        absent = not value and info.field_name == "lists"
        if not absent and (not _is_plain(value) or "{" in plain or "}" in plain):
            example = "'{split}.csv' or 'pairs.csv'" if info.field_name == "lists" else "'images' or '{split}/images'"
            raise ValueError(f"it is a path in the dataset's folder, such as {example}")
        return value

    @field_validator("masks")
    @classmethod
    def _goes_with_the_images(cls, value: str, info: ValidationInfo) -> str:
        images = info.data.get("images")
        if images is None:
            return value
        if value == images:
            raise ValueError("the images are there too; keep them apart, or write the pairs in a table: lists")
        if (_SPLIT in value) != (_SPLIT in images):
            raise ValueError(f"{_SPLIT} is in either both of images ({images!r}) and masks or in none of them")
        return value

    @field_validator("mask_name")
    @classmethod
    def _has_room_for_the_image(cls, value: str) -> str:
        if value.count("{}") != 1 or set(value.replace("{}", "")) & set("{}/\\"):
            raise ValueError("it holds {} once, where the image's name stands, and no folder: '{}_mask'")
        return value

    @field_validator("lists")
    @classmethod
    def _stands_alone(cls, value: str, info: ValidationInfo) -> str:
        unread = [key for key in ("images", "masks", "mask_name") if info.data.get(key) != _default(cls, key)]
        if value and unread:
            raise ValueError(f"tables stand in place of folders: leave out {', '.join(unread)}")
        return value

    @field_validator("test_share")
    @classmethod
    def _is_needed(cls, value: float, info: ValidationInfo) -> float:
        if value != _default(cls, "test_share") and _SPLIT in (info.data.get("lists") or info.data.get("images", "")):
            raise ValueError(f"the test images are those that {_SPLIT} names: leave it out")
        return value

    @field_validator("class_names")
    @classmethod
    def _names_classes(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(value) == 1 or len(value) > IGNORE or len(set(value)) < len(value) or not all(value):
            raise ValueError(
                f"it names 2 to {IGNORE} different classes, the background first, or none for binary masks"
            )
        if value and info.data.get("threshold") != THRESHOLD:
            raise ValueError("a threshold is for binary masks: leave out threshold, or class_names")
        return value

    @field_validator("values")
    @classmethod
    def _means_every_class(cls, value: dict[int, int], info: ValidationInfo) -> dict[int, int]:
        names = info.data.get("class_names")
        if value and names == ():
            raise ValueError("its classes need names: class_names")
        if value and names and (set(value.values()) != set(range(len(names))) or not set(value) <= set(range(256))):
            classes = ", ".join(f"{label} ({name})" for label, name in enumerate(names))
            raise ValueError(f"it gives values from 0 to 255 to each of the classes {classes}")
        return value

    @field_validator("ignore")
    @classmethod
    def _means_no_class(cls, value: int | None, info: ValidationInfo) -> int | None:
        names = info.data.get("class_names")
        if value is not None and names == ():
            raise ValueError("every pixel of a binary mask counts; masks of other kinds need class_names")
        if value in _indices(names or (), info.data.get("values", {})):
            raise ValueError("it is a class: name another value, or leave it out of values")
        return value

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def title(self) -> str:
        return self.of

    @property
    def classes(self) -> tuple[str, ...]:
        return self.class_names

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("miou_foreground", "miou_all", "accuracy", "iou") if self.class_names else ("iou", "dice", "mae")

    @property
    def regime(self) -> Mapping[str, Any]:
        return SEVERAL_CLASSES if self.class_names else {"validation_metric": "iou"}

    @property
    def encoding(self) -> Encoding:
        if not self.class_names:
            return threshold(self.threshold)
        ignored = {} if self.ignore is None else {self.ignore: IGNORE}
        return valued(_indices(self.class_names, self.values) | ignored, levels=stored)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        if _SPLIT not in (self.lists or self.images):
            return (Layout("not split", {"all": (self._part(("",)),)}, arrange=self._draw),)
        three = {split: (self._part(names),) for split, names in _NAMES.items()}
        two = {split: parts for split, parts in three.items() if split != "validation"}
        return (
            Layout("split in three", three),
            Layout("split in training and test images", two, arrange=self._draw),
        )

    def find(self, root: Path | None = None) -> Found:
        own_name = {PurePosixPath(self.of).name} - {self.of}
        return locate(
            self.of, root, self.layouts, split_seed=self.split_seed, source=self.source(), aliases=tuple(own_name)
        )

    def _part(self, names: Sequence[str]) -> Part:
        def paths(pattern: str) -> tuple[str, ...]:
            return tuple(pattern.replace(_SPLIT, name) for name in names)

        if self.lists:
            return Listing(paths(self.lists))
        # Masks of another name have the key "", which is kept for no image.
        return Folders(paths(self.images), paths(self.masks), mask_key=self._image_stem, keep=bool, nameless=True)

    def _image_stem(self, mask_stem: str) -> str:
        before, after = folded(self.mask_name).split("{}")
        fits = mask_stem.startswith(before) and mask_stem.endswith(after)
        return mask_stem[len(before) : len(mask_stem) - len(after)] if fits else ""

    def _draw(self, parts: Parts, seed: int) -> dict[str, list[Pair]]:
        if "all" in parts:
            test, train = _share(parts["all"], self.test_share, seed)
        else:
            test, train = list(parts["test"]), parts["train"]
        validation, train = _share(train, self.validation_share, seed)
        return {"train": train, "validation": validation, "test": test}


def _is_plain(path: str) -> bool:
    names = path.split("/")
    return not any(name in ("", ".", "..") or name.startswith("~") or set(name) & set("\\:") for name in names)


def _default(kind: type[Folder], parameter: str) -> Any:
    return kind.model_fields[parameter].default


def _indices(names: Sequence[str], values: Mapping[int, int]) -> dict[int, int]:
    """The class of each value that a mask may hold."""
    return dict(values) or {label: label for label in range(len(names))}


def _share(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    return draw(pairs, max(1, round(share * len(pairs))), seed)
