"""Whether a number of ours may stand beside the paper's with a difference, and whether it then lies in its spread."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.paper import PaperNumber
from analysis.source import Cell
from analysis.statistics import Summary, is_within

IMAGES = {
    "polyps": {"train": 1160, "kvasir": 100, "cvc_612": 62, "cvc_colondb": 380, "etis": 196, "cvc_t": 60},
    "isic2017": {"train": 2000, "test": 600},
    "camouflage": {"train": 3636, "chameleon": 76, "camo": 250, "cod10k": 2026},
    "sbu": {"train": 3677, "test": 638},
    "leaf": {"train": 398, "test": 90},
    "road": {"train": 1107, "test": 48},
    "trans10k_v1": {"train": 5000, "easy": 3491, "hard": 937},
    "trans10k_v2": {"train": 5000, "test": 4428},
}
"""How many images the paper trains and tests on, by our names of datasets and splits."""

WITHIN, OUTSIDE, NO_SPREAD = "within", "outside", "no spread printed"


def other_data(cells: Iterable[Cell], test_set: str) -> list[str]:
    """How the images of a copy differ in number from the paper's; empty where they do not, or nothing is known.

    The labelled images of few-shot cells are a part of the copy's, whose number nothing tells.
    """
    found: dict[str, None] = {}
    for cell in cells:
        papers, ours = IMAGES.get(cell.dataset, {}), {test_set: cell.images.get(test_set)}
        if not cell.shots:
            ours["train"] = int(cell.train_images_available)
        for split, count in ours.items():
            if count is not None and papers.get(split, count) != count:
                found[f"{cell.dataset}/{split} {count} images (the paper: {papers[split]})"] = None
    return list(found)


def verdict(ours: Summary, number: PaperNumber, difference: float) -> str:
    """Whether ours lies within or outside the spread that the paper prints, or that it prints none, or 0.

    Errors of 0 stand beside metrics of the same runs that vary (``python -m analysis.tables --ledger``).

    Args:
        difference: ours minus the paper's, in the printed scale.
    """
    error = float(number.standard_error or 0)
    if not error:
        return NO_SPREAD
    inside = is_within(
        difference,
        error=error,
        runs=number.runs,
        own_error=ours.standard_error,
        rounding=0.5 * 10.0 ** -len(number.value.partition(".")[2]),
    )
    return WITHIN if inside else OUTSIDE
