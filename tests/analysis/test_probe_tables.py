"""Table 0: which probe stands beside the paper's numbers, and what is said of those that do not."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from analysis.latex import latex
from analysis.layout import Entry, Table
from analysis.probe import DATA, probe_table, read_probes
from analysis.render import long_csv, markdown
from analysis.tables import main

MAE = {"backbone": "mae_vit_b", "checkpoint": "mae_pretrain_vit_base.pth"}
TINY = {"backbone": "sam_tiny", "checkpoint": "none", "random_backbone": True, "dataset": "flowers", "top5": None}


@pytest.fixture
def probe(folder):
    """Writes the file of a probe, of SAM ViT-B on ImageNet-1k where nothing else is said."""

    def write(name: str = "one", **fields) -> None:
        record = {
            "name": name, "backbone": "sam_vit_b", "checkpoint": "sam_vit_b_01ec64.pth", "random_backbone": False,
            "image_size": 224, "pool": "mean", "precision": "fp32", "dataset": "imagenet_1k", "classes": 1000,
            "images": 50_000, "mode": "cached", "edge": False, "top1": 0.531, "top5": 0.762, "chance": 0.001,
        }  # fmt: skip
        path = folder.path / "probe" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.write(path, record | fields)

    return write


@pytest.fixture
def table(folder):
    """The table of all probes that were written."""
    return lambda: probe_table(read_probes(folder.path)[0])


def entry(table: Table, row: str, metric: str = "top1", group: str = DATA) -> Entry:
    (column,) = [c for c in table.columns if (c.group, c.metric) == (group, metric)]
    return table.entries[row, column]


def rows(table: Table) -> list[str]:
    return [row.label for row in table.rows]


def test_both_numbers_of_the_paper_have_a_row(probe, table) -> None:
    probe()
    made = table()
    assert rows(made) == ["SAM-ViT-B (224 px, cached)", "MAE-ViT-B"]
    sam, mae = (entry(made, row) for row in rows(made))
    assert (sam.ours.mean, sam.paper.value) == (pytest.approx(53.1), "54.2")
    assert sam.difference == pytest.approx(-1.1)
    assert (mae.ours, mae.paper.value) == (None, "67.7")
    assert entry(made, rows(made)[0], "top5").paper is None
    assert not made.caption.warnings and not made.caption.notes


@pytest.mark.parametrize(
    ("fields", "label", "group"),
    [
        ({"dataset": "flowers"}, "sam_vit_b (224 px, cached)", "flowers"),
        ({"checkpoint": "none", "random_backbone": True}, "sam_vit_b (224 px, cached, random backbone)", DATA),
        ({"checkpoint": "mine.pth"}, "sam_vit_b (224 px, cached, mine.pth)", DATA),
        ({"backbone": "sam_vit_l"}, "sam_vit_l (224 px, cached, sam_vit_b_01ec64.pth)", DATA),
        (TINY, "sam_tiny (224 px, cached, random backbone)", "flowers"),
    ],
)
def test_what_does_not_compare_stands_apart(probe, table, fields, label: str, group: str) -> None:
    probe(**fields)
    made = table()
    assert rows(made) == ["SAM-ViT-B", "MAE-ViT-B", label]
    found = entry(made, label, group=group)
    assert found.ours.mean == pytest.approx(53.1)
    assert (found.paper, found.difference) == (None, None)
    assert not made.has_difference and entry(made, "SAM-ViT-B").paper.value == "54.2"
    assert bool(made.caption.warnings) == fields.get("random_backbone", False)


def test_probes_that_differ_have_rows_that_differ(probe, table) -> None:
    probe("a", **MAE, top1=0.6)
    probe("b", **MAE, pool="token", top1=0.67)
    probe("c", mode="augment", image_size=1024)
    probe("d", mode="augment", image_size=1024, top1=0.55)
    made = table()
    assert rows(made) == [
        "SAM-ViT-B (1024 px, augment): c", "SAM-ViT-B (1024 px, augment): d",
        "MAE-ViT-B (224 px, cached)", "MAE-ViT-B (224 px, cached, class token)",
    ]  # fmt: skip
    assert [round(entry(made, row).difference, 1) for row in rows(made)] == [-1.1, 0.8, -7.7, -0.7]


def test_one_row_may_have_several_data_sets(probe, table) -> None:
    probe("a", **TINY | {"top1": 0.3, "chance": 0.1})
    probe("b", **TINY | {"dataset": "birds", "top1": 0.4})
    made = table()
    (row,) = rows(made)[2:]
    assert [entry(made, row, group=group).ours.mean for group in ("birds", "flowers")] == pytest.approx([40, 30])
    assert list(made.groups()) == [DATA, "birds", "flowers"]
    assert [column.label for column in made.groups()["flowers"]] == ["top-1", "chance"]


def test_a_learning_rate_at_the_edge_is_said(probe, table) -> None:
    probe(edge=True)
    assert table().caption.notes == ("The learning rate is the lowest or highest tried: SAM-ViT-B (224 px, cached).",)


def test_files_that_cannot_be_read_are_named(folder, probe, table) -> None:
    probe()
    (folder.path / "probe" / "broken.json").write_text("{")
    (folder.path / "probe" / "old.json").write_text(json.dumps({"schema": 1, "top1": 0.5}))
    found, skipped = read_probes(folder.path)
    assert [one.name for one in found] == ["one"]
    assert len(skipped) == 2 and "no JSON" in skipped[0] and "backbone" in skipped[1]


def test_nothing_probed_is_no_table(folder, table) -> None:
    assert table() is None


def test_formats_without_sizes(probe, table) -> None:
    probe()
    probe("tiny", **TINY)
    text = markdown(table())
    assert "Params" not in text
    head, *_ = [line for line in text.splitlines() if line.startswith("| Method")]
    assert [cell.strip() for cell in head.strip("|").split("|")][:4] == ["Method", "top-1 ↑", "paper", "difference"]
    (line,) = [line for line in csv.DictReader(io.StringIO(long_csv(table()))) if line["paper_value"] == "54.2"]
    assert (line["row"], line["metric"], line["mean"]) == ("SAM-ViT-B (224 px, cached)", "top1", "53.1")
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.+?)\\end\{tabular\}", latex(table()), re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {line.count("&") + 1 for line in lines} == {len(columns)}


@pytest.mark.parametrize("wanted", [[], ["--table", "0"]])
def test_the_command_shows_probes_alone_and_beside_cells(folder, probe, capsys, wanted: list[str]) -> None:
    probe()
    options = ["--results", str(folder.path), *wanted]
    assert main(options) == 0
    assert "54.2" in capsys.readouterr().out
    assert {path.name for path in (folder.path / "tables").iterdir()} == {"table0.md", "table0.csv", "table0.tex"}
    folder.add()
    assert main(options) == 0
    assert ("Table 6" in capsys.readouterr().out) == (not wanted)


def test_without_a_probe_the_command_says_how_to_make_one(folder, capsys) -> None:
    folder.add()
    assert main(["--results", str(folder.path), "--table", "0"]) == 2
    assert "python -m bench.probe" in capsys.readouterr().err
