"""What figures of scores share: the order of methods, what stands in captions, the command that draws them again.

Such a figure is about a place (:mod:`analysis.comparison.places`), or about all test sets of its dataset.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.comparison.places import Place
from analysis.results import Results, next_command
from analysis.source import Cell
from analysis.statistics import Summary, summarise

Tell = Callable[[str], None]
"""Takes a line on what could not be drawn and which command makes what is missing."""


def summary(place: Place, row: str) -> Summary:
    """A row's mean over its runs and their standard error, in the printed scale."""
    return summarise(list(place.scores(row).values()))


def best_first(place: Place) -> list[str]:
    """The rows of a place from the best mean to the worst."""
    sign = 1 if place.column.better == "lower" else -1
    return sorted(place.runs, key=lambda row: sign * place.mean(row))


def method_of(place: Place, row: str) -> str:
    """The name that gives a row its colour."""
    return next(iter(place.runs[row].values())).method


def ids(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Of the cells behind a figure, each once and in their order."""
    return tuple(dict.fromkeys(cell.id for cell in cells))


def each_dataset(found: Iterable[Place]) -> list[Place]:
    """The first place of each setting and dataset: for figures in which no test set is seen."""
    first: dict[tuple[str, str], Place] = {}
    for place in found:
        first.setdefault((place.source.setting.text, place.column.data), place)
    return list(first.values())


def name_of_dataset(place: Place) -> str:
    """The part of a place's file name that says neither test set nor metric."""
    column = place.column
    return place.name.removesuffix(f"-{column.test_set}-{column.metric}".replace(":", "-").replace("/", "-"))


def title_of(place: Place, *, test_set: bool = True) -> str:
    """The dataset's heading, without its test set where that is not seen."""
    return place.column.group if test_set else place.column.group.partition(": ")[0]


def narrowed(results: Results, methods: Iterable[str]) -> Results:
    """The results of some methods alone, for figures whose captions need not say what concerns others."""
    cells = results.cells[results.cells["method"].isin(set(methods))]
    return replace(results, cells=cells, scores=results.scores[results.scores["id"].isin(cells["id"])])


def kept(place: Place, cells: Container[str]) -> Place:
    """A place with some of its cells, by their ids; a row without any is gone."""
    runs = {row: {seed: c for seed, c in own.items() if c.id in cells} for row, own in place.runs.items()}
    return replace(place, runs={row: own for row, own in runs.items() if own})


def below(place: Place) -> str:
    """What stands in the picture under its title: the setting, and what of it is from random weights."""
    random = dict.fromkeys(cell.row for cell in place.cells if cell.random_backbone)
    if not random or place.source.setting.is_random:
        return place.setting
    return f"{place.setting}; RANDOM BACKBONE: {', '.join(random)}"


def caption(places: Iterable[Place], *sentences: str, images: bool = True) -> str:
    """Warnings, the sentences, then setting, runs and test images, then what is stale or not complete.

    Args:
        places: of one setting.
        images: False where no test set is seen.
    """
    places = list(places)
    source = places[0].source
    changed = source.setting.overrides
    regime = f"regime the default but {', '.join(changed)}" if changed else "regime the default of each dataset"
    copies = [f"{name} of {copy}" for name, copy in source.setting.made_from.items()]
    facts = [f"Backbone {source.setting.describe()}", regime, *copies, f"protocol {source.protocol}"]
    facts += [_runs(places), *([_images(places)] if images else [])]
    warnings = dict.fromkeys(line for place in places for line in place.warnings)
    notes = dict.fromkeys(line for place in places for line in place.notes)
    return " ".join([*warnings, *sentences, f"{'; '.join(facts)}.", *notes])


def about(place: Place, **more: Any) -> dict[str, Any]:
    """Facts of a card."""
    column = place.column
    own = {"dataset": column.data, "test_set": column.test_set, "metric": column.metric}
    return {**own, "setting": place.setting, "protocol": place.source.protocol, **more}


def command(kind: str, folder: Path, protocol: str, *options: str) -> str:
    """What draws the figures of a kind again."""
    words = ["python", "-m", "analysis.figures", "--kind", kind]
    words += [] if folder == Path("results") else ["--results", folder.as_posix()]
    words += [] if protocol == "paper" else ["--protocol", protocol]
    return shlex.join([*words, *options])


def nothing_to_compare(kind: str, folder: Path) -> str:
    """The line on a kind of figure that wants two methods, and the command that makes them."""
    return f"{kind}: no two methods below {folder} share a dataset and a setting. {next_command(folder)}"


def _runs(places: Sequence[Place]) -> str:
    runs = [own for place in places for own in place.runs.values()]
    seeds = sorted({seed for own in runs for seed in own})
    counts = _range(len(own) for own in runs)
    each = " a method" if any(len(place.runs) > 1 for place in places) else ""
    return (
        f"{counts} run{'' if counts == '1' else 's'}{each}, "
        f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    )


def _images(places: Sequence[Place]) -> str:
    counts = {
        place.column.group: _range(cell.images[place.column.test_set] for cell in place.cells) for place in places
    }
    return f"n = {', '.join(f'{n} test images ({group})' for group, n in counts.items())}"


def _range(counts: Iterable[int]) -> str:
    known = sorted(set(counts))
    return " to ".join(dict.fromkeys(str(count) for count in (known[0], known[-1])))
