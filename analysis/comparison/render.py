"""Comparisons and rankings as text: Markdown and csv; how their numbers are written everywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from analysis.comparison.inference import ALPHA, POWER
from analysis.comparison.layout import Comparison, Ranking
from analysis.render import ARROWS, escape, pipes
from analysis.statistics import summarise

CSV_COLUMNS = (
    "comparison", "setting", "protocol", "dataset", "test_set", "metric", "reference", "row", "seeds", "scores", "mean",
    "paired_seeds", "differences", "difference", "low", "high", "p", "p_holm", "effect", "verdict", "images",
    "detectable",
)  # fmt: skip
RANKING_COLUMNS = ("ranking", "setting", "protocol", "place", "row", "rank", "friedman_p", "critical_difference")
NUMBERS = ("mean", "difference", "95 % interval", "p", "p (Holm)", "effect", "verdict")
"""Headings of :func:`numbers`."""


def title(comparison: Comparison) -> str:
    """What is compared, where, and with which row; of pages and terminals."""
    arrow = ARROWS[comparison.direction]
    return f"{comparison.label}{arrow} on {comparison.data}/{comparison.test_set} against {comparison.reference}"


def facts(comparison: Comparison) -> Iterator[str]:
    """Setting and size, and what could have been found; whole sentences."""
    scope = f"Backbone {comparison.setting}; protocol {comparison.protocol}"
    yield f"{scope}; {comparison.images} images; scores times 100."
    if comparison.detectable is not None:
        yield (
            f"A true difference of {comparison.detectable:.2f} would be found with a probability of {POWER:g} in a "
            f"single test at {ALPHA:g}; smaller ones less often."
        )


def by_seed(comparison: Comparison) -> list[list[str]]:
    """A heading and a line for each row, with the score of every seed; blank where the row lacks it."""
    seeds = sorted({seed for scores in comparison.values.values() for seed in scores})
    rows = {row: comparison.values[row] for row in numbers(comparison)}
    head = ["Method", *(f"seed {seed}" for seed in seeds)]
    return [head, *([row, *(_score(scores.get(seed)) for seed in seeds)] for row, scores in rows.items())]


def numbers(comparison: Comparison) -> dict[str, list[str]]:
    """Row -> its numbers under :data:`NUMBERS`: the reference first, then from the best to the worst."""
    found = {comparison.reference: [_mean(comparison, comparison.reference), "reference", *[""] * (len(NUMBERS) - 2)]}
    for difference in comparison.differences:
        found[difference.row] = [
            _mean(comparison, difference.row),
            signed(difference.mean),
            f"{signed(difference.low)} to {signed(difference.high)}",
            f"{difference.p:.4f}",
            f"{difference.p_holm:.4f}",
            "" if difference.effect is None else signed(difference.effect),
            difference.better,
        ]
    others = [row for row in comparison.values if row not in found]
    return found | {row: [_mean(comparison, row), *[""] * (len(NUMBERS) - 1)] for row in others}


def markdown(comparison: Comparison) -> str:
    """A Markdown document: warnings, facts, a table with a column a seed, notes."""
    drawn = {"Method": NUMBERS, **numbers(comparison)}
    rows = [[escape(text) for text in (*row, *drawn[row[0]])] for row in by_seed(comparison)]
    return _document(title(comparison), comparison.warnings, " ".join(facts(comparison)), rows, comparison.notes)


def long_csv(comparison: Comparison) -> str:
    """One line a row, in the printed scale."""
    by_row = {difference.row: difference for difference in comparison.differences}
    where = (comparison.name, comparison.setting, comparison.protocol, comparison.data, comparison.test_set)
    size = (comparison.images, _number(comparison.detectable))
    lines = []
    for row in numbers(comparison):
        scores, found = comparison.values[row], by_row.get(row)
        own = (comparison.metric, comparison.reference, row, _joined(scores), _joined(map(_number, scores.values())))
        drawn = [None] * 9
        if found:
            values = (found.mean, found.low, found.high, found.p, found.p_holm, found.effect)
            pairs = (_joined(found.seeds), _joined(map(_number, found.per_seed)))
            drawn = [*pairs, *map(_number, values), found.better or None]
        lines.append((*where, *own, _number(summarise(list(scores.values())).mean), *drawn, *size))
    return _csv(CSV_COLUMNS, lines)


def ranking_title(ranking: Ranking) -> str:
    """Of pages and terminals."""
    return f"Average ranks over {len(ranking.places)} test sets"


def ranking_facts(ranking: Ranking) -> Iterator[str]:
    """Setting, and what the tests over all places say; whole sentences."""
    yield f"Backbone {ranking.setting}; protocol {ranking.protocol}; 1 is the best rank."
    if ranking.friedman_p is not None and ranking.critical_difference is not None:
        yield (
            f"Friedman's test of all methods being alike: p = {ranking.friedman_p:.4f}. Nemenyi's critical difference "
            f"at {ALPHA:g}: {ranking.critical_difference:.2f}; average ranks that are closer are not told apart."
        )


def ranking_rows(ranking: Ranking) -> list[list[str]]:
    """The heading and a line for each row, by average rank."""
    head = ["Method", "average rank", *ranking.places]
    ranks = ranking.ranks.items()
    return [head, *([row, f"{ranking.average(row):.2f}", *(f"{rank:g}" for rank in own)] for row, own in ranks)]


def ranking_markdown(ranking: Ranking) -> str:
    """A page: warnings first, then the facts, the ranks and the notes."""
    rows = [[escape(text) for text in row] for row in ranking_rows(ranking)]
    return _document(ranking_title(ranking), ranking.warnings, " ".join(ranking_facts(ranking)), rows, ranking.notes)


def ranking_csv(ranking: Ranking) -> str:
    """One line for each row in each place."""
    where = (ranking.name, ranking.setting, ranking.protocol)
    test = (_number(ranking.friedman_p), _number(ranking.critical_difference))
    return _csv(
        RANKING_COLUMNS,
        [
            (*where, place, row, rank, *test)
            for row, own in ranking.ranks.items()
            for place, rank in zip(ranking.places, own, strict=True)
        ],
    )


def signed(value: float) -> str:
    """Two decimals and the sign, which a zero does not have."""
    text = f"{value:+.2f}"
    return text[1:] if text in ("+0.00", "-0.00") else text


def _mean(comparison: Comparison, row: str) -> str:
    return _score(summarise(list(comparison.values[row].values())).mean)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _document(heading: str, warnings: Sequence[str], text: str, rows: Iterable[list[str]], notes: Sequence[str]) -> str:
    said = [f"# {escape(heading)}", *(f"**{escape(line)}**" for line in warnings), escape(text), pipes(rows)]
    return "\n\n".join([*said, *(escape(note) for note in notes)]) + "\n"


def _joined(values: Iterable[Any]) -> str:
    return " ".join(map(str, values))


def _number(value: float | None) -> float | None:
    """Without the last digits, in which libraries of linear algebra differ."""
    return None if value is None else round(value, 6) + 0.0


def _csv(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()
