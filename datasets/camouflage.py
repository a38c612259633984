"""Camouflaged objects: one training on COD10K and CAMO together, four test sets.

Fan et al., "Camouflaged Object Detection" (CVPR 2020; COD10K), Le et al., "Anabranch Network for Camouflaged
Object Segmentation" (CVIU 2019; CAMO). The literature trains on the 3040 camouflaged training images of COD10K
and the 1000 of CAMO; the paper holds out a tenth of them for validation and tests on CHAMELEON, CAMO and COD10K.
NC4K is scored where it is there.

COD10K is published with almost as many images that show nothing camouflaged (NonCAM) and have black masks. They
belong to none of these splits, whatever the layout: each would be scored 0 in the weighted F-measure. SINet-V2's
authors name two images that COD10K has in training and test; published numbers contain them, so they stay, and
``python -m datasets verify camouflage`` reports duplicates.
"""

from __future__ import annotations

from datasets.base import register
from datasets.files import Archive, FileDataset
from datasets.layout import Layout
from datasets.pairing import Pair
from datasets.parts import Folders, Listing
from datasets.splitting import Parts, hold_out

_FOLDERS = {"chameleon": "CHAMELEON", "camo": "CAMO", "cod10k": "COD10K", "nc4k": "NC4K"}
_HELD_OUT = 0.1


def _camouflaged(stem: str) -> bool:
    return "noncam" not in stem.lower()


def _camouflaged_only(parts: Parts, seed: int) -> dict[str, list[Pair]]:
    """The parts are the splits, less what folders leave out by themselves and lists do not."""
    return {name: [pair for pair in pairs if _camouflaged(pair.identifier)] for name, pairs in parts.items()}


def _folders(*places: str) -> tuple[Folders]:
    return (
        Folders(
            tuple(f"{place}/{images}" for place in places for images in ("Imgs", "Image")),
            tuple(f"{place}/GT" for place in places),
            keep=_camouflaged,
        ),
    )


def _cod10k(split: str, short: str) -> Folders:
    """Both splits of the third, the second or an unnamed release, or as an older copy unpacks."""
    releases, older = [f"COD10K{version}/{split}" for version in ("-v3", "-v2", "")], f"COD10K-{split}"
    return Folders(
        (*(f"{release}/Image" for release in releases), f"{older}/COD10K-{short}-Image", f"{older}/Imgs"),
        (*(f"{release}/GT_Object" for release in releases), f"{older}/GT_Object", f"{older}/GT"),
        keep=_camouflaged,
    )


def _camo(split: str) -> Folders:
    # One folder of masks serves both splits.
    return Folders(
        (f"CAMO-V.1.0-CVIU2019/Images/{split}", f"CAMO/Images/{split}"),
        ("CAMO-V.1.0-CVIU2019/GT", "CAMO/GT"),
        spare_masks=True,
    )


_REPACKED_TESTS = {
    name: _folders(f"TestDataset/{folder}", f"COD-TestDataset/{folder}") for name, folder in _FOLDERS.items()
}


@register("camouflage")
class Camouflage(FileDataset):
    """Camouflaged objects, binary. A copy may lack test sets; images of COD10K without camouflage are left out."""

    title = "Camouflaged objects"
    test_sets = tuple(_FOLDERS)
    split_seed = 4040
    regime = {"epochs": 20, "validation_metric": "s_measure"}
    metrics = ("s_measure", "e_measure_mean", "weighted_f_measure_b03", "mae")

    aliases = ("camo_sem_seg",)
    layouts = (
        Layout(
            "lists of the paper's authors, further test sets as SINet-V2 re-packed them",
            {
                "train": (Listing(("train.csv",)),),
                "validation": (Listing(("val.csv",)),),
                **_REPACKED_TESTS,
                "camo": (Listing(("test_CAMO.csv",)),),
            },
            optional=frozenset(_FOLDERS) - {"camo"},
            arrange=_camouflaged_only,
        ),
        Layout(
            "SINet-V2's re-pack",
            {"train": _folders("TrainValDataset", "COD-TrainDataset", "TrainDataset"), **_REPACKED_TESTS},
            optional=frozenset(_FOLDERS),
            arrange=hold_out(_HELD_OUT),
        ),
        Layout(
            "the original archives",
            {
                # In the order of the names, as the re-pack has them: the same cell sees the same images in turn.
                "train": (_camo("Train"), _cod10k("Train", "TR")),
                "chameleon": _folders("CHAMELEON"),
                "camo": (_camo("Test"),),
                "cod10k": (_cod10k("Test", "TE"),),
                "nc4k": _folders("NC4K"),
            },
            optional=frozenset(_FOLDERS),
            arrange=hold_out(_HELD_OUT),
        ),
    )
    paper = {"train": 3636, "validation": 404, "chameleon": 76, "camo": 250, "cod10k": 2026}
    published = paper | {"nc4k": 4121}
    archives = (Archive("https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation/camo_sem_seg.zip"),)
    steps = (
        "SINet-V2's re-pack has all four test sets: the training zip "
        "(https://drive.google.com/file/d/1M8-Ivd33KslvyehLK9_IUBGJ_Kf52bWG) and the test zip "
        "(https://drive.google.com/file/d/1V0iSEdYJrT0Y_DHZfVGMg6TySFRNTy4o), linked from "
        "https://github.com/GewelsJI/SINet-V2, both unpacked in the folder camouflage. The authors' camo_sem_seg.zip "
        "lists the test set CAMO only; TestDataset beside it adds the others."
    )
    terms = "COD10K: not for commerce; CAMO: academic use; CHAMELEON and NC4K: ask their authors"
