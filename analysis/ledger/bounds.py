"""What arithmetic demands of printed numbers: bounds of one metric by another, means of what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import combinations

from analysis.ledger.finding import Finding, Line, counted, signed

Place = tuple[int, str, str, str, str]
"""Table, row, dataset, shots and test set."""

BACKGROUND = "iou:background"
UNUSUAL = Decimal(10)
"""How far E minus S may lie from its median, in points; in the paper as it stands no pair is half as far off."""


def by_place(lines: Sequence[Line]) -> Mapping[Place, Mapping[str, Line]]:
    """The lines of each row of each table on each test set, by metric."""
    places: dict[Place, dict[str, Line]] = {}
    for line in lines:
        places.setdefault((line.table, line.row, line.dataset, line.shots, line.test_set), {})[line.metric] = line
    return places


def pairs_of(lines: Sequence[Line], first: str, second: str) -> list[tuple[Line, Line]]:
    """The lines of two metrics that stand in the same place."""
    return [(own[first], own[second]) for own in by_place(lines).values() if {first, second} <= own.keys()]


def dice(lines: Sequence[Line]) -> Iterator[Finding]:
    """A mean Dice lies between the mean IoU J and 2J/(1+J): that of each image is 2J/(1+J), which is concave in J."""
    rows = []
    pairs = pairs_of(lines, "iou", "dice")
    for iou, found in pairs:
        most = (iou.value + iou.half) / iou.scale
        bound = 2 * most / (1 + most) * found.scale
        if found.value + found.half < iou.value - iou.half or found.value - found.half > bound:
            rows.append((str(iou.table), found.what, iou.printed, found.printed, f"{bound:.2f}"))
    yield Finding(
        title="Dice against IoU: a mean Dice lies between the mean IoU J and 2J/(1+J)",
        checked=f"{counted(len(pairs), 'pair')}, rounding allowed for",
        headings=("table", "of", "IoU", "Dice", "2J/(1+J)"),
        rows=tuple(rows),
        meaning="No set of images has both means: at least one of the two numbers is wrong.",
    )


def thresholded(lines: Sequence[Line]) -> Iterator[Finding]:
    """A T-Jac, which counts an image below 0.65 as 0, is at most the Jac."""
    pairs = pairs_of(lines, "iou", "t_jaccard")
    yield Finding(
        title="T-Jac against Jac: what counts an image below 0.65 as 0 is at most the mean",
        checked=counted(len(pairs), "pair"),
        headings=("table", "of", "Jac", "T-Jac"),
        rows=tuple((str(a.table), b.what, a.printed, b.printed) for a, b in pairs if b.value > a.value),
        meaning="At least one of the two numbers is wrong.",
    )


def ranges(lines: Sequence[Line]) -> Iterator[Finding]:
    """No number is below 0, and no fraction, printed times 100, above 100."""
    outside = [line for line in lines if line.value < 0 or (line.scale == 100 and line.value > 100)]
    yield Finding(
        title="Numbers outside their range",
        checked=counted(len(lines), "number"),
        headings=("table", "of", "number"),
        rows=tuple((str(line.table), line.what, line.printed) for line in outside),
        meaning="A misprint.",
    )


def zero_errors(lines: Sequence[Line]) -> Iterator[Finding]:
    """Means of three runs that print a standard error of 0, and the errors of other metrics of the same runs."""
    printed = [line for line in lines if line.error is not None]
    rows = []
    for line in printed:
        same = [o for o in printed if (o.table, o.row, o.test_set) == (line.table, line.row, line.test_set)]
        beside = ", ".join(f"{other.place.split()[-1]} {other.error}" for other in same if other.error)
        rows += [(str(line.table), line.what, line.printed, beside)] if line.error == 0 else []
    yield Finding(
        title="Standard errors of 0",
        checked=counted(len(printed), "standard error"),
        headings=("table", "of", "number", "errors beside it"),
        rows=tuple(rows),
        meaning=(
            "Where other metrics of the same runs vary, these can hardly have come out equal: read it as an error that "
            "is not known."
        ),
    )


def means(lines: Sequence[Line]) -> Iterator[Finding]:
    """Which mean a printed mIoU is, as the IoUs of the classes say: with the background or without."""
    rows = []
    for own in by_place(lines).values():
        classes = {metric: line.value for metric, line in own.items() if metric.startswith("iou:")}
        printed = own.get("miou_foreground") or own.get("miou_all")
        if classes and printed:
            front = [value for metric, value in classes.items() if metric != BACKGROUND]
            both = {"with": sum(classes.values()) / len(classes), "without": sum(front) / len(front)}
            # The classes' IoUs are rounded too, and their mean with them, by no more than the printed one.
            fits = [which for which, mean in both.items() if abs(mean - printed.value) <= 2 * printed.half]
            said = " and ".join(fits) or "neither"
            means = (f"{mean:.3f}" for mean in both.values())
            rows.append((str(printed.table), f"{printed.row}, {printed.dataset}", printed.printed, *means, said))
    agree = {row[-1] for row in rows} in ({"with"}, {"without"}, set())
    yield Finding(
        title="Which mean of the classes' IoUs is printed as mIoU",
        checked=counted(len(rows), "row"),
        headings=("table", "of", "printed", "with background", "without", "it is the mean"),
        rows=() if agree else tuple(rows),
        meaning=(
            "Rows of one kind do not compare with rows of the other: read one of the two means for all of them. Ours "
            "stand in two columns."
        ),
    )


def label_mae(lines: Sequence[Line]) -> Iterator[Finding]:
    """The mean difference of class indices is at least the share of wrong pixels, if 1 - Acc is that."""
    rows = []
    pairs = pairs_of(lines, "accuracy_foreground", "label_mae")
    for accuracy, mae in pairs:
        wrong = 1 - accuracy.value / accuracy.scale
        if mae.value + mae.half < wrong - accuracy.half / accuracy.scale:
            rows.append((str(mae.table), mae.what, accuracy.printed, f"{wrong:.4f}", mae.printed))
    yield Finding(
        title="MAE against Acc: a pixel of a wrong class is at least 1 off",
        checked=f"{counted(len(pairs), 'pair')}, rounding allowed for",
        headings=("table", "of", "Acc", "1 - Acc", "MAE"),
        rows=tuple(rows),
        meaning=(
            "Acc and MAE cannot both be of all pixels. They agree if Acc is of the pixels of the foreground alone, as "
            "TransLab's own scorer has it: so do ours."
        ),
    )


def e_and_s(lines: Sequence[Line]) -> Iterator[Finding]:
    """E and S of the same maps go together: a pair far off what is usual is a misprint rather than a result."""
    pairs = pairs_of(lines, "s_measure", "e_measure_mean")
    gaps = [e.value - s.value for s, e in pairs]
    median = sorted(gaps)[len(gaps) // 2] if gaps else Decimal(0)
    far = [pair for pair, gap in zip(pairs, gaps, strict=True) if abs(gap - median) > UNUSUAL]
    yield Finding(
        title="E against S: the two of one row go together",
        checked=f"{counted(len(pairs), 'pair')}, E minus S from {min(gaps, default=0)} to {max(gaps, default=0)}",
        headings=("table", "of", "S", "E", "E minus S", "usually"),
        rows=tuple(
            (str(e.table), e.what, s.printed, e.printed, signed(e.value - s.value), signed(median)) for s, e in far
        ),
        meaning="One of the two is a misprint.",
    )


def twins(lines: Sequence[Line]) -> Iterator[Finding]:
    """Rows of two methods with the same number in three metrics or more of one test set."""
    rows, compared = [], 0
    full = [(place, own) for place, own in by_place(lines).items() if len(own) >= 3]
    for (place, own), (other_place, other) in combinations(full, 2):
        if place[0] != other_place[0] or place[2:] != other_place[2:] or own.keys() != other.keys():
            continue
        compared += 1
        if all(own[metric].value == other[metric].value for metric in own):
            said = (
                f"{one[1]}: {' / '.join(line.printed for line in numbers.values())}"
                for one, numbers in ((place, own), (other_place, other))
            )
            rows.append((str(place[0]), *said))
    yield Finding(
        title="Two methods with the same numbers on one test set",
        checked=counted(compared, "pair"),
        headings=("table", "one row", "the other"),
        rows=tuple(rows),
        meaning="It may be chance, or means that slipped from row to row: the errors, where they differ, did not.",
    )
