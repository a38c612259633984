"""What has to be said beside a comparison: why something was not compared, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.comparison.pairs import Pair
from analysis.comparison.places import Place
from analysis.comparison.reading import PerImage

_MOST_NAMES = 3


def refused(data: PerImage) -> Iterator[str]:
    """One line for each reason for which files are not used."""
    for reason in dict.fromkeys(data.refused.values()):
        cells = [cell for cell, why in data.refused.items() if why == reason]
        more = f" and {len(cells) - _MOST_NAMES} more" if len(cells) > _MOST_NAMES else ""
        yield f"NOT COMPARED: {', '.join(cells[:_MOST_NAMES])}{more}: {reason}. Next: {data.remedies[cells[0]]}"


def nothing_compared(place: Place, usable: Sequence[str], reference: str, against: str | None, command: str) -> str:
    """Why the place has no differences; empty where it can have some.

    Args:
        usable: rows with a file that can be used.
        command: what makes more results, as a sentence.
    """
    rows = ", ".join(place.runs)
    if place.column.better not in ("higher", "lower"):
        why = f"no result says whether {place.column.metric} is better higher or lower"
    elif len(place.runs) == 1:
        why = f"only {rows} has scores here, and it takes two methods. {command}"
    elif against not in (None, reference):
        why = f"{against} has no scores here; there are: {rows}"
    elif not usable:
        why = f"no file of single images of {rows} can be used"
    elif reference not in usable:
        why = f"no file of the reference {reference} can be used"
    elif len(usable) == 1:
        why = f"only of {usable[0]} files can be used"
    elif not any(set(place.runs[reference]) & set(runs) for row, runs in place.runs.items() if row != reference):
        why = f"no other method has a seed of {reference}'s"
    else:
        return ""
    return f"NOTHING COMPARED: {why}"


def single_seeds(pairs: Sequence[Pair]) -> Iterator[str]:
    """Where an interval says nothing about trainings."""
    rows = [pair.row for pair in pairs if len(pair.seeds) == 1]
    if rows:
        yield (f"ONE SEED: {', '.join(rows)}: interval and p are over images only and say nothing of another training.")


def notes(
    data: PerImage, pairs: Sequence[Pair], reference: str, *, chosen: bool, rounds: int, seed: int
) -> Iterator[str]:
    """What the numbers are.

    Args:
        chosen: the reference was named before, and not taken for being the best.
    """
    if not pairs:
        return
    yield (
        f"Differences to {reference} on the same seeds and images; intervals and p by {rounds:,} rounds over images "
        f"and seeds (seed {seed}); Holm's correction is for the {len(pairs)} differences here (docs/statistics.md)."
    )
    if not chosen:
        yield (
            f"{reference} is the best by these same scores, which may be luck in part: differences to it look larger "
            "than they are. --against ROW compares with a row that was chosen beforehand."
        )
    several = [pair.estimate for pair in pairs if pair.estimate.seed_variance is not None]
    of_seeds = float(np.sum([found.seed_variance for found in several]))
    both = of_seeds + float(np.sum([found.image_variance for found in several]))
    if both > 0:
        yield (
            f"Of the variance of a difference {100 * of_seeds / both:.0f} % is the seeds' and the rest the images': "
            f"more {'seeds' if 2 * of_seeds > both else 'images'} would narrow the intervals most."
        )
    for pair in pairs:
        for row, other in ((pair.row, reference), (reference, pair.row)):
            if left := sorted(set(data.seeds(row)) - set(pair.seeds)):
                seeds = ", ".join(map(str, left))
                yield f"Not paired: seed {seeds} of {row}, which {other} lacks."
