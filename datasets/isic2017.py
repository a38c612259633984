"""ISIC 2017 task 1: outlines of skin lesions in dermoscopic photographs.

Codella et al., "Skin lesion analysis toward melanoma detection" (ISBI 2018). The challenge's own split is
used: 2000 images to train, 150 to validate, 600 to test. Copies that lack some of them on both sides are
opened without complaint; the counts stand in the evidence and in ``python -m datasets verify isic2017``.
"""

from __future__ import annotations

from datasets.base import register
from datasets.files import Archive, FileDataset
from datasets.layout import Layout, authors_lists
from datasets.parts import Folders

_SPLITS = {"train": "Training", "validation": "Validation", "test": "Test_v2"}
_COPY = {"train": "train/ISIC-2017_Train", "validation": "val/ISIC-2017_Val", "test": "test/ISIC-2017_Test"}


def _image_stem(mask_stem: str) -> str:
    return mask_stem.removesuffix("_segmentation")


def _folders(images: str, masks: str) -> tuple[Folders]:
    # The data folders also hold superpixel maps as PNG.
    return (
        Folders((images,), (masks,), image_suffixes=(".jpg", ".jpeg"), mask_suffixes=(".png",), mask_key=_image_stem),
    )


@register("isic2017")
class Isic2017(FileDataset):
    """Skin lesions, binary. The data folders also hold superpixel maps and tables, which are passed over."""

    title = "ISIC 2017"
    split_seed = 2017
    regime = {"validation_metric": "iou"}
    metrics = ("iou", "t_jaccard", "dice", "accuracy")

    layouts = (
        authors_lists(test="test.csv"),
        Layout(
            "the challenge's archives",
            {
                split: _folders(f"ISIC-2017_{name}_Data", f"ISIC-2017_{name}_Part1_GroundTruth")
                for split, name in _SPLITS.items()
            },
        ),
        Layout(
            "a copy by splits",
            {
                split: _folders(_COPY[split], f"{_COPY[split].split('/')[0]}/ISIC-2017_{name}_Part1_GroundTruth")
                for split, name in _SPLITS.items()
            },
        ),
    )
    aliases = ("isic-2017", "isic_2017")
    published = {"train": 2000, "validation": 150, "test": 600}
    archives = tuple(
        Archive(f"https://isic-challenge-data.s3.amazonaws.com/2017/ISIC-2017_{name}_{part}.zip")
        for name in _SPLITS.values()
        for part in ("Data", "Part1_GroundTruth")
    )
    steps = (
        "https://challenge.isic-archive.com/data/#2017 (task 1: the zips ISIC-2017_Training_Data, "
        "ISIC-2017_Validation_Data, ISIC-2017_Test_v2_Data and the Part1_GroundTruth of each), or the copy of the "
        "paper's authors: https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation/isic2017.zip"
    )
    terms = "CC-0 by the challenge's page; cite Codella et al. 2018"
