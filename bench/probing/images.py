"""The images a probe sees: a folder of class folders, as ImageNet is usually unpacked, and how each becomes a square.

``DIR/train/<class>/<image>`` and ``DIR/val/<class>/<image>``. Evaluation sees the centre: the shorter side becomes
256/224 of the image size, then its middle is cut out. Training without stored features sees random crops and flips,
which are functions of (seed, epoch, index). Both are those of MAE's linear probe (``main_linprobe.py``).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from datasets.splitting import rank

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
AHEAD = 4  # batches that are read before they are needed

Draw = Callable[[Image.Image, int], Image.Image]
"""From an image and its index in its :class:`Images` to the square that the encoder sees."""


class DataError(ValueError):
    """The folder is no folder of class folders, or an image in it cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """Some images of a folder, in a fixed order.

    Attributes:
        root: the folder.
        names: of each image, its path below ``root`` with forward slashes.
        labels: (N,) int64, the classes' indices.
    """

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> Images:
        """The images at these places."""
        return Images(self.root, tuple(self.names[index] for index in indices), self.labels[list(indices)])

    @cached_property
    def _states(self) -> list[tuple[str, int, int]]:
        states = ((name, (self.root / name).stat()) for name in sorted(self.names))
        return [(name, state.st_size, state.st_mtime_ns) for name, state in states]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over paths and sizes in bytes: the same for every copy; contents are not read."""
        return _digest(f"{name}\t{size}\n" for name, size, _ in self._states)

    @cached_property
    def fingerprint(self) -> str:
        """As ``digest``, with order and times of change: what stored features are found by."""
        return _digest([*(f"{name}\n" for name in self.names), *(f"{state}\n" for state in self._states)])

    def read(self, index: int, draw: Draw) -> Tensor:
        """The square (3, S, S), uint8, of one image.

        Raises:
            DataError: the file is no image, or broken; names it.
        """
        path = self.root / self.names[index]
        try:
            with Image.open(path) as file:
                image = draw(file.convert("RGB"), index)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}: {error}). Get it again or remove it, and give the "
                "same command again."
            ) from error
        return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class Folder:
    """A folder with training and validation images of the same classes."""

    train: Images
    val: Images
    classes: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """ "imagenet_1k" where it is the whole of that, by its class names and counts; else the folder's own name."""
        from timm.data import ImageNetInfo

        counts = {"train": len(self.train), "val": len(self.val)}
        whole = counts == IMAGENET_COUNTS and set(self.classes) == set(ImageNetInfo("imagenet-1k").label_names())
        return "imagenet_1k" if whole else self.train.root.parent.name


def open_folder(root: Path) -> Folder:
    """List the images below ``root``.

    Raises:
        DataError: a folder or the images of a class are missing, or ``train`` and ``val`` have other classes.
    """
    root = Path(os.path.abspath(root.expanduser()))
    if not root.is_dir():
        raise DataError(f"--data: there is no folder {root}")
    train, classes = _images(root / "train")
    val, others = _images(root / "val")
    if classes != others:
        odd = [f"{name} only in {where}" for where, left in (("train", classes), ("val", others))
               for name in sorted({*left} - ({*classes} & {*others}))]  # fmt: skip
        shown = ", ".join(odd[:6]) + (f" and {len(odd) - 6} more" if len(odd) > 6 else "")
        raise DataError(f"{root}: train has {len(classes)} classes and val {len(others)}, and they differ: {shown}")
    if len(classes) < 2:
        raise DataError(f"{root} has one class, {classes[0]}; a probe needs two or more folders below train and val")
    return Folder(train, val, tuple(classes))


def _images(root: Path) -> tuple[Images, list[str]]:
    wanted = f"A probe reads {root.parent}/{{train,val}}/<class>/<image>.jpg"
    if not root.is_dir():
        raise DataError(f"there is no folder {root}. {wanted}")
    if not any(entry.is_dir() for entry in root.iterdir()):
        flat = " ImageNet's validation images come without class folders and have to be sorted into them."
        raise DataError(f"{root} holds no class folders. {wanted}.{flat if root.name == 'val' else ''}")
    found = ImageFolder(root, allow_empty=True)
    empty = [found.classes[label] for label in sorted({*range(len(found.classes))} - {*found.targets})]
    if empty:
        raise DataError(f"{root}: no image in {', '.join(empty[:6])} ({len(empty)} empty). {wanted}")
    names = tuple(Path(path).relative_to(root).as_posix() for path, _ in found.samples)
    return Images(root, names, np.array(found.targets, dtype=np.int64)), found.classes


def hold_out(images: Images, share: float) -> tuple[list[int], list[int]]:
    """Indices to train on, and of those held out to choose a learning rate by: this share of each class, at least one.

    Raises:
        DataError: a class has too few images.
    """
    training: list[int] = []
    for label in np.unique(images.labels).tolist():
        members = np.flatnonzero(images.labels == label).tolist()
        count = max(1, round(share * len(members)))
        if count >= len(members):
            name = Path(images.names[members[0]]).parts[0]
            raise DataError(
                f"train/{name} has {len(members)} images, and {count} of them would be held out to choose the learning "
                "rate: nothing would be left to train on. Lower --held-out, or add images."
            )
        training += sorted(members, key=lambda index: rank(images.names[index], 0))[count:]
    held = np.setdiff1d(np.arange(len(images)), training)
    return sorted(training), held.tolist()


def centre(size: int) -> Draw:
    """What evaluation sees, and stored features are of."""
    shorter = round(size * 256 / 224)

    def draw(image: Image.Image, index: int) -> Image.Image:
        return F.center_crop(F.resize(image, shorter, InterpolationMode.BICUBIC), size)

    return draw


def random_crop(size: int, seed: int, epoch: int) -> Draw:
    """A random part of an image, in one half of the cases mirrored, by (seed, epoch, index) alone.

    One draw, cut back to the image, as in MAE's ``util/crop.py``; torchvision's class draws until a crop fits.
    """

    def draw(image: Image.Image, index: int) -> Image.Image:
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, index])))
        area = image.width * image.height * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(*np.log(CROP_RATIO)))
        width = min(max(1, round(math.sqrt(area * ratio))), image.width)
        height = min(max(1, round(math.sqrt(area / ratio))), image.height)
        top, left = random.integers(image.height - height + 1), random.integers(image.width - width + 1)
        part = F.resized_crop(image, int(top), int(left), height, width, [size, size], InterpolationMode.BICUBIC)
        return F.hflip(part) if random.random() < 0.5 else part

    return draw


def read_batches(images: Images, order: Sequence[int], batch: int, draw: Draw, *, workers: int) -> Iterator[Tensor]:
    """Squares (B, 3, S, S), uint8, in ``order``, read ahead by threads: Pillow releases the interpreter's lock.

    Raises:
        DataError: see :meth:`Images.read`.
    """
    chunks = iter([order[start : start + batch] for start in range(0, len(order), batch)])
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        try:
            while True:
                while len(waiting) < AHEAD and (chunk := next(chunks, None)) is not None:
                    waiting.append([pool.submit(images.read, int(index), draw) for index in chunk])
                if not waiting:
                    return
                yield torch.stack([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _digest(lines: Iterable[str]) -> str:
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()
