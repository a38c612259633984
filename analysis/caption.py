"""The words around a table: in what setting it was made, what is not complete, what is not to be trusted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from analysis.agreement import NO_SPREAD, OUTSIDE, WITHIN, other_data
from analysis.layout import Caption, Column, Entry
from analysis.mixing import CHECKPOINT, other_code
from analysis.results import DONE
from analysis.setting import Setting
from analysis.source import Cell, Source

DAGGER = "†"
DOUBLE_DAGGER = "‡"


def write(
    source: Source,
    entries: Mapping[tuple[str, Column], Entry],
    cells_of: Mapping[str, Sequence[Cell]],
    *,
    note: str = "",
) -> Caption:
    """The caption of a table with ``entries``.

    Args:
        cells_of: for each row, all its cells, done or not.
        note: what has to be said beside the paper's numbers.
    """
    shown = {cell for entry in entries.values() for cell in entry.cells}
    all_used = [cell for cells in cells_of.values() for cell in cells if cell.id in shown]
    used = [cell for cell in all_used if not cell.imported]
    sentences = [
        _setting(source, used),
        _regime(source),
        _numbers(entries),
        _comparison(source, entries, used),
        _spread(entries),
        _images(all_used, entries),
    ]
    notes = [
        *_no_spread(entries), *_stale(used, cells_of), *_imported(source, shown, cells_of), *_twins(source, shown),
        *_unfinished(cells_of), *_not_run(entries),
    ]  # fmt: skip
    datasets = {column.data for _, column in entries}
    warnings = [
        *_random(used), *_partial(source, used), *_copies(source, datasets), *_code(used, cells_of), *_caveats(used),
    ]  # fmt: skip
    return Caption(
        warnings=tuple(warnings),
        text=" ".join(sentence for sentence in sentences if sentence),
        notes=tuple([note, *notes] if note else notes),
    )


def _setting(source: Source, used: Sequence[Cell]) -> str:
    if source.setting.is_imported:
        return f"Scores of prediction maps made elsewhere; protocol {source.protocol}."
    seeds = sorted({cell.seed for cell in used})
    words = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"Backbone {source.setting.describe()}; protocol {source.protocol}; {words}."


def _regime(source: Source) -> str:
    if source.setting.is_imported:
        return ""
    changed = source.setting.overrides
    return f"Regime: the default but {', '.join(changed)}." if changed else "Regime: the default of each dataset."


def _numbers(entries: Mapping[tuple[str, Column], Entry]) -> str:
    run = [entry for entry in entries.values() if entry.ours]
    unscaled = dict.fromkeys(column.label for (_, column), entry in entries.items() if entry.ours and column.scale == 1)
    scores = f"Scores times 100, {', '.join(unscaled)} as it is" if unscaled else "Scores times 100"
    if any(entry.ours.n > 1 for entry in run):
        parts = [f"{scores}, mean ± standard error over seeds (standard deviation with n-1, over √n)"]
    else:
        parts = [f"{scores}, of one run each, so without a spread"]
    if any(entry.below_plan for entry in run):
        parts.append("(n=) where fewer runs are done than planned or behind the paper's number")
    if any(entry.rank for entry in run):
        parts.append("best of ours bold, second best underlined")
    if any(entry.above or entry.paper_above for entry in entries.values()):
        parts.append(
            "a model trained whole has no place and is underlined where better than all fine-tuned ones, "
            "the paper's among the paper's and ours among ours"
        )
    return "; ".join(parts) + "."


def _comparison(source: Source, entries: Mapping[tuple[str, Column], Entry], used: Sequence[Cell]) -> str:
    """Whether a difference to the paper is printed, and for what it is not."""
    known = {cell.id: cell for cell in used}
    beside = [(column, entry) for (_, column), entry in entries.items() if entry.paper and entry.ours]
    if not any(entry.paper for entry in entries.values()):
        return ""
    data = dict.fromkeys(
        said
        for column, entry in beside
        for said in other_data([known[cell] for cell in entry.cells if cell in known], column.test_set)
    )
    departures = source.setting.departures(source.protocol)
    if departures:
        return f"No difference to the paper is printed, for the setting is another: {'; '.join([*departures, *data])}."
    unlike = ["partial data"] if any(cell.partial for cell in used) else []
    unlike += [f"another number of images, {', '.join(data)}"] if data else []
    return f"Difference: ours minus the paper's{', not printed for ' if unlike else ''}{' and '.join(unlike)}."


def _spread(entries: Mapping[tuple[str, Column], Entry]) -> str:
    """By what rule a number of ours lies within the paper's spread."""
    judged = [entry for entry in entries.values() if entry.spread in (WITHIN, OUTSIDE)]
    if not judged:
        return ""
    text = (
        f"It is {WITHIN} the paper's spread up to two standard errors of the difference and the rounding of the "
        f"paper's last digit, else {OUTSIDE}, as one in nine of equal means of three runs is"
    )
    if any(entry.ours.n == 1 for entry in judged):
        text += "; a single run of ours is taken to scatter like one of the paper's"
    return f"{text}."


def _images(used: Sequence[Cell], entries: Mapping[tuple[str, Column], Entry]) -> str:
    """How many images each test set has; a range where the cells differ."""
    known = {cell.id: cell for cell in used}
    counts: dict[str, set[int]] = {}
    for (_, column), entry in entries.items():
        for cell in (known[name] for name in entry.cells):
            if column.test_set in cell.images:
                counts.setdefault(f"{cell.dataset}/{column.test_set}", set()).add(cell.images[column.test_set])
    parts = [f"{name} {'-'.join(str(n) for n in sorted({min(ns), max(ns)}))}" for name, ns in counts.items()]
    return f"Test images: {', '.join(parts)}." if parts else ""


def _no_spread(entries: Mapping[tuple[str, Column], Entry]) -> Iterator[str]:
    lacking: dict[str, list[str]] = {}
    for (row, column), entry in entries.items():
        if entry.spread == NO_SPREAD:
            lacking.setdefault(row, []).append(f"{column.group} {column.label}")
    if lacking:
        judged = {row for (row, _), entry in entries.items() if entry.spread in (WITHIN, OUTSIDE)}
        rows = [f"{row} ({', '.join(columns)})" if row in judged else row for row, columns in lacking.items()]
        said = f"{NO_SPREAD.capitalize()} in the paper (0 is none), so neither {WITHIN} nor {OUTSIDE}"
        yield f"{said}: {', '.join(rows)}."


def _random(used: Sequence[Cell]) -> Iterator[str]:
    random = [cell.row for cell in used if cell.random_backbone]
    if random and len(random) == len(used):
        yield "RANDOM BACKBONE: no pretrained weights were loaded; these numbers say nothing about SAM."
    elif random:
        yield f"RANDOM BACKBONE, no pretrained weights: {', '.join(dict.fromkeys(random))}."


def _partial(source: Source, used: Sequence[Cell]) -> Iterator[str]:
    limits = [text for text in source.setting.overrides if re.match(r"max_\w*images = ", text)]
    counts = {(cell.data, int(cell.train_images), int(cell.train_images_available)) for cell in used if cell.partial}
    parts = [f"{data} trained on {n} of {available} images" for data, n, available in sorted(counts)]
    if parts or limits:
        yield f"PARTIAL DATA: {'; '.join([*parts, *limits])}."


def _copies(source: Source, datasets: Collection[str]) -> Iterator[str]:
    """Which other copies of the data, or of the checkpoint, other tables are of, and whose cells these are."""
    here = source.setting.made_from
    others: dict[str, dict[str, list[Cell]]] = {}
    for cell in source.elsewhere:
        for name, copy in Setting(cell.setting).made_from.items():
            if name in (CHECKPOINT, cell.data) and name in {CHECKPOINT, *datasets} and here.get(name) != copy:
                others.setdefault(name, {}).setdefault(copy, []).append(cell)
    for name, copies in sorted(others.items()):
        kind = "CHECKPOINT" if name == CHECKPOINT else "DATA"
        named = source.setting.values["checkpoint"] if name == CHECKPOINT else name
        there = "; ".join(f"{copy}: {_seeds(cells)}" for copy, cells in sorted(copies.items()))
        yield (
            f"MIXED {kind}: the results are of several copies of {named}, each in tables of its own. "
            f"Here: {here.get(name, 'none')}. Elsewhere: {there}."
        )


def _code(used: Sequence[Cell], cells_of: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """Which cells were made by other source code than most."""
    odd = other_code(used)
    where = _Places()
    for row, data, cells in _places(cells_of):
        seeds: dict[str, list[int]] = {}
        for cell in cells:
            if cell.id in odd:
                seeds.setdefault(", ".join(odd[cell.id]), []).append(cell.seed)
        for pieces, own in seeds.items():
            where.add(f"{pieces} of seed {', '.join(map(str, sorted(own)))}", row, data)
    if where:
        yield f"MIXED CODE: not made by the source code of the other cells: {where}."


def _seeds(cells: Sequence[Cell]) -> str:
    """The rows of some cells, each with its seeds."""
    rows: dict[str, list[int]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.row, cell.seed)):
        rows.setdefault(cell.row, []).append(cell.seed)
    return ", ".join(f"{row} seed {', '.join(map(str, seeds))}" for row, seeds in rows.items())


def _caveats(used: Sequence[Cell]) -> Iterator[str]:
    """What the methods themselves want said beside their numbers."""
    said = dict.fromkeys(
        (caveat, cell.row) for cell in used for cell_caveats in [cell.caveats] for caveat in cell_caveats
    )
    for caveat in dict.fromkeys(caveat for caveat, _ in said):
        yield f"{', '.join(row for other, row in said if other == caveat)}: {caveat}."


def _stale(used: Sequence[Cell], cells_of: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    stale = {cell.id for cell in used if cell.stale}
    if not stale:
        return
    changed = sorted({name for cell in used for name in cell.stale})
    where = _Places()
    for row, data, cells in _places(cells_of):
        seeds = sorted(cell.seed for cell in cells if cell.id in stale)
        if seeds:
            where.add(f"seed {', '.join(map(str, seeds))}", row, data)
    yield (
        f"{DAGGER} Stale, made before a change of {', '.join(changed)}: {where}. Where a column has fresh "
        "cells too, they have no place and no difference to the paper. "
        "To run them again: python -m bench.run with --rerun stale."
    )


def _imported(source: Source, shown: Collection[str], cells_of: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    where = _Places()
    for row, data, cells in _places(cells_of):
        for cell in cells:
            for test_set, made in cell.provenance.items() if cell.imported and cell.id in shown else ():
                if source.protocol in made:
                    where.add(_made(made[source.protocol]), row, f"{data}/{test_set}")
    if where:
        yield f"{DOUBLE_DAGGER} Imported: scores of maps made elsewhere, in no ranking: {where}."


def _twins(source: Source, shown: Collection[str]) -> Iterator[str]:
    said = [f"{twin.id} (as {used.id})" for used, twin in source.twins if used.id in shown]
    if said:
        yield f"Duplicates, the same training a second time and in no number: {', '.join(said)}."


def _made(provenance: Mapping[str, Any]) -> str:
    """At what size imported maps were scored, and from what."""
    size = f"at {provenance['size']} px" if provenance["size"] else "at the masks' own size"
    return f"{size}, from 8-bit maps" if provenance["quantised"] else size


def _unfinished(cells_of: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    where = _Places()
    for row, data, cells in _places(cells_of):
        states = Counter(cell.state for cell in cells)
        others = [f"{states[state]} {state}" for state in sorted(states) if state != DONE]
        if others:
            where.add(f"{states[DONE]} of {len(cells)} done, {', '.join(others)}", row, data)
    if where:
        yield f"Not complete: {where}."


def _not_run(entries: Mapping[tuple[str, Column], Entry]) -> Iterator[str]:
    where = dict.fromkeys((entry.not_run, row) for (row, _), entry in entries.items() if entry.not_run)
    for reason in dict.fromkeys(reason for reason, _ in where):
        yield f"Ours not run, {reason}: {', '.join(row for other, row in where if other == reason)}."


def _places(cells_of: Mapping[str, Sequence[Cell]]) -> Iterator[tuple[str, str, list[Cell]]]:
    for row, cells in cells_of.items():
        for data in sorted({cell.data for cell in cells}):
            yield row, data, [cell for cell in cells if cell.data == data]


class _Places(dict[str, dict[str, list[str]]]):
    """What is said -> row -> datasets, so that a thing true of many places is said once."""

    def add(self, said: str, row: str, data: str) -> None:
        self.setdefault(said, {}).setdefault(row, []).append(data)

    def __str__(self) -> str:
        parts = []
        for said, rows in self.items():
            places = [f"{row} ({', '.join(data)})" for row, data in rows.items()]
            parts.append(f"{said}: {', '.join(places)}")
        return "; ".join(parts)
