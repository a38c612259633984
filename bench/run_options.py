"""The command line of ``python -m bench.run``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import matrix as matrices
from bench.durations import seconds_of
from bench.registry import assignments

Value = TypeVar("Value")


def parse(words: Sequence[str] | None, *, description: str) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=description)
    _what(parser.add_argument_group("which cells").add_argument)
    _where(parser.add_argument_group("where and how long").add_argument)
    _how(parser.add_argument_group("how, which changes no result").add_argument)
    return parser.parse_args(words)


def _what(add: Callable) -> None:
    add("--matrix", required=True, help=f"a name ({', '.join(matrices.names())}) or a .toml file")
    add(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help=f"run these cells only; keys: {', '.join(matrices.FILTERS)}",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting or a regime value in every cell, e.g. epochs=5, or the methods: methods=lora,mine",
    )
    add("--rerun", choices=["failed", "oom", "timeout", "stale", "all"], help="also run cells in this state again")
    add("--skip-missing", action="store_true", help="go on without cells whose dataset is missing")
    add("--allow-broken", action="store_true", help="use datasets although some of their files are broken")
    add("--dry-run", action="store_true", help="print the plan and stop")


def _where(add: Callable) -> None:
    add("--devices", default="auto", help="auto, cpu, cpu:N, or GPU numbers such as 0,1 (default: auto)")
    add(
        "--per-gpu",
        type=_said(_per_gpu),
        metavar="N",
        help="cells at a time on a GPU (default: auto, as many as its memory holds)",
    )
    add("--backend", choices=["local", "dask"], help="who starts the cells (default: local, or what the matrix says)")
    add("--backend-config", metavar="FILE", help="a TOML file with a [backend] section, or a dask scheduler's address")
    add(
        "--timeout",
        type=_said(seconds_of),
        metavar="TIME",
        help="end a cell that takes longer, e.g. 2h (default: never)",
    )
    add(
        "--budget",
        type=_said(seconds_of),
        metavar="TIME",
        help="start no cell that would not end in this time from now, e.g. 8h",
    )
    add("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    add("--data-root", type=Path, help="where datasets lie (default: $BENCH_DATA_ROOT)")
    add("--tracking-uri", help="MLflow store (default: sqlite:///mlflow.db beside the results folder)")
    add("--no-tracking", action="store_true", help="leave MLflow alone; `python -m bench.tracking rebuild` catches up")


def _how(add: Callable) -> None:
    add("--micro-batch", type=int, default=0, metavar="N", help="images a forward pass (default: the whole batch)")
    add("--attention", metavar="WAY", help="how attention is computed (default: the fastest known)")
    add("--checkpointing", metavar="WAY", help="none, blocks or selective: what is computed twice to save memory")
    add("--compile", action="store_true", help="compile the encoder's blocks")


def _per_gpu(text: str) -> int | None:
    if text != "auto" and (not text.isdigit() or int(text) < 1):
        raise ValueError(f"{text!r} is no number of cells; write 1, 2, ... or auto")
    return None if text == "auto" else int(text)


def _said(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """A reader whose message argparse shows."""

    def reader(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


def filters(given: Sequence[str]) -> dict[str, list[str]]:
    """``--only`` words as a filter."""
    found: dict[str, list[str]] = {}
    for word in given:
        key, sign, values = word.partition("=")
        if not sign or not values:
            raise matrices.MatrixError(f"--only {word!r}: write KEY=VALUE, e.g. --only method=lora,conv_lora")
        found.setdefault(key, []).extend(values.split(","))
    return found


def settings(given: Sequence[str]) -> dict[str, Any]:
    """``--set`` words as settings."""
    try:
        return assignments(given, name="--set", form="KEY=VALUE", example="--set epochs=5")
    except ValueError as error:
        raise matrices.MatrixError(str(error)) from None
