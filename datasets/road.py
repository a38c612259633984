"""Massachusetts roads: aerial tiles of 1500 x 1500 pixels and the roads on them, a few per cent of each.

Mnih, "Machine learning for aerial image labeling" (2013), with its own split. Many training tiles have
large areas without an image, in pure white, while their labels may go on there; ``max_white`` leaves out
such tiles. The paper counts one tile less in each split and does not say which.
"""

from __future__ import annotations

from pydantic import Field

from datasets.base import register
from datasets.files import Archive, FileDataset
from datasets.inspection import Inspected
from datasets.layout import Layout, authors_lists
from datasets.parts import Folders
from datasets.splitting import hold_out

_OFFICIAL = {"train": 1108, "validation": 14, "test": 49}


def _kaggle(format_: str) -> Layout:
    names = {"train": "train", "validation": "val", "test": "test"}
    return Layout(
        f"Kaggle's copy by balraj98, {format_}",
        {split: (Folders((f"{format_}/{name}",), (f"{format_}/{name}_labels",)),) for split, name in names.items()},
    )


@register("road")
class Road(FileDataset):
    """Roads, binary.

    Args:
        max_white: the largest share of pure white that a tile for training or validation may have; 1 keeps all.
    """

    title = "Road"
    split_seed = 2013
    regime = {"epochs": 20, "lr": 3e-4, "validation_metric": "iou"}
    metrics = ("iou", "dice", "accuracy")

    layouts = (
        authors_lists(test="test.csv"),
        Layout(
            "the original folders",
            {
                split: (Folders((f"{name}/sat",), (f"{name}/map",)),)
                for split, name in {"train": "train", "validation": "valid", "test": "test"}.items()
            },
        ),
        _kaggle("tiff"),
        _kaggle("png"),
        Layout(
            "Kaggle's copy by insaff",
            {
                # Not all of its training images have a label.
                "train": (Folders(("training/input",), ("training/output",), unpaired=_OFFICIAL["train"]),),
                "test": (Folders(("testing/input",), ("testing/output",)),),
            },
            arrange=hold_out(_OFFICIAL["validation"] / _OFFICIAL["train"]),
            note="its tiles are renumbered, so that nobody knows whether its test set is the official one",
        ),
    )
    aliases = ("road_segmentation", "mass_roads", "massachusetts-roads-dataset", "road_segmentation_ideal")
    published = _OFFICIAL
    paper = {"train": 1107, "validation": 13, "test": 48}
    archives = (Archive("https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation/road_segmentation.zip"),)
    steps = (
        "https://www.cs.toronto.edu/~vmnih/data/ (Massachusetts Roads: the folders sat and map of train, valid and "
        "test) or https://www.kaggle.com/datasets/balraj98/massachusetts-roads-dataset (needs an account)"
    )
    terms = "for research; cite Mnih 2013"

    max_white: float = Field(1.0, ge=0, le=1)

    def excludes(self, image: Inspected, mask: Inspected) -> str:
        return f"{image.white:.1%} of it is white" if image.white > self.max_white else ""
