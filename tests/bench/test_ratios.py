"""``python -m bench.timing.ratios`` on runs that are made up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.timing.ratios import FLOOR, Line, Ratio, main

TIMES = {"attention": {"official": 3.0, "ours": 1.5}, "metrics": {"pysodmetrics": 0.02, "ours": 0.01, "fast": 0.005}}


def run_of(times, *, noise=0.0, references=None, **about):
    """What pytest-benchmark writes; the first of each group is its reference."""
    return {
        "machine_info": {"device": "a processor", "torch": "2.12"} | about,
        "datetime": "2026-11-22T17:24:21+00:00",
        "benchmarks": [
            {
                "group": group,
                "fullname": f"test_speed.py::test_{name}",
                "extra_info": {"candidate": name, "reference": (references or {}).get(name, next(iter(named)))},
                "stats": {"median": seconds, "iqr": noise * seconds},
                "options": {"timer": "process_time"},
            }
            for group, named in times.items()
            for name, seconds in named.items()
        ],
    }


@pytest.fixture
def command(tmp_path, capsys):
    """command(run, *words): the exit code and what was printed; a baseline of :data:`TIMES` is there."""

    def call(run, *words, baseline="baseline.json"):
        path = tmp_path / "run.json"
        path.write_text(run if isinstance(run, str) else json.dumps(run))
        code = main([str(path), "--baseline", str(tmp_path / baseline), *words])
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    assert call(run_of(TIMES), "--write")[0] == 0
    return call


def changed(group, name, factor):
    return {**TIMES, group: {**TIMES[group], name: factor * TIMES[group][name]}}


def test_the_same_run_is_as_fast(command, tmp_path):
    code, said = command(run_of(TIMES))
    assert code == 0 and "nothing got slower" in said
    assert "official 3 s ours 1.5 s 2 2 +0 %" in said
    assert "pysodmetrics 20 ms fast 5 ms 4 4 +0 % ours 10 ms 2 2 +0 %" in said
    assert not {"slower:", "new:", "missing:", "another"} & set(said.split())


def test_a_slowdown_is_named(command):
    code, said = command(run_of(changed("attention", "ours", 1.5)))
    assert code == 1
    assert "slower: ours in 'attention' is 1.33 times as fast as 'official' and was 2 (-33 %; down to -13 %" in said
    assert "'metrics'" not in said and "nothing got slower" not in said


def test_another_machine_that_is_slower_in_all_is_no_slowdown(command):
    times = {group: {name: 7 * seconds for name, seconds in named.items()} for group, named in TIMES.items()}
    code, said = command(run_of(times, device="an old processor", torch="3.0"))
    assert code == 0
    assert "another device: an old processor here, a processor in the baseline" in said
    assert "another version of torch: 3.0 here, 2.12 in the baseline" in said


@pytest.mark.parametrize(("factor", "noise", "code"), [(1.14, 0, 0), (1.17, 0, 1), (1.17, 0.02, 0), (1.5, 0.2, 0)])
def test_noise_is_no_slowdown(command, factor, noise, code):
    assert command(run_of(changed("attention", "ours", factor), noise=noise))[0] == code


def test_noise_of_the_baseline_counts_too(command):
    command(run_of(TIMES, noise=0.2), "--write")
    assert command(run_of(changed("attention", "ours", 1.5)))[0] == 0
    assert command(run_of(changed("attention", "ours", 1.6)))[0] == 1


def test_a_faster_candidate_and_a_slower_reference_are_no_slowdown(command):
    code, said = command(run_of(changed("attention", "official", 2)))
    assert code == 0 and "ours 1.5 s 4 2 +100 %" in said


def test_a_faster_reference_is_a_slowdown_beside_it(command):
    assert command(run_of(changed("attention", "official", 0.5)))[0] == 1


def test_what_is_missing_and_what_is_new_is_named(command):
    times = {"attention": TIMES["attention"] | {"flash": 1.0}, "losses": {"pooling": 4.0, "ours": 0.2}}
    code, said = command(run_of(times))
    assert code == 0
    assert "new: flash in 'attention', 3 times as fast as 'official'" in said
    assert "new: ours in 'losses', 20 times as fast as 'pooling'" in said
    assert "missing: fast in 'metrics'" in said and "missing: ours in 'metrics'" in said


def test_another_reference_makes_a_new_ratio(command):
    code, said = command(run_of({**TIMES, "attention": {"flash": 0.1, "ours": 1.5}}))
    assert code == 0 and "new: ours in 'attention', 0.0667 times as fast as 'flash'" in said


def test_what_is_stored_is_small_and_a_line_a_group(command, tmp_path):
    text = (tmp_path / "baseline.json").read_text()
    assert '"attention": {"reference": "official", "ratio and spread": {"ours": [2.0, 0.0]}}' in text
    assert json.loads(text)["device"] == "a processor" and json.loads(text)["date"] == "2026-11-22"
    assert len(text.splitlines()) == 5 + 1 + 2 + 2
    assert "1.5" not in text, "no time is stored"


def test_writing_replaces_even_a_broken_baseline(command, tmp_path):
    (tmp_path / "baseline.json").write_text("{")
    code, said = command(run_of(TIMES))
    assert code == 2 and "baseline.json cannot be read" in said and "--write" in said
    assert command(run_of(TIMES), "--write")[0] == 0
    assert command(run_of(TIMES))[0] == 0


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("{", "run.json cannot be read"),
        ("[]", "run.json holds no object"),
        ('{"cells": 1}', "is no run of tests/benchmarks"),
        (run_of({}), "--benchmark-enable"),
        (run_of({"a": {"x": 1.0}}, references={"x": "y"}), "no time of its reference 'y', only of x; run the group"),
        (run_of({"a": {"x": 1.0, "y": 1.0}}, references={"x": "x", "y": "y"}), "names 2 references (x, y); keep one"),
        (json.dumps(run_of(TIMES)).replace('"candidate"', '"other"'), "test_official names no candidate"),
        (
            json.dumps(run_of(TIMES)).replace('"device"', '"other"'),
            "is no run of tests/benchmarks (KeyError('device'))",
        ),
    ],
)
def test_a_run_that_says_nothing(command, run, message):
    code, said = command(run)
    assert code == 2 and message in said


@pytest.mark.parametrize("text", ["[]", "{}", '{"groups": []}', '{"groups": {"a": {"reference": "x"}}}'])
def test_a_baseline_that_says_nothing(command, tmp_path, text):
    (tmp_path / "baseline.json").write_text(text)
    code, said = command(run_of(TIMES))
    assert code == 2 and "Store one: python -m bench.timing.ratios" in said


def test_no_baseline(command):
    code, said = command(run_of(TIMES), baseline="absent.json")
    assert code == 2 and "absent.json cannot be read" in said and "--write" in said


ratios = st.builds(Ratio, st.just("r"), st.floats(0.01, 100), st.floats(0, 1))


@given(ratios, ratios)
def test_of_two_runs_at_most_one_is_slower(one, other):
    forwards, backwards = Line("g", "c", one, other), Line("g", "c", other, one)
    assert {"slower": "faster", "faster": "slower"}.get(forwards.verdict, "as before") == backwards.verdict
    assert forwards.tolerance >= FLOOR


@given(ratios)
def test_a_ratio_is_as_before_itself(ratio):
    assert Line("g", "c", ratio, ratio).verdict == "as before"
