"""Compares all methods of a place with one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.comparison import remarks
from analysis.comparison.inference import ALPHA, holm
from analysis.comparison.layout import Comparison, Difference
from analysis.comparison.pairs import Pair, detectable_difference, pair_with
from analysis.comparison.places import Place, places
from analysis.comparison.reading import read_per_image
from analysis.results import NoResults, Results, next_command

ROUNDS = 10_000
_SIGN = {"higher": 1, "lower": -1, "": 0}


def compare(
    results: Results,
    folder: Path,
    *,
    protocol: str = "paper",
    against: str | None = None,
    dataset: str | None = None,
    metric: str | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Comparison]:
    """A comparison for each place; where nothing can be compared it has no differences, and its warnings say why.

    Args:
        folder: the results folder.
        against: the row that the others are compared with; by default the best one of each place.
        metric: by default the leading one of each dataset.
        rounds, seed: of the bootstrap.

    Raises:
        NoResults: an unknown dataset, metric or row; the message lists those there are.
    """
    found = places(results, protocol=protocol, dataset=dataset, metric=metric)
    rows = sorted({row for place in found for row in place.runs})
    if found and against is not None and against not in rows:
        raise NoResults(
            f"unknown row {against!r}. Known: {', '.join(rows)}. Next: python -m analysis.compare --against '{rows[0]}'"
        )
    return [_compare(place, folder, against, rounds, seed) for place in found]


def _compare(place: Place, folder: Path, against: str | None, rounds: int, seed: int) -> Comparison:
    data, column = read_per_image(folder, place), place.column
    sign = _SIGN[column.better]
    usable = [row for row in place.runs if row in data.runs]
    best = min(usable or place.runs, key=lambda row: (-sign * place.mean(row), row))
    reference = against if against in place.runs else best
    nothing = remarks.nothing_compared(place, usable, reference, against, next_command(folder))
    name = f"{column.data}/{column.test_set}"
    pairs = (
        [] if nothing else pair_with(data, reference, usable, scale=column.scale, rounds=rounds, seed=seed, name=name)
    )
    pairs.sort(key=lambda pair: (-sign * pair.estimate.mean, pair.row))
    said = remarks.notes(data, pairs, reference, chosen=against is not None, rounds=rounds, seed=seed)
    return Comparison(
        name=place.name,
        setting=place.setting,
        protocol=place.source.protocol,
        data=column.data,
        test_set=column.test_set,
        metric=column.metric,
        label=column.label,
        direction=column.better,
        reference=reference,
        values={row: place.scores(row) for row in dict.fromkeys([reference, *place.runs])},
        images=len(data.images),
        differences=tuple(_differences(place, pairs, sign)),
        detectable=detectable_difference(pairs),
        warnings=(
            *place.warnings, *([nothing] if nothing else []), *remarks.refused(data), *remarks.single_seeds(pairs),
        ),
        notes=(*said, *place.notes),
        cells=tuple(cell.id for cell in place.cells),
    )  # fmt: skip


def _differences(place: Place, pairs: Sequence[Pair], sign: int) -> Iterator[Difference]:
    corrected = holm([pair.estimate.p for pair in pairs])
    for pair, p_holm in zip(pairs, corrected, strict=True):
        found = pair.estimate
        direction = "better" if sign * found.mean > 0 else "worse"
        yield Difference(
            row=pair.row,
            method=next(iter(place.runs[pair.row].values())).method,
            seeds=pair.seeds,
            per_seed=found.per_seed,
            mean=found.mean,
            low=found.low,
            high=found.high,
            p=found.p,
            p_holm=p_holm,
            effect=pair.effect,
            better=direction if p_holm < ALPHA else "",
        )
