"""The formats: Markdown, csv, LaTeX and the terminal."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis import terminal
from analysis.latex import escape, latex
from analysis.layout import Table
from analysis.render import CSV_COLUMNS, long_csv, markdown
from analysis.results import read_results
from analysis.tables import make_tables

SCORES = {"iou": 0.5, "t_jaccard": 0.4, "dice": 0.6, "accuracy": 0.9}
TINY = {"backbone": "tiny", "checkpoint": "none", "image_size": 128, "precision": "fp32"}


@pytest.fixture
def table6(folder) -> Table:
    """Table 6 with Conv-LoRA of three seeds (best), LoRA of one (second best) and a failed one, and BitFit, stale."""
    for seed, iou in enumerate((0.77, 0.78, 0.79)):
        folder.add(seed=seed, scores={**SCORES, "iou": iou})
    folder.add(method="lora", seed=0, scores=SCORES)
    folder.add(method="lora", seed=1, state="failed")
    folder.add(method="bitfit", seed=0, scores={**SCORES, "iou": 0.76}, stale=("method",))
    return make_tables(read_results(folder.path), wanted=["6"])[0]


def markdown_rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the Markdown tables in ``text``, by the row's name."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows}


def test_markdown_has_the_papers_number_beside_ours(table6: Table) -> None:
    rows = markdown_rows(markdown(table6))
    assert rows["Method"][:5] == ["Params (M) / %", "paper", "Jac ↑", "paper", "difference"]
    assert rows["Conv-LoRA"][:5] == ["4.02 / 0.63", "4.02 / 0.63", "**78.0 ± 0.58**", "77.6 ± 0.57", "+0.4 within"]
    assert rows["LoRA"][2:5] == ["<u>50.0 (n=1)</u>", "76.6 ± 0.23", "-26.6 outside"]
    assert rows["BitFit"][2:5] == ["76.0 (n=1) †", "76.4 ± 0.45", ""]
    assert rows["VPT"][2:5] == ["", "76.9 ± 0.94", ""]
    assert rows["TransFuse"][:5] == ["", "26.30 / 100", "not run", "<u>80.1</u>", ""]


def test_every_number_of_the_paper_is_in_every_format(table6: Table) -> None:
    numbers = [number.paper for number in table6.entries.values()]
    assert len(numbers) == 40
    console = Console(width=80, file=io.StringIO())
    terminal.show(table6, console)
    for number in numbers:
        said = f"{number.value} ± {number.standard_error}" if number.standard_error else number.value
        assert said in markdown(table6)
        assert said.replace("±", r"$\pm$") in latex(table6)
        assert said in console.file.getvalue()


def test_warnings_stand_above_the_numbers_in_every_format(folder) -> None:
    folder.add(dataset="shapes", **TINY)
    (table,) = make_tables(read_results(folder.path))
    console = Console(width=200, file=io.StringIO())
    terminal.show(table, console)
    for text, number in ((markdown(table), "50.0"), (latex(table), "50.0"), (console.file.getvalue(), "50.0")):
        assert 0 < text.index("RANDOM BACKBONE") < text.index(number)


def test_no_difference_column_where_none_is_printed(folder) -> None:
    folder.add(scores=SCORES, image_size=512)
    table = make_tables(read_results(folder.path), wanted=["6"])[0]
    assert "difference" not in markdown_rows(markdown(table))["Method"]
    assert "($" not in latex(table)


def test_decimals_are_the_papers(folder) -> None:
    for seed, ber in enumerate((0.02541, 0.02543)):
        folder.add(dataset="sbu", seed=seed, scores={"ber_image": ber})
    text = markdown(make_tables(read_results(folder.path), wanted=["1"])[0])
    assert "2.54 ± 0.001 (n=2)" in text and "+0.00" in text


def test_csv_has_full_precision_and_every_place(table6: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(long_csv(table6))))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert len(lines) == 40
    (line,) = [line for line in lines if (line["row"], line["metric"]) == ("Conv-LoRA", "iou")]
    assert float(line["mean"]) == pytest.approx(78, abs=1e-12)
    assert float(line["standard_error"]) == pytest.approx(3**-0.5, abs=1e-12)
    assert (line["n"], line["seeds"]) == ("3", "0 1 2")
    assert (line["paper_value"], line["paper_standard_error"]) == ("77.6", "0.57")
    assert float(line["difference"]) == pytest.approx(0.4, abs=1e-12) and line["spread"] == "within"
    (line,) = [line for line in lines if (line["row"], line["metric"]) == ("LoRA", "iou")]
    assert (line["n"], line["standard_error"]) == ("1", "")
    (line,) = [line for line in lines if (line["row"], line["metric"]) == ("VPT", "iou")]
    assert (line["mean"], line["n"], line["difference"], line["paper_value"]) == ("", "", "", "76.9")


def test_csv_tells_settings_apart_by_their_overrides(folder) -> None:
    folder.add(regime={"epochs": 5})
    (line, *_) = csv.DictReader(io.StringIO(long_csv(make_tables(read_results(folder.path), wanted=["6"])[0])))
    assert line["setting"] == "vit_h, checkpoint sam_vit_h_4b8939.pth, 1024 px, bf16, epochs = 5"


@given(st.text())
def test_escaped_text_has_no_bare_special_character(text: str) -> None:
    escaped = escape(text)
    bare = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\$\\[a-z]+\$|\\d{1,2}ag\{\}|-\{\}-", "", escaped)
    assert not set(bare) & set("\\&%$#_{}~^")


def test_escape_says_what_the_text_says() -> None:
    assert escape("a_b 50% R&D #1 {x} ~^\\") == (
        r"a\_b 50\% R\&D \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape("--rerun") == "-{}-rerun"


@pytest.mark.parametrize("number", ["1", "6"])
def test_latex_is_well_formed(folder, number: str) -> None:
    folder.add(method="lora", scores=SCORES)
    folder.add(method="conv_lora", scores={**SCORES, "iou": 0.7})
    folder.add(method="bitfit", scores={**SCORES, "iou": 0.6}, stale=("a_b",))
    text = latex(make_tables(read_results(folder.path), wanted=[number])[0])
    plain = re.sub(r"\\[{}%&#_$]", "", text)
    assert plain.count("{") == plain.count("}")
    parts = 2 if number == "1" else 1
    assert re.findall(r"\\begin\{(.+?)\}", text) == ["table*"] + ["tabular"] * parts
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [parts] * 3
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.+?)\\end\{tabular\}", plain, re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                wide = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert line.count("&") + 1 + wide == len(columns)
    assert r"\textbf{70.0 (n=1)}" in text and r"\underline{50.0 (n=1)}" in text
    assert r" 60.0 (n=1) \dag{} " in text and r"a\_b" in text
    assert r"77.6 $\pm$ 0.57 ($-7.6$, outside)" in text and r"\underline{80.1}" in text


def test_odd_names_do_not_break_a_format(folder) -> None:
    folder.add(method="50%_off|<b>", dataset="shapes", parameters={"note": "[x](y)"}, scores={"iou": 0.5})
    (table,) = make_tables(read_results(folder.path))
    assert "50%_off\\|\\<b>" in markdown(table)
    assert r"50\%\_off|\textless{}b\textgreater{}" in latex(table)
    console = Console(width=80, file=io.StringIO())
    terminal.show(table, console)
    assert "50%_off|<b> (note = [x](y))" in console.file.getvalue()


def shown(table: Table, width: int) -> list[str]:
    """The lines of a table in a terminal of some width."""
    console = Console(width=width, file=io.StringIO())
    terminal.show(table, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", range(80, 125, 3))
def test_the_terminal_shows_whole_numbers_at_any_width(folder, width: int) -> None:
    for method in ("decoder_only", "bitfit", "conv_lora"):
        for seed in range(2):
            folder.add(method=method, seed=seed, scores={key: value + seed / 50 for key, value in SCORES.items()})
            folder.add(method=method, seed=seed, dataset="sbu", scores={"ber_image": 0.03 + seed / 500})
            folder.add(method=method, seed=seed, dataset="leaf", scores={"iou": 0.7, "dice": 0.8})
    for table in make_tables(read_results(folder.path)):
        lines = shown(table, width)
        assert max(map(len, lines)) <= width
        assert not any("…" in line for line in lines)
        text = "\n".join(lines)
        assert text.count("51.0 ± 1.00") == {"1": 3, "6": 3}.get(table.subject, 0)
        assert ("Not run here, in the files only: Kvasir, CVC-612, CAMO, Road." in text) == (table.subject == "1")


def test_a_long_name_is_wrapped_and_a_narrow_terminal_is_no_error(folder) -> None:
    folder.add(dataset="shapes", parameters={"a_long_name": "with a long value", "another": 12}, scores=SCORES)
    (table,) = make_tables(read_results(folder.path))
    lines = shown(table, 80)
    assert lines[-3] == "conv_lora (a_long_name = with a"
    assert lines[-2].startswith("long value, another = 12)") and "50.0" in lines[-2]
    assert len(shown(table, 20)) > len(lines)


def test_numbers_stand_below_each_other_in_the_terminal(table6: Table) -> None:
    lines = shown(table6, 120)
    start = next(i for i, line in enumerate(lines) if line.startswith("Conv-LoRA"))
    ours, papers, difference = lines[start : start + 3]
    assert papers.strip().startswith("paper") and difference.strip().startswith("difference")
    assert "+0.4 within" in difference
    assert ours.index("78.0") == papers.index("77.6") == difference.index("+0.4")


def test_the_terminal_marks_the_best(table6: Table) -> None:
    console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system="standard")
    terminal.show(table6, console)
    assert "\x1b[1m78.0 ± 0.58\x1b[0m" in console.file.getvalue()
    assert "\x1b[4m50.0" in console.file.getvalue()
    assert "\x1b[2;4m80.1\x1b[0m" in console.file.getvalue(), "TransFuse in the paper, above all that was fine-tuned"


def test_long_metric_names_are_wrapped(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.add(dataset="shapes", scores={"iou": 0.5})
    results = read_results(folder.path)
    metric = results.metrics["iou"]
    monkeypatch.setitem(results.metrics, "iou", type(metric)("weighted F-measure (beta squared 0.3)", "higher"))
    (table,) = make_tables(results)
    lines = shown(table, 80)
    assert not any("weighted F-measure" in line for line in lines)
    assert any(line.rstrip().endswith("0.3)\N{NO-BREAK SPACE}↑") for line in lines)
