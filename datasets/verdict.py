"""What the findings of ``python -m datasets verify`` mean: errors, for which a copy is not whole, and warnings.

An error can be mended by another copy: files that cannot be used, pairs that are missing, a test set that was
mixed up with training images. A warning belongs to the dataset as it was published and to what is said about
results on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.duplicates import NEAR

LEAK = 0.01
"""The largest share of a test set, or of validation, that may be among the training images as the same files.

Published sets do have a few such images (COD10K has two in 2026).
"""

EXIT_CODES = f"""\
exit code: 0 the copy is whole, though there may be warnings; 1 it is not; 2 it was not found.
  errors    files that cannot be used; a split without any usable pair; fewer pairs than
            published, unless the paper counts no more than there are; more than {LEAK:.0%} of a test
            set being files for training or validation too, or of validation files for training
  warnings  more pairs than published; other images that are there twice, or resemble one another
            in training and test; masks that are blank or all foreground; pairs that the
            dataset's parameters leave out"""


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """``whole``, ``errors`` and ``warnings`` of what :func:`datasets.verify.verify` found."""
    errors, warnings = [], []
    _judge_counts(report, errors, warnings)
    _judge_duplicates(report, errors, warnings)
    kinds = [f"{problem['kind']} ({len(problem['files'])})" for problem in report["problems"]]
    if kinds:
        errors.append(f"files that cannot be used: {', '.join(kinds)}")
    for key, words in (("blank", "blank masks"), ("all_foreground", "masks of foreground alone")):
        if report[key]:
            warnings.append(f"{words}: {_listed({split: len(found) for split, found in report[key].items()})}")
    if report["left_out"]:
        warnings.append(f"left out by the dataset's own parameters: {_listed(report['left_out'])}")
    if report["note"]:
        warnings.append(f"this layout: {report['note']}")
    return {"whole": not errors, "errors": errors, "warnings": warnings}


def _judge_counts(report: Mapping[str, Any], errors: list[str], warnings: list[str]) -> None:
    here, counts, paper = report["splits"], report["published"] or report["paper"], report["paper"]
    short = {split for split, lacking in report["missing"].items() if here[split] < paper.get(split, 0)}
    lacking = {split: f"{count:,} of {counts[split]:,}" for split, count in report["missing"].items()}
    if short:
        errors.append(f"missing pairs: {_listed({split: lacking[split] for split in lacking if split in short})}")
    if lacking.keys() - short:
        spared = {split: lacking[split] for split in lacking if split not in short}
        warnings.append(f"missing pairs that the paper has not counted either: {_listed(spared)}")
    if report["more"]:
        warnings.append(f"more pairs than published: {_listed(report['more'])}")
    opened = report["images"]  # a test set may be missing
    never = [split for split in opened if not here[split]]
    lost = [split for split in opened if here[split] and not report["usable"][split]]
    if never:
        errors.append(f"no pair at all is in {', '.join(never)}: its folder or list is empty, or too few can be drawn")
    if lost:
        errors.append(f"no usable pair is left in {', '.join(lost)}")


def _judge_duplicates(report: Mapping[str, Any], errors: list[str], warnings: list[str]) -> None:
    usable = report["usable"]
    for split, count in report["leaked"].items():
        trained = "training" if split == "val" else "training or validation"
        words = f"{count:,} of {usable[split]:,} images of {split} are files for {trained} too"
        (errors if count > LEAK * usable[split] else warnings).append(words)
    others = [group for group in report["duplicates"] if not _crosses(group)]
    if others:
        warnings.append(f"images that are there more than once on the same side: {len(others):,}")
    near = [entry["image"][0] for entry in report["near_duplicates"]]
    for split in dict.fromkeys(near):
        warnings.append(
            f"{near.count(split):,} of {usable[split]:,} images of {split} closely resemble images for training or "
            f"validation (similarity {NEAR} and more): look at them"
        )
    if report["uniform"]:
        warnings.append(f"images that show too little to be compared: {report['uniform']:,}")


def _crosses(group: list[list[str]]) -> bool:
    """Whether an image is on more than one side: training, validation, and all test sets together."""
    return len({split if split in ("train", "val") else "test" for split, _ in group}) > 1


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{value:,} {split}" if isinstance(value, int) else f"{value} {split}" for split, value in values.items()
    )
