"""Linear probing of a frozen image encoder: ``python -m bench.probe --backbone sam_vit_b --data DIR``.

How well a linear classifier on the encoder's averaged tokens tells the classes of a folder apart: the paper's
comparison of SAM with the MAE it began as, on ImageNet-1k.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.guard import WrongPackage, check_packages

if TYPE_CHECKING:
    from bench.machine import Machine

INTERRUPTED = 130
LINE_SECONDS = 10.0


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line of ``python -m bench.probe``."""
    parser = argparse.ArgumentParser(prog="python -m bench.probe", description=__doc__.split("\n\n")[1])
    parser.add_argument("--backbone", required=True, help="sam_vit_b, sam_vit_l, sam_vit_h, sam_tiny or mae_vit_b")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR",
        help="DIR/train/<class>/<image> and DIR/val/<class>/<image>, such as ImageNet-1k",
    )  # fmt: skip
    parser.add_argument(
        "--weights", default="auto", metavar="auto|none|FILE",
        help="the published ones, random ones, or a file (default: auto)",
    )  # fmt: skip
    parser.add_argument("--image-size", type=_positive(int), default=224, help="in pixels (default: 224)")
    parser.add_argument(
        "--pool", choices=("mean", "token"), default="mean",
        help="patch tokens averaged, or for mae_vit_b the class token (default: mean)",
    )  # fmt: skip
    parser.add_argument("--augment", action="store_true", help="random crops and flips; no features are stored")
    parser.add_argument(
        "--lr", type=_rates, metavar="RATE,RATE",
        help="grid of base learning rates, for 256 images (default: 0.01 to 100, MAE's 0.1 among them)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=_positive(int), default=90, help="default: 90")
    parser.add_argument("--batch", type=_positive(int), default=16384, help="images a step at most (default: 16384)")
    parser.add_argument(
        "--held-out", type=_share, default=0.05,
        help="share of train, of each class at least one image, that chooses the rate (default: 0.05)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and crops (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of the encoder (default: bf16 on a GPU, else fp32)",
    )  # fmt: skip
    parser.add_argument("--encode-batch", type=_positive(int), default=64, help="images encoded at once (default: 64)")
    parser.add_argument("--workers", type=_positive(int), help="threads that read images (default: one a core)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--name", help="of the record, RESULTS/probe/NAME.json (default: what distinguishes it)")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Entry point of ``python -m bench.probe``."""
    options = parse(words)

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        check_packages()
        path, record = probe(options)
    except (WrongPackage, OSError, ValueError, LookupError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    print("\n".join(summary(record)))
    print(f"written to {path}", file=sys.stderr)
    return 0


def probe(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Probe as the options say; returns the record's file and its fields."""
    from bench.devices import cores
    from bench.probing import backbones, images
    from bench.probing.fit import RATES, Recipe
    from bench.probing.record import name_of, write_record
    from bench.probing.work import measure

    folder = images.open_folder(options.data)
    backbone = backbones.load(
        options.backbone,
        options.weights,
        image_size=options.image_size,
        pool=options.pool,
        machine=_machine(options),
    )
    fields = {"backbone": backbone.name, **backbone.described(), "mode": "augment" if options.augment else "cached"}
    sizes = f"{len(folder.classes)} classes, {len(folder.train):,} + {len(folder.val):,} images"
    print(f"{_subject(fields)}; {folder.name}: {sizes}", file=sys.stderr)
    recipe = Recipe(options.lr or RATES, options.epochs, options.batch, options.held_out, options.seed)
    fields |= measure(
        backbone, folder, recipe, augment=options.augment, workers=options.workers or cores(), progress=_Line
    )
    return write_record(options.results, options.name or name_of(fields), fields), fields


def _machine(options: argparse.Namespace) -> Machine:
    """The device and precision that the options mean.

    Raises:
        ValueError: a device that is not there.
    """
    import torch

    from bench.machine import Machine

    device, precision = options.device, options.precision
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in there and not (device == "cuda" and len(there) > 1):
        raise ValueError(f"--device {device} is not there. Here there are: {', '.join(there)}")
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    return Machine(device, precision, options.encode_batch)


def summary(record: dict[str, Any]) -> list[str]:
    """The result, for people."""
    top5 = "" if record["top5"] is None else f", top-5 {100 * record['top5']:.1f} %"
    held, rate, chance = record["data"]["held_out"]["images"], record["base_lr"], 100 * record["chance"]
    lines = [
        f"base lr {line['base_lr']:<6g} held-out top-1 {100 * line['held_out_top1']:5.1f} %" for line in record["rates"]
    ]
    lines += [
        f"{_subject(record)}: top-1 {100 * record['top1']:.1f} %{top5}",
        f"on {record['images']:,} images of {record['dataset']}/val, {record['classes']} classes (always the most "
        f"frequent one: {chance:.1f} %); base lr {rate:g}, chosen on {held:,} images held out of train",
    ]
    if record["edge"]:
        lines.append(
            f"the best rate is at the grid's edge; a grid around it: --lr {rate / 3:.2g},{rate:g},{3 * rate:g}"
        )
    return lines


def _subject(record: dict[str, Any]) -> str:
    weights = "RANDOM WEIGHTS" if record["random_backbone"] else record["checkpoint"]
    pool = "mean of patch tokens" if record["pool"] == "mean" else "class token"
    return f"{record['backbone']} ({weights}), {record['image_size']} px, {pool}, {record['mode']}"


class _Line:
    """Says how far something is, every few seconds and at its end."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._first: tuple[float, int] | None = None
        self._said = time.monotonic()

    def __call__(self, done: int, more: str = "") -> None:
        from bench.durations import duration

        now = time.monotonic()
        began, before = self._first = self._first or (now, done)
        if done < self._total and now - self._said < LINE_SECONDS:
            return
        self._said, left = now, ""
        if done > before:
            rate = (done - before) / (now - began)
            left = f", {rate:.4g} {self._unit}/s, {duration((self._total - done) / rate)} left"
        print(f"{self._what}: {done:,} of {self._total:,} {self._unit}{left}{more}", file=sys.stderr, flush=True)


def _positive(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        number = kind(text)
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    read.__name__ = kind.__name__
    return read


def _rates(text: str) -> tuple[float, ...]:
    return tuple(sorted({_positive(float)(word) for word in text.split(",")}))


_rates.__name__ = "list of rates"


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
