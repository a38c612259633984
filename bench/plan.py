"""What a run will do: for every cell of a matrix its state, and whether it runs, with the reason if not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import evidence
from bench.data import open_splits
from bench.matrix import Entered
from bench.spec import canonical
from bench.store import CellFolder, Results

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
        note: why it is skipped or stale.
        evidence: what it would be made from now; None where its data are missing.
    """

    entered: Entered
    state: str
    runs: bool
    note: str = ""
    evidence: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return self.entered.cell.id


@dataclass
class Plan:
    """All cells of a run, in the order they will be executed."""

    cells: list[Planned] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

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
    """Compare a matrix with what the results folder holds.

    Args:
        entered: the cells.
        results: the results folder; nothing is written.
        data_root: where datasets lie.
        allow_broken: use datasets although some of their files are broken.
        rerun: also run cells in this state again ("all" takes done ones too).

    Raises:
        datasets.DatasetBroken: some files are broken and ``allow_broken`` is not set.
    """
    from methods.sam.checkpoints import resolve

    plan, opened = Plan(), {}
    for item in entered:
        spec = item.cell.spec
        # Only a few-shot subset depends on the seed.
        key = canonical([spec["dataset"], spec["seed"] if spec["dataset"].get("shots") else None])
        if key not in opened:
            opened[key] = _data_evidence(item, data_root, allow_broken)
        data, made = opened[key], None
        if not isinstance(data, str):
            digest = resolve(spec["backbone"], item.checkpoint or spec["checkpoint"]).digest()
            made = evidence.collect(item.cell, data, digest)
        planned = _judge(item, results, made, rerun)
        if planned.runs and made is None:
            note = f"dataset {spec['dataset']['name']} is missing"
            plan.missing[spec["dataset"]["name"]] = data
            # What ran once stays what it is, although it cannot be run again here.
            planned = Planned(item, planned.state if planned.state in TERMINAL else "skipped", False, note)
        plan.cells.append(planned)
    return plan


def _data_evidence(item: Entered, data_root: Path | None, allow_broken: bool) -> dict[str, Any] | str:
    """Evidence of a dataset, or why it is missing."""
    import datasets

    try:
        return datasets.evidence(open_splits(item.cell, data_root, allow_broken=allow_broken))
    except datasets.DatasetMissing as error:
        return str(error)


def _judge(item: Entered, results: Results, made: dict[str, Any] | None, rerun: str | None) -> Planned:
    """A cell's state and whether it runs; without evidence (``made``) its result is taken as it is."""
    folder = results.cell(item.cell.id)
    if not (folder.path / "cell.json").exists():
        return Planned(item, "planned", True, evidence=made)
    status = folder.status()
    state, note = status["state"], status.get("reason") or ""
    if state == "done" and made is not None:
        odd = evidence.differing(folder.read()["evidence"], made)
        if odd:
            state, note = "stale", "differs in " + ", ".join(odd)
    alive = state == "running"
    asked = rerun == "all" or rerun == state
    runs = not alive and (asked or state not in TERMINAL | {"stale"})
    return Planned(item, state, runs, note, made)


def write(plan: Plan, results: Results) -> None:
    """Record the plan: new cells' folders, reasons of skipped ones, marks on stale results.

    A cell that another process has changed since the plan was made is left alone.
    """
    for cell in plan.cells:
        folder = results.cell(cell.id)
        folder.recover()
        status = folder.status()
        if cell.state == "skipped" and status["state"] in ("planned", "skipped", "interrupted"):
            folder.create(cell.entered.cell, {})
            folder.set_state("skipped", reason=cell.note)
        elif cell.state == "planned" and not (folder.path / "cell.json").exists():
            folder.create(cell.entered.cell, cell.evidence or {})
        elif cell.state in ("stale", "done") and cell.evidence is not None and status["state"] == "done":
            _mark_stale(folder, status, cell)


def _mark_stale(folder: CellFolder, status: dict[str, Any], cell: Planned) -> None:
    """Write or clear the mark that tables show; the result itself stays."""
    marks = cell.note.removeprefix("differs in ").split(", ") if cell.state == "stale" else []
    if status.get("stale", []) != marks:
        more = {"stale": marks} if marks else {}
        folder.set_state("done", reason=status["reason"], attempt=status["attempt"], **more)
