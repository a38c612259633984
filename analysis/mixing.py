"""Results that the same names stand for and that were yet made from different things.

A cell's specification names its dataset and its checkpoint; what these were stands in its evidence, as digests. Where
done cells of one setting were made from different copies, each copy becomes a setting of its own, so that no mean, no
ranking, no figure and no comparison has both. Cells that are the same training twice count once. Cells of different
source code stay together, since most changes of code change no number, but are named.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.results import DONE, canonical
from analysis.setting import MADE_FROM

CHECKPOINT = "checkpoint"
_OF_THE_DATASET = ("dataset", "training", "evaluation")
"""Pieces of source code that all cells of a dataset share; the loss, a part of training, depends on its classes."""

Cell = Any
Digests = Mapping[str, str]
"""The digest of each split, or of the checkpoint under ""."""


def settings(cells: Sequence[Cell]) -> list[str]:
    """The setting of each cell, which says from which copy it was made where the results have several."""
    named: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if not cell.imported:
            named[cell.setting].append(cell)
    made_from: dict[str, dict[str, str]] = defaultdict(dict)
    for own in named.values():
        by_data: dict[str, list[Cell]] = defaultdict(list)
        for cell in own:
            by_data[cell.data].append(cell)
        groups = [(CHECKPOINT, own, _checkpoint), *((data, of_it, _splits) for data, of_it in by_data.items())]
        for name, group, digests in groups:
            for cell, copy in _copies({cell.id: digests(cell) for cell in group}, group).items():
                made_from[cell][name] = copy
    return [
        canonical(json.loads(cell.setting) | {MADE_FROM: made_from[cell.id]}) if cell.id in made_from else cell.setting
        for cell in cells
    ]


def _checkpoint(cell: Cell) -> Digests:
    digest = cell.evidence.get("checkpoint")
    return {"": digest} if digest else {}


def _splits(cell: Cell) -> Digests:
    """Few-shot training sets are drawn by seed, so only those of one seed can be expected to agree."""
    data = cell.evidence.get("data", {})
    if not isinstance(data, Mapping):
        return {"all splits": data}
    drawn = {"train": f"train of seed {cell.seed}"} if cell.shots else {}
    return {drawn.get(split, split): digest for split, digest in data.items()}


def _copies(digests: Mapping[str, Digests], cells: Sequence[Cell]) -> dict[str, str]:
    """The copy of each cell, in words, or nothing where all done cells may be of one copy.

    Two cells are of one copy where all splits agree that both have. What may be of several is of the one with most
    done cells.
    """
    done = Counter(tuple(sorted(digests[cell.id].items())) for cell in cells if cell.state == DONE)
    copies: list[dict[str, str]] = []
    for splits in sorted(done, key=lambda splits: (-done[splits], splits)):
        fitting = [copy for copy in copies if _agree(copy, splits)]
        if fitting:
            fitting[0].update(splits)
        else:
            copies.append(dict(splits))
    if len(copies) < 2:
        return {}
    odd = {split for split in set().union(*copies) if len({copy[split] for copy in copies if split in copy}) > 1}
    counts = _counts(cells)
    words = [", ".join(_word(split, copy[split], counts) for split in sorted(odd & copy.keys())) for copy in copies]
    places = {id_: [i for i, copy in enumerate(copies) if _agree(copy, own.items())] for id_, own in digests.items()}
    return {id_: words[(fitting or [0])[0]] for id_, fitting in places.items()}


def _agree(copy: Digests, splits: Iterable[tuple[str, str]]) -> bool:
    return all(copy.get(split, digest) == digest for split, digest in splits)


def _counts(cells: Iterable[Cell]) -> dict[tuple[str, str], int]:
    """How many images the split with each digest has, where the evidence says."""
    counts: dict[tuple[str, str], int] = {}
    for cell in cells:
        images = cell.evidence.get("images", {})
        for split, digest in _splits(cell).items():
            if (name := split.partition(" of ")[0]) in images:
                counts[split, digest] = images[name]
    return counts


def _word(split: str, digest: str, counts: Mapping[tuple[str, str], int]) -> str:
    images = f" ({counts[split, digest]} images)" if (split, digest) in counts else ""
    return f"{split} {digest[:6]}".strip() + images


def twins(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Done cells that are the same training: of the same setting, data, seed, version and resolved parameters.

    That happens where results of several machines were put together, and where a parameter's default is once spelt out
    and once not. The first of each list is the one to use: with the fewest parameters spelt out, then not stale.
    """
    found: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.state == DONE and not cell.imported:
            parameters = canonical(cell.resolved_parameters)
            key = (cell.setting, cell.method, cell.method_version, parameters, cell.data, cell.seed)
            found[key].append(cell)
    order = [
        sorted(same, key=lambda cell: (len(cell.parameters), bool(cell.stale), cell.id)) for same in found.values()
    ]
    return [same for same in order if len(same) > 1]


def other_code(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """By the cell's id, the pieces of source code that were not those of most cells beside it."""
    versions: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        source = cell.evidence.get("source", {})
        for piece in _OF_THE_DATASET:
            if piece in source:
                versions[piece, cell.dataset][source[piece]].append(cell.id)
        if "method" in source:
            versions["method", cell.method][source["method"]].append(cell.id)
    found: dict[str, list[str]] = defaultdict(list)
    for (piece, _), by_digest in sorted(versions.items()):
        usual = max(by_digest, key=lambda digest: (len(by_digest[digest]), digest))
        for digest, ids in by_digest.items():
            for id_ in ids if digest != usual else ():
                found[id_].append(piece)
    return dict(found)
