"""Rows that differ in a parameter alone: each cell in its own row, and no other cell in the row of the defaults."""

from __future__ import annotations

import zlib

import pytest

from analysis import paper
from analysis.exceptions import NOT_RUN
from analysis.latex import latex
from analysis.layout import Entry, Table
from analysis.render import long_csv, markdown
from analysis.results import read_results
from analysis.source import sources
from analysis.tables import make_tables

NUMBERS = (3, 4, 12, 13)
TEST_SETS = {
    "isic2017": ("test",),
    "leaf": ("test",),
    "polyps": ("kvasir", "cvc_612", "cvc_colondb", "etis", "cvc_t"),
}
METRICS = {
    "isic2017": ("iou", "t_jaccard", "dice", "accuracy"),
    "leaf": ("iou", "dice", "accuracy"),
    "polyps": ("s_measure", "e_measure_mean", "weighted_f_measure_b03", "mae"),
}
ROWS = {
    (3, "Multi-scale"): ("conv_lora", {"routing": "sum"}),
    (3, "Conv-LoRA"): ("conv_lora", {}),
    **{(4, f"single-scale-{s}"): ("conv_lora", {"scales": [s]}) for s in (1, 2, 4, 8)},
    (12, "VPT"): ("vpt", {}),
    (12, "Conv-LoRA"): ("conv_lora", {}),
    (12, "Conv-LoRA+VPT"): ("conv_lora+vpt", {"vpt.num_tokens": 5}),
    (13, "Inception"): ("inception", {}),
    (13, "MoE-Conv"): ("conv_lora", {"num_experts": 4}),
}
OTHERS = [
    ("conv_lora", {"scales": [3]}),
    ("conv_lora", {"scales": [1, 2, 4, 8]}),
    ("conv_lora", {"num_experts": 4, "routing": "sum"}),
    ("conv_lora", {"rank": 6}),
    ("conv_lora", {"variant": "paper"}),
    ("conv_lora+vpt", {}),
    ("conv_lora+vpt", {"vpt.num_tokens": 5, "num_experts": 4}),
    ("inception", {"rank": 6}),
]
"""What the paper has no row for."""


def score(*key: object) -> float:
    """A fraction that any part of the key changes."""
    return (zlib.crc32(repr(key).encode()) % 90_000 + 5_000) / 100_000


def add(folder, method: str, parameters: dict, dataset: str, seed: int = 0, **more) -> None:
    scores = {metric: score(method, parameters, dataset, seed, metric) for metric in METRICS[dataset]}
    version = [1] * len(method.split("+")) if "+" in method else 1
    folder.add(
        method=method, parameters=parameters, dataset=dataset, seed=seed, scores=scores, version=version,
        test_sets=TEST_SETS[dataset], **more,
    )  # fmt: skip


def fill(folder) -> None:
    """All rows of all ablations and more, on every dataset, in one folder."""
    plans = [*{str(plan): plan for plan in ROWS.values()}.values(), *OTHERS]
    for dataset in METRICS:
        for method, parameters in plans:
            for seed in (0, 1):
                add(folder, method, parameters, dataset, seed)


def by_number(folder, **options) -> dict[str, Table]:
    return {table.subject: table for table in make_tables(read_results(folder.path), **options)}


def entry(table: Table, line) -> Entry:
    """The entry where a line of the paper stands."""
    wanted = (line.our_dataset, line.test_set, line.our_metric)
    (column,) = [c for c in table.columns if (c.data, c.test_set, c.metric) == wanted]
    return table.entries[line.method, column]


def test_each_number_of_a_mixed_folder_stands_in_its_row(folder) -> None:
    fill(folder)
    found = by_number(folder)
    for number in NUMBERS:
        for line in paper.scored_lines(number).itertuples():
            method, parameters = ROWS[number, line.method]
            values = [score(method, parameters, line.our_dataset, seed, line.our_metric) for seed in (0, 1)]
            entry_ = entry(found[str(number)], line)
            assert entry_.ours.mean == pytest.approx(50 * sum(values))
            assert (entry_.seeds, entry_.paper.value) == ((0, 1), line.value)
            assert entry_.difference == pytest.approx(50 * sum(values) - float(line.value))


def test_tables_of_the_defaults_take_no_ablation(folder) -> None:
    fill(folder)
    found = by_number(folder)
    for number in ("1", "5", "6", "9"):
        for line in paper.scored_lines(int(number)).itertuples():
            ours = entry(found[number], line).ours
            if (line.our_method, line.our_dataset) in {(m, d) for m in ("conv_lora", "vpt") for d in METRICS}:
                values = [score(line.our_method, {}, line.our_dataset, seed, line.our_metric) for seed in (0, 1)]
                assert ours.mean == pytest.approx(50 * sum(values)) and ours.n == 2
            else:
                assert ours is None


def test_no_cell_stands_in_two_rows_of_a_table(folder) -> None:
    fill(folder)
    for number, table in by_number(folder).items():
        for column in table.columns:
            cells = [cell for row in table.rows for cell in table.entries[row.label, column].cells]
            assert len(cells) == len(set(cells)), number


def test_what_the_paper_has_not_stands_in_plain_tables(folder) -> None:
    fill(folder)
    rows = {row.label for row in by_number(folder)["isic2017"].rows}
    assert {"conv_lora (scales = [1,2,4,8])", "conv_lora (rank = 6)", "conv_lora+vpt", "inception (rank = 6)"} <= rows
    assert len(rows) == len({str(plan) for plan in ROWS.values()}) + len(OTHERS)


def test_a_table_needs_a_row_of_its_own(folder) -> None:
    """Who runs table 6 has Conv-LoRA of table 3, and who runs table 5 all of table 12 but the combination."""
    add(folder, "conv_lora", {}, "isic2017")
    add(folder, "conv_lora", {}, "polyps")
    add(folder, "vpt", {}, "polyps")
    assert set(by_number(folder)) == {"1", "5", "6"}
    asked = by_number(folder, wanted=["3", "12"])
    assert set(asked) == {"3", "12"} and asked["3"].was_run("Conv-LoRA") and not asked["3"].was_run("Multi-scale")
    add(folder, "conv_lora", {"routing": "sum"}, "isic2017")
    assert set(by_number(folder)) == {"1", "3", "5", "6"}


def test_sizes_are_the_papers_and_ours(folder) -> None:
    fill(folder)
    found = by_number(folder)
    sizes = {number: {row.label: (row.size, row.paper_size) for row in found[number].rows} for number in ("4", "12")}
    assert sizes["12"]["Conv-LoRA+VPT"] == ("4.02 / 0.63", "4.23 / 0.66")
    assert sizes["4"]["single-scale-8"] == ("4.02 / 0.63", "")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (3, "python -m bench.speed --matrix table3"),
        (3, "Conv-LoRA is that of table 6, for which the paper prints other numbers there"),
        (4, "scores of the test sets"),
        (12, "fit a decoder of 12 classes"),
        (12, "VPT and Conv-LoRA are those of table 5"),
        (13, "means of two runs, without a spread"),
    ],
)
def test_notes_say_what_the_numbers_do_not(folder, number: int, said: str) -> None:
    fill(folder)
    table = by_number(folder)[str(number)]
    assert said in table.caption.notes[0] and table.caption.notes[0] in markdown(table).replace("\\", "")


def test_versions_of_a_composition_are_compared_part_by_part(folder) -> None:
    for version in ([1, 1], [1, 2], [1, 10]):
        folder.add(
            method="conv_lora+vpt", dataset="polyps", test_sets=("etis",), version=version,
            parameters={"vpt.num_tokens": 5}, scores={"s_measure": version[1] / 100},
        )  # fmt: skip
    add(folder, "vpt", {}, "polyps")
    found = by_number(folder)
    (ours,) = {e.ours.mean for (row, _), e in found["12"].entries.items() if row == "Conv-LoRA+VPT" and e.ours}
    assert ours == pytest.approx(10)
    labels = [row.label for row in found["polyps"].rows]
    assert "conv_lora+vpt (vpt.num_tokens = 5, version 1+2)" in labels


def test_a_failed_cell_of_a_composition_is_named(folder) -> None:
    add(folder, "conv_lora+vpt", {"vpt.num_tokens": 5}, "polyps", 0)
    add(folder, "conv_lora+vpt", {"vpt.num_tokens": 5}, "polyps", 1, state="failed")
    notes = by_number(folder)["12"].caption.notes
    assert "Not complete: 1 of 2 done, 1 failed: Conv-LoRA+VPT (polyps)." in notes


def test_systems_that_are_left_out_are_printed_as_not_run(folder) -> None:
    for dataset in ("isic2017", "polyps"):
        add(folder, "conv_lora", {}, dataset)
    table = by_number(folder)["6"]
    assert {e.not_run for (row, _), e in table.entries.items() if row == "TransFuse"} == {NOT_RUN["transfuse"]}
    assert not any(e.not_run for (row, _), e in table.entries.items() if row != "TransFuse")
    said = f"Ours not run, {NOT_RUN['transfuse']}: TransFuse."
    assert said in table.caption.notes
    for text in (markdown(table), latex(table)):
        assert text.count("not run") == 4 + said.count("not run") and said in text
    assert long_csv(table).count(f",{NOT_RUN['transfuse']}\n") == 4


def test_a_score_that_is_there_is_not_excused(folder) -> None:
    add(folder, "conv_lora", {}, "isic2017")
    folder.add_imported(method="transfuse", dataset="isic2017", test_set="test", scores={"iou": 0.9})
    entries = {c.metric: e for (row, c), e in by_number(folder)["6"].entries.items() if row == "TransFuse"}
    assert entries["iou"].ours and not entries["iou"].not_run
    assert entries["dice"].not_run


def test_each_excuse_is_of_a_method_of_the_paper() -> None:
    assert set(NOT_RUN) <= set(paper.read_paper()["our_method"])


def test_cells_that_are_not_done_know_the_defaults_of_their_parts(folder) -> None:
    add(folder, "conv_lora+vpt", {}, "polyps", 0)
    add(folder, "conv_lora+vpt", {}, "polyps", 1, state="failed")
    (source,) = sources(read_results(folder.path), "paper")
    assert {cell.resolved_parameters["vpt.num_tokens"] for cell in source.cells} == {12}
