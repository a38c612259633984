"""A trained cell opened again: its model, its test sets, and what it predicts under either protocol.

What becomes of probabilities is decided as :mod:`bench.prediction` decides it, which this room does not import; a test
holds both side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import datasets
import methods
from analysis.inside.subjects import ADAPTER, again
from analysis.results import NoResults, read_json

HALF = 127.5
"""In grey levels: foreground is what is brighter."""


class Predicted(NamedTuple):
    """One image as a trained cell sees it.

    Attributes:
        features: (C, h, w) float32, what the encoder hands to the decoder: the image embedding after SAM's neck.
        labels: protocol -> uint8 class indices, (S, S) under ``paper`` and of the mask's size under ``literature``.
    """

    features: np.ndarray
    labels: dict[str, np.ndarray]


class Trained:
    """The model of a done cell, which predicts as it did when it was scored.

    Args:
        folder: the cell's.
        device: "cpu", "cuda".

    Raises:
        NoResults: the trained parameters are not there, or no such device.
        methods.delta.AdapterError, methods.sam.checkpoints.CheckpointError: nor the backbone they belong to.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        if missing := [name for name in ADAPTER if not (folder / name).is_file()]:
            raise NoResults(f"{folder} holds no {missing[0]} (a published copy leaves it out). Next: {again(folder)}")
        spec = read_json(folder / "cell.json")["spec"]
        self.size: int = spec["image_size"]
        self._half = spec["precision"] == "bf16"
        try:
            self._device = torch.empty(0, device=device).device
        except RuntimeError as error:
            raise NoResults(f"no device {device!r} here ({str(error).split('. ')[0]}). Next: --device cpu") from None
        self.model = methods.load(folder).to(self._device)

    @torch.no_grad()
    def predict(self, image: np.ndarray, mask: np.ndarray) -> Predicted:
        """What the cell makes of one image.

        Args:
            image: (S, S, 3) uint8, squashed to the cell's size.
            mask: (H, W) uint8, its mask at its own size; only an oracle looks at its values.
        """
        images = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            embedding = self.model.encode(images)
            if type(self.model).answer is methods.Model.answer:
                output = self.model.decode(embedding)
            else:
                squashed = torch.from_numpy(datasets.squash_mask(mask, self.size))[None]
                output = self.model.answer(images, squashed.to(self._device))
        labels = decide(self.model.probabilities(output), mask.shape, self.model.num_classes)
        return Predicted(embedding.features[0].float().cpu().numpy(), labels)


def decide(probabilities: Tensor, size: tuple[int, int], num_classes: int) -> dict[str, np.ndarray]:
    """The classes of each pixel by protocol.

    Args:
        probabilities: of one image as ``Model.probabilities`` gives them, (1, S, S) or scores (1, K, S, S).
        size: (H, W) of its mask.
        num_classes: 1 for binary masks.
    """
    side = probabilities.shape[-1]
    small = probabilities.reshape(1, num_classes, side, side)
    large = F.interpolate(small, size, mode="bilinear", align_corners=False)
    if num_classes > 1:
        decided = {"paper": small.argmax(1), "literature": large.argmax(1)}
    else:  # 8-bit maps are rounded before they are cut
        decided = {"paper": (small * 255)[0] > HALF, "literature": (large * 255).round()[0] > HALF}
    return {protocol: one[0].to(torch.uint8).cpu().numpy() for protocol, one in decided.items()}


def open_splits(folder: Path, root: Path | None) -> dict[str, datasets.Split]:
    """The splits of a cell's dataset.

    Files elsewhere in the dataset that cannot be used are no reason to show nothing: they are left out.

    Raises:
        NoResults: it is not where ``root`` or BENCH_DATA_ROOT say.
    """
    spec = read_json(folder / "cell.json")["spec"]["dataset"]
    dataset = datasets.load(spec["name"], **spec.get("parameters", {}))
    try:
        return dataset.open(root, allow_broken=True)
    except datasets.DatasetMissing as error:
        name = spec["name"]
        raise NoResults(
            f"{str(error).splitlines()[0].removesuffix(' Looked in:')} Next: --data-root DIR, the folder that holds "
            f"{name} or is it (python -m datasets list {name} --data-root DIR says what has to be there)"
        ) from None


def another_copy(folder: Path, test_set: str, split: datasets.Split) -> bool:
    """Whether ``split`` has another content than the test set that the cell was scored on."""
    before = read_json(folder / "cell.json")["evidence"].get("data", {}).get(test_set)
    return before != datasets.evidence({test_set: split})["data"][test_set]
