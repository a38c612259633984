"""Table 0: linear probes of frozen encoders, from ``results/probe/*.json``, beside the two that the paper's text has.

Section 4.2 of the paper gives two accuracies and not how they were made. A probe of ours stands beside one of them if
it is of the same encoder with its published weights on ImageNet-1k; any other is shown as what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis import paper
from analysis.layout import Caption, Column, Entry, Row, Table
from analysis.paper import PaperNumber
from analysis.results import read_json
from analysis.source import in_words
from analysis.statistics import Summary

NUMBER = 0
DATA = "ImageNet-1k"
PUBLISHED = {"sam_vit_b": "sam_vit_b_01ec64.pth", "mae_vit_b": "mae_pretrain_vit_base.pth"}
"""The weights of the paper's backbones, as a record names them."""
METRICS = (("top1", "top-1", "higher"), ("top5", "top-5", "higher"), ("chance", "chance", ""))
_NEEDED = (
    "backbone",
    "checkpoint",
    "random_backbone",
    "image_size",
    "pool",
    "dataset",
    "images",
    "mode",
    "edge",
    "top1",
)


@dataclass(frozen=True)
class Probe:
    """A file's ``name`` and ``record``; ``line`` is the paper's number that it may stand beside, if any."""

    name: str
    record: dict[str, Any]
    line: Any = None

    @property
    def group(self) -> str:
        """The data set in words."""
        return DATA if self.record["dataset"] == _lines()[0].our_dataset else self.record["dataset"]

    @property
    def label(self) -> str:
        """The backbone, by the paper's name where it stands beside its number, and what else tells probes apart."""
        record = self.record
        said = [f"{record['image_size']} px", record["mode"]]
        said += ["class token"] if record["pool"] == "token" else []
        if record["random_backbone"]:
            said.append("random backbone")
        elif record["checkpoint"] != PUBLISHED.get(record["backbone"]):
            said.append(record["checkpoint"])
        return in_words(_name(self.line) if self.line else record["backbone"], *said)


def read_probes(folder: Path) -> tuple[list[Probe], list[str]]:
    """All probes below ``folder / "probe"`` in the order of their names, and a line for each that cannot be read."""
    found, skipped = [], []
    for path in sorted((folder / "probe").glob("*.json")):
        try:
            record = read_json(path)
            if absent := [key for key in _NEEDED if key not in record]:
                raise ValueError(f"the keys {', '.join(absent)} are missing")
            line = next((line for line in _lines() if _stands_for(line, record)), None)
            found.append(Probe(path.stem, record, line))
        except (OSError, ValueError) as error:
            skipped.append(f"{path}: {error}; the probe is left out")
    return found, skipped


def probe_table(probes: Sequence[Probe]) -> Table | None:
    """The paper's rows with the probes that stand beside them, then all others; None without any probe."""
    if not probes:
        return None
    labelled = list(_labelled(probes))
    columns = list(_columns(probes))
    entries = {(label, column): Entry() for label, *_ in labelled for column in columns}
    for label, line, probe in labelled:
        own = [column for column in columns if column.group == (probe.group if probe else DATA)]
        entries |= {(label, column): _entry(column, line, probe) for column in own}
    return Table(
        name=f"table{NUMBER}",
        subject=str(NUMBER),
        title="Linear probing, section 4.2 of Convolution Meets LoRA",
        setting="linear probe",
        protocol="probe",
        columns=tuple(columns),
        rows=tuple(Row(label) for label in dict.fromkeys(label for label, *_ in labelled)),
        entries=entries,
        caption=_caption([(label, probe) for label, _, probe in labelled if probe]),
    )


@cache
def _lines() -> tuple[Any, ...]:
    """The paper's two numbers."""
    return tuple(paper.lines_of(NUMBER).itertuples())


def _name(line: Any) -> str:
    return line.method.removeprefix("linear-probe-")


def _stands_for(line: Any, record: dict[str, Any]) -> bool:
    """Whether a probe is of the paper's encoder, with its weights, on its data."""
    backbone = paper.parameters(line.our_parameters)["backbone"]
    same = (record["backbone"], record["dataset"]) == (backbone, line.our_dataset)
    return same and not record["random_backbone"] and record["checkpoint"] == PUBLISHED[backbone]


def _labelled(probes: Sequence[Probe]) -> Iterator[tuple[str, Any, Probe | None]]:
    """A row's label, the paper's line and our probe, of which one may be absent; rows of one data set differ."""
    taken = Counter((probe.group, probe.label) for probe in probes)
    for line in (*_lines(), None):
        own = [probe for probe in probes if probe.line is line]
        for probe in own:
            alone = taken[probe.group, probe.label] == 1
            yield probe.label if alone else f"{probe.label}: {probe.name}", line, probe
        if line and not own:
            yield _name(line), line, None


def _columns(probes: Sequence[Probe]) -> Iterator[Column]:
    """The metrics of each data set, the paper's first; what no probe of a data set has is left out."""
    for group in dict.fromkeys([DATA, *sorted(probe.group for probe in probes)]):
        own = [probe.record for probe in probes if probe.group == group]
        for metric, label, better in METRICS:
            if metric == "top1" or any(record.get(metric) is not None for record in own):
                yield Column(group, group, "val", metric, label, better)


def _entry(column: Column, line: Any, probe: Probe | None) -> Entry:
    number = None
    if line and column.metric == line.our_metric:
        number = PaperNumber(line.value, line.standard_error, int(line.paper_runs))
    value = probe.record.get(column.metric) if probe else None
    if value is None:
        return Entry(paper=number)
    ours = value * column.scale
    return Entry(
        ours=Summary(ours, None, 1),
        cells=(probe.name,),
        paper=number,
        difference=ours - float(number.value) if number else None,
    )


def _caption(labelled: Sequence[tuple[str, Probe]]) -> Caption:
    images = ", ".join(dict.fromkeys(f"{probe.group} {probe.record['images']}" for _, probe in labelled))
    random = dict.fromkeys(label for label, probe in labelled if probe.record["random_backbone"])
    at_edge = dict.fromkeys(label for label, probe in labelled if probe.record["edge"])
    return Caption(
        warnings=(f"RANDOM BACKBONE, no pretrained weights: {', '.join(random)}.",) if random else (),
        text=(
            "A linear head on what a frozen encoder makes of an image, its learning rate chosen on images held out of "
            f"the training data. Scores times 100, of one run each. Images of val: {images}. The paper tells neither "
            "image size, pooling, head nor recipe, and a difference to it may be of any of these. Beside its numbers "
            f"stand published weights on {DATA} alone."
        ),
        notes=(f"The learning rate is the lowest or highest tried: {', '.join(at_edge)}.",) if at_edge else (),
    )
