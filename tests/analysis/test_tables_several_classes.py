"""The paper's tables of several classes: which number stands where, and whether so many columns can be read."""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import datasets
from analysis import paper, terminal
from analysis.latex import MOST_COLUMNS, latex
from analysis.layout import Column, Table, cut
from analysis.render import MOST_NUMBERS, long_csv, markdown
from analysis.results import read_results
from analysis.source import sources
from analysis.tables import make_tables

NUMBERS = (2, 11, 15)
SEEDS = (0, 1)
CLASSES = {name: datasets.registry[name].classes for name in ("trans10k_v1", "trans10k_v2")}
TEST_SETS = {name: datasets.registry[name].test_sets for name in CLASSES}
V1 = ("accuracy_foreground", "miou_foreground", "label_mae", "mber")
V2 = ("miou_foreground", "miou_all", "accuracy")
TABLE2 = ("decoder_only", "vpt", "lora", "conv_lora")
SHOTS = (1, 2, 4, 8, 16)


def score(*key: object) -> float:
    """A fraction that any part of the key changes."""
    return (zlib.crc32(repr(key).encode()) % 90_000 + 5_000) / 100_000


def fill(folder, *, seeds: tuple[int, ...] = SEEDS) -> None:
    """Every cell of the three tables; the ranks are parameters, but for 3, the default."""
    choices = [(method, data, 0, None) for method in TABLE2 for data in CLASSES]
    choices += [("lora", "trans10k_v2", rank, None) for rank in (6, 12, 24)]
    choices += [(method, "trans10k_v2", 0, shots) for method in ("lora", "conv_lora") for shots in SHOTS]
    for method, data, rank, shots in choices:
        for seed in seeds:
            add(folder, method, data, rank, shots, seed)


def add(folder, method: str, data: str, rank: int, shots: int | None, seed: int, **more) -> None:
    """One cell; the scores of its list follow the classes' order."""
    key = (method, data, rank, shots, seed)
    metrics = V1 if data == "trans10k_v1" else V2
    scores = {metric: score(*key, metric) for metric in metrics}
    scores["iou"] = [score(*key, f"iou:{name}") for name in CLASSES[data]]
    folder.add(
        method=method, dataset=data, seed=seed, shots=shots, parameters={"rank": rank} if rank else None,
        classes=CLASSES[data], test_sets=TEST_SETS[data], scores=scores,
        **{"dataset_metrics": metrics, "train_images": 11 * shots if shots else None} | more,
    )  # fmt: skip


@pytest.fixture
def tables(folder) -> dict[int, Table]:
    """The three tables and nothing else, by number."""
    fill(folder)
    made = make_tables(read_results(folder.path))
    assert [table.subject for table in made] == [str(number) for number in NUMBERS], "no plain table is needed"
    return {int(table.subject): table for table in made}


def column_of(table: Table, line) -> Column:
    """The column of a line of the paper, found by our names for it."""
    shots = line.shots and f" ({line.shots} shot{'s' * (line.shots != '1')})"
    wanted = (line.our_dataset + shots, line.test_set, line.our_metric)
    (found,) = [column for column in table.columns if (column.data, column.test_set, column.metric) == wanted]
    return found


def ours_of(line) -> list[float]:
    """What our runs scored where a line of the paper stands."""
    rank = int(line.our_parameters.removeprefix("rank=") or 0)
    key = (line.our_method, line.our_dataset, 0 if rank == 3 else rank, int(line.shots) if line.shots else None)
    return [score(*key, seed, line.our_metric) for seed in SEEDS]


def shown(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    terminal.show(table, console)
    return console.file.getvalue()


def test_each_number_of_the_paper_stands_in_one_place(tables) -> None:
    for number, table in tables.items():
        places = {}
        for line in paper.lines_of(number).itertuples():
            place = (line.method, column_of(table, line))
            assert table.entries[place].paper.value == line.value
            places[place] = line.value
        assert len(places) == len(paper.lines_of(number))
        assert {place for place, entry in table.entries.items() if entry.paper} == places.keys()


def test_ours_stand_beside_the_papers(tables) -> None:
    run = 0
    for number, table in tables.items():
        for line in paper.lines_of(number).itertuples():
            entry = table.entries[line.method, column_of(table, line)]
            if line.our_method in ("translab", "trans2seg"):
                assert entry.ours is None
                continue
            mean = sum(ours_of(line)) / len(SEEDS) * float(line.scale)
            assert entry.ours.mean == pytest.approx(mean)
            assert entry.difference == pytest.approx(mean - float(line.value))
            assert (entry.seeds, entry.below_plan) == (SEEDS, False)
            run += 1
    assert run == 4 * (8 + 14) + 4 * 2 + 2 * 5


def test_the_two_mean_ious_have_a_column_each(tables) -> None:
    table = tables[2]
    columns = {column.metric: column for column in table.columns if column.group == "Trans10K-v2"}
    with_background, without = columns["miou_all"], columns["miou_foreground"]
    assert (with_background.label, without.label) == ("mIoU with background", "mIoU")
    for row in ("decoder-only", "VPT", "LoRA", "Conv-LoRA"):
        first, second = table.entries[row, with_background], table.entries[row, without]
        assert first.ours.mean != second.ours.mean
        assert first.paper is None and first.difference is None and second.paper
    for row in ("TransLab", "Trans2Seg"):
        assert table.entries[row, with_background].paper and not table.entries[row, without].paper
    assert "TransLab and Trans2Seg on Trans10K-v2 the mean with the background" in table.caption.notes[0]
    assert table.caption.notes[0] in markdown(table)


def test_rank_3_of_table_11_is_the_lora_of_table_2(tables) -> None:
    first, second = ({c.metric: c for c in tables[n].columns if c.group == "Trans10K-v2"} for n in (2, 11))
    for metric in ("accuracy", "miou_foreground"):
        assert tables[2].entries["LoRA", first[metric]].cells == tables[11].entries["LoRA-r3", second[metric]].cells
    assert {row.label: row.paper_size for row in tables[11].rows}["LoRA-r24"] == "7.44"


def test_few_shot_cells_are_whole_and_of_the_same_setting(folder, tables) -> None:
    (source,) = sources(read_results(folder.path), "paper")
    assert {cell.partial for cell in source.cells if cell.shots} == {False}
    assert tables[15].caption.warnings == ()
    assert "Regime: the default of each dataset." in tables[15].caption.text
    assert "Test images: trans10k_v2/test 4428." in tables[15].caption.text


def test_a_set_that_is_not_few_shot_is_partial(folder) -> None:
    add(folder, "lora", "trans10k_v2", 0, None, 0, train_images=1100)
    add(folder, "lora", "trans10k_v2", 0, 4, 0)
    warnings = {table.subject: table.caption.warnings for table in make_tables(read_results(folder.path))}
    partial = ("PARTIAL DATA: trans10k_v2 trained on 1100 of 5000 images.",)
    assert warnings == {"2": partial, "11": partial, "15": ()}


def test_a_failed_cell_of_the_default_rank_is_named_in_table_11(folder) -> None:
    add(folder, "lora", "trans10k_v2", 0, None, 0)
    add(folder, "lora", "trans10k_v2", 0, None, 1, state="failed")
    (table,) = make_tables(read_results(folder.path), wanted=["11"])
    assert "1 of 2 done, 1 failed: LoRA-r3 (trans10k_v2)" in table.caption.notes[-1]


def test_a_scale_of_one_is_printed_as_such(tables) -> None:
    table = tables[2]
    (line,) = (
        line for line in paper.lines_of(2).itertuples()
        if (line.method, line.dataset, line.metric) == ("LoRA", "trans10k-v1-hard", "mae")
    )  # fmt: skip
    entry = table.entries["LoRA", column_of(table, line)]
    number = f"{entry.ours.mean:.3f} ± {entry.ours.standard_error:.3f}"
    assert number.startswith("0.") and number in markdown(table) and number in shown(table, 100)
    assert "Scores times 100, MAE as it is, mean ±" in table.caption.text
    assert "as it is" not in tables[11].caption.text


@pytest.mark.parametrize("seeds", [(0,), SEEDS])
@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_terminal_shows_every_number_and_whole_names(folder, seeds: tuple[int, ...], width: int) -> None:
    fill(folder, seeds=seeds)
    for table in make_tables(read_results(folder.path)):
        text = shown(table, width)
        assert "…" not in text and max(map(len, text.splitlines())) <= width
        words = Counter(text.split())
        for value, count in Counter(entry.paper.value for entry in table.entries.values() if entry.paper).items():
            assert words[value] >= count
        for group in table.groups() if len(table.groups()) > 1 else ():
            assert group in text
        for column in table.columns:
            assert all(word in text for word in column.label.split())


def test_a_row_stands_only_where_it_has_a_place(tables) -> None:
    """Trans2Seg has no results on the three classes of v1."""
    starts = Counter(line.split(" ")[0] for line in shown(tables[2], 100).splitlines())
    assert (starts["TransLab"], starts["Trans2Seg"]) == (5, 3)
    bodies = latex(tables[2]).split("\\begin{tabular}")[1:]
    assert ["Trans2Seg" in body.partition("\\end{tabular}")[0] for body in bodies] == [False, True, True, True]
    sections = markdown(tables[2]).split("\n## ")[1:]
    found = {section.splitlines()[0]: "Trans2Seg  " in section for section in sections}
    assert found == {
        "Trans10K-v1 easy": False,
        "Trans10K-v1 hard": False,
        "Trans10K-v2": True,
        "Trans10K-v2: IoU": True,
    }


def test_markdown_is_cut_where_it_would_be_too_wide(tables) -> None:
    for table in tables.values():
        rules = [line for line in markdown(table).splitlines() if line.startswith("| ---")]
        assert max(line.count("|") - 1 for line in rules) <= MOST_NUMBERS + 3
    headings = [line for line in markdown(tables[2]).splitlines() if line.startswith("| Method")]
    assert len(headings) == 2 + 1 + 3
    names = [name for line in headings[3:] for name in re.findall(r"(\w+) ↑", line)]
    assert names == list(CLASSES["trans10k_v2"])


def test_latex_is_cut_into_parts_of_a_page_width(tables) -> None:
    text = latex(tables[2])
    layouts = re.findall(r"\\begin\{tabular\}\{l(r+)\}", text)
    assert [len(layout) - 1 for layout in layouts] == [8, 3, 6, 6]
    assert max(map(len, layouts)) - 1 <= MOST_COLUMNS
    numbers = Counter(re.findall(r"(?<![\d.+-])\d+\.\d+(?!\d)", text))
    for entry in tables[2].entries.values():
        assert entry.paper is None or numbers[entry.paper.value]


def test_csv_has_a_line_for_each_place(tables) -> None:
    for number, table in tables.items():
        lines = list(csv.DictReader(io.StringIO(long_csv(table))))
        places = [(line["row"], line["dataset"], line["test_set"], line["metric"]) for line in lines]
        assert len(set(places)) == len(places) == len(table.rows) * len(table.columns)
        values = sorted(line["paper_value"] for line in lines if line["paper_value"])
        assert values == sorted(paper.lines_of(number)["value"])
    (line,) = (line for line in lines if (line["row"], line["dataset"]) == ("LoRA", "trans10k_v2 (1 shot)"))
    assert (line["metric"], line["paper_value"]) == ("miou_foreground", "13.32")


def test_a_plain_table_has_the_metrics_of_the_dataset(folder) -> None:
    for method in ("lora", "full_finetune"):
        add(folder, method, "trans10k_v2", 0, None, 0)
    found = make_tables(read_results(folder.path))[-1]
    assert (found.subject, [row.label for row in found.rows]) == ("trans10k_v2", ["lora", "full_finetune"])
    assert [column.metric for column in found.columns] == list(V2)


def test_a_plain_table_can_have_the_iou_of_each_class_that_occurs(folder) -> None:
    for seed, values in enumerate(([0.2, None, 0.4], [0.3, None, None])):
        folder.add(
            dataset="camvid", seed=seed, scores={"miou_all": 0.3, "iou": values}, classes=("sky", "pole", "car"),
            protocol="literature",
        )  # fmt: skip
    (table,) = make_tables(read_results(folder.path), protocol="literature")
    assert [column.label for column in table.columns] == ["mIoU", "IoU sky", "IoU car"]
    found = {column.label: table.entries["conv_lora", column] for column in table.columns}
    assert found["IoU sky"].ours.mean == pytest.approx(25)
    assert (found["IoU car"].ours.n, found["IoU car"].below_plan) == (1, True)


def test_plain_rows_and_tables_are_in_the_order_of_their_numbers(folder) -> None:
    for rank in (24, 6, 12):
        folder.add(method="lora", dataset="shapes", parameters={"rank": rank})
    for shots in (16, 2):
        folder.add(method="lora", dataset="shapes", shots=shots)
    found = make_tables(read_results(folder.path))
    assert [row.label for row in found[0].rows] == [f"lora (rank = {rank})" for rank in (6, 12, 24)]
    assert [table.title for table in found[1:]] == [f"Results on SHAPES ({shots} shots)" for shots in (2, 16)]


@given(st.integers(1, 60), st.integers(1, 20))
def test_columns_are_cut_evenly(length: int, most: int) -> None:
    columns = list(range(length))
    pieces = cut(columns, most)
    assert [column for piece in pieces for column in piece] == columns
    assert len(pieces) == -(-length // most)
    sizes = {len(piece) for piece in pieces}
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1 and min(sizes) > 0
