"""Polyps in colonoscopy frames: one training, five test sets.

PraNet (Fan et al., MICCAI 2020) divided Kvasir-SEG and CVC-ClinicDB into 1450 images to train on and 162 to
test on, and tests on three sets besides that no model trains on. Its re-pack of the files is what everyone
uses; the paper holds out a fifth of the 1450 for validation. PraNet's folder CVC-ClinicDB is the paper's
CVC-612, its folder CVC-300 the paper's CVC-T.

The sets share hospital sequences: EndoScene, of which CVC-T is a part, was made of CVC-ColonDB and
CVC-ClinicDB, and frames of one polyp fall into training and test. Published numbers contain all of this,
so nothing is dropped; ``python -m datasets verify polyps`` reports the near duplicates.
"""

from __future__ import annotations

from datasets.base import register
from datasets.files import Archive, FileDataset
from datasets.layout import Layout
from datasets.pairing import Pair
from datasets.parts import Folders, Listing
from datasets.splitting import Parts, draw, hold_out

_PRANET = {
    "kvasir": "Kvasir",
    "cvc_612": "CVC-ClinicDB",
    "cvc_colondb": "CVC-ColonDB",
    "etis": "ETIS-LaribPolypDB",
    "cvc_t": "CVC-300",
}
_TESTED_SHARE = {"kvasir": 100 / 1000, "cvc_612": 62 / 612}
_HELD_OUT = 0.2

# EndoScene tests on these frames of its half CVC-300; PraNet's 60 files carry the same numbers.
_ENDOSCENE_TEST = frozenset(str(frame) for frame in range(149, 209))


def _pranet(folder: str) -> tuple[Folders]:
    return (Folders((f"{folder}/images", f"{folder}/image"), (f"{folder}/masks", f"{folder}/mask")),)


# Only below TestDataset: elsewhere CVC-ClinicDB is all 612 images and CVC-300 all 300, training images among them.
_PRANET_TESTS = {name: _pranet(f"TestDataset/{folder}") for name, folder in _PRANET.items()}


def _clinic(folder: str) -> tuple[str, ...]:
    """The folder by its paths in the original archive and in the copy that holds each image as TIFF and as PNG."""
    return tuple(f"CVC-ClinicDB/{form}{folder}" for form in ("", "TIF/", "PNG/"))


def _image_stem(mask_stem: str) -> str:
    return mask_stem.removeprefix("p")


def _divide(parts: Parts, seed: int) -> dict[str, list[Pair]]:
    """As many test images of Kvasir-SEG and CVC-ClinicDB as PraNet took, or that share of an incomplete copy."""
    tests, train = dict(parts), []
    for name, share in _TESTED_SHARE.items():
        tests[name], rest = draw(parts[name], round(share * len(parts[name])), seed)
        train += rest
    return hold_out(_HELD_OUT)({"train": train, **tests}, seed)


@register("polyps")
class Polyps(FileDataset):
    """Polyps, binary. A copy may lack test sets; of EndoScene the outlines of polyps alone are read (gtpolyp)."""

    title = "Polyps"
    test_sets = tuple(_PRANET)
    split_seed = 1450
    regime = {"validation_metric": "s_measure"}
    metrics = ("s_measure", "e_measure_mean", "weighted_f_measure_b03", "mae")

    aliases = ("polyp",)
    layouts = (
        Layout(
            "lists of the paper's authors, further test sets as PraNet re-packed them",
            {
                "train": (Listing(("train.csv",)),),
                "validation": (Listing(("val.csv",)),),
                **_PRANET_TESTS,
                **{name: (Listing((f"test_{_PRANET[name]}.csv",)),) for name in _TESTED_SHARE},
            },
            optional=frozenset(_PRANET) - frozenset(_TESTED_SHARE),
        ),
        Layout(
            "PraNet's re-pack",
            {"train": _pranet("TrainDataset"), **_PRANET_TESTS},
            optional=frozenset(_PRANET),
            arrange=hold_out(_HELD_OUT),
        ),
        Layout(
            "the original archives",
            {
                "kvasir": _pranet("Kvasir-SEG"),
                "cvc_612": (Folders(_clinic("Original"), _clinic("Ground Truth")),),
                "cvc_colondb": _pranet("CVC-ColonDB"),
                "etis": (
                    Folders(
                        ("ETIS-LaribPolypDB/ETIS-LaribPolypDB",),
                        ("ETIS-LaribPolypDB/Ground Truth",),
                        mask_key=_image_stem,
                    ),
                ),
                "cvc_t": (
                    Folders(
                        ("CVC-EndoSceneStill/CVC-300/bbdd",),
                        ("CVC-EndoSceneStill/CVC-300/gtpolyp",),
                        keep=_ENDOSCENE_TEST.__contains__,
                    ),
                ),
            },
            optional=frozenset(_PRANET) - frozenset(_TESTED_SHARE),
            arrange=_divide,
            note="Which images of Kvasir and CVC-612 are tested is drawn here and is not PraNet's choice, so scores on "
            "these two cannot be compared with published ones; CVC-T are the frames 149 to 208 of EndoScene's CVC-300.",
        ),
    )
    published = {
        "train": 1160,
        "validation": 290,
        "kvasir": 100,
        "cvc_612": 62,
        "cvc_colondb": 380,
        "etis": 196,
        "cvc_t": 60,
    }
    archives = (Archive("https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation/polyp.zip"),)
    steps = (
        "PraNet's re-pack has all five test sets: TrainDataset.zip "
        "(https://drive.google.com/file/d/1YiGHLw4iTvKdvbT6MgwO9zcCv8zJ_Bnb) and TestDataset.zip "
        "(https://drive.google.com/file/d/1Y2z7FD5p5y31vkZwQQomXFRB0HutHyao), linked from "
        "https://github.com/DengPingFan/PraNet, both unpacked in the folder polyps. The authors' polyp.zip lists "
        "Kvasir and CVC-ClinicDB only; TestDataset beside it adds the other three."
    )
    terms = (
        "Kvasir-SEG: research and education, cite Jha et al. 2020; CVC-ClinicDB: not for commerce, "
        "cite Bernal et al. 2015; the others: ask their authors"
    )
