"""ISIC 2017 task 1: outlines of skin lesions in dermoscopic photographs.

Codella et al., "Skin lesion analysis toward melanoma detection" (ISBI 2018). The challenge's own split is
used: 2000 images to train, 150 to validate, 600 to test. Copies that lack some of them on both sides are
opened without complaint; the counts stand in the evidence.
"""

from __future__ import annotations

from pathlib import Path

from datasets.base import Dataset, DatasetMissing, Split, register
from datasets.layout import PairFolders, locate
from datasets.pairing import list_files, open_pairs, pair_files

SOURCE = (
    "https://challenge.isic-archive.com/data/#2017 (task 1: the zips ISIC-2017_Training_Data, "
    "ISIC-2017_Validation_Data, ISIC-2017_Test_v2_Data and the Part1_GroundTruth of each)."
)


def _folders(published: str, copy: str) -> PairFolders:
    """The challenge's folders, or those of the copy that the scripts of the paper's authors unpack."""
    truth = f"{published}_Part1_GroundTruth"
    return PairFolders(images=(f"{published}_Data", copy), masks=(truth, f"{copy.split('/')[0]}/{truth}"))


PARTS = {
    "train": _folders("ISIC-2017_Training", "train/ISIC-2017_Train"),
    "validation": _folders("ISIC-2017_Validation", "val/ISIC-2017_Val"),
    "test": _folders("ISIC-2017_Test_v2", "test/ISIC-2017_Test"),
}


@register("isic2017")
class Isic2017(Dataset):
    """Skin lesions, binary. The data folders also hold superpixel maps and tables, which are passed over."""

    title = "ISIC 2017"
    split_seed = 2017
    regime = {"validation_metric": "iou"}
    metrics = ("iou", "t_jaccard", "dice", "accuracy")

    def open(self, root: Path | None = None, *, allow_broken: bool = False) -> dict[str, Split]:
        base, found = locate(self.name, root, PARTS, source=SOURCE)
        parts, problems = {}, []
        for part, (image_folder, mask_folder) in found.items():
            images = list_files(image_folder, (".jpg", ".jpeg"))
            if not images:
                raise DatasetMissing(f"{image_folder} holds no *.jpg. Unpack the images there: {SOURCE}")
            masks = list_files(mask_folder, (".png",))
            parts[part], unpaired = pair_files(images, masks, mask_key=_image_stem)
            problems += unpaired
        return open_pairs(self.name, base, parts, problems, allow_broken=allow_broken)


def _image_stem(mask_stem: str) -> str:
    return mask_stem.removesuffix("_segmentation")
