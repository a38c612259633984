"""``python -m bench.timing.ratios RUN.json``: what a run of tests/benchmarks says beside the stored baseline.

Benchmarks stand in groups. Each group has one reference, and of every other candidate a ratio is kept: the median time
of the reference over that of the candidate, so that 2 means twice as fast as the reference. Times of two machines
cannot be compared; ratios can be, as far as these machines are alike. Times are therefore shown and never stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

BASELINE = Path("tests/benchmarks/baseline.json")
FLOOR = 0.15
"""The change of a ratio that is never called a slowdown: what two runs of the same code differ by on a busy machine."""

Verdict = Literal["missing", "new", "as before", "faster", "slower"]
SAID: tuple[Verdict, ...] = get_args(Verdict)
"""In the order in which they are told: what matters most stands last."""


class RatioError(ValueError):
    """A run or a baseline that says nothing; the message names the file and the next command."""


@dataclass(frozen=True)
class Ratio:
    """A candidate's speed in units of its group's reference.

    Attributes:
        reference: the reference's name.
        ratio: its median time over the candidate's: above 1 the candidate is faster.
        spread: the interquartile ranges of both times, each as a share of its median, added up.
        seconds: the candidate's median time, 0 where it was stored.
        reference_seconds: the reference's.
    """

    reference: str
    ratio: float
    spread: float
    seconds: float = 0.0
    reference_seconds: float = 0.0


@dataclass(frozen=True)
class Record:
    """The ratios of a run by group and candidate, and what they were measured on."""

    device: str
    torch: str
    timer: str
    date: str
    ratios: Mapping[tuple[str, str], Ratio]


@dataclass(frozen=True)
class Line:
    """One candidate now and then; at least one of the two is there."""

    group: str
    candidate: str
    now: Ratio | None
    then: Ratio | None

    @property
    def change(self) -> float:
        """Of the ratio, as a share: -0.2 is a fifth slower beside the reference. 0 where one of the two is absent."""
        return self.now.ratio / self.then.ratio - 1 if self.now and self.then else 0.0

    @property
    def tolerance(self) -> float:
        """The share by which both runs' own spread lets the ratio differ, on top of :data:`FLOOR`."""
        return FLOOR + max((side.spread for side in (self.now, self.then) if side), default=0.0)

    @property
    def verdict(self) -> Verdict:
        if not self.now or not self.then:
            return "new" if self.now else "missing"
        slack = 1 + self.tolerance
        if self.now.ratio * slack < self.then.ratio:
            return "slower"
        return "faster" if self.now.ratio > self.then.ratio * slack else "as before"


def read_run(path: Path) -> Record:
    """The ratios in a file of pytest-benchmark's ``--benchmark-json``.

    Raises:
        RatioError: it cannot be read, holds no time, or has a group without a reference or with two.
    """
    run = _read(path, "Next: make bench")
    try:
        found, machine = run["benchmarks"], run["machine_info"]
        if not found:
            raise RatioError(f"{path} holds no time: benchmarks are off without --benchmark-enable. Next: make bench")
        groups: dict[str, dict[str, dict[str, Any]]] = {}
        for one in found:
            if "candidate" not in one["extra_info"]:
                raise RatioError(
                    f"{path}: {one['fullname']} names no candidate and reference; "
                    "time it with the fixture `compare` of tests/benchmarks/conftest.py"
                )
            groups.setdefault(one["group"], {})[one["extra_info"]["candidate"]] = one
        ratios = {
            (group, candidate): ratio
            for group, candidates in groups.items()
            for candidate, ratio in _of_group(path, group, candidates).items()
        }
        timer = found[0]["options"]["timer"]
        return Record(machine["device"], machine["torch"], timer, run["datetime"][:10], ratios)
    except (KeyError, TypeError) as error:
        raise RatioError(f"{path} is no run of tests/benchmarks ({error!r}). Next: make bench") from None


def _of_group(path: Path, group: str, candidates: Mapping[str, Mapping[str, Any]]) -> dict[str, Ratio]:
    names = sorted({one["extra_info"]["reference"] for one in candidates.values()})
    if len(names) > 1:
        raise RatioError(f"{path}: the group {group!r} names {len(names)} references ({', '.join(names)}); keep one")
    (reference,) = names
    if reference not in candidates:
        raise RatioError(
            f"{path}: the group {group!r} has no time of its reference {reference!r}, only of {', '.join(candidates)}; "
            "run the group as a whole, or all with: make bench"
        )
    beside = candidates[reference]["stats"]
    return {
        name: Ratio(
            reference,
            beside["median"] / one["stats"]["median"],
            sum(stats["iqr"] / stats["median"] for stats in (one["stats"], beside)),
            one["stats"]["median"],
            beside["median"],
        )
        for name, one in candidates.items()
        if name != reference
    }


def read_baseline(path: Path) -> Record:
    """What :func:`write_baseline` wrote.

    Raises:
        RatioError: it cannot be read.
    """
    repair = f"Store one: python -m bench.timing.ratios RUN.json --baseline {path} --write"
    stored = _read(path, repair)
    try:
        ratios = {
            (group, candidate): Ratio(entry["reference"], *map(float, pair))
            for group, entry in stored["groups"].items()
            for candidate, pair in entry["ratio and spread"].items()
        }
        return Record(*(stored[key] for key in ("device", "torch", "timer", "date")), ratios)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RatioError(f"{path} is no baseline ({error!r}). {repair}") from None


def write_baseline(record: Record, path: Path) -> None:
    """Stores ratios, rounded, by group."""
    groups: dict[str, Any] = {}
    for (group, candidate), ratio in sorted(record.ratios.items()):
        entry = groups.setdefault(group, {"reference": ratio.reference, "ratio and spread": {}})
        entry["ratio and spread"][candidate] = (float(f"{ratio.ratio:.3g}"), round(ratio.spread, 3))
    about = {key: getattr(record, key) for key in ("device", "torch", "timer", "date")}
    lines = [f"  {json.dumps(group)}: {json.dumps(entry)}" for group, entry in groups.items()]
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    path.write_text("{\n" + head + ' "groups": {\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def compare(now: Record, then: Record) -> list[Line]:
    """All candidates of both, group by group; one that is measured by another reference than before is new."""
    before = {
        key: ratio
        for key, ratio in then.ratios.items()
        if key not in now.ratios or now.ratios[key].reference == ratio.reference
    }
    keys = sorted(now.ratios.keys() | before.keys())
    return [Line(*key, now.ratios.get(key), before.get(key)) for key in keys]


def sentences(lines: Sequence[Line], now: Record, then: Record, baseline: Path) -> list[str]:
    """What is to be said in words: what makes the comparison doubtful, what is missing, new and, last, slower."""
    said = []
    for key, what in (("device", "device"), ("torch", "version of torch"), ("timer", "timer")):
        here, there = getattr(now, key), getattr(then, key)
        if here != there:
            said.append(f"another {what}: {here} here, {there} in the baseline; a change may be due to that alone")
    for line in sorted(lines, key=lambda line: SAID.index(line.verdict)):
        name = f"{line.candidate} in {line.group!r}"
        if line.verdict == "slower":
            noise = 1 / (1 + line.tolerance) - 1
            said.append(
                f"slower: {name} is {line.now.ratio:.3g} times as fast as {line.now.reference!r} and was "
                f"{line.then.ratio:.3g} ({_percent(line.change)}; down to {_percent(noise)} may be noise)"
            )
        elif line.verdict == "new":
            said.append(f"new: {name}, {line.now.ratio:.3g} times as fast as {line.now.reference!r}")
        elif line.verdict == "missing":
            said.append(f"missing: {name} was not measured, or not by the same name")
    if not any(line.verdict == "slower" for line in lines):
        said.append(f"nothing got slower than in {baseline} of {then.date}")
    return said


def table(lines: Sequence[Line]) -> Table:
    """Of what was measured, group by group: the reference's time, and each candidate's with its ratio now and then."""
    made = Table("", "median", "ratio", "before", "change", box=None, pad_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
    group = ""
    for line in lines:
        if not line.now:
            continue
        if line.group != group:
            group = line.group
            made.add_row(Text(group, style="bold"))
            made.add_row(f"  {line.now.reference}", _time(line.now.reference_seconds))
        then, change = (f"{line.then.ratio:.3g}", _percent(line.change)) if line.then else ("-", "new")
        style = {"slower": "red", "faster": "green"}.get(line.verdict)
        made.add_row(f"  {line.candidate}", _time(line.now.seconds), f"{line.now.ratio:.3g}", then, change, style=style)
    return made


def _percent(share: float) -> str:
    return f"{round(100 * share):+d} %"


def _time(seconds: float) -> str:
    unit, scale = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def _read(path: Path, repair: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RatioError(f"{path} cannot be read ({error}). {repair}") from None
    if not isinstance(value, dict):
        raise RatioError(f"{path} holds no object. {repair}")
    return value


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; 0 if nothing got slower or the run was stored, 1 if something did, 2 for what cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m bench.timing.ratios", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN.json", help="as pytest wrote it with --benchmark-json")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="what to compare with (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="store the run as the baseline, whatever it says")
    options = parser.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False, soft_wrap=True)
    try:
        now = read_run(options.run)
        if options.write:
            write_baseline(now, options.baseline)
            console.print(f"stored {len(now.ratios)} ratios in {options.baseline}")
            return 0
        then = read_baseline(options.baseline)
    except (RatioError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = compare(now, then)
    console.print(table(lines))
    for sentence in sentences(lines, now, then, options.baseline):
        console.print(sentence)
    return int(any(line.verdict == "slower" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
