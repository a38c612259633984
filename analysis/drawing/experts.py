"""Which experts are chosen (the paper's figure 8): in total by dataset, by layer, and how it changes over training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import pandas as pd

from analysis.comparison.places import Place, places
from analysis.drawing import choices, expert_panels, words
from analysis.drawing.choices import ONCE, PER_WINDOW
from analysis.drawing.figure import Card, Figure
from analysis.drawing.records import EXPERTS, HISTORY, read_each
from analysis.results import Results, next_command
from analysis.source import file_part

KIND = "experts"
MOST_PANELS, MOST_SEEDS = 4, 4
"""How many datasets stand in one figure, and of how many seeds the single choices are drawn."""


def figures(results: Results, folder: Path, *, protocol: str, tell: words.Tell = lambda line: None) -> list[Figure]:
    """For each setting and row with a router: totals of all test sets, layers of each, training of each dataset."""
    found = places(results, protocol=protocol)
    routed = {cell.id for place in found for cell in place.cells if choices.has_router(folder, cell)}
    methods = dict.fromkeys(cell.method for place in found for cell in place.cells if cell.id in routed)
    if not methods:
        tell(
            f"{KIND}: no method below {folder} chooses experts. {next_command(folder, 'demo')} --only method=conv_lora"
        )
    made = []
    for method in methods:
        own = places(words.narrowed(results, [method]), protocol=protocol)
        for _, together in groupby(own, key=lambda place: place.source.setting.text):
            of_setting = list(together)
            for row in dict.fromkeys(row for place in of_setting for row in place.runs):
                ids = {cell.id for place in of_setting for cell in place.runs.get(row, {}).values()} & routed
                of_row = [own for place in of_setting if (own := words.kept(place, ids)).runs]
                made += _Row(row, of_row, folder, protocol, tell).figures() if of_row else []
    return made


class _Row:
    """The figures of one row of a setting.

    Attributes:
        places: with the cells of this row alone.
    """

    def __init__(self, row: str, found: Sequence[Place], folder: Path, protocol: str, tell: words.Tell) -> None:
        self.row, self.places, self.tell = row, found, tell
        self.method = found[0].cells[0].method
        self.folder, self.command = folder, words.command(KIND, folder, protocol)

    def figures(self) -> list[Figure]:
        return [*self._totals_and_layers(), *self._training()]

    def _name(self, *parts: str) -> str:
        return "-".join((KIND, *parts, file_part(self.row, self.method)))

    def _totals_and_layers(self) -> list[Figure]:
        name = self.places[0].source.table_name(self._name())
        read = partial(choices.tested, self.folder)
        cells = {cell.id: cell for place in self.places for cell in place.cells}
        made = read_each(cells.values(), read, self.folder, EXPERTS, what=name, tell=self.tell)
        counted = []
        for place in self.places:
            own = [made[cell.id] for cell in place.cells if cell.id in made]
            frames = [frame[place.column.test_set] for frame in own if place.column.test_set in frame]
            counted += [(words.kept(place, made), pd.concat(frames, ignore_index=True))] if frames else []
        parts = [counted[start : start + MOST_PANELS] for start in range(0, len(counted), MOST_PANELS)]
        totals = [
            self._totals(part, name if len(parts) == 1 else f"{name}-{number}") for number, part in enumerate(parts, 1)
        ]
        return totals + [self._layers(place, counts) for place, counts in counted]

    def _totals(self, counted: Sequence[tuple[Place, pd.DataFrame]], name: str) -> Figure:
        """How often each expert was chosen, by dataset: the paper's figure 8."""
        frames, never = [], []
        for place, counts in counted:
            kinds = [*(["all layers"] if counts["decides"].nunique() > 1 else []), *sorted(counts["decides"].unique())]
            for kind in kinds:
                own = counts if kind == "all layers" else counts[counts["decides"] == kind]
                sums = own.groupby(["seed", "scale"])["count"].sum().reset_index().assign(mark="seed")
                mean = sums.groupby("scale")["count"].mean().reset_index().assign(mark="mean")
                both = pd.concat([sums, mean])
                frames.append(both.assign(dataset=place.column.group, layers=kind))
            never += _never_chosen(place, counts)
        columns = ["dataset", "layers", "mark", "seed", "scale", "count"]
        data = pd.concat(frames, ignore_index=True)[columns].astype({"seed": "Int64"})
        dead = f" Chosen by no layer for any image: {'; '.join(never)}." if never else ""
        text = (
            f"How often {self.row} chose the expert of each scale while the test images were predicted: bars are means "
            f"over seeds, dots seeds, the dashed line would be an even use.{_who_decides(counted[0][1])}{dead}"
        )
        title = f"Experts chosen by {self.row}"
        draw = partial(expert_panels.totals, method=self.method, title=title, below=counted[0][0].setting)
        return Figure(self._card(name, title, [place for place, _ in counted], text, paper_figure="8"), data, draw)

    def _layers(self, place: Place, counts: pd.DataFrame) -> Figure:
        """The share of each expert in the decisions of each layer, and their entropy."""
        by = ["seed", "layer", "decides"]
        each = choices.shares(counts, by).assign(mark="share")
        mean = each.groupby(["layer", "decides", "scale"])["share"].mean().reset_index().assign(mark="mean share")
        entropy = choices.entropies(counts, by).assign(mark="entropy")
        columns = ["mark", "seed", "layer", "decides", "scale", "count", "share", "entropy", "relative"]
        data = pd.concat([mean, each, entropy], ignore_index=True)[columns]
        data = data.astype({"seed": "Int64", "scale": "Int64", "count": "Int64"})
        dead = counts[counts["count"] == 0].groupby("seed").size()
        total = int(counts.groupby("seed").size().max())
        unused = ", ".join(f"{dead.get(seed, 0)} (seed {seed})" for seed in sorted(counts["seed"].unique()))
        text = (
            f"The share of each expert in the decisions of each layer of {self.row} on the test images, mean over "
            f"seeds and {_which_seeds(counts)}; white: never chosen. Right, the entropy of these decisions, a dot a "
            "seed and a line for the mean: 0 bits where a layer always takes the same expert."
            f"{_who_decides(counts)} Of {total} experts in all layers never chosen: {unused}."
        )
        title = f"{place.column.group}: experts chosen by each layer of {self.row}"
        name = f"{self._name('layers')}-{words.name_of_dataset(place)}-{place.column.test_set}"
        draw = partial(
            expert_panels.layers, method=self.method, title=title, below=place.setting, most_seeds=MOST_SEEDS
        )
        return Figure(self._card(name, title, [place], text), data, draw)

    def _training(self) -> list[Figure]:
        """Of each dataset, the shares of the experts after each epoch and the mean entropy over layers."""
        made = []
        for place in words.each_dataset(self.places):
            name = f"{self._name('training')}-{words.name_of_dataset(place)}"
            read = partial(choices.validated, self.folder)
            found = read_each(place.cells, read, self.folder, HISTORY, what=name, tell=self.tell)
            if found:
                made.append(
                    self._over_epochs(words.kept(place, found), pd.concat(found.values(), ignore_index=True), name)
                )
        return made

    def _over_epochs(self, place: Place, counts: pd.DataFrame, name: str) -> Figure:
        when = ["seed", "epoch", "step", "decides"]
        each = choices.shares(counts, [*when, "layer"])
        shares = each.groupby([*when, "scale"])["share"].mean().reset_index().assign(mark="share")
        by_layer = choices.entropies(counts, [*when, "layer"])
        entropy = by_layer.groupby(when)[["entropy", "relative"]].mean().reset_index().assign(mark="entropy")
        columns = ["mark", *when, "scale", "share", "entropy", "relative"]
        data = pd.concat([shares, entropy], ignore_index=True)[columns].astype({"scale": "Int64"})
        text = (
            f"The choices of {self.row} on the validation images after each epoch: the share of each expert in the "
            f"decisions, averaged over layers, of {_which_seeds(counts)}; right, the mean over layers of the entropy "
            f"of their decisions, a line a seed.{_who_decides(counts)}"
        )
        title = f"{words.title_of(place, test_set=False)}: experts chosen by {self.row} over training"
        draw = partial(
            expert_panels.training, method=self.method, title=title, below=place.setting, most_seeds=MOST_SEEDS
        )
        return Figure(self._card(name, title, [place], text, images=False), data, draw)

    def _card(
        self, name: str, title: str, found: Sequence[Place], text: str, *, images: bool = True, **about: str
    ) -> Card:
        where = {
            name: ", ".join(dict.fromkeys(getattr(place.column, attribute) for place in found))
            for name, attribute in (("dataset", "data"), ("test_set", "test_set"))
        }
        return Card(
            name=name,
            kind=KIND,
            title=title,
            caption=words.caption(found, text, images=images),
            command=self.command,
            cells=words.ids(cell for place in found for cell in place.cells),
            about=words.about(found[0], **where, **about),
        )


def _who_decides(counts: pd.DataFrame) -> str:
    """How often layers decide for an image, as a sentence."""
    first = counts[counts["seed"] == counts["seed"].iloc[0]]
    if "epoch" in first:
        first = first[first["epoch"] == first["epoch"].iloc[0]]
    totals = first.groupby(["decides", "layer"])["count"].sum().reset_index()
    once = totals[totals["decides"] == ONCE]
    if len(once) == len(totals):
        return (
            " Every layer decides once for an image: at this size it is one window, or the gate sees the whole image."
        )
    if once.empty:
        return " Every layer decides for each attention window, those that are part padding included."
    windows = int(totals[totals["decides"] == PER_WINDOW]["count"].iloc[0] // once["count"].iloc[0])
    layers = ", ".join(map(str, once["layer"]))
    return (
        f" Layers {layers} decide once for an image ({ONCE}), the others for each of its {windows} attention windows, "
        f"those that are part padding included ({PER_WINDOW}), so that these make {windows} times as many decisions."
    )


def _which_seeds(counts: pd.DataFrame) -> str:
    seeds = counts["seed"].nunique()
    return "each seed" if seeds <= MOST_SEEDS else f"the first {MOST_SEEDS} seeds"


def _never_chosen(place: Place, counts: pd.DataFrame) -> list[str]:
    """The scales that no layer of a run chose, by seed."""
    sums = counts.groupby(["seed", "scale"])["count"].sum()
    unused = [(seed, scale) for (seed, scale), count in sums.items() if count == 0]
    return [
        f"scale {', '.join(str(scale) for _, scale in own)} ({place.column.group}, seed {seed})"
        for seed, own in ((seed, list(group)) for seed, group in groupby(unused, key=lambda item: item[0]))
    ]
