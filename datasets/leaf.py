"""Leaf disease segmentation: diseased spots on leaves (Kaggle, sovitrath).

The published validation images are the paper's test set, and the paper validates on a fifth of the 498
training images. Beside the original images lie augmented copies of them (``aug_data``), which are never
used: copies of one leaf would fall on both sides of a split.
"""

from __future__ import annotations

from datasets.base import register
from datasets.encoding import marked
from datasets.files import Archive, FileDataset
from datasets.layout import Layout, authors_lists
from datasets.parts import Folders
from datasets.splitting import hold_out


def _folders(name: str) -> tuple[Folders]:
    return (Folders((f"orig_data/{name}_images",), (f"orig_data/{name}_masks",)),)


@register("leaf")
class Leaf(FileDataset):
    """Diseased spots, binary; the published masks show them in dark red, which is grey 38 and below any threshold."""

    title = "Leaf"
    split_seed = 498
    regime = {"lr": 3e-4, "validation_metric": "iou"}
    metrics = ("iou", "dice", "accuracy")

    layouts = (
        authors_lists(test="test.csv"),
        Layout(
            "the original images of Kaggle's archive",
            {"train": _folders("train"), "test": _folders("valid")},
            arrange=hold_out(0.2),
        ),
    )
    encoding = marked()
    aliases = ("leaf_disease_segmentation", "leaf-disease-segmentation-with-trainvalid-split")
    # Of 498 pairs for training, a fifth is held out.
    published = {"train": 398, "validation": 100, "test": 90}
    archives = (
        Archive("https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation/leaf_disease_segmentation.zip"),
    )
    steps = (
        "https://www.kaggle.com/datasets/sovitrath/leaf-disease-segmentation-with-trainvalid-split (needs an account; "
        "the folder leaf_disease_segmentation/orig_data of its archive)"
    )
    terms = "as declared on Kaggle"
