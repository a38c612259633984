"""The paper's numbers (``paper.csv``, text as printed) and which of our cells each of them stands for.

A line of the file is one printed number of "Convolution Meets LoRA" (ICLR 2024); its last columns name our
method, parameters, dataset, shots, test set and metric, the printed scale, and the runs behind the number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.source import shots_in_words

TITLES = {
    1: "Binary segmentation",
    2: "Multi-class segmentation",
    3: "One scale chosen or all at once, scores",
    4: "One scale alone",
    5: "Polyp segmentation",
    6: "Skin lesion segmentation",
    7: "Camouflaged object segmentation",
    8: "Shadow detection",
    9: "Leaf segmentation",
    10: "Road segmentation",
    11: "The rank of LoRA on Trans10K-v2",
    12: "Conv-LoRA together with VPT",
    13: "Experts of several scales or kernels of several sizes",
    15: "Few-shot learning, mIoU on Trans10K-v2",
}
"""The tables of scores, with their subject."""

COMPLETE = "100"
"""The percentage of trained parameters of what is trained whole: domain-specific systems, and SAM from scratch."""

SPEED_PREFIX = "speed:"
"""What begins our name of a figure that is measured, not scored."""

_MIOU = "mIoU is the mean IoU of the classes without the background"
_OTHERWISE = "for which the paper prints other numbers there (python -m analysis.tables --ledger)"
NOTES = {
    2: f"{_MIOU}. The paper prints it for its own rows, but for TransLab and Trans2Seg on Trans10K-v2 the mean with "
    "the background, as the IoUs of the classes show: the two stand in different columns, and our runs in both. "
    "On Trans10K-v1 Acc counts foreground pixels alone, and MAE is the mean difference of class indices.",
    3: "Speed and memory, which the paper prints beside these scores, belong to a device and stand in a table of their "
    f"own (python -m bench.speed --matrix table3). Conv-LoRA is that of table 6, {_OTHERWISE}.",
    4: "Conv-LoRA with one expert, of the scale that the row names, and hence no gate. The paper prints no spread, and "
    "calls a scale optimal by these scores of the test sets.",
    11: f"{_MIOU}.",
    12: "The paper's 4.03 and 4.23 M fit a decoder of 12 classes; with the binary one that polyps need they are 4.02 "
    f"and 4.22 M. VPT and Conv-LoRA are those of table 5, {_OTHERWISE}; here it prints no spread.",
    13: "The paper's numbers are means of two runs, without a spread. MoE-Conv is Conv-LoRA with four experts, of the "
    "scales 1 to 4.",
    15: f"{_MIOU}: the paper does not say which mean it prints here. k shots are k labelled training images for each "
    "of these classes, drawn anew for each seed, and trained for 100 epochs without an early stop.",
}
"""What has to be said beside the paper's numbers, by table."""

_GROUPS = {
    "kvasir": "Kvasir",
    "cvc-612": "CVC-612",
    "cvc-colondb": "CVC-ColonDB",
    "etis": "ETIS",
    "cvc-t": "CVC-T",
    "isic2017": "ISIC 2017",
    "chameleon": "CHAMELEON",
    "camo": "CAMO",
    "cod10k": "COD10K",
    "sbu": "SBU",
    "leaf": "Leaf",
    "road": "Road",
    "trans10k-v1-easy": "Trans10K-v1 easy",
    "trans10k-v1-hard": "Trans10K-v1 hard",
    "trans10k-v2": "Trans10K-v2",
    "imagenet-1k": "ImageNet-1k",
}
_METRICS = {
    "s_measure": ("Sα", "higher"),  # noqa: RUF001
    "e_measure": ("Eφ", "higher"),
    "weighted_f_measure": ("Fβw", "higher"),
    "mae": ("MAE", "lower"),
    "jaccard": ("Jac", "higher"),
    "t_jaccard": ("T-Jac", "higher"),
    "iou": ("IoU", "higher"),
    "dice": ("Dice", "higher"),
    "accuracy": ("Acc", "higher"),
    "ber": ("BER", "lower"),
    "miou": ("mIoU", "higher"),
    "mber": ("mBER", "lower"),
    "top1": ("top-1", "higher"),
    "train_it_per_s": ("training it/s", "higher"),
    "train_min_per_epoch": ("min/epoch", "lower"),
    "train_memory_gb": ("training GB", "lower"),
    "inference_it_per_s": ("inference it/s", "higher"),
}


@dataclass(frozen=True)
class PaperNumber:
    """A number as the paper prints it, as text: its digits are part of what is said."""

    value: str
    standard_error: str
    runs: int


@cache
def read_paper() -> pd.DataFrame:
    """The whole file, every column as text, blanks as empty strings."""
    return pd.read_csv(Path(__file__).with_name("paper.csv"), dtype=str, keep_default_na=False)


def lines_of(number: int) -> pd.DataFrame:
    """The lines of one table, in the paper's order: complete models stand above what is fine-tuned."""
    paper = read_paper()
    lines = paper[paper["table"] == str(number)]
    return lines.sort_values("ratio_percent", key=lambda ratio: ratio != COMPLETE, kind="stable")


def scored_lines(number: int) -> pd.DataFrame:
    """Those lines of a table that are scores of a test set, and no measurements of speed."""
    lines = lines_of(number)
    return lines[~lines["our_metric"].str.startswith(SPEED_PREFIX)]


@cache
def own_rows(number: int) -> tuple[str, ...]:
    """The rows of a table whose cells no earlier table shows; all rows where there is no such row."""
    keys = ["our_method", "our_parameters", "our_dataset", "shots"]
    earlier = {key for other in TITLES if other < number for key in scored_lines(other)[keys].itertuples(index=False)}
    lines = scored_lines(number)
    new = [key not in earlier for key in lines[keys].itertuples(index=False)]
    return tuple(dict.fromkeys(lines["method"][new] if any(new) else lines["method"]))


@cache
def method_order() -> dict[str, int]:
    """The place of each of our methods in table 1."""
    return {method: place for place, method in enumerate(dict.fromkeys(lines_of(1)["our_method"]))}


def heading(line: Any) -> tuple[str, str, str]:
    """What stands over a number: dataset, metric, and which direction is better.

    A metric with a column for each class or number of shots stands beside the dataset, and these in its place.
    """
    metric, _, class_name = line.metric.partition("/")
    label, better = _METRICS[metric]
    group = _GROUPS[line.dataset.removesuffix(f"-{line.shots}shot")]
    if column := class_name or shots_in_words(line.shots):
        return f"{group}: {label}", column, better
    return group, f"{label} with background" if line.our_metric == "miou_all" else label, better


def size(line: Any) -> str:
    """Trainable parameters in millions, "*" where they vary, and their share in percent, as far as the paper says."""
    if not line.ratio_percent:
        return line.trainable_params_m
    return f"{line.trainable_params_m or '*'} / {line.ratio_percent}"


def cells_of(line: Any, cells: Iterable[Any]) -> list[Any]:
    """Those of ``cells`` (rows of ``Results.cells``) that a line of the paper stands for.

    A parameter the line names must have that value, be it the default or not; all others must be at their
    defaults, which is why a cell's spec may hold no parameter the line does not name.
    """
    wanted, identity = parameters(line.our_parameters), (line.our_method, line.our_dataset, line.shots)
    return [
        cell
        for cell in cells
        if (cell.method, cell.dataset, cell.shots) == identity
        and not (cell.dataset_parameters or cell.old_method or cell.old_dataset)
        and set(cell.parameters) <= set(wanted)
        and all(cell.resolved_parameters.get(key) == value for key, value in wanted.items())
    ]


def parameters(text: str) -> dict[str, Any]:
    """A line's parameters: ``rank=6`` as ``{"rank": 6}``; what is no JSON is a string."""
    if not text:
        return {}
    key, _, value = text.partition("=")
    try:
        return {key: json.loads(value)}
    except ValueError:
        return {key: value}
