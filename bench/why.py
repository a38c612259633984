"""Why a cell will or will not run: ``python -m bench.why ID``, where the beginning of an ID is enough.

Says its state, what it was made from that is different now, how its attempts ended, and what to type next.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import evidence
from bench import plan as planning
from bench.durations import duration
from bench.guard import WrongPackage, check_packages
from bench.matrix import Entered
from bench.spec import Cell, SpeedCell, cell_of, make_cell
from bench.store import Attempt, CellFolder, Results, read_json

NEAREST = 5
SHORT = 8  # digits of a digest


class NoSuchCell(ValueError):
    """No cell, or several, of that name; the message says which there are."""


@dataclass(frozen=True)
class Given:
    """The options as they were given; as text, the words of the next command."""

    results: Path
    data_root: Path | None = None
    checkpoint: str | None = None

    def __str__(self) -> str:
        words = [f" --results {self.results}"] if self.results != Path("results") else []
        return "".join(words + ([f" --data-root {self.data_root}"] if self.data_root else []))


def find(results: Results, name: str) -> CellFolder:
    """The cell with this id, or the only one whose id begins so.

    Raises:
        NoSuchCell: there is none, or there are several.
    """
    folder = results.path / "cells"
    ids = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []
    found = [name] if name in ids else [one for one in ids if one.startswith(name)]
    if len(found) == 1:
        return results.cell(found[0])
    if found:
        more = f" and {len(found) - NEAREST} more" if len(found) > NEAREST else ""
        raise NoSuchCell(
            f"{len(found)} cells begin with {name!r}: {', '.join(found[:NEAREST])}{more}; write more of it"
        )
    near = difflib.get_close_matches(name, ids, n=NEAREST, cutoff=0.4)
    hint = (
        f"nearest: {', '.join(near)}" if near else "python -m bench.run --matrix NAME --dry-run lists those of a matrix"
    )
    raise NoSuchCell(f"no cell {name!r} in {folder}; {hint}")


def explain(results: Results, folder: CellFolder, given: Given) -> Iterator[str]:
    """All that is known about a cell, line by line.

    Raises:
        FileNotFoundError: it was never planned.
    """
    card, status = folder.read(), folder.status()
    cell = cell_of(card["spec"])
    attempts = folder.attempts()
    stale = f", marked as stale: {', '.join(status['stale'])}" if status.get("stale") else ""
    yield f"{folder.id}: {status['state']}{stale}" + (f"; {status['reason']}" if status.get("reason") else "")
    yield from (f"  attempt {line}" for line in map(_attempt, attempts))
    if attempts and (log := folder.path / "log.txt").exists():
        yield f"  log: {log}"
    if cell.id != folder.id:
        yield f"its folder holds the cell {cell.id}: it was renamed or its cell.json edited; no run looks at it"
    elif cell.spec.get("imported"):
        yield "it was imported and is never run; python -m bench.score --as-cell enters it anew"
    elif isinstance(cell, SpeedCell):
        yield "it measures speed: python -m bench.speed decides and does that"
    else:
        try:
            yield from _of_today(results, folder, cell, card["evidence"], given)
        except ValueError as error:  # plugins or checkpoints that are no longer there
            yield f"it cannot run here: {error}"


def _attempt(attempt: Attempt) -> str:
    """A run of a cell in one line."""
    claim = read_json(attempt.path / "claim.json") or {}
    where = " ".join(filter(None, [claim.get("host"), claim.get("device")])) or "an unknown host"
    ended = attempt.ended()
    if ended:
        took = duration(max(0.0, (attempt.path / "end").stat().st_mtime - attempt.claimed_at()))
        how = f"ended {'with' if ended == 'committed' else 'without'} a result after {took}"
    else:
        how = "is running" if attempt.alive() else "is gone without a word"
    return f"{attempt.number}: {claim.get('at', '?')}, {where}, {how}"


def _of_today(results: Results, folder: CellFolder, cell: Cell, old: dict[str, Any], given: Given) -> Iterator[str]:
    """What today's files and code make of a cell that trains."""
    today = _planned_today(cell)
    if today.id != cell.id:
        yield f"its parts have newer versions, of which a run makes another cell: {today.id}; none looks at this one"
        return
    entered = Entered(cell, given.checkpoint)
    # Asked for everything, so that a missing dataset is told of done cells too.
    asked = planning.make([entered], results, data_root=given.data_root, rerun="all")
    made = planning.make([entered], results, data_root=given.data_root).cells[0]
    yield from (message.partition("\n")[0] for message in asked.missing.values())
    yield from asked.broken.values()
    new = made.evidence or _without_data(entered)
    differing = evidence.differing(old, new) if old else []
    if differing:
        yield "differs now from what it was planned or made from:"
        before, after = evidence.pieces(old), evidence.pieces(new)
        yield from (f"  {name:<20} {_short(before.get(name))} -> {_short(after.get(name))}" for name in differing)
    elif old:
        yield "nothing that could be compared differs from what it was planned or made from"
    yield from _verdict(folder, made, given)


def _planned_today(cell: Cell) -> Cell:
    """The cell that a matrix makes of the same choices with the plugins as they are now."""
    spec = cell.spec
    return make_cell(
        method=cell.method(),
        dataset=cell.dataset(),
        shots=spec["dataset"].get("shots"),
        regime={key: value for key, value in spec["regime"].items() if key != "version"},
        **{key: spec[key] for key in ("kind", "seed", "backbone", "checkpoint", "image_size", "precision")},
    )


def _without_data(entered: Entered) -> dict[str, Any]:
    """Today's evidence of a cell whose dataset is not here."""
    from methods.sam.checkpoints import resolve

    spec = entered.cell.spec
    checkpoint = resolve(spec["backbone"], entered.checkpoint or spec["checkpoint"])
    return {"checkpoint": checkpoint.digest(), "source": evidence.source_evidence(entered.cell)}


def _short(digest: Any) -> str:
    return str(digest)[:SHORT] if digest else "nothing"


def _verdict(folder: CellFolder, made: planning.Planned, given: Given) -> Iterator[str]:
    """Whether the next run executes the cell, and what to type."""
    again = f"python -m bench.cell {folder.id}{given}"
    unusable = made.evidence is None
    if made.state == "running":
        yield f"it runs now: python -m bench.status --results {given.results}"
    elif unusable:
        yield f"bench.run does not run it: its dataset cannot be used here; python -m datasets list {_name(made)}"
    elif made.runs:
        yield f"the next bench.run whose matrix holds it runs it; alone: {again}"
    elif made.rescore:
        yield f"bench.run does not run it: it needs no training, only new scores ({made.note}): {again} --evaluate"
    elif made.state == "done":
        yield f"bench.run does not run it: it is done and nothing has changed; once more nevertheless: {again} --again"
    else:
        option = " --again" if made.state == "stale" else ""
        yield (
            f"bench.run does not run it: what is {made.state} runs again on request only: "
            f"python -m bench.run --matrix NAME --rerun {made.state}{given}; alone: {again}{option}"
        )


def _name(made: planning.Planned) -> str:
    return made.entered.cell.spec["dataset"]["name"]


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line of ``python -m bench.why``."""
    parser = argparse.ArgumentParser(prog="python -m bench.why", description=__doc__.split("\n\n")[0])
    parser.add_argument("id", help="a folder's name under results/cells, or its beginning")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--data-root", type=Path, help="where datasets lie (default: $BENCH_DATA_ROOT)")
    parser.add_argument("--checkpoint", help="path of the checkpoint, where the matrix gives it as a path")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m bench.why``; 2 where there is no such cell."""
    options = parse(words)
    results = Results(options.results)
    try:
        check_packages()
        given = Given(options.results, options.data_root, options.checkpoint)
        for line in explain(results, find(results, options.id), given):
            print(line)
    except (NoSuchCell, WrongPackage, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
