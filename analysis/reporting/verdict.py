"""What the comparisons say, in sentences that claim no more than they do.

Nothing is called better or worse but by the comparison's corrected p value; the rest "cannot be told apart", which is
not "equal". With a single seed nothing is said of methods at all, only of these trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.comparison.layout import Comparison, Difference, Ranking

LEVEL = 0.05
"""Of all tests here: ``Difference.better`` and ``Ranking.critical_difference`` are made with it."""
MOST_NAMED = 15


def mean(comparison: Comparison, row: str) -> float:
    """The mean of a row over its seeds; NaN where it has none."""
    values = list(comparison.values[row].values())
    return math.fsum(values) / len(values) if values else math.nan


def by_mean(comparison: Comparison) -> list[str]:
    """The rows from the best mean to the worst, those without a number last."""
    sign = 1 if comparison.direction == "lower" else -1
    means = {row: mean(comparison, row) for row in comparison.values}
    known = sorted((row for row in means if not math.isnan(means[row])), key=lambda row: sign * means[row])
    return [*known, *(row for row in means if math.isnan(means[row]))]


def verdict(comparison: Comparison) -> str:
    """One dataset's ranking in a few sentences."""
    if len(comparison.values) == 1:
        return f"{_score(comparison, comparison.reference)}; it is the only method here, with nothing beside it."
    if not comparison.direction:
        return f"Neither direction of {comparison.label} is better, so nothing is ranked."
    best = by_mean(comparison)[0]
    if not comparison.differences:
        return (
            f"The best mean is that of {_score(comparison, best)}. Which differences are more than luck is not known: "
            "the comparison could not be made, for the reasons beside it."
        )
    sentences = [_leader(comparison, best), *_tested(comparison)]
    single = [one.row for one in comparison.differences if len(one.seeds) == 1]
    if single:
        whom = "All of it" if len(single) == len(comparison.differences) else f"What is said of {_named(single)}"
        sentences.append(f"{whom} rests on a single seed: with another one the methods may differ otherwise.")
    elif comparison.detectable is not None:
        sentences.append(
            f"With these seeds and images a true difference of {comparison.detectable:.1f} is found four times out of "
            "five; smaller ones are missed more often."
        )
    return " ".join(sentences)


def told_apart(difference: Difference) -> str:
    """What the comparison concludes of one method, in two or three words."""
    return difference.better or "cannot be told apart"


def p_value(p: float) -> str:
    """A p value as it is printed: never as zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ranked(ranking: Ranking) -> str:
    """The average ranks in a few sentences."""
    rows = sorted(ranking.ranks, key=ranking.average)
    places = f"{len(ranking.places)} test set{'' if len(ranking.places) == 1 else 's'}"
    order = ", ".join(f"{row} {ranking.average(row):.2f}" for row in rows)
    told = f"Average ranks over {places}, 1 being the best: {order}."
    if ranking.friedman_p is None or ranking.critical_difference is None:
        return f"{told} No test: it takes three methods and two test sets."
    told += f" Friedman's test of the hypothesis that all are alike: p {_p(ranking.friedman_p)}."
    if ranking.friedman_p >= LEVEL:
        return f"{told} So no two of them are told apart by their ranks."
    critical = ranking.critical_difference
    near = [row for row in rows[1:] if ranking.average(row) - ranking.average(rows[0]) < critical]
    apart = f"{', '.join(near)} cannot be told apart from {rows[0]}" if near else f"{rows[0]} is told apart from all"
    return f"{told} Ranks that differ by less than {critical:.2f} (Nemenyi) are not told apart: {apart}."


def _leader(comparison: Comparison, best: str) -> str:
    others = [
        row for row in comparison.values if row != best and _printed(comparison, row) == _printed(comparison, best)
    ]
    shared = f", to one decimal also that of {_named(others)}" if others else ""
    said = f"The best mean {comparison.label} is that of {_score(comparison, best)}{shared}."
    if best != comparison.reference:
        said += f" All are compared with {_score(comparison, comparison.reference)}."
    return said


def _tested(comparison: Comparison) -> list[str]:
    """What the tests against the reference say: better, worse, not told apart."""
    reference, count, sentences = comparison.reference, len(comparison.differences), []
    for word in ("better", "worse"):
        found = [one for one in comparison.differences if one.better == word]
        if found:
            luck = "luck" if any(len(one.seeds) > 1 for one in found) else "the luck of these images"
            most = _p(max(one.p_holm for one in found))
            most += " or less" if len(found) > 1 and most.startswith("=") else ""
            verb = "is" if len(found) == 1 else "are"
            sentences.append(
                f"{len(found)} of {count} {verb} {word} than {reference} by more than {luck} (p {most} after Holm's "
                f"correction): {_named([one.row for one in found])}."
            )
    level = [one.row for one in comparison.differences if not one.better]
    if level and len(level) == len(comparison.differences):
        others = f"None of the {len(level)} others" if len(level) > 1 else "The other"
        sentences.append(
            f"{others} {'can' if len(level) > 1 else 'cannot'} be told apart from {reference}: {_named(level)}."
        )
    elif level:
        sentences.append(f"Cannot be told apart from {reference}: {_named(level)}.")
    if any(one.low > 0 or one.high < 0 for one in comparison.differences if not one.better):
        sentences.append(
            "An interval that leaves out zero does not suffice: it is of one method alone, and p is corrected for "
            f"{len(comparison.differences)}."
        )
    untested = comparison.values.keys() - {one.row for one in comparison.differences} - {reference}
    if untested:
        rows = [row for row in comparison.values if row in untested]
        sentences.append(f"Not compared, for the reasons below: {_named(rows)}.")
    return sentences


def _score(comparison: Comparison, row: str) -> str:
    seeds = len(comparison.values[row])
    return f"{row}, {_printed(comparison, row)} ({seeds} seed{'' if seeds == 1 else 's'})"


def _printed(comparison: Comparison, row: str) -> str:
    return f"{mean(comparison, row):.1f}"


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _named(rows: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(rows) - MOST_NAMED
    return ", ".join(rows) if more <= 0 else f"{', '.join(rows[:MOST_NAMED])} and {more} more"
