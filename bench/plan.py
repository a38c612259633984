"""What a run will do: for every cell of a matrix its state, and whether it runs, with the reason if not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from bench import evidence
from bench.data import with_shots
from bench.matrix import Entered
from bench.spec import canonical
from bench.store import CellFolder, Results, read_json, write_json

# A failure is not tried again unasked: it would fail again, and hide among what is new.
TERMINAL = {"done", "failed", "oom", "timeout"}
RERUN = ("failed", "oom", "timeout", "stale", "all")


@dataclass
class Planned:
    """One cell of a plan.

    Attributes:
        entered: the cell.
        state: its state on disk, "stale" for a done cell whose evidence differs, "skipped" without its data.
        runs: whether this run executes it.
        note: why it is skipped or stale, or what its scores lack.
        evidence: what it would be made from now; None where its data cannot be used.
        stale: the pieces of evidence that differ.
        rescore: scoring its model again would make it whole, nothing has to be trained.
    """

    entered: Entered
    state: str
    runs: bool
    note: str = ""
    evidence: dict[str, Any] | None = None
    stale: list[str] = field(default_factory=list)
    rescore: bool = False

    @property
    def id(self) -> str:
        return self.entered.cell.id


@dataclass(frozen=True)
class Opened:
    """A dataset as some cells use it: its splits and their evidence, or else what keeps it from being used.

    Attributes:
        entered: one of these cells.
        splits, data: the splits and :func:`datasets.evidence` of them.
        layout: the published layout that its files have, None for generated images.
        missing, broken: the message of the error, if there was one.
    """

    entered: Entered
    splits: Mapping[str, datasets.Split] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = None
    missing: str = ""
    broken: str = ""

    @property
    def label(self) -> str:
        """The dataset's name, and its parameters if it was given any."""
        spec = self.entered.cell.spec["dataset"]
        return " ".join([spec["name"], *(f"{key}={value}" for key, value in spec.get("parameters", {}).items())])


@dataclass
class Plan:
    """All cells of a run; the queue decides in which order they start.

    Attributes:
        cells: the cells.
        missing, broken: the datasets, by label, that cells to be run need and that cannot be used, and why.
        opened: the datasets that can.
    """

    cells: list[Planned] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    opened: list[Opened] = field(default_factory=list)

    def todo(self) -> list[Planned]:
        """The cells to execute."""
        return [cell for cell in self.cells if cell.runs]

    def counts(self) -> dict[str, int]:
        """How many cells are in each state."""
        return dict(Counter(cell.state for cell in self.cells))

    def random_backbones(self) -> set[str]:
        """Backbones that run with random weights."""
        return {c.entered.cell.spec["backbone"] for c in self.cells if c.entered.cell.spec["checkpoint"] == "none"}


def make(
    entered: Iterable[Entered],
    results: Results,
    *,
    data_root: Path | None = None,
    allow_broken: bool = False,
    rerun: str | None = None,
) -> Plan:
    """Compare a matrix with what the results folder holds; every dataset is opened once.

    Args:
        entered: the cells.
        results: the results folder; nothing is written.
        data_root: where datasets lie.
        allow_broken: use datasets although some of their files are broken.
        rerun: also run cells in this state again ("all" takes done ones too).
    """
    from methods.sam.checkpoints import resolve

    plan, whole, opened, collected = Plan(), {}, {}, {}
    for item in entered:
        spec = item.cell.spec
        # Only a few-shot subset depends on the seed.
        key = canonical([spec["dataset"], spec["seed"] if spec["dataset"].get("shots") else None])
        if key not in opened:
            name = canonical({key: value for key, value in spec["dataset"].items() if key != "shots"})
            if name not in whole:
                whole[name] = _open(item, data_root, allow_broken)
            opened[key] = _cut(item, whole[name])
        source, made = opened[key], None
        if source.splits:
            parts = key, canonical(spec["method"]), spec["backbone"], item.checkpoint or spec["checkpoint"]
            if parts not in collected:
                digest = resolve(*parts[2:]).digest()
                collected[parts] = evidence.collect(item.cell, source.data, digest)
            made = collected[parts]
        planned = _judge(item, results, made, rerun)
        if planned.runs and made is None:
            note = f"dataset {source.label} is {'missing' if source.missing else 'broken'}"
            (plan.missing if source.missing else plan.broken)[source.label] = source.missing or source.broken
            # What ran once stays what it is, although it cannot be run again here.
            planned = Planned(item, planned.state if planned.state in TERMINAL else "skipped", False, note)
        plan.cells.append(planned)
    plan.opened = [source for source in opened.values() if source.splits]
    return plan


def _open(item: Entered, data_root: Path | None, allow_broken: bool) -> Opened:
    """The dataset of a cell with all of its training images."""
    dataset = item.cell.dataset()
    try:
        splits = dataset.open(data_root, allow_broken=allow_broken)
        found = dataset.find(data_root)
    except datasets.DatasetMissing as error:
        return Opened(item, missing=str(error))
    except datasets.DatasetBroken as error:
        return Opened(item, broken=str(error))
    return Opened(item, splits, layout=found.layout.name if found else None)


def _cut(item: Entered, whole: Opened) -> Opened:
    """The dataset with the cell's training images, and what is to be compared of it."""
    splits = with_shots(item.cell, whole.splits) if whole.splits else {}
    return replace(whole, entered=item, splits=splits, data=datasets.evidence(splits) if splits else {})


def _judge(item: Entered, results: Results, made: dict[str, Any] | None, rerun: str | None) -> Planned:
    """A cell's state and whether it runs; without evidence (``made``) its result is taken as it is."""
    folder = results.cell(item.cell.id)
    if (card := read_json(folder.path / "cell.json")) is None:
        return Planned(item, "planned", True, evidence=made)
    status = folder.status()
    planned = Planned(item, status["state"], False, status.get("reason") or "", made)
    if planned.state == "skipped" and made is not None:
        planned.state, planned.note = "planned", ""  # its dataset has come since
    if planned.state == "done" and made is not None:
        _compare(planned, card["evidence"], made)
    asked = rerun == "all" or rerun == planned.state
    planned.runs = planned.state != "running" and (asked or planned.state not in TERMINAL | {"stale"})
    return planned


def _compare(planned: Planned, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Mark a done cell whose evidence differs, and say whether new scores would mend that or complete it."""
    planned.stale, lacking = evidence.differing(old, new), evidence.unscored(old, new)
    if planned.stale:
        planned.state = "stale"
    planned.rescore = bool(planned.stale or lacking) and all(map(evidence.of_scores, planned.stale))
    notes = ["differs in " + ", ".join(planned.stale)] if planned.stale else []
    notes += ["has no scores of " + ", ".join(lacking)] if lacking else []
    planned.note = "; ".join(notes) or planned.note


def write(plan: Plan, results: Results) -> None:
    """Record the plan: new cells' folders, reasons of skipped ones, marks on stale results, manifests of the data.

    A cell that another process has changed since the plan was made is left alone.
    """
    for source in plan.opened:
        _write_manifest(source, results)
    for cell in plan.cells:
        folder = results.cell(cell.id)
        folder.recover()
        status = folder.status()
        if cell.state == "skipped" and status["state"] in ("planned", "skipped", "interrupted"):
            folder.create(cell.entered.cell, {})
            folder.set_state("skipped", reason=cell.note)
        elif cell.state == "planned" and status["state"] == "skipped":
            folder.create(cell.entered.cell, cell.evidence)
            folder.set_state("planned")
        elif cell.state == "planned" and not (folder.path / "cell.json").exists():
            folder.create(cell.entered.cell, cell.evidence or {})
        elif cell.state in ("stale", "done") and cell.evidence is not None and status["state"] == "done":
            _mark_stale(folder, status, cell)


def _write_manifest(source: Opened, results: Results) -> None:
    """Write ``manifests/<dataset>-<digest>.json``, unless this very manifest is there already."""
    cell = source.entered.cell
    content = evidence.manifest(cell, source.data, source.splits, source.layout)
    digest = hashlib.sha256(canonical(content).encode()).hexdigest()[:12]
    path = results.path / "manifests" / f"{cell.spec['dataset']['name']}-{digest}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def _mark_stale(folder: CellFolder, status: dict[str, Any], cell: Planned) -> None:
    """Write or clear the mark that tables show; the result itself and its date stay."""
    if status.get("stale", []) != cell.stale:
        kept = {name: status[name] for name in ("reason", "attempt", "updated")}
        folder.set_state("done", **kept, **({"stale": cell.stale} if cell.stale else {}))
