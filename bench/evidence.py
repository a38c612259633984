"""What a cell is made from: digests of data, split, checkpoint and of the source of each component.

They are stored with a cell and compared later. Where they differ the result is stale: it is marked in
plans and tables and run again only on request. Comments and docstrings change no digest.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from bench.spec import Cell
from bench.store import SCHEMA

if TYPE_CHECKING:
    from datasets import Split
    from methods import Method

ROOM = Path(__file__).resolve().parent
TRAINED_ON = ("train", "validation")
TRAINING = ("training.py", "data.py", "squash.py", "embeddings.py", "losses/__init__.py")
BINARY_LOSS = ("losses/binary.py",)
SEVERAL_CLASSES_LOSS = ("losses/set_prediction.py", "losses/matching.py", "losses/points.py")
TIMING = ("training.py", "embeddings.py", "losses/*.py", "timing/clock.py", "timing/operations.py", "timing/work.py")
EVALUATION = ("evaluation.py", "prediction.py", "scoring.py", "data.py", "squash.py", "embeddings.py", "metrics/*.py")


@cache
def stripped(source: str) -> str:
    """Python source without comments, strings that stand alone, blank lines and trailing spaces."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    texts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr) and _is_string(node.value)]
    for text in sorted(texts, key=lambda node: node.lineno, reverse=True):
        before = lines[text.lineno - 1].encode()[: text.col_offset].decode()
        after = lines[text.end_lineno - 1].encode()[text.end_col_offset :].decode()
        lines[text.lineno - 1 : text.end_lineno] = [before + after]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def digest(texts: Iterable[str]) -> str:
    """SHA-256 over several texts, their boundaries counting."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


@cache
def module_digest(module: str) -> str:
    """Digest of a module together with all it imports from its own top-level package, and from our rooms of plugins.

    A plugin of another package is so made of its own code and of ours that it builds on.
    """
    found: dict[str, str] = {}
    waiting = [module]
    followed = {module.partition(".")[0], "methods", "datasets"}
    while waiting:
        name = waiting.pop()
        path = None if name in found else _file_of(name)
        if path is not None:
            found[name] = path.read_text(encoding="utf-8")
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += [other for other in _imports(found[name], package) if other.partition(".")[0] in followed]
    return digest(stripped(found[name]) for name in sorted(found))


def _file_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None  # "from package.module import name" also yields package.module.name, which is no module
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _imports(source: str, package: str) -> set[str]:
    """What a module of ``package`` imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


@cache
def _files_digest(patterns: tuple[str, ...]) -> str:
    paths = sorted(path for pattern in patterns for path in ROOM.glob(pattern))
    return digest(stripped(path.read_text(encoding="utf-8")) for path in paths)


def _method_digest(method: Method) -> str:
    """Of all parts of a composition."""
    parts = getattr(method, "parts", None) or (method,)
    return digest(module_digest(type(part).__module__) for part in parts)


def source_evidence(cell: Cell) -> dict[str, str]:
    """Digest of each component's source."""
    loss = BINARY_LOSS if cell.dataset().num_classes == 1 else SEVERAL_CLASSES_LOSS
    return {
        "method": _method_digest(cell.method()),
        "dataset": module_digest(type(cell.dataset()).__module__),
        "training": _files_digest(TRAINING + loss),
        "evaluation": _files_digest(EVALUATION),
    }


def collect(cell: Cell, data: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """All evidence of a cell.

    Args:
        cell: the cell.
        data: the evidence of its opened dataset: ``data``, a digest of each split, and ``images``.
        checkpoint: the checkpoint's digest.
    """
    return {
        "data": data["data"],
        "images": data["images"],
        "checkpoint": checkpoint,
        "source": source_evidence(cell),
    }


def of_speed(cell: Cell, checkpoint: str) -> dict[str, Any]:
    """All evidence of a cell that measures speed: torch's version is a part of it, data are none.

    Args:
        cell: the cell.
        checkpoint: the checkpoint's digest.
    """
    source = {"method": _method_digest(cell.method()), "timing": _files_digest(TIMING)}
    return {"checkpoint": checkpoint, "torch": metadata.version("torch"), "source": source}


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the pieces of evidence that are not the same: "checkpoint", "source.method", "data.train".

    A split is compared where both have it: copies differ in their test sets, and what a result says of one set
    is not changed by another. Counts of images say nothing that the digests do not.
    """
    if old == new:
        return []
    before, after = pieces(old), pieces(new)
    odd = {name for name in before | after if before.get(name) != after.get(name)}
    one_sided = {name for name in before.keys() ^ after.keys() if name.startswith("data.")}
    return sorted(name for name in odd - one_sided if not name.startswith("images."))


def pieces(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Each piece by its name."""
    found: dict[str, Any] = {}
    for name, value in evidence.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        found |= {f"{name}.{key}" if key else name: one for key, one in inner}
    return found


def unscored(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The test sets that are there now and were not when a result was made."""
    data = old.get("data")
    return sorted(new["data"].keys() - data.keys()) if isinstance(data, Mapping) else []


def of_scores(piece: str) -> bool:
    """Whether a piece of evidence decides about scores only, so that no training is needed to renew it."""
    return piece == "source.evaluation" or (piece.startswith("data.") and piece.partition(".")[2] not in TRAINED_ON)


def rescored(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence of a result that was scored again: that of its training stays on record, stale or not."""
    made = {**old, "source": {**old["source"], "evaluation": new["source"]["evaluation"]}}
    if isinstance(old["data"], Mapping):  # results of before the digests by split keep the one they have
        for name in ("data", "images"):
            made[name] = new[name] | {split: old[name][split] for split in TRAINED_ON}
    return made


def manifest(cell: Cell, data: Mapping[str, Any], splits: Mapping[str, Split], layout: str | None) -> dict[str, Any]:
    """Which samples a cell is trained and scored on: the lines behind the digests of its evidence.

    The same on every machine that has these files: no path and no time is in it.

    Args:
        cell: the cell, whose seed matters for few-shot training sets.
        data: as for :func:`collect`.
        splits: its opened dataset.
        layout: the published layout that the files have, None for generated images.
    """
    chosen = {"seed": cell.spec["seed"]} if cell.spec["dataset"].get("shots") else {}
    return {
        "schema": SCHEMA,
        "dataset": cell.spec["dataset"],
        **chosen,
        "split_seed": cell.dataset().split_seed,
        "layout": layout,
        "data": data["data"],
        "images": data["images"],
        "samples": {
            name: [" ".join(sample) for sample in listed] for name, listed in datasets.manifest(splits).items()
        },
    }
