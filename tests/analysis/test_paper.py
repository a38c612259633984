"""The paper's numbers and the cells they stand for."""

from __future__ import annotations

import pandas as pd
import pytest

import datasets
from analysis import paper
from analysis.results import read_results
from analysis.source import sources
from bench.metrics import metrics_of


def line_of(number: int, method: str, dataset: str, metric: str):
    """One line of the paper's file."""
    lines = paper.lines_of(number)
    found = lines[(lines["method"] == method) & (lines["dataset"] == dataset) & (lines["metric"] == metric)]
    return next(found.itertuples())


@pytest.mark.parametrize(
    ("number", "method", "dataset", "metric", "value", "error"),
    [
        (6, "Conv-LoRA", "isic2017", "jaccard", "77.6", "0.57"),
        (6, "TransFuse", "isic2017", "t_jaccard", "74.5", ""),
        (1, "Conv-LoRA", "sbu", "ber", "2.54", "0.081"),
        (1, "decoder-only", "kvasir", "s_measure", "86.5", ""),
    ],
)
def test_numbers_are_text_as_printed(number, method, dataset, metric, value, error) -> None:
    line = line_of(number, method, dataset, metric)
    assert (line.value, line.standard_error) == (value, error)


POLYPS = ["Kvasir", "CVC-612", "CVC-ColonDB", "ETIS", "CVC-T"]
S_E_F_MAE = ["Sα", "Eφ", "Fβw", "MAE"]  # noqa: RUF001
ISIC = [f"ISIC 2017 {metric}" for metric in ("Jac", "T-Jac", "Dice", "Acc")]
COLUMNS = {
    1: [
        *(f"{name} {metric}" for name in ("Kvasir", "CVC-612") for metric in S_E_F_MAE[:2]),
        "ISIC 2017 Jac", "ISIC 2017 Dice",
        *(f"CAMO {metric}" for metric in S_E_F_MAE[:3]),
        "SBU BER", "Leaf IoU", "Leaf Dice", "Road IoU", "Road Dice",
    ],
    5: [f"{name} {metric}" for name in POLYPS for metric in S_E_F_MAE],
    6: ISIC,
    7: [f"{name} {metric}" for name in ("CHAMELEON", "CAMO", "COD10K") for metric in S_E_F_MAE],
    8: ["SBU BER"],
    9: ["Leaf IoU", "Leaf Dice", "Leaf Acc"],
    10: ["Road IoU", "Road Dice", "Road Acc"],
    2: [
        *(f"Trans10K-v1 {part} {metric}" for part in ("easy", "hard") for metric in ("Acc", "mIoU", "MAE", "mBER")),
        "Trans10K-v2 Acc", "Trans10K-v2 mIoU with background",
        *(f"Trans10K-v2: IoU {name}" for name in datasets.registry["trans10k_v2"].classes),
        "Trans10K-v2 mIoU",
    ],
    3: ISIC,
    **{number: ["Leaf IoU", "Leaf Dice", "Leaf Acc", *ISIC] for number in (4, 13)},
    11: ["Trans10K-v2 Acc", "Trans10K-v2 mIoU"],
    12: [f"{name} {metric}" for name in ("CVC-ColonDB", "ETIS") for metric in S_E_F_MAE],
    15: [f"Trans10K-v2: mIoU {shots}" for shots in ("1 shot", "2 shots", "4 shots", "8 shots", "16 shots")],
}  # fmt: skip
SEVERAL, ABLATIONS = (2, 11, 15), (3, 4, 12, 13)
BINARY = [number for number in paper.TITLES if number not in (*SEVERAL, *ABLATIONS)]
METHODS = ["decoder-only", "BitFit", "Adapter", "VPT", "LST", "SAM-Adapter", "SSF", "LoRA", "Conv-LoRA"]


@pytest.mark.parametrize("number", paper.TITLES)
def test_columns_are_the_papers(number: int) -> None:
    lines = paper.scored_lines(number)
    headings = [paper.heading(line) for line in lines.itertuples()]
    assert list(dict.fromkeys(f"{group} {label}" for group, label, _ in headings)) == COLUMNS[number]
    assert not lines.duplicated(["method", "dataset", "metric"]).any()
    lower = {f"{group} {label}" for group, label, better in headings if better == "lower"}
    assert lower == {column for column in COLUMNS[number] if column.endswith((" MAE", " BER", " mBER"))}


@pytest.mark.parametrize("number", BINARY)
def test_tables_are_complete_and_in_the_papers_order(number: int) -> None:
    lines = paper.lines_of(number)
    first, *others = dict.fromkeys(lines["method"])
    assert others == (["scratch", *METHODS] if number == 1 else METHODS), first
    assert len(lines) == len(COLUMNS[number]) * (1 + len(others))


@pytest.mark.parametrize(
    ("number", "rows", "count"),
    [
        (2, ["TransLab", "Trans2Seg", "decoder-only", "VPT", "LoRA", "Conv-LoRA"], 5 * 8 + 6 * 14),
        (11, ["LoRA-r3", "LoRA-r6", "LoRA-r12", "LoRA-r24"], 4 * 2),
        (15, ["LoRA", "Conv-LoRA"], 2 * 5),
    ],
)
def test_tables_of_several_classes_are_complete(number: int, rows: list[str], count: int) -> None:
    lines = paper.lines_of(number)
    assert list(dict.fromkeys(lines["method"])) == rows
    assert len(lines) == count


@pytest.mark.parametrize(
    ("number", "rows"),
    [
        (3, ["Multi-scale", "Conv-LoRA"]),
        (4, ["single-scale-1", "single-scale-2", "single-scale-4", "single-scale-8"]),
        (12, ["VPT", "Conv-LoRA", "Conv-LoRA+VPT"]),
        (13, ["Inception", "MoE-Conv"]),
    ],
)
def test_ablations_are_complete(number: int, rows: list[str]) -> None:
    lines = paper.scored_lines(number)
    assert list(dict.fromkeys(lines["method"])) == rows
    assert len(lines) == len(rows) * len(COLUMNS[number])


def test_rows_that_no_earlier_table_has() -> None:
    assert paper.own_rows(3) == ("Multi-scale",)
    assert paper.own_rows(12) == ("Conv-LoRA+VPT",)
    assert paper.own_rows(13) == ("Inception", "MoE-Conv")
    assert len(paper.own_rows(1)) == 11 and len(paper.own_rows(6)) == 10, "all of them where a table has none"


def test_which_mean_iou_the_paper_prints_follows_from_its_ious() -> None:
    lines = paper.lines_of(2)
    of_v2 = lines[lines["dataset"] == "trans10k-v2"]
    for _, own in of_v2.groupby("method"):
        ious = own.loc[own["our_metric"].str.startswith("iou:"), "value"].astype(float).to_list()
        means = {"miou_all": sum(ious) / 12, "miou_foreground": sum(ious[1:]) / 11}
        (line,) = own[own["metric"] == "miou"].itertuples()
        assert float(line.value) == pytest.approx(means[line.our_metric], abs=0.006)


def test_table_1_repeats_the_full_tables() -> None:
    """Two places where a number was read from the paper, and two where it was mapped to a cell of ours."""
    said = ["value", "standard_error", "our_parameters", "shots", "scale", "paper_runs"]
    keys = ["our_method", "our_dataset", "test_set", "our_metric"]
    full = pd.concat([paper.lines_of(number) for number in BINARY if number != 1]).set_index(keys)
    assert full.index.is_unique
    table1 = paper.lines_of(1)
    repeated = table1[table1["method"] != "scratch"].set_index(keys)
    assert len(repeated) == 10 * 14
    pd.testing.assert_frame_equal(repeated[said], full.loc[repeated.index, said])


@pytest.mark.parametrize("number", paper.TITLES)
def test_each_number_stands_for_something_we_score(number: int) -> None:
    for line in paper.scored_lines(number).itertuples():
        dataset = datasets.load(line.our_dataset)
        metrics = metrics_of(dataset.num_classes)
        metric, _, class_name = line.our_metric.partition(":")
        assert line.test_set in dataset.test_sets
        assert metrics[metric].better == paper.heading(line)[2]
        if class_name:
            assert metrics[metric].aggregate == "classes" and class_name in dataset.classes
        else:
            assert metric in dataset.metrics


@pytest.mark.parametrize("number", BINARY)
def test_numbers_of_binary_tables_are_means_over_images(number: int) -> None:
    for line in paper.lines_of(number).itertuples():
        assert metrics_of(1)[line.our_metric].aggregate == "mean"
        assert (line.scale, line.shots, line.our_parameters) == ("100", "", "")


@pytest.mark.parametrize(
    ("number", "method", "metric", "cell", "fits"),
    [
        (6, "LoRA", "jaccard", {"method": "lora"}, True),
        (6, "LoRA", "jaccard", {"method": "conv_lora"}, False),
        (6, "LoRA", "jaccard", {"method": "lora", "parameters": {"rank": 6}}, False),
        (6, "LoRA", "jaccard", {"method": "lora", "shots": 4}, False),
        (6, "LoRA", "jaccard", {"method": "lora", "dataset_parameters": {"size": 1}}, False),
        (3, "Multi-scale", "jaccard", {"parameters": {"routing": "sum"}}, True),
        (3, "Multi-scale", "jaccard", {"parameters": {}}, False),
        (3, "Multi-scale", "jaccard", {"parameters": {"routing": "sum", "rank": 6}}, False),
        (4, "single-scale-4", "jaccard", {"parameters": {"scales": [4]}}, True),
        (4, "single-scale-4", "jaccard", {"parameters": {"scales": [2]}}, False),
        (4, "single-scale-4", "jaccard", {"parameters": {"scales": [4, 2]}}, False),
        (13, "MoE-Conv", "jaccard", {"parameters": {"num_experts": 4}}, True),
        (13, "MoE-Conv", "jaccard", {"parameters": {"num_experts": 4, "gate": "image"}}, False),
    ],
)
def test_cells_of_a_line(folder, number, method, metric, cell, fits: bool) -> None:
    path = folder.add(**cell)
    cells = sources(read_results(folder.path), "paper")[0].cells
    found = paper.cells_of(line_of(number, method, "isic2017", metric), cells)
    assert [cell.id for cell in found] == ([path.name] if fits else [])


def test_a_parameter_the_paper_names_may_be_the_default(folder) -> None:
    path = folder.add(method="lora", dataset="trans10k_v2")
    cells = sources(read_results(folder.path), "paper")[0].cells
    rank3, rank6 = (line_of(11, method, "trans10k-v2", "miou") for method in ("LoRA-r3", "LoRA-r6"))
    assert [cell.id for cell in paper.cells_of(rank3, cells)] == [path.name]
    assert paper.cells_of(rank6, cells) == []
