"""What the results are and what is wrong with them: the page's head, its warnings, and the cells that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from analysis.reporting.grid import Head, Value, grid
from analysis.reporting.html import Child, Markup, join, tag
from analysis.reporting.provenance import Made
from analysis.results import DONE, Results
from analysis.setting import Setting

BROKEN = ("failed", "oom", "timeout")
MOST_LISTED = 12
MOST_BROKEN = 200


def facts(results: Results, made: Mapping[str, Made], folder: str) -> Markup:
    """The results folder, its cells by state, settings, devices, versions, commits and dates."""
    done = [one for one in made.values() if one.state == DONE]
    dates = sorted(one.date[:10] for one in done if one.date)
    states = Counter(one.state for one in made.values() if one.kind != "probe")
    of_done = results.cells[results.cells["state"] == DONE]
    pairs: list[tuple[str, Child]] = [
        ("results", tag("code", folder)),
        ("cells", ", ".join(f"{count} {state}" for state, count in sorted(states.items()))),
        ("settings", _settings(results)),
        ("datasets", _counted(of_done["dataset"])),
        ("methods", _counted(of_done["method"])),
        ("device", _counted(one.origin.device for one in done)),
        ("threads a cell", _counted(one.origin.threads for one in done)),
        ("torch", _counted(one.origin.torch for one in done)),
        ("commit", _counted(one.origin.commit for one in done)),
        ("trained", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else ""),
    ]
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs if value])


def warnings(results: Results, made: Mapping[str, Made], unread: Sequence[str]) -> Markup:
    """Whatever keeps numbers from being taken at their face value, each with what to do about it."""
    return join([tag("p", line, class_="warning") for line in _warnings(results, made)], _skipped(unread))


def broken(made: Mapping[str, Made], options: str) -> Markup | None:
    """The cells that ended without a result, with the reason; None where there is none.

    Args:
        options: what follows a command, " --results FOLDER" or nothing.
    """
    found = [one for one in made.values() if one.state in BROKEN]
    if not found:
        return None
    heads = [Head("Cell"), Head("state"), Head("reason"), Head("attempt"), Head("why")]
    rows = [
        (one.id, [
            Value(one.state), Value(one.reason or "no reason was recorded"), Value(one.attempt, one.attempt),
            Value(tag("code", f"python -m bench.why {one.id}{options}")),
        ])
        for one in found[:MOST_BROKEN]
    ]  # fmt: skip
    more = len(found) - MOST_BROKEN
    told = f"{more} more are not listed here: python -m bench.status{options} counts them." if more > 0 else None
    again = tag(
        "p", "To run them again: ", tag("code", "python -m bench.run --rerun failed,oom"), " with their matrix."
    )
    return join(grid(f"{len(found)} cells without a result", heads, rows), told and tag("p", told), again)


def all_cells(made: Mapping[str, Made]) -> Markup:
    """A list that the page's script fills when it is unfolded: with thousands of cells it would be most of the page."""
    box = tag("input", type="search", data_list=True, autocomplete="off", placeholder="a state, a device, a commit")
    asked = tag("p", tag("label", "Show those with ", box), class_="filter")
    return tag("details", tag("summary", f"All {len(made)} cells"), asked, tag("div", id="cell-list"), id="all-cells")


def _warnings(results: Results, made: Mapping[str, Made]) -> Iterator[str]:
    frame = results.cells[results.cells["state"] == DONE]
    done = [one for one in made.values() if one.state == DONE]
    random = int((frame["random_backbone"] == True).sum())  # noqa: E712 (blank for cells of other kinds)
    if random:
        yield f"RANDOM BACKBONE in {random} of {_cells(len(frame))}: these numbers say nothing about SAM."
    trained, available = (frame[key].astype(float) for key in ("train_images", "train_images_available"))
    partial = int(((frame["shots"] == "") & (trained < available)).sum())
    if partial:
        yield f"PARTIAL DATA in {partial} of {_cells(len(frame))}: trained on a part of the training images."
    stale = [one for one in done if one.stale]
    if stale:
        changed = sorted(set(chain.from_iterable(one.stale for one in stale)))
        yield (
            f"STALE are {len(stale)} of {_cells(len(done))}, made before a change of {', '.join(changed)}. "
            "To run them again: python -m bench.run with --rerun stale."
        )
    dirty = sum(one.origin.is_dirty for one in done)
    if dirty:
        yield f"UNCOMMITTED CHANGES in {dirty} of {_cells(len(done))}: the files differed from the commit."
    unknown = sum(not one.origin.commit for one in done if one.kind != "imported")
    if unknown:
        yield f"COMMIT NOT KNOWN of {unknown} of {_cells(len(done))}."
    ended = Counter(one.state for one in made.values() if one.state in BROKEN)
    if ended:
        yield f"WITHOUT A RESULT: {', '.join(f'{n} {state}' for state, n in sorted(ended.items()))}; listed below."


def _cells(done: int) -> str:
    return f"{done} done cell{'' if done == 1 else 's'}"


def _skipped(lines: Sequence[str]) -> Markup | None:
    if not lines:
        return None
    items = tag("ul", [tag("li", line) for line in _cut(lines)])
    return tag("details", tag("summary", f"UNREADABLE: {len(lines)} things could not be used"), items, class_="warning")


def _settings(results: Results) -> Child:
    """Each setting with its number of done cells, most first."""
    counts = Counter(results.cells[results.cells["state"] == DONE]["setting"])
    said = []
    for text, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        setting = Setting(text)
        said.append(f"{', '.join([setting.describe(), *setting.overrides])} ({count} done)")
    return [tag("span", line, class_="line") for line in _cut(said)]


def _counted(values: Iterable[str]) -> str:
    """The different values, with how often each occurs where there are several."""
    counts = Counter(value for value in values if value)
    if len(counts) < 2:
        return next(iter(counts), "")
    return "; ".join(_cut([f"{value} ({count})" for value, count in sorted(counts.items())]))


def _cut(lines: Sequence[str]) -> list[str]:
    """The first :data:`MOST_LISTED`, and how many more there are."""
    more = len(lines) - MOST_LISTED
    return [*lines[:MOST_LISTED], f"and {more} more"] if more > 0 else list(lines)
