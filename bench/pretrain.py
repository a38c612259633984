"""Pre-train a small SAM on generated scenes, score it, and export it as a checkpoint.

``python -m bench.pretrain`` trains, ``python -m bench.pretrain score`` measures how well clicks are answered,
``python -m bench.pretrain export`` writes a checkpoint with its card.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("train", "score", "export")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line of ``python -m bench.pretrain``; ``train`` need not be said."""
    if not words or (words[0] not in COMMANDS and words[0] not in ("-h", "--help")):
        words = ["train", *words]
    parser = argparse.ArgumentParser(prog="python -m bench.pretrain", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _train_options(commands.add_parser("train", help="train (what is done when no command is given)"))
    score = commands.add_parser("score", help="answer clicks on held-out scenes and on real images")
    score.add_argument("checkpoint", help='a checkpoint file, "auto" or "none"')
    _score_options(score)
    score.add_argument("--json", type=Path, help="also write the scores to this file")
    export = commands.add_parser("export", help="write a run's checkpoint in float16, scored, with its card")
    export.add_argument("state", type=Path, help="the run's folder")
    export.add_argument("--out", type=Path, required=True, help="a .safetensors file; the card goes beside it")
    export.add_argument("--no-scores", action="store_true", help="do not score (quick)")
    _score_options(export)
    return parser.parse_args(words)


def _train_options(parser: argparse.ArgumentParser) -> None:
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=_positive(int), help="length in steps, all resumptions together")
    length.add_argument("--minutes", type=_positive(float), help="length in minutes, all resumptions together")
    parser.add_argument("--out", type=Path, default=Path("results/pretrain/tiny"), help="folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the folder's state; its recipe holds")
    parser.add_argument(
        "--dense", type=_share, default=0.4,
        help="share of the length in which dense predictions are trained alone, before prompts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--backbone", default="tiny", help="a size of SAM (default: tiny)")
    parser.add_argument("--batch", type=_positive(int), default=16, help="images a step (default: 16)")
    parser.add_argument("--lr", type=_positive(float), default=1e-3, help="highest learning rate (default: 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="default: bf16 on a GPU, else fp32; bf16 also pays on CPUs that have instructions for it",
    )  # fmt: skip
    parser.add_argument("--threads", type=_positive(int), default=1, help="CPU threads that train (default: 1)")
    parser.add_argument("--workers", type=_positive(int), default=1, help="processes that paint scenes (default: 1)")


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="tiny", help="a size of SAM (default: tiny)")
    parser.add_argument("--image-size", type=_positive(int), default=128, help="in pixels (default: 128)")
    parser.add_argument("--scenes", type=_positive(int), default=400, help="held-out scenes (default: 400)")
    parser.add_argument("--data-root", type=Path, help="where isic2017 is; without it real images are left out")


def main(words: list[str] | None = None) -> int:
    """Entry point of ``python -m bench.pretrain``."""
    words = sys.argv[1:] if words is None else words
    options = parse(words)
    try:
        {"train": _train, "score": _score, "export": _export}[options.command](options, words)
    except (OSError, ValueError, LookupError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(options: argparse.Namespace, words: list[str]) -> None:
    import torch

    from bench.environment import PROJECT, describe
    from bench.pretraining.export import code_digest
    from bench.pretraining.loop import Budget, Recipe, Run

    torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    recipe = Recipe(backbone=options.backbone, batch=options.batch, lr=options.lr, seed=options.seed)
    here = describe(device)
    run = Run(
        None if options.resume else recipe,
        options.out,
        Budget(options.steps, options.minutes, options.dense),
        device=device,
        precision=precision,
        workers=options.workers,
        origin={
            # A card travels: it names places from the project's folder.
            "command": shlex.join(["python", "-m", "bench.pretrain", *words]).replace(f"{PROJECT}/", ""),
            "machine": here["device"],
            "torch": here["torch"],
            "commit": here["commit"],
            "dirty": here["dirty"],
            "code": code_digest(),
        },
    )
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: run.stop())
    run.train(_report)
    print(f"step {run.step} after {run.seconds:.0f} s, state in {options.out}", file=sys.stderr)


def _report(line: dict[str, Any]) -> None:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items()}
    print(*(f"{name} {value}" for name, value in shown.items()), flush=True)


def _score(options: argparse.Namespace, words: list[str]) -> None:
    from bench.pretraining.export import score_lines

    found = _scores(options, options.checkpoint, options.backbone)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print("\n".join(score_lines(found)))


def _export(options: argparse.Namespace, words: list[str]) -> None:
    from bench.pretraining.export import export, write_card

    made = export(options.state, options.out)
    scores = None if options.no_scores else _scores(options, str(options.out), made["backbone"])
    write_card(options.out, made, scores)
    print(f"{options.out}: {made['bytes']:,} bytes, sha256 {made['sha256']}, card {options.out.with_suffix('.md')}")


def _scores(options: argparse.Namespace, checkpoint: str, backbone: str) -> dict[str, Any]:
    import datasets
    from bench.pretraining.score import score

    isic = datasets.load("isic2017").open(options.data_root) if options.data_root else None
    return score(backbone, checkpoint, image_size=options.image_size, number=options.scenes, isic=isic)


def _positive(kind: type) -> Any:
    def read(text: str) -> Any:
        number = kind(text)
        if not number > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    read.__name__ = kind.__name__
    return read


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
