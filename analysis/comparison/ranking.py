"""Average ranks of methods over datasets, with Friedman's test and Nemenyi's critical difference.

After Demšar, "Statistical comparisons of classifiers over multiple data sets" (JMLR 2006).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from analysis.comparison.inference import ALPHA
from analysis.comparison.layout import Ranking
from analysis.comparison.places import Place, places
from analysis.results import Results


def rank(results: Results, *, protocol: str = "paper") -> list[Ranking]:
    """A ranking for each setting with two places or more, in all of which two rows or more have a score."""
    found = [place for place in places(results, protocol=protocol) if place.column.better]
    groups = groupby(found, key=lambda place: place.source.setting.text)
    return [ranking for _, group in groups if (ranking := _rank(list(group)))]


def _rank(group: Sequence[Place]) -> Ranking | None:
    from scipy.stats import rankdata

    all_rows = dict.fromkeys(row for place in group for row in place.runs)
    rows = [row for row in all_rows if all(row in place.runs for place in group)]
    if len(rows) < 2 or len(group) < 2:
        return None
    by_place = []
    for place in group:
        sign = -1 if place.column.better == "higher" else 1
        by_place.append(rankdata([sign * place.mean(row) for row in rows]).tolist())
    ranks = dict(zip(rows, zip(*by_place, strict=True), strict=True))
    ordered = sorted(rows, key=lambda row: (sum(ranks[row]), row))
    can_test = len(rows) >= 3
    left_out = {row: [place for place in group if row not in place.runs] for row in all_rows if row not in rows}
    source = group[0].source
    return Ranking(
        name=source.table_name("ranks"),
        setting=group[0].setting,
        protocol=source.protocol,
        places=tuple(f"{_where(place)}: {place.column.label}" for place in group),
        ranks={row: ranks[row] for row in ordered},
        methods={row: next(iter(group[0].runs[row].values())).method for row in ordered},
        friedman_p=friedman(by_place) if can_test else None,
        critical_difference=critical_difference(len(rows), len(group)) if can_test else None,
        warnings=tuple(dict.fromkeys(line for place in group for line in place.warnings)),
        notes=(*_notes(group, left_out, can_test), *dict.fromkeys(line for place in group for line in place.notes)),
        cells=tuple(cell.id for place in group for row in rows for cell in place.runs[row].values()),
    )


def friedman(ranks: Sequence[Sequence[float]]) -> float:
    """The p value of Friedman's test, with its correction for ties.

    Args:
        ranks: of at least three methods, in each place.
    """
    from scipy.stats import friedmanchisquare

    methods = list(zip(*ranks, strict=True))
    if all(len(set(place)) == 1 for place in ranks):
        return 1.0  # nothing differs anywhere, of which the test makes 0/0
    return float(friedmanchisquare(*methods).pvalue)


def critical_difference(methods: int, places: int) -> float:
    """Nemenyi's: average ranks of two methods that differ by as much are told apart."""
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(1 - ALPHA, methods, math.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * places)))


def _where(place: Place) -> str:
    return f"{place.column.data}/{place.column.test_set}"


def _notes(group: Sequence[Place], left_out: dict[str, list[Place]], can_test: bool) -> Iterator[str]:
    yield "Ranks are of means over seeds by the leading metric of each test set; equal means share their ranks."
    if can_test:
        yield (
            f"With {len(group)} test sets the test is weak: methods that it does not tell apart may still differ, and "
            "comparisons on single datasets may tell them apart."
        )
    else:
        yield "Neither Friedman's test nor a critical difference: they take three methods."
    if len({place.column.data for place in group}) < len(group):
        yield "Test sets of one dataset are scored by the same trainings, but count as if they were independent."
    for row, lacking in left_out.items():
        yield f"Left out: {row}, without scores on {', '.join(map(_where, lacking))}."
