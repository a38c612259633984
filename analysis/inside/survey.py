"""A survey of encoders over many images, as ``analysis.attention`` and ``analysis.fourier`` make it.

Which encoders, which images, and how they are run. What is missing is told in a line, and the rest is shown.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from analysis.drawing.figure import Figure, write
from analysis.inside import encoders
from analysis.inside.encoders import About, Encoder
from analysis.inside.images import DOWNSTREAM, Drawn, draw
from analysis.inside.session import Seen, Session
from analysis.inside.subjects import again
from analysis.results import DONE, NoResults, next_command, read_results
from analysis.setting import assignments
from analysis.source import Cell, in_words
from methods.delta import CARD
from methods.sam.sizes import SIZES

SIZE = "vit_l"
"""Of the encoders that are seen where none is named: it has 16 heads a layer, as the paper's figure 5 does."""

_WHERE = ("data_root", "out", "device")
"""Options that say where and not what: no part of the command on a card."""

Load = Callable[[], Encoder]
Measure = Callable[[Encoder, Tensor], np.ndarray]
Say = Callable[[str], None]


def parser(module: str, description: str, *, images: int) -> argparse.ArgumentParser:
    """Options of ``python -m <module>``, which draws ``images`` by default."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"{description} Without --backbone, --mae, --random and --cell: SAM {SIZE} with its official "
        "checkpoint, the MAE it began as, and a random ViT, each at its own image size.",
    )
    add = made.add_argument
    add("--results", type=Path, default=Path("results"), help="the results folder, for cells (default: results)")
    add("--cell", action="append", default=[], metavar="ID", help="the encoder of a trained cell; may be repeated")
    add("--backbone", choices=SIZES, help="a SAM, and the size of --mae and --random")
    add("--checkpoint", default="auto", help="weights of --backbone: auto, none (random), a name or a path")
    add("--mae", nargs="?", const="auto", metavar="FILE", help="timm's MAE ViT; a file in place of the published one")
    add(
        "--random", action="append", choices=("vit", "sam"), default=[],
        help="random weights: vit, plain as MAE's; sam, with SAM's windows; may be repeated",
    )  # fmt: skip
    add("--image-size", type=int, default=0, metavar="N", help="side in pixels of all but cells (default: their own)")
    add(
        "--datasets", default=",".join(DOWNSTREAM), metavar="NAMES",
        help="with commas; equal shares of their test images (default: the paper's)",
    )  # fmt: skip
    add("--data-root", type=Path, metavar="DIR", help="the folder of all datasets (default: $BENCH_DATA_ROOT)")
    add("--images", type=int, default=images, metavar="N", help=f"how many are drawn (default: {images})")
    add("--seed", type=int, default=0, help="of the draw (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU where there is one")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoders (default: fp32)")
    add("--out", type=Path, help="where figures are written (default: RESULTS/figures)")
    return made


def run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    measure: Measure,
    figures: Callable[[Session], list[Figure]],
) -> int:
    """Draws the images, measures every encoder on each of them, writes the figures and the list of images.

    Returns:
        The exit code: 2 where there is nothing to show.
    """
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(f"{parser.prog.split()[-1]}: {line}", file=sys.stderr)

    missing: list[str] = []
    try:
        _check_device(options.device)
        drawn = _draw(options, say)
        found = _load(options, missing, say)
        seen = tuple(Seen(encoder.about, _over_images(encoder, drawn, measure, options)) for encoder in found)
        session = Session(seen, tuple(missing), drawn, options.precision, options.device, _command(parser, options))
        folder = options.out or options.results / "figures"
        for figure in figures(session):
            write(figure, folder)
            drawn.table().to_csv(folder / figure.card.about["images"], index=False, lineterminator="\n")
            print(f"wrote {folder / figure.card.name}.{{svg,pdf,png,csv,json}}")
    except (ValueError, OSError) as error:
        say(str(error))
        return 2
    return 0


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        raise NoResults(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}). Next: --device cpu"
        ) from None


def _draw(options: argparse.Namespace, say: Say) -> Drawn:
    if options.images < 1:
        raise NoResults(f"--images {options.images}: a number of images is needed, such as 100")
    names = [name.strip() for name in options.datasets.split(",")]
    drawn = draw(names, options.data_root, options.images, seed=options.seed)
    for line in drawn.skipped:
        say(f"left out: {line}")
    if len(drawn.pictures) < options.images:
        say(f"the datasets hold {len(drawn.pictures)} test images, not {options.images}; all of them are taken")
    return drawn


def _load(options: argparse.Namespace, missing: list[str], say: Say) -> Iterator[Encoder]:
    """The encoders that are there, one after the other, each once; the others are told and enter ``missing``.

    Raises:
        NoResults: none is there.
    """
    there: list[About] = []
    for name, load in _wanted(options):
        try:
            encoder = load()
        except (ValueError, FileNotFoundError) as error:
            say(f"left out: {name}: {error}")
            missing.append(name)
            continue
        if encoder.about in there:
            continue
        if encoder.about.name in [about.name for about in there]:
            encoder.about = replace(encoder.about, name=f"{encoder.about.name}, {encoder.about.cell}")
        there.append(encoder.about)
        yield encoder
    if not there:
        raise NoResults("no encoder to look into is here; what would bring each is said above")


def _wanted(options: argparse.Namespace) -> list[tuple[str, Load]]:
    """Names of the encoders that are asked for, and what loads them."""
    own = not (options.backbone or options.mae or options.random or options.cell)
    size, pixels = options.backbone or SIZE, options.image_size
    found: list[tuple[str, Load]] = []
    if options.backbone or own:
        found.append((f"SAM {size}", partial(encoders.sam, size, options.checkpoint, pixels)))
    if options.mae or own:
        found.append((f"MAE {size}", partial(encoders.mae, size, options.mae or "auto", pixels)))
    if "vit" in options.random or own:
        found.append((f"random ViT {size}", partial(encoders.plain_random, size, pixels)))
    if "sam" in options.random:
        found.append((f"random SAM {size}", partial(encoders.sam, size, "none", pixels)))
    return [*found, *((name, partial(_of_cell, options.results, name)) for name in options.cell)]


def _of_cell(results: Path, name: str) -> Encoder:
    frame = read_results(results).cells
    if name not in set(frame["id"]):
        raise NoResults(f"there is no such cell below {results / 'cells'}. {next_command(results)}")
    (cell,) = frame[frame["id"] == name].itertuples()
    folder = results / "cells" / name
    if cell.state != DONE:
        raise NoResults(f"it is {cell.state}. Next: {again(folder)}")
    if not (folder / CARD).is_file():
        raise NoResults(f"{folder} holds no {CARD} (a published copy leaves it out). Next: {again(folder)}")
    method = in_words(cell.method, *assignments(cell.parameters))
    label = f"{method} ({cell.dataset}, seed {cell.seed})"
    return encoders.of_cell(folder, name=label, method=cell.method, warnings=tuple(_warnings(label, cell)))


def _warnings(label: str, cell: Cell) -> Iterator[str]:
    if cell.random_backbone:
        yield f"RANDOM BACKBONE, no pretrained weights: {label}."
    if not cell.shots and cell.train_images < cell.train_images_available:
        yield f"PARTIAL DATA: {label} was trained on {cell.train_images} of {cell.train_images_available} images."
    for caveat in cell.caveats:
        yield f"{label}: {caveat}."


@torch.no_grad()
def _over_images(encoder: Encoder, drawn: Drawn, measure: Measure, options: argparse.Namespace) -> np.ndarray:
    """What ``measure`` gives for each image, (images, ...)."""
    encoder.model.to(options.device)
    half = torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.precision == "bf16")
    console = Console(stderr=True)
    found = []
    for picture in track(drawn.pictures, encoder.about.name, console=console, disable=not console.is_terminal):
        with half:
            found.append(measure(encoder, picture.pixels(encoder.about.image_size).to(options.device)))
    return np.stack(found)


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """What was asked for, without what is the default."""
    words = parser.prog.split()
    for name, value in vars(options).items():
        if name in _WHERE or value == parser.get_default(name):
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(words)
