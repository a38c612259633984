"""``python -m analysis.report``: what is on the page against what the results say, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import report
from analysis.drawing.figure import Card, Figure, write
from analysis.render import NOT_RUN, heading, paper_pieces, pieces
from analysis.reporting.gallery import KINDS
from analysis.results import read_results
from analysis.tables import make_tables

VOID = {"meta", "img", "input", "br"}
SCORES = {"decoder_only": 0.70, "lora": 0.75, "conv_lora": 0.76}
HOSTILE = "\">'<img src=x onerror=hacked()>&{{7*7}}"


class Page(HTMLParser):
    """The elements of a page, each with its attributes, text and ancestors; refuses what is not nested well."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "within": list(self._open)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data

    def all(self, tag: str, within: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        found = [element for element in self.elements if element["tag"] == tag]
        return [e for e in found if within is None or any(outer is within for outer in e["within"])]

    def by_id(self, name: str) -> dict[str, Any]:
        (found,) = [element for element in self.elements if element["attrs"].get("id") == name]
        return found

    @property
    def cells(self) -> dict[str, Any]:
        return json.loads(self.by_id("list")["text"])

    def numbers(self, table: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """The cells of a table by row and heading; several of one heading from left to right."""
        heads = [e["text"].replace("\N{NO-BREAK SPACE}", " ") for e in self.all("th", table) if "scope" in e["attrs"]]
        columns = heads[: len([e for e in self.all("th", table) if e["attrs"]["scope"] == "col"])]
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in self.all("tr", table)[1:]:
            (name,) = self.all("th", line)
            for column, cell in zip(columns[1:], self.all("td", line), strict=True):
                found.setdefault((name["text"], column), []).append(cell)
        return found


def tell_images(cell: Path, metric: str = "iou", images: int = 20) -> None:
    """Writes a file of single images that gives the cell's score."""
    path = cell / "result.json"
    score = json.loads(path.read_text())["scores"]["test"]["paper"][metric]
    values = [score + 0.01 * (-1) ** number for number in range(images)]
    frame = pd.DataFrame({"test_set": "test", "protocol": "paper", metric: values})
    frame.assign(image=[f"{n:03d}" for n in range(images)], tp=5, fp=0, fn=0, tn=5).to_parquet(
        cell / "per_image.parquet"
    )


@pytest.fixture
def filled(folder: Any) -> Path:
    """Three methods, three seeds, single images, a failed and an out-of-memory cell."""
    for seed in range(3):
        for method, score in SCORES.items():
            scores = {"iou": score + seed / 1000, "dice": 0.8}
            tell_images(folder.add(method=method, seed=seed, scores=scores, evidence={"data": {"test": "c0ffee" * 9}}))
    for method, state, reason in (("lst", "failed", "ValueError: <b>no</b>"), ("vpt", "oom", "12 GiB asked")):
        path = folder.add(method=method, state=state) / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "reason": reason}))
    return folder.path


def made(path: Path, *options: str) -> Page:
    assert report.main(["--results", str(path), "--keep-figures", *options]) == 0
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_every_table_is_there_with_its_numbers(filled: Path) -> None:
    page, tables = made(filled), make_tables(read_results(filled))
    assert tables
    for table in tables:
        section = page.by_id(f"table-{table.name}")
        text = section["text"]
        assert all(words in text for words in (table.title, table.setting, table.caption.text, *table.caption.notes))
        by_group = {page.all("caption", grid)[0]["text"]: page.numbers(grid) for grid in page.all("table", section)}
        assert set(by_group) == set(table.groups())
        for column in table.columns:
            for row in table.rows:
                entry, cells = table.entries[row.label, column], by_group[column.group]
                if not (entry.ours or entry.paper):
                    continue
                (cell,) = cells[row.label, heading(column)]
                assert cell["text"] == "".join(pieces(entry, column))
                if entry.ours:
                    assert float(cell["attrs"]["data-value"]) == pytest.approx(entry.ours.mean, abs=1e-6)
                place = [c for c in table.groups()[column.group]].index(column) + table.has_sizes
                if entry.paper:
                    assert cells[row.label, "paper"][place]["text"] == "".join(paper_pieces(entry))


def test_the_best_is_bold_and_the_second_best_underlined(filled: Path) -> None:
    page = made(filled)
    table = next(t for t in page.all("table", page.by_id("tables")) if page.all("caption", t)[0]["text"] == "ISIC 2017")
    assert page.all("strong", table)[0]["text"] == "76.1"
    assert "75.1" in [e["text"] for e in page.all("u", table)]
    assert NOT_RUN in table["text"]


def test_a_number_leads_to_its_cells(filled: Path) -> None:
    page = made(filled)
    told, columns = page.cells, page.cells["columns"]
    table = next(t for t in page.all("table", page.by_id("tables")) if page.all("caption", t)[0]["text"] == "ISIC 2017")
    ((cell,),) = [cells for (row, head), cells in page.numbers(table).items() if (row, head) == ("LoRA", "Jac ↑")]
    (button,) = page.all("button", cell)
    lines = [told["cells"][int(place)] for place in button["attrs"]["data-cells"].split()]
    described = [dict(zip(columns, [*line[:-1], *told["shared"][line[-1]]], strict=True)) for line in lines]
    assert [one["seed"] for one in described] == [0, 1, 2]
    assert all(re.fullmatch(r"isic2017-lora-s\d-\w{8}", one["cell"]) for one in described)
    assert button["attrs"]["data-scores"] == "75.000,75.100,75.200"
    facts = {"commit": "01234567", "device": "abacus", "torch": "2.11", "trained": "2026-01-02 03:04", "attempt": 1}
    assert all(one[key] == value for one in described for key, value in facts.items())
    assert described[0]["data"] == "test c0ffeec0" and described[0]["state"] == "done"


def test_the_verdict_comes_first_with_intervals(filled: Path) -> None:
    page = made(filled)
    assert page.all("section", page.all("main")[0])[0]["attrs"]["id"] == "verdict"
    text = page.by_id("verdict")["text"]
    assert "The best mean IoU is that of conv_lora, 76.1 (3 seeds)." in text and "2 of 2 are worse" in text
    (table,) = page.all("table", page.by_id("verdict"))
    numbers = page.numbers(table)
    assert numbers["lora", "difference from conv_lora"][0]["text"] == "-1.00"
    assert numbers["conv_lora", "difference from conv_lora"][0]["text"] == ""
    full = page.numbers(page.all("table", page.by_id("comparisons"))[0])
    assert [full["lora", f"seed {seed}"][0]["text"] for seed in range(3)] == ["75.00", "75.10", "75.20"]


def test_cells_without_a_result_are_listed_with_reason_and_command(filled: Path) -> None:
    page = made(filled)
    text = page.by_id("cells")["text"]
    assert "ValueError: <b>no</b>" in text and "12 GiB asked" in text and not page.all("b")
    assert re.search(r"python -m bench\.why isic2017-lst-s0-\w{8} --results ", text)
    assert "WITHOUT A RESULT: 1 failed, 1 oom" in page.all("header")[0]["text"]
    assert "9 done, 1 failed, 1 oom" in page.all("dl")[0]["text"]


def test_the_page_loads_nothing(filled: Path) -> None:
    assert report.main(["--results", str(filled)]) == 0
    text = (filled / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("img")) > 2
    for element in page.elements:
        attributes = element["attrs"]
        assert element["tag"] not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        if address := attributes.get("href"):
            known = address == report.PAPER or address.startswith("#") or (filled / address).is_file()
            assert element["tag"] == "a" and known, address
    assert all(page.by_id(link["attrs"]["href"][1:]) for link in page.all("a") if link["attrs"]["href"].startswith("#"))
    (style,), (policy,) = page.all("style"), [e for e in page.all("meta") if "http-equiv" in e["attrs"]]
    assert "url(" not in style["text"] and "@import" not in style["text"]
    assert policy["attrs"]["content"].startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_and_tables_can_be_read_aloud(filled: Path) -> None:
    page = made(filled)
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))
    for table in page.all("table"):
        assert page.all("caption", table)[0]["text"]
        for head in page.all("th", table):
            assert head["attrs"]["scope"] in ("col", "row")
            if head["attrs"]["scope"] == "col":
                assert head["attrs"]["aria-sort"] == "none" and len(page.all("button", head)) == 1
    assert all(image["attrs"]["alt"] for image in page.all("img"))
    assert all(any(e["tag"] == "label" for e in box["within"]) for box in page.all("input"))


def test_the_same_results_give_the_same_bytes_wherever_they_lie(filled: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pages = []
    for name in ("here", "there"):
        shutil.copytree(filled, tmp_path / name / "results")
        monkeypatch.chdir(tmp_path / name)
        assert report.main([]) == 0
        pages.append(Path("results/report.html").read_bytes())
    assert pages[0] == pages[1] and str(tmp_path).encode() not in pages[0]
    assert b"--results" not in pages[0], "commands about the usual folder need no option"


def test_hostile_names_stay_text(folder: Any) -> None:
    for seed in range(2):
        for method in ("lora", HOSTILE):
            values = {"method": method, "dataset": f"x{HOSTILE}", "regime": {"note": "</details><script>hacked()"}}
            path = folder.add(seed=seed, scores={"iou": 0.5 + seed / 10}, stale=(HOSTILE,), **values) / "result.json"
            result = json.loads(path.read_text())
            result["environment"] |= {"device": "</script><script>hacked()</script>", "commit": HOSTILE}
            result["caveats"] = [f"</p>{HOSTILE}"]
            path.write_text(json.dumps(result))
    path = folder.add(method="vpt", state="failed") / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reason": f"</td></script>{HOSTILE}<!--"}))
    card = Card(
        name="a", kind=HOSTILE, title=HOSTILE, caption=f"</figcaption>{HOSTILE}", command=HOSTILE, cells=(HOSTILE,),
        about={HOSTILE: [HOSTILE, {"<b>": HOSTILE}]},
    )  # fmt: skip
    draw(card, folder.path / "figures")
    page = made(folder.path)
    assert [e["attrs"].get("type") for e in page.all("script")] == ["application/json", None]
    assert [e["attrs"]["alt"] for e in page.all("img")] == [HOSTILE] and not page.all("b")
    assert not any(name.startswith("on") for e in page.elements for name in e["attrs"])
    assert HOSTILE in page.by_id("tables")["text"] and HOSTILE in page.by_id("figures")["text"]
    assert "</script><script>hacked()</script>" in {shared[2] for shared in page.cells["shared"]}


def draw(card: Card, folder: Path) -> None:
    def drawing(data: pd.DataFrame) -> Any:
        from matplotlib import pyplot

        drawn, axes = pyplot.subplots(figsize=(1, 1))
        axes.plot(data["x"])
        return drawn

    write(Figure(card, pd.DataFrame({"x": [1.0, 2.0]}), drawing), folder)


def test_figures_by_kind_and_what_is_not_made_yet(filled: Path, monkeypatch: Any) -> None:
    cell = next((filled / "cells").iterdir()).name
    for name, kind in (("b", "features"), ("a", "runs"), ("c", "of my own")):
        about = {"paper_figure": 9, "images": ["x.png", "y.png"]}
        draw(
            Card(name, kind, f"title {name}", f"caption {name}", f"python -m {name}", (cell,), about),
            filled / "figures",
        )
    page = made(filled)
    section = page.by_id("figures")
    assert [e["text"] for e in page.all("h3", section)] == [
        KINDS["runs"].title, KINDS["features"].title, "of my own", "Not made yet",
    ]  # fmt: skip
    figure = page.all("figure", section)[1]
    assert all(words in figure["text"] for words in ("title b", "caption b", "python -m b", "paper figure: 9", "x.png"))
    assert [e["attrs"]["href"] for e in page.all("a", figure)] == [
        f"figures/b.{end}" for end in ("pdf", "png", "svg", "csv")
    ]
    assert page.all("img", figure)[0]["attrs"]["src"].startswith("data:image/svg+xml,")
    lines = [e["text"] for e in page.all("li", section)]
    assert f"Fourier amplitude (figure 7, right of the paper): python -m analysis.fourier --results {filled}" in lines
    assert not any("analysis.features" in line for line in lines)

    monkeypatch.setattr("analysis.reporting.gallery.MOST_VECTOR", 10)
    assert page_images(made(filled)) == ["data:image/png;base64"] * 3
    monkeypatch.setattr(report, "MOST_CHARACTERS", 0)
    page = made(filled)
    assert page_images(page) == [] and page.by_id("figures")["text"].count("no room") == 3


def page_images(page: Page) -> list[str]:
    return [e["attrs"]["src"].partition(",")[0] for e in page.all("img")]


def test_a_figure_of_cells_that_are_gone_says_so(filled: Path) -> None:
    draw(Card("a", "runs", "title", "caption", "command", ("isic2017-lora-s9-00000000",)), filled / "figures")
    assert "OLD FIGURE: 1 of its 1 cells" in made(filled).by_id("figures")["text"]


def test_links_lead_from_where_the_page_lies(filled: Path, tmp_path: Path) -> None:
    draw(Card("a b#", "runs", "title", "caption", "command"), filled / "figures")
    out = tmp_path / "elsewhere" / "page.html"
    assert report.main(["--results", str(filled), "--keep-figures", "--out", str(out)]) == 0
    links = [e["attrs"]["href"] for e in Page(out.read_text()).all("a")]
    assert "../results/figures/a%20b%23.png" in links


def test_the_path_is_printed_last_and_no_torch_is_loaded(filled: Path) -> None:
    code = "import sys; from analysis.report import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "--results", str(filled)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *_, path, torch = done.stdout.splitlines()
    assert path == (filled / "report.html").resolve().as_uri() and torch == "False"
