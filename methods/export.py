"""``python -m methods export ID --out DIR``: a trained cell as a folder that can be given away and used alone.

It holds the adapter, a card with all that :func:`methods.load` needs and where it comes from, and a short text. With
``--merged`` a checkpoint of segment_anything is written beside them, see :mod:`methods.merge`.
"""

from __future__ import annotations

import difflib
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from methods.base import Method
from methods.compose import create
from methods.delta import CARD, WEIGHTS, AdapterError, context_of, load, read_card
from methods.export_text import readme

PACKAGE = "sam-peft-bench"
SURROUNDINGS = ("commit", "dirty", "plugins", "torch", "device", "python")
_LISTED = 10


class CannotExport(ValueError):
    """No such cell, nothing to export, or no place for it; the message says what to do."""


def find(results: Path, name: str) -> Path:
    """The folder of the cell with this id, or of the only one whose id begins so.

    Raises:
        CannotExport: there is none, or there are several.
    """
    cells = results / "cells"
    ids = sorted(path.parent.name for path in cells.glob("*/cell.json"))
    found = [name] if name in ids else [one for one in ids if one.startswith(name)]
    if len(found) == 1:
        return cells / found[0]
    near = difflib.get_close_matches(name, ids, n=1, cutoff=0.4)
    listed = found or near + [one for one in ids if one not in near]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    there = f"{', '.join(listed[:_LISTED])}{more}" if listed else "there are none"
    what = f"{len(found)} cells begin with {name!r}" if found else f"no cell {name!r}"
    raise CannotExport(f"{what} in {cells}: {there}")


def export(cell: Path, out: Path, *, merged: bool = False, checkpoint: str | None = None) -> list[Path]:
    """Write a done cell's adapter into a new folder; returns the files.

    Args:
        cell: the cell's folder.
        out: a folder that is empty or not there yet.
        merged: write a checkpoint of segment_anything too.
        checkpoint: where the backbone's weights lie, as for :func:`methods.load`; only looked at where they are needed.

    Raises:
        CannotExport: the cell is not done, has no adapter or cannot be merged, or ``out`` is not empty.
        methods.delta.AdapterError: the backbone is needed and is not the one the cell was trained on.
    """
    result, spec = _result(cell), json.loads((cell / "cell.json").read_text())["spec"]
    if out.is_dir() and any(out.iterdir()):
        raise CannotExport(f"{out} is not empty; name another folder with --out, or empty it")
    card = read_card(cell)
    method = create(card["method"]["name"], card["method"]["parameters"])
    card = {**_card(card, spec, result), "on_backbone": method.on_backbone}
    state = _merge(cell, card, checkpoint) if merged else None
    out.mkdir(parents=True, exist_ok=True)
    files = [out / WEIGHTS, out / CARD, out / "README.md"]
    shutil.copyfile(cell / WEIGHTS, files[0])
    files[1].write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    if state is not None:
        import torch

        files.append(out / f"sam_{card['context']['backbone']}_{cell.name}.pth")
        torch.save(state, files[-1])
    files[2].write_text(readme(card, merged=files[3].name if state is not None else None), encoding="utf-8")
    return files + _extras(method, out, checkpoint)


def _result(cell: Path) -> dict[str, Any]:
    """A done cell's ``result.json``."""
    remedy = f"python -m bench.why {cell.name} --results {cell.parent.parent}"
    if not (cell / "result.json").is_file():
        status = cell / "status.json"
        state = json.loads(status.read_text())["state"] if status.is_file() else "planned"
        raise CannotExport(f"{cell.name} is not done: {state}. What to do: {remedy}")
    for name in (WEIGHTS, CARD):
        if not (cell / name).is_file():
            raise CannotExport(
                f"{cell} holds no {name}: published copies leave it out, and imported maps and measurements of speed "
                "have none. Export it from the folder it was trained in"
            )
    result = json.loads((cell / "result.json").read_text())
    if not result["parameters"]["trainable"]:
        raise CannotExport(f"{cell.name} has trained nothing, so there is no adapter: use the backbone as it is")
    return result


def _card(card: dict[str, Any], spec: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The cell's card with every default of its method written out, and with where it comes from."""
    resolved, environment = result["resolved"], result["environment"]
    context = {**card["context"], "checkpoint": Path(card["context"]["checkpoint"]).name}
    return {
        **card,
        "method": {**card["method"], **resolved["method"]},
        "context": context,
        "precision": spec["precision"],
        "classes": result.get("classes") or ["background", "foreground"],
        "decision": "the largest score" if context["num_classes"] > 1 else "foreground where round(255 p) > 127.5",
        "dataset": resolved["dataset"],
        "scores": result["scores"],
        "metrics": result["metrics"],
        "dataset_metrics": result["dataset_metrics"],
        "images": result["images"],
        "parameters": result["parameters"],
        "caveats": result.get("caveats", []),
        "random_backbone": result["random_backbone"],
        "trained_with": {name: environment[name] for name in SURROUNDINGS if name in environment},
        "exported_with": _version(),
    }


def _version() -> str:
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:  # run from its sources
        return PACKAGE


def _merge(cell: Path, card: dict[str, Any], checkpoint: str | None) -> dict[str, Any]:
    """The cell's model as a state dict of segment_anything."""
    from methods.merge import merged_state, refuse_unmergeable

    context = context_of(card, checkpoint)
    try:
        refuse_unmergeable(context)
        return merged_state(load(cell, checkpoint=checkpoint), context)
    except AdapterError:
        raise
    except ValueError as error:
        name = card["method"]["name"]
        raise CannotExport(f"{cell.name} ({name}) cannot be merged: {error}. Leave out --merged") from error


def _extras(method: Method, out: Path, checkpoint: str | None) -> list[Path]:
    """What parts of the method write for other programs; the backbone is loaded only where there is such a part."""
    parts = [part for part in getattr(method, "parts", (method,)) if _writes(part)]
    if not parts:
        return []
    model = load(out, checkpoint=checkpoint)
    return [path for part in parts for path in part.export_extras(model, out)]


def _writes(part: Method) -> bool:
    return type(part).export_extras is not Method.export_extras
