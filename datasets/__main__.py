"""``python -m datasets``: which datasets there are, how to get them, whether a copy is whole, and how to prepare it.

Run it from the project's folder: elsewhere the name may mean another package.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.registry import assignments
from datasets.verdict import EXIT_CODES

if TYPE_CHECKING:
    from rich.console import Console

_BROKEN_PIPE = 128 + 13
_INTERRUPTED = 128 + 2
"""What a shell says of programs that these signals ended."""


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line of ``python -m datasets``."""
    parser = argparse.ArgumentParser(prog="python -m datasets", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], name: str, words: str, **more: Any) -> Callable:
        added = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.", **more)
        added.set_defaults(run=run)
        added.add_argument("name", metavar="NAME", nargs="?" if run is _list else None)
        added.add_argument(
            "--data-root",
            type=Path,
            metavar="DIR",
            help="the folder of all datasets, or that of this one (default: $BENCH_DATA_ROOT)",
        )
        return added.add_argument

    def choose(add: Callable) -> None:
        words = "a parameter of the dataset, e.g. of=lungs for the dataset folder"
        add("--set", action="append", default=[], metavar="KEY=VALUE", help=words)

    add = command(
        _list, "list", "what there is, what of it lies here, and how to get the rest; with NAME all about one"
    )
    choose(add)
    add("--json", action="store_true", help="print JSON")
    command(_fetch, "fetch", "download a dataset that is public, or say how to get it")
    add = command(
        _verify,
        "verify",
        "decode every file of a dataset once and say what is wrong, missing, or there twice",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choose(add)
    add("--json", action="store_true", help="print JSON, which names everything that is found")
    add = command(
        _prepare, "prepare", "squash every image once into a cache, which trainings read in place of the files"
    )
    choose(add)
    add("--image-size", type=int, required=True, metavar="N", help="side in pixels, as in the matrix, e.g. 1024")
    add("--workers", type=int, default=0, metavar="N", help="processes (default: one on each core)")
    add("--allow-broken", action="store_true", help="leave out files that cannot be used")
    return parser.parse_args(words)


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """``--set`` words as parameters of a dataset."""
    return assignments(given, name="--set", form="KEY=VALUE", example="--set of=lungs")


def _console() -> Console:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich itself would end the process with 1

    # Paths hold brackets of their own.
    return Output(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False, emoji=False)


def _list(options: argparse.Namespace) -> int:
    from datasets import listing
    from datasets.base import registry

    given = parameters(options.set)
    if options.name:
        found: Any = listing.details(options.name, options.data_root, given)
    elif given:
        raise ValueError("--set needs the NAME of the dataset that has this parameter")
    else:
        found = [listing.entry(name, options.data_root) for name in registry.names()]
    if options.json:
        print(json.dumps(found, indent=1))
    elif options.name:
        listing.show_details(found, _console())
    else:
        listing.show_list(found, options.data_root, _console())
    registry.tell()
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from datasets.fetch import fetch

    return fetch(options.name, options.data_root)


def _verify(options: argparse.Namespace) -> int:
    from datasets.base import DatasetBroken, load
    from datasets.verify import verify
    from datasets.verify_text import show

    dataset = load(options.name, **parameters(options.set))
    try:
        report = verify(dataset, options.data_root)
    except DatasetBroken as error:  # of a dataset with reading code of its own
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        show(report, _console())
    return 0 if report["whole"] else 1


def _prepare(options: argparse.Namespace) -> int:
    from datasets.prepared import prepare_command

    return prepare_command(
        options.name,
        options.data_root,
        image_size=options.image_size,
        workers=options.workers,
        allow_broken=options.allow_broken,
        parameters=parameters(options.set),
    )


def _prepare_streams() -> None:
    """Names of files that are no UTF-8 are printed with escapes, and a closed stream takes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m datasets``; 2 for a usage error or a dataset that is not there."""
    _prepare_streams()
    try:
        options = parse(words)
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered must not be written at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
