"""What the paper says in words beside what its tables say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from analysis import paper
from analysis.ledger.finding import WITHIN, Finding, Line, counted, in_errors, signed
from analysis.ledger.repeats import EXTRACT, FULL, WHOLE

BATCH = 4
"""Section 4: "We use the batch size of 4"."""
IMAGES = 2000
"""The training images of ISIC 2017, on which table 14 was measured."""
SCALE, SCALES_NAMED = "scales=", ("1", "2", "4")
"""Section 4.3: "We set the scaling ratio to 1, 2, 4 respectively"."""
MISPRINTS = {("sinet_v2", "chameleon", "e_measure_mean"): "04.0"}
"""What is printed where ``paper.csv`` has what must be meant, by method, test set and metric."""
NOT_PEFT = ("scratch", "decoder_only", "probe")
"""Rows that are trained here and that "PEFT methods" does not mean; those with a share of 100 % are complete models."""


def corrected(lines: Sequence[Line]) -> Iterator[Finding]:
    """The misprints that ``paper.csv`` corrects, and what speaks for the correction."""
    rows = []
    for line in lines:
        printed = MISPRINTS.get((line.method, line.test_set, line.metric))
        if printed and Decimal(printed) != line.value:
            same = (o for o in lines if (o.table, o.row, o.test_set) == (line.table, line.row, line.test_set))
            beside = ", ".join(f"{o.place.split()[-1]} {o.value}" for o in same if o is not line)
            rows.append(
                (str(line.table), line.what, printed, line.printed, signed(line.value - Decimal(printed)), beside)
            )
    yield Finding(
        title="Misprints that are corrected here",
        checked=counted(len(MISPRINTS), "known misprint"),
        headings=("table", "of", "the paper prints", "read as", "difference", "beside it"),
        rows=tuple(rows),
        meaning="E lies a few points above S in every other row: a digit is wrong, not the result.",
    )


def iterations(lines: Sequence[Line]) -> Iterator[Finding]:
    """Iterations a second times minutes an epoch, beside the iterations that batches of the training images make."""
    rates = {(line.table, line.row): line for line in lines if line.metric == "speed:train_it_per_s"}
    epochs = [line for line in lines if line.metric == "speed:train_min_per_epoch"]
    rows = []
    for epoch in epochs:
        rate = rates[epoch.table, epoch.row]
        least, product, most = (
            (rate.value + sign * rate.half) * (epoch.value + sign * epoch.half) * 60 for sign in (-1, 0, 1)
        )
        if not least <= Decimal(IMAGES) / BATCH <= most:
            spread = f"{least:.0f}-{most:.0f}"
            images = f"{IMAGES / product:.2f}"
            rows.append((str(epoch.table), epoch.row, rate.printed, epoch.printed, f"{product:.0f}", spread, images))
    yield Finding(
        title=f"Iterations an epoch, where the text has a batch of {BATCH}",
        checked=counted(len(epochs), "row"),
        headings=("table", "of", "it/s", "min/epoch", "it/epoch", "by rounding", "images/it"),
        rows=tuple(rows),
        meaning=(
            f"{IMAGES:,} training images are {IMAGES // BATCH} batches. The two columns agree with each other and with "
            "the images if an iteration is one image: read it/s as images per second."
        ),
    )


def few_shots(lines: Sequence[Line]) -> Iterator[Finding]:
    """Appendix H: the gain over LoRA "is particularly pronounced in an extremely low-data setting (e.g., 1-shot)"."""
    tables = sorted({line.table for line in lines if line.shots})
    data = {line.dataset for line in lines if line.shots}
    own = {line.key: line for line in lines if line.dataset in data and line.metric == "miou_foreground"}
    pairs = {line.shots: (own["lora", *line.key[1:]], line) for line in own.values() if line.key[:2] == WHOLE}
    gains = {shots: ours.value - base.value for shots, (base, ours) in pairs.items()}
    order = sorted(gains, key=lambda shots: (not shots, int(shots or 0)))
    drawn = [shots for shots in order if shots]
    rows = [
        (shots or "all", str(pairs[shots][1].table), *(line.printed for line in pairs[shots]), signed(gains[shots]))
        for shots in order
    ]
    yield Finding(
        title="Few-shot gains over LoRA, which the text finds largest with least data",
        checked=f"{counted(len(drawn), 'number')} of shots",
        headings=("images a class", "table", "LoRA", "Conv-LoRA", "gain"),
        rows=() if all(gains[shots] <= gains[drawn[0]] for shots in drawn) else tuple(rows),
        meaning=(
            "The gain with least data is not the largest. No spread is printed, though other images would give other "
            f"numbers; nor does table {', '.join(map(str, tables))} say which mean of the classes it prints."
        ),
    )


def scales(lines: Sequence[Line]) -> Iterator[Finding]:
    """Section 4.3: one scale is "optimal" for each dataset, among three that the text names."""
    tried = [line for line in lines if line.parameters.startswith(SCALE)]
    chosen: dict[str, list[str]] = {}
    rows = []
    for dataset, metric in dict.fromkeys((line.dataset, line.metric) for line in tried):
        own = {_scale(line): line for line in tried if (line.dataset, line.metric) == (dataset, metric)}
        most = max(line.value for line in own.values())
        best = [scale for scale, line in own.items() if line.value == most]
        # The text chooses by the metric that stands first.
        first = chosen.setdefault(dataset, best)
        if best != first or not set(best) <= set(SCALES_NAMED):
            said = ", ".join(f"{scale}: {line.value}" for scale, line in own.items())
            line = next(iter(own.values()))
            rows.append((str(line.table), line.place, said, " and ".join(best), " and ".join(first)))
    yield Finding(
        title="The scale that is best alone, and optimal in the text",
        checked=counted(len(tried), "number"),
        headings=("table", "on", "by scale", "best", "by the first metric"),
        rows=tuple(rows),
        meaning=f"The best scale depends on the metric. The text names the scales {', '.join(SCALES_NAMED)} alone.",
    )


def leads(lines: Sequence[Line]) -> Iterator[Finding]:
    """Section 4.1: "Conv-LoRA surpasses other PEFT techniques", by table 1 and the tables it is drawn from."""
    rows, places, sure = [], 0, 0
    for table in (EXTRACT, *FULL):
        own = [line for line in lines if line.table == table and line.error is not None]
        groups = {line.place: [other for other in own if other.place == line.place] for line in own}
        found = [_lead(group) for group in groups.values()]
        best = [lead for lead, _, _ in found if lead > 0]
        beyond = sum(lead > 0 and size != WITHIN for lead, size, _ in found)
        beaten = "; ".join(said for lead, _, said in found if lead <= 0)
        rows.append((str(table), str(len(found)), str(len(best)), str(beyond), beaten))
        if table != EXTRACT:
            places, sure = places + len(found), sure + beyond
    yield Finding(
        title="Conv-LoRA beside the next best fine-tuning method",
        checked=counted(places, "place"),
        headings=("table", "places", "best", "beyond errors", "not best: the better one, Conv-LoRA"),
        rows=tuple(rows) if sure < places else (),
        meaning=(
            f"In {sure} of the {places} places of tables {FULL[0]} to {FULL[-1]} it leads by more than the two printed "
            "errors together. In the others three runs do not tell it from the next method, or that one is better."
        ),
    )


def _lead(group: Sequence[Line]) -> tuple[Decimal, str, str]:
    """By how much Conv-LoRA leads in one column, that in errors, and both numbers in words."""
    ours = next(line for line in group if line.key[:2] == WHOLE)
    sign = 1 if ours.better == "higher" else -1
    second = max((line for line in group if line is not ours), key=lambda line: sign * line.value)
    lead = sign * (ours.value - second.value)
    said = f"{ours.place}: {second.row} {second.value}, {ours.value}"
    return lead, in_errors(lead, ours.error, second.error), said


def spreads(lines: Sequence[Line]) -> Iterator[Finding]:
    """Section 4: "All the experiments for PEFT methods are run for three times"; which tables print a spread."""
    scores = [line for line in lines if not line.metric.startswith(paper.SPEED_PREFIX)]
    tuned = [line for line in scores if line.ratio != "100" and line.method not in NOT_PEFT]
    tables: dict[int, list[Line]] = {}
    for line in tuned:
        tables.setdefault(line.table, []).append(line)
    rows = []
    for table, own in sorted(tables.items()):
        bare = [line for line in own if line.error is None]
        names = ", ".join(dict.fromkeys(line.row for line in bare))
        rows += [(str(table), str(len(bare)), str(len(own)), names)] if bare else []
    yield Finding(
        title="Fine-tuned rows without a spread, where the text has three runs of each",
        checked=counted(len(tuned), "number"),
        headings=("table", "without", "of", "rows"),
        rows=tuple(rows),
        meaning="Nobody can say what another run would give for these numbers: a difference to them has no scale.",
    )


def _scale(line: Line) -> str:
    return line.parameters.removeprefix(SCALE).strip("[]")
