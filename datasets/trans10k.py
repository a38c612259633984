"""Trans10K: glass and other transparent objects in photographs, with 3 classes (v1) and with 12 (v2).

Xie et al., "Segmenting transparent objects in the wild" (ECCV 2020) and "Segmenting transparent object in
the wild with transformer" (IJCAI 2021). Both have the same images and the official split into 5000, 1000
and 4428; v1 divides validation and test by difficulty, v2 does not. Copies often hold both kinds of masks
side by side.

The paper trains 30 epochs on all images, like on every other dataset; the 100 epochs of its few-shot
table belong to that table, where training to the end says that no validation stops it early. Its validation
metric is not stated: the release has one for several classes, the mean IoU with the background.
"""

from __future__ import annotations

from datasets.base import SEVERAL_CLASSES, register
from datasets.encoding import channel_mean, indexed, valued
from datasets.files import FileDataset
from datasets.layout import Layout
from datasets.parts import Folders

_COLOURS = (
    (0, 0, 0),
    (120, 120, 70),
    (235, 255, 7),
    (6, 230, 230),
    (204, 255, 4),
    (120, 120, 120),
    (140, 140, 140),
    (255, 51, 7),
    (224, 5, 255),
    (204, 5, 255),
    (150, 5, 61),
    (4, 250, 7),
)


def _image_stem(mask_stem: str) -> str:
    return mask_stem.removesuffix("_mask")


def _folders(place: str, masks: str, prefix: str = "") -> Folders:
    return Folders((f"{place}/images",), (f"{place}/{masks}",), mask_key=_image_stem, prefix=prefix)


def _level(split: str, level: str) -> Folders:
    # Identifiers name the level, as both levels of a copy may count their files from 1.
    return _folders(f"{split}/{level}", "masks", prefix=f"{level}-")


@register("trans10k_v1")
class Trans10KV1(FileDataset):
    """Transparent things (red, cups and bottles) and stuff (white, windows and doors) by two levels of difficulty.

    A mask's class follows from the mean of its three channels, as the authors read it.
    """

    title = "Trans10K-v1"
    classes = ("background", "things", "stuff")
    test_sets = ("easy", "hard")
    split_seed = 2020
    regime = SEVERAL_CLASSES
    metrics = ("miou_foreground", "accuracy_foreground", "label_mae", "mber")

    layouts = (
        Layout(
            "the original archive",
            {
                "train": (_folders("train", "masks"),),
                "validation": (_level("validation", "easy"), _level("validation", "hard")),
                "easy": (_level("test", "easy"),),
                "hard": (_level("test", "hard"),),
            },
        ),
    )
    encoding = valued({0: 0, 85: 1, 255: 2}, levels=channel_mean)
    aliases = ("Trans10K", "Trans10K-v1")
    published = {"train": 5000, "validation": 1000, "easy": 3491, "hard": 937}
    steps = "https://xieenze.github.io/projects/TransLAB/TransLAB.html (the folders train, validation and test)"
    terms = "for academic use only, commercial use on request; cite Xie et al. 2020"


@register("trans10k_v2")
class Trans10KV2(FileDataset):
    """Transparent objects in 11 categories.

    Some names are short for the authors': jar or tank, glass door, floor glass (wall), glass bowl, water bottle,
    storage box. Masks hold the index of a class; a copy in the colours of the authors' palette is read too.
    """

    title = "Trans10K-v2"
    classes = (
        "background", "shelf", "jar", "freezer", "window", "door", "eyeglass", "cup", "wall", "bowl", "bottle", "box",
    )  # fmt: skip
    split_seed = 2021
    regime = SEVERAL_CLASSES
    few_shot_regime = {"epochs": 100, "patience": 0}
    metrics = ("miou_foreground", "miou_all", "accuracy", "iou")

    layouts = (
        Layout(
            "the original archive",
            # The folder "masks" that some copies have beside these holds the three classes of v1.
            {split: (_folders(split, "masks_12"),) for split in ("train", "validation", "test")},
        ),
    )
    encoding = indexed(len(classes), ignore=(), colours=_COLOURS)
    aliases = ("Trans10K-v2", "Trans10K_cls12", "trans10kcls12", "Trans10K_cls12_new", "Trans10K")
    published = {"train": 5000, "validation": 1000, "test": 4428}
    steps = (
        "https://drive.google.com/file/d/1YzAAMY8xfL9BMTIDU-nFC3dcGbSIBPu5 (named on "
        "https://github.com/xieenze/Trans2Seg; the folders images and masks_12 of train, validation and test)"
    )
    terms = "none stated with it; the images are those of v1, for academic use only; cite Xie et al. 2021"
