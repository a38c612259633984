"""The paper's numbers and the cells they stand for."""

from __future__ import annotations

import pytest

from analysis import paper
from analysis.results import read_results
from analysis.source import sources


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


def test_tables_are_complete() -> None:
    assert len(paper.lines_of(1)) == 11 * 14
    assert len(paper.lines_of(6)) == 10 * 4
    for number in paper.TITLES:
        for line in paper.lines_of(number).itertuples():
            assert all(paper.heading(line))


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
