"""``python -m methods``: what methods there are, what they train, and which of them cannot be used.

Counts come from models on torch's meta device: nothing is allocated or drawn, so any backbone is counted at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from methods.base import Context, registry
from methods.compose import create
from methods.sam import size_of

if TYPE_CHECKING:
    from rich.table import Table


def count(name: str, backbone: str, classes: int = 1) -> dict[str, Any]:
    """One method's parameters on a backbone at its native image size, and what the paper prints for vit_h."""
    method = create(name)
    side = size_of(backbone).native
    context = Context(num_classes=classes, backbone=backbone, checkpoint="none", image_size=side)
    with torch.device("meta"):
        model = method.build(context)
    found = model.count()
    return {
        "name": name,
        **found,
        "idle_in_release": method.idle_parameters(context),
        "share_percent": round(100 * found["trainable"] / found["total"], 4),
        "paper_trainable_m": method.paper_trainable_m,
        "evidence": method.evidence,
    }


NOTHING = dict.fromkeys(("trainable", "total", "idle_in_release", "share_percent", "paper_trainable_m", "evidence"))


def entries(backbone: str, classes: int = 1) -> list[dict[str, Any]]:
    """What the list says about each method that can be built for so many classes.

    That is :func:`count`; ``package``, the distribution it comes from, None for ours; and ``error``, in one line what
    is wrong with one that cannot be used, of which there is :data:`NOTHING` to count.

    Raises:
        bench.registry.UnknownName: no such backbone.
    """
    size_of(backbone)
    return [found for name in registry.names() if (found := _entry(name, backbone, classes))]


def _entry(name: str, backbone: str, classes: int) -> dict[str, Any] | None:
    counted, error = {"name": name, **NOTHING}, ""
    try:
        if classes > 1 and not create(name).several_classes:
            return None
        counted = count(name, backbone, classes)
    except ValueError as problem:
        error = " ".join(str(problem).split())
    except Exception as problem:  # one plugin that fails must not hide the others
        error = " ".join(f"{type(problem).__name__}: {problem}".split())
    return {**counted, "package": registry.package(name), "error": error}


def show(rows: Sequence[dict[str, Any]], backbone: str, classes: int) -> None:
    """The list for people; below it what other packages brought, and a line for what keeps methods from being used."""
    from rich.console import Console
    from rich.table import Table

    several = f", {classes} classes, {Context().mask_tokens} queries" if classes > 1 else ""
    title = f"methods on {backbone}{several}; the paper's counts are for vit_h"
    table = Table(box=None, header_style="bold", title=title, title_justify="left", padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for column in ("trainable", "total", "%", "paper M"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("structure", no_wrap=True)
    usable = [row for row in rows if not row["error"]]
    for row in usable:
        numbers = f"{row['trainable']:,}", f"{row['total']:,}", f"{row['share_percent']:.2f}"
        table.add_row(row["name"], *numbers, _in_paper(row), row["evidence"])
    console = Console(highlight=False, markup=False)  # errors hold brackets of their own
    console.print(table)
    if idle := [row for row in usable if row["idle_in_release"]]:
        console.print("\nwhat a released model carries beside and no gradient reaches, left out here:")
        console.print(_with_idle(idle))
    if brought := [f"{row['name']} ({row['package']})" for row in usable if row["package"]]:
        console.print(f"of other packages: {', '.join(brought)}", soft_wrap=True)
    wrong: dict[str, list[str]] = {}
    for row in rows:
        if row["error"]:
            wrong.setdefault(row["error"], []).append(row["name"])
    for error, names in wrong.items():
        console.print(f"{', '.join(names)}: {error}", style="yellow", soft_wrap=True)


def _in_paper(row: dict[str, Any]) -> str:
    return "" if row["paper_trainable_m"] is None else f"{row['paper_trainable_m']:.2f}"


def _with_idle(rows: Sequence[dict[str, Any]]) -> Table:
    """The counts of the releases that carry what no gradient ever reaches: printed counts have that in them."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for column in ("trainable", "idle", "as released", "paper M"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        counts = row["trainable"], row["idle_in_release"], row["trainable"] + row["idle_in_release"]
        table.add_row(row["name"], *(f"{number:,}" for number in counts), _in_paper(row))
    return table
