"""The ledger: what is planted is found, where and by how much, and what the paper itself has is there."""

from __future__ import annotations

from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis import paper
from analysis.ledger import book, bounds, claims, counts, repeats
from analysis.ledger.finding import Finding, in_errors, lines_of
from analysis.tables import main


@pytest.fixture
def frame() -> pd.DataFrame:
    return paper.read_paper().copy()


def changed(frame: pd.DataFrame, value: str, column: str = "value", **place: str) -> pd.DataFrame:
    """The frame with one printed number changed."""
    found = pd.Series(True, index=frame.index)
    for key, wanted in place.items():
        found &= frame[key] == wanted
    assert found.sum() == 1, place
    frame.loc[found, column] = value
    return frame


def found_by(check, frame: pd.DataFrame) -> list[Finding]:
    return [finding for finding in check(lines_of(frame)) if finding.rows]


def titled(findings: list[Finding], beginning: str) -> Finding:
    (found,) = [finding for finding in findings if finding.title.startswith(beginning)]
    return found


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return book.ledger()


def test_every_line_of_the_paper_is_read(frame) -> None:
    lines = lines_of(frame)
    assert len(lines) == 821 and len({(line.table, line.row, *line.key) for line in lines}) == 821


def test_vpt_and_conv_lora_of_table_12_are_not_those_of_table_5(findings) -> None:
    rows = titled(findings, "Tables 5 and 12").rows
    assert ("VPT, CVC-ColonDB Sα", "83.9 ± 0.23", "85.0", "+1.1", "4.8 times") in rows  # noqa: RUF001
    assert ("VPT, ETIS Eφ", "88.0 ± 0.0", "87.4", "-0.6", "error is 0") in rows
    assert ("Conv-LoRA, ETIS Fβw", "71.6 ± 3.87", "70.2", "-1.4", "within") in rows
    assert len(rows) == 15, "Conv-LoRA's MAE on CVC-ColonDB is the same in both"


def test_conv_lora_of_table_3_is_not_that_of_table_6(findings) -> None:
    rows = titled(findings, "Tables 3 and 6").rows
    assert rows[0] == ("Conv-LoRA, ISIC 2017 Jac", "77.9", "77.6 ± 0.57", "-0.3", "within")
    assert [row[0].split()[-1] for row in rows] == ["Jac", "T-Jac", "Dice"]


def test_tables_that_repeat_others_agree(findings) -> None:
    agreed = {finding.title.partition(":")[0]: finding.checked for finding in findings if not finding.rows}
    numbers = {f"Tables 1 and {table}": agreed[f"Tables 1 and {table}"] for table in range(5, 11)}
    assert sum(int(said.split()[0]) for said in numbers.values()) == 140
    assert agreed["Tables 2 and 11"] == "2 numbers" and agreed["Tables 3 and 14"] == "1 number"


@pytest.mark.parametrize(("column", "value"), [("value", "76.4"), ("standard_error", "0.30")])
def test_a_number_of_table_1_that_is_not_in_its_full_table_is_found(frame, column: str, value: str) -> None:
    place = {"table": "1", "method": "LoRA", "dataset": "isic2017", "metric": "jaccard"}
    (found,) = [f for f in found_by(repeats.repeated, changed(frame, value, column, **place)) if "1 and 6" in f.title]
    ((what, first, second, *_),) = found.rows
    assert what == "LoRA, ISIC 2017 Jac" and value in first and second == "76.6 ± 0.23"


def test_a_number_that_is_made_equal_is_no_finding(frame) -> None:
    for metric, value in (("jaccard", "77.6"), ("t_jaccard", "69.6"), ("dice", "85.7")):
        frame = changed(frame, value, table="3", method="Conv-LoRA", metric=metric)
    assert not any("3 and 6" in finding.title for finding in found_by(repeats.repeated, frame))


def test_ablations_stand_beside_the_whole_method(findings) -> None:
    rows = titled(findings, "Ablations").rows
    assert ("13", "MoE-Conv, Leaf IoU", "74.0", "74.5 ± 0.39", "-0.5", "1.3 times", "0 of 3") in rows
    assert ("13", "MoE-Conv, ISIC 2017 Jac", "77.4", "77.6 ± 0.57", "-0.2", "within", "4 of 4") in rows
    assert [row[0] for row in rows] == ["3", *["4"] * 8, "12", "12", *["13"] * 4]


def test_the_two_mean_ious_of_table_2(findings, frame) -> None:
    rows = {row[1].partition(",")[0]: row[2:] for row in titled(findings, "Which mean").rows}
    assert rows["TransLab"] == ("69.00", "69.002", "66.738", "with")
    assert rows["Conv-LoRA"] == ("67.09", "69.638", "67.091", "without")
    neither = changed(frame, "68.00", table="2", method="LoRA", dataset="trans10k-v2", metric="miou")
    (found,) = found_by(bounds.means, neither)
    assert {row[1]: row[-1] for row in found.rows}["LoRA, trans10k_v2"] == "neither"


def test_one_mean_for_all_is_no_finding(frame) -> None:
    for method, value in (("TransLab", "66.74"), ("Trans2Seg", "70.04")):
        frame = changed(frame, value, table="2", method=method, dataset="trans10k-v2", metric="miou")
    assert found_by(bounds.means, frame) == []


COUNTS = {
    "decoder_only": 3_505_536, "bitfit": 3_957_888, "adapter": 3_915_264, "vpt": 3_997_056, "lst": 11_494_464,
    "sam_adapter": 3_980_576, "ssf": 4_418_432, "lora": 3_997_056, "conv_lora": 4_020_096,
    "conv_lora num_experts=4": 4_008_576, "inception": 4_008_576, "conv_lora+vpt vpt.num_tokens=5": 4_224_896,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_counts_by_construction(name: str, count: int) -> None:
    assert counts.ADDED[name]() + counts.decoder(1) == count


def test_counts_of_decoders_and_variants() -> None:
    assert (counts.decoder(3), counts.decoder(12)) == (3_508_868, 3_511_181)
    ranks = [counts.lora(rank) + counts.decoder(12) for rank in (3, 6, 12, 24)]
    assert ranks == [4_002_701, 4_494_221, 5_477_261, 7_443_341]
    assert counts.REDUCED_SAM == 640_670_416
    assert counts.decoder(1) + counts.conv_lora(1, gate=False) == 3_999_744
    assert counts.decoder(1) + counts.conv_lora(8, gate=False) == 4_018_560


def test_counts_that_fit_another_decoder(findings, frame) -> None:
    rows = {row[:2]: row[2:] for row in titled(findings, "Parameter counts").rows}
    assert rows["12", "Conv-LoRA, polyps"] == ("4.03", "4,020,096", "4,025,741", "binary", "12")
    assert rows["11", "LoRA-r12, trans10k_v2"] == ("5.48", "5,471,616", "5,477,261", "12", "12")
    assert rows["2", "Conv-LoRA, trans10k_v2"][-2:] == ("12", "binary or 3")
    assert len(rows) == 5
    frame.loc[(frame["table"] == "13") & (frame["method"] == "Inception"), "trainable_params_m"] = "4.05"
    (found,) = found_by(counts.decoders, frame)
    assert ("13", "Inception, leaf", "4.05", "4,008,576", "4,014,221", "binary", "none") in found.rows


def test_shares_and_whole_models(findings, frame) -> None:
    assert not titled(findings, "Shares").rows
    rows = {row[1]: row[2:4] for row in titled(findings, "Counts of whole").rows}
    assert rows["scratch"] == ("641.09", "640,670,416") and rows["Trans2Seg"] == ("56.20", "58,550,721")
    assert rows.keys() == {"scratch", "TransLab", "Trans2Seg", "TransFuse"}
    frame.loc[(frame["table"] == "13") & (frame["method"] == "MoE-Conv"), "ratio_percent"] = "0.62"
    (found,) = found_by(counts.ratios, frame)
    assert found.rows == (("13", "MoE-Conv, leaf", "0.62", "0.63"),)


def test_an_iteration_is_an_image(findings, frame) -> None:
    rows = titled(findings, "Iterations").rows
    assert [row[1] for row in rows] == ["BitFit", "Adapter", "VPT", "LoRA", "Conv-LoRA"]
    assert all(row[-1] == "1.00" for row in rows)
    for method in ("BitFit", "Adapter", "VPT", "LoRA", "Conv-LoRA"):
        line = frame[(frame["method"] == method) & (frame["metric"] == "train_min_per_epoch")].iloc[0]
        quarter = f"{float(line['value']) / 4:.2f}"
        frame = changed(frame, quarter, table="14", method=method, metric="train_min_per_epoch")
    assert found_by(claims.iterations, frame) == [], "batches of four"


def test_few_shot_gains(findings, frame) -> None:
    rows = titled(findings, "Few-shot").rows
    assert rows[0] == ("1", "15", "13.32", "14.53", "+1.21") and rows[-1] == ("all", "2", "66.01", "67.09", "+1.08")
    larger = changed(frame, "20.00", table="15", method="Conv-LoRA", shots="1")
    assert found_by(claims.few_shots, larger) == []


def test_scales_leads_and_spreads(findings) -> None:
    assert [row[1:] for row in titled(findings, "The scale").rows][-1] == (
        "Leaf Acc", "1: 95.5, 2: 95.8, 4: 95.9, 8: 96.0", "8", "4",
    )  # fmt: skip
    leads = {row[0]: row[1:] for row in titled(findings, "Conv-LoRA beside").rows}
    assert leads["1"] == ("14", "14", "6", "") and leads["7"][1] == "10"
    assert "CVC-T Sα: VPT 94.6, 93.7" in leads["5"][-1]  # noqa: RUF001
    assert [row[0] for row in titled(findings, "Fine-tuned").rows] == ["2", "3", "4", "11", "12", "13", "15"]


def test_a_method_that_leads_shows_in_the_leads(frame) -> None:
    better = changed(frame, "3.00", table="8", method="Conv-LoRA")
    leads = {row[0]: row[1:] for row in titled(found_by(claims.leads, better), "Conv-LoRA beside").rows}
    assert leads["8"] == ("1", "0", "0", "SBU BER: VPT 2.70, 3.00"), "of BER the lower is the better"


def test_the_misprint(findings, frame) -> None:
    (row,) = titled(findings, "Misprints").rows
    assert row[:5] == ("7", "SINet-v2, CHAMELEON Eφ", "04.0", "94.0", "+90.0")
    as_printed = changed(frame, "04.0", table="7", method="SINet-v2", dataset="chameleon", metric="e_measure")
    assert found_by(claims.corrected, as_printed) == []
    ((table, what, s, e, *_),) = titled(found_by(bounds.e_and_s, as_printed), "E against S").rows
    assert (table, what, s, e) == ("7", "SINet-v2, CHAMELEON Eφ", "89.2", "4.0")


EASY = {"table": "2", "dataset": "trans10k-v1-easy"}


@pytest.mark.parametrize(
    ("check", "value", "place"),
    [
        (bounds.dice, "87.6", {"table": "6", "method": "Conv-LoRA", "metric": "dice"}),
        (bounds.dice, "77.4", {"table": "6", "method": "Conv-LoRA", "metric": "dice"}),
        (bounds.thresholded, "77.7", {"table": "6", "method": "Conv-LoRA", "metric": "t_jaccard"}),
        (bounds.ranges, "101.0", {"table": "8", "method": "LoRA"}),
        (bounds.ranges, "-1", {"table": "14", "method": "LoRA", "metric": "train_it_per_s"}),
        (bounds.label_mae, "0.012", EASY | {"method": "Conv-LoRA", "metric": "mae"}),
    ],
)  # fmt: skip
def test_bounds_find_what_is_beyond_them(frame, check, value: str, place: dict[str, str]) -> None:
    before = {row for finding in found_by(check, frame.copy()) for row in finding.rows}
    after = {row for finding in found_by(check, changed(frame, value, **place)) for row in finding.rows}
    (new,) = after - before
    assert place["method"] in new[1] and str(float(value)).rstrip("0").rstrip(".") in " ".join(new)


def test_dice_at_its_bound_is_no_finding(frame) -> None:
    """2 * 0.7765 / 1.7765 is 87.42, so 87.4 may be a rounded mean."""
    assert found_by(bounds.dice, changed(frame, "87.4", table="6", method="Conv-LoRA", metric="dice")) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_no_set_of_images_violates_the_bounds_of_dice(overlaps: list[float]) -> None:
    means = [sum(values) / len(overlaps) for values in (overlaps, [2 * j / (1 + j) for j in overlaps])]
    iou, dice = (f"{100 * mean:.1f}" for mean in means)
    frame = changed(paper.read_paper().copy(), iou, table="9", method="LoRA", metric="iou")
    assert found_by(bounds.dice, changed(frame, dice, table="9", method="LoRA", metric="dice")) == []


def test_errors_of_zero_and_equal_rows(findings, frame) -> None:
    assert [row[1] for row in titled(findings, "Standard errors of 0").rows] == ["VPT, ETIS Eφ", "VPT, ETIS Fβw"]
    ((table, one, other),) = titled(findings, "Two methods").rows
    assert (table, one[:6], other[:11]) == ("10", "BitFit", "SAM-Adapter")
    apart = changed(frame, "97.4", table="10", method="BitFit", metric="accuracy")
    assert found_by(bounds.twins, apart) == []


@pytest.mark.parametrize(
    ("difference", "errors", "said"),
    [
        ("0.5", ("0.5", None), "within"),
        ("-0.6", ("0.5", None), "1.2 times"),
        ("0.5", ("0.3", "0.4"), "within"),
        ("-1.0", ("0.3", "0.4"), "2.0 times"),
        ("0.1", (None, None), "none printed"),
        ("0.1", ("0.0", None), "error is 0"),
    ],
)
def test_differences_in_errors(difference: str, errors, said: str) -> None:
    assert in_errors(Decimal(difference), *(error and Decimal(error) for error in errors)) == said


def test_no_lines_are_no_error(frame) -> None:
    kept = frame[frame["table"] == "0"]
    assert not any(finding.rows for finding in book.ledger(kept))


def test_the_command_needs_no_results_and_writes_the_ledger(tmp_path, capsys) -> None:
    assert main(["--ledger", "--results", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "results" / "tables" / "ledger.md").read_text(encoding="utf-8")
    for said in ("77.6 ± 0.57", "69.638", "5,477,261", "04.0", "Checked, and found to agree"):
        assert said in printed and said in text
    assert not list((tmp_path / "results").glob("cells"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows) and len(rows) > 90
    assert main(["--ledger", "--out", str(tmp_path)]) == 0 and (tmp_path / "ledger.md").read_text() == text


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_cuts_nothing(findings, width: int, capsys) -> None:
    book.show(findings, Console(width=width))
    printed = capsys.readouterr().out
    assert "…" not in printed and max(map(len, printed.splitlines())) <= width
    for finding in findings:
        for row in finding.rows:
            assert all(word in printed for text in row[2:] for word in text.split())
