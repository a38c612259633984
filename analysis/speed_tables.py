"""The paper's tables 14 and 3, of which the second has more columns than those of speed, from our measurements.

The paper measured on another device, so ours stand beside its numbers without a difference. What can be compared is the
ratio to LoRA on the same device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis import paper
from analysis.layout import Caption, Column, Entry, Row, Table
from analysis.paper import PaperNumber
from analysis.setting import NO_CHECKPOINT
from analysis.source import in_words
from analysis.speed import RATES, Measurement, file_name, ratio, reference_of
from analysis.statistics import Summary

WHOLE, SCALES = 14, 3
TITLES = {WHOLE: "Speed of training and inference", SCALES: "One scale chosen or all at once, speed"}
PAPER_DEVICE = "V100"
PAPER_MACHINE = "micro-batch 1"
BUSY_CORES = 0.25  # cores that worked for others, above which it is said
DRIFT = 0.03  # a change between two measurements of the same, above which it is said loudly

# Key, label, direction, what it is multiplied by, decimals.
COLUMNS = {
    WHOLE: (
        ("train_it_per_s", "train images/s", "higher", 1, 2),
        ("train_ratio", "train LoRA=1", "higher", 1, 2),
        ("train_min_per_epoch", "min / epoch", "lower", 1, 1),
        ("train_memory_gb", "train GB", "lower", 1, 2),
        ("train_share", "train %rate", "higher", 100, 1),
        ("inference_it_per_s", "inference images/s", "higher", 1, 2),
        ("inference_ratio", "inference LoRA=1", "higher", 1, 2),
        ("inference_share", "inference %rate", "higher", 100, 1),
    ),
    SCALES: (
        ("train_it_per_s", "train images/s", "higher", 1, 2),
        ("train_ratio", "train LoRA=1", "higher", 1, 2),
        ("train_memory_gb", "train GB", "lower", 1, 2),
    ),
}


def speed_tables(measured: Sequence[Measurement], wanted: Iterable[str] = ()) -> list[Table]:
    """Table 14, with everything that was measured, and 3 where its own row was, setting by setting.

    Args:
        measured: all measurements.
        wanted: numbers of tables, nothing for both.
    """
    settings = dict.fromkeys(one.setting for one in measured)
    groups = [[one for one in measured if one.setting == setting] for setting in settings]
    wanted = list(wanted) or [str(number) for number in TITLES]
    tables = [_table(number, own) for own in groups for number in TITLES if str(number) in wanted]
    return [table for table in tables if table]


def _table(number: int, measured: Sequence[Measurement]) -> Table | None:
    rows = _rows(number, measured)
    if not any(rows[label] for label in rows if number == WHOLE or label not in _labels(WHOLE)):
        return None
    told = [one.machine for own in rows.values() for one in own if number == WHOLE or not one.is_reference]
    machines = sorted({PAPER_MACHINE, *told}, key=lambda words: (len(words), words))
    columns = {machine: _columns(number, machine) for machine in machines}
    numbers = _paper_numbers()
    entries = {}
    for label, own in rows.items():
        for machine, group in columns.items():
            one = next((one for one in own if one.machine == machine), None)
            reference = reference_of(one, measured) if one else None
            for column in group:
                printed = numbers.get((label, column.metric)) if machine == PAPER_MACHINE else None
                entries[label, column] = _entry(column, one, reference, printed)
    first = measured[0]
    setting = [first.device, first.spec["backbone"], f"{first.spec['image_size']} px", first.spec["precision"]]
    if first.spec["checkpoint"] != NO_CHECKPOINT:
        setting.append(first.spec["checkpoint"])
    if "clock" in first.spec:
        setting.append(f"{first.spec['clock']} time")
    shown = [one for own in rows.values() for one in own]
    return Table(
        name=f"table{number}-{file_name(' '.join(map(str, setting)))}",
        subject=str(number),
        title=f"Table {number} of Convolution Meets LoRA: {TITLES[number]}",
        setting=", ".join(setting),
        protocol="speed",
        columns=tuple(column for group in columns.values() for column in group),
        rows=tuple(Row(label, _size(own)) for label, own in rows.items()),
        entries=entries,
        caption=_caption(", ".join(setting), shown),
    )


def _rows(number: int, measured: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The paper's rows, LoRA among them, with our measurements of each; in table 14 all that was measured besides."""
    lines = {line.method: line for of in (number, WHOLE) for line in paper.lines_of(of).itertuples()}
    own = [*_labels(number), *(["LoRA"] if number != WHOLE else [])]
    rows = {label: [one for one in measured if _stands_for(lines[label], one)] for label in own}
    if number == WHOLE:
        taken = {one.id for found in rows.values() for one in found}
        for one in measured:
            if one.id not in taken:
                rows.setdefault(one.label, []).append(one)
    return rows


def _labels(number: int) -> list[str]:
    """The paper's rows, in its order."""
    return list(dict.fromkeys(line.method for line in paper.lines_of(number).itertuples()))


def _stands_for(line: Any, one: Measurement) -> bool:
    """Whether a row of the paper is this method with these parameters; what it does not name is at its default."""
    wanted, resolved = paper.parameters(line.our_parameters), one.result["resolved"]["method"]["parameters"]
    named = all(resolved.get(key) == value for key, value in wanted.items())
    return line.our_method == one.method and set(one.parameters) <= set(wanted) and named


def _columns(number: int, machine: str) -> list[Column]:
    group = machine[0].upper() + machine[1:]
    return [
        Column(group, machine, "", key, label, better, scale=scale, decimals=decimals)
        for key, label, better, scale, decimals in COLUMNS[number]
    ]


def _paper_numbers() -> Mapping[tuple[str, str], PaperNumber]:
    """What the paper prints by row and figure, and the ratios that follow from it."""
    lines = [line for number in TITLES for line in paper.lines_of(number).itertuples()]
    prefix = "speed:"
    numbers = {
        (line.method, line.our_metric.removeprefix(prefix)): PaperNumber(line.value, "", int(line.paper_runs))
        for line in lines
        if line.our_metric.startswith(prefix)
    }
    for (row, key), number in list(numbers.items()):
        if key in RATES:
            share = float(number.value) / float(numbers["LoRA", key].value)
            numbers[row, key.replace("it_per_s", "ratio")] = PaperNumber(f"{share:.2f}", "", number.runs)
    return numbers


def _entry(
    column: Column, one: Measurement | None, reference: Measurement | None, printed: PaperNumber | None
) -> Entry:
    value, repeats = None, 0
    if one:
        key = column.metric.replace("ratio", "it_per_s")
        value = ratio(one, reference, key) if column.metric.endswith("ratio") else one.values.get(key)
        repeats = len(one.values["inference_it_per_s_repeats"])
    ours = None if value is None else Summary(value * column.scale, None, repeats)
    return Entry(ours=ours, cells=(one.id,) if one and ours else (), paper=printed)


def _size(own: Sequence[Measurement]) -> str:
    if not own:
        return ""
    counts = own[0].result["parameters"]
    return f"{counts['trainable'] / 1e6:.2f} / {100 * counts['trainable'] / counts['total']:.2f}"


def _caption(setting: str, shown: Sequence[Measurement]) -> Caption:
    repeats = sorted({len(one.values["inference_it_per_s_repeats"]) for one in shown})
    spread, place = max((one.spread(rate), _place(one, rate)) for one in shown for rate in RATES if rate in one.values)
    versions = sorted({one.result["environment"]["torch"] for one in shown})
    weights = "random weights, on which speed does not depend; " if shown[0].result["random_backbone"] else ""
    spread_in_words = f"none of which lies further than {spread:.1%} from it ({place})"
    sentences = (
        f"{setting}; {weights}made-up images, likewise; torch {', '.join(versions)}.",
        f"Median of {'-'.join(map(str, repeats))} repeats, {spread_in_words}.",
        "An iteration of the paper is one image, so its it/s are images/s; an epoch has 2,000.",
        f"GB: the highest {shown[0].values['memory']}, 2^30 bytes.",
        "%rate: products as they are executed, padding included, beside the device's rate in large matrix products.",
        f"The paper measured on a {PAPER_DEVICE}, another device: no difference to it is printed.",
        "What compares is LoRA=1, the ratio to LoRA on the same device; the paper's follows from its table 14.",
    )
    return Caption(warnings=tuple(_warnings(shown)), text=" ".join(sentences), notes=tuple(_notes(shown)))


def _place(one: Measurement, rate: str) -> str:
    return f"{in_words(one.label, one.machine)}, {'training' if rate.startswith('train') else 'inference'}"


def _warnings(shown: Sequence[Measurement]) -> Iterable[str]:
    busy = [one for one in shown if one.values["cores_busy_elsewhere"] > BUSY_CORES]
    if busy:
        most = max(one.values["cores_busy_elsewhere"] for one in busy)
        yield (
            f"MEASURED BESIDE OTHER WORK: {len(busy)} of {len(shown)} measurements, up to {most:.1f} cores of which "
            "were busy elsewhere."
        )
    for one, rate, drift in _drifts(shown):
        if abs(drift) > DRIFT:
            yield f"UNSTEADY: {_place(one, rate)} {drift:+.1%} when measured once more: ratios are no surer than that."


def _notes(shown: Sequence[Measurement]) -> Iterable[str]:
    said = [f"{_place(one, rate)} {drift:+.1%}" for one, rate, drift in _drifts(shown)]
    if said:
        yield f"Measured once more at the end, both times counting together: {'; '.join(said)}."


def _drifts(shown: Sequence[Measurement]) -> list[tuple[Measurement, str, float]]:
    """By how much the reference's rates were others at the end."""
    references = [one for one in shown if one.is_reference]
    drifts = [(one, rate, one.values.get(rate.replace("it_per_s", "drift"))) for one in references for rate in RATES]
    return [found for found in drifts if found[2] is not None]
