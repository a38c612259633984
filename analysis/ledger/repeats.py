"""The same thing printed twice: where two tables give one method other numbers on the same data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from analysis.ledger.finding import WITHIN, Finding, Line, counted, in_errors, signed

EXTRACT, FULL = 1, range(5, 11)
"""Table 1 is drawn from tables 5 to 10 and compared with no other: what is said of them is said of it."""
WHOLE = ("conv_lora", "")
PARTS = ("conv_lora", "inception")
"""The method that ablations change, and the methods that are such changes or contain one."""


def repeated(lines: Sequence[Line]) -> Iterator[Finding]:
    """For each two tables that print numbers of the same method, parameters, data and metric: those that differ."""
    for first, second in combinations(sorted({line.table for line in lines}), 2):
        if first == EXTRACT and second not in FULL:
            continue
        known = {line.key: line for line in lines if line.table == first}
        pairs = [(known[line.key], line) for line in lines if line.table == second and line.key in known]
        if not pairs:
            continue
        rows = [_row(one, other) for one, other in pairs if _differ(one, other)]
        apart = sum(row[-1] != WITHIN for row in rows)
        yield Finding(
            title=f"Tables {first} and {second}: the same methods on the same data",
            checked=counted(len(pairs), "number"),
            headings=("of", f"table {first}", f"table {second}", "difference", "in errors"),
            rows=tuple(rows),
            meaning=(
                f"They cannot be of the same runs. {apart} of {len(rows)} differences lie beyond the printed errors. "
                "Compare a number of yours with both, and a variant with the row of its own table."
            ),
        )


def _differ(one: Line, other: Line) -> bool:
    """Whether two lines disagree in what both print: a table without errors denies none."""
    return one.value != other.value or (None not in (one.error, other.error) and one.error != other.error)


def _row(one: Line, other: Line) -> tuple[str, ...]:
    difference = other.value - one.value
    return other.what, one.printed, other.printed, signed(difference), in_errors(difference, one.error, other.error)


def variants(lines: Sequence[Line]) -> Iterator[Finding]:
    """Each ablation of Conv-LoRA beside the row of Conv-LoRA that has a standard error, by its first metric."""
    whole = {line.key[2:]: line for line in lines if line.key[:2] == WHOLE and line.error is not None}
    kin = [line for line in lines if set(PARTS) & set(line.method.split("+")) and line.key[:2] != WHOLE]
    pairs = [(line, whole[line.key[2:]]) for line in kin if line.key[2:] in whole]
    groups: dict[tuple[int, str, str, str], list[tuple[Line, Line]]] = {}
    for one, other in pairs:
        groups.setdefault((one.table, one.row, one.dataset, one.test_set), []).append((one, other))
    rows, within = [], 0
    for own in groups.values():
        sizes = [in_errors(one.value - other.value, other.error) for one, other in own]
        within += sizes.count(WITHIN)
        one, other = own[0]
        numbers = (one.printed, other.printed, signed(one.value - other.value), sizes[0])
        rows.append((str(one.table), one.what, *numbers, f"{sizes.count(WITHIN)} of {len(sizes)}"))
    yield Finding(
        title="Ablations beside Conv-LoRA as a whole, where that has a spread",
        checked=counted(len(pairs), "number"),
        headings=("table", "of", "variant", "whole", "difference", "in errors", "metrics within"),
        rows=tuple(rows) if within else (),
        meaning=(
            f"{within} of {len(pairs)} numbers lie within one standard error of the whole method's mean, as tables "
            f"{FULL[0]} to {FULL[-1]} have it. The ablations print none of their own: so small a difference does not "
            "tell a variant from the method."
        ),
    )
