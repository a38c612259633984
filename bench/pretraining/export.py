"""A run's state as a checkpoint under segment_anything's names, in half precision, with a card that says what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.environment import git_state
from bench.evidence import digest, module_digest
from bench.pretraining.loop import load_state
from bench.pretraining.score import SCENES_IN_TEST
from methods.sam.build import native_shapes

LIMIT = 16_000_000
"""Bytes a checkpoint may have that is to be shipped."""


class ExportError(ValueError):
    """A state that gives no checkpoint; the message says why."""


def code_digest() -> str:
    """Of all modules that decide what a step computes, but for the SAM itself; comments and docstrings do not count."""
    return digest(module_digest(module) for module in ("bench.pretraining.loop", "datasets.scenes"))


def weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """SAM's parameters of a run, in float16; the head for dense predictions is left out.

    Raises:
        ExportError: a value is not finite, or too large for float16.
    """
    names = native_shapes(state["recipe"]["backbone"])
    half = {name: state["model"][f"sam.{name}"].to(torch.float16).contiguous() for name in names}
    odd = [name for name, value in half.items() if not value.isfinite().all()]
    if odd:
        raise ExportError(f"not finite in float16: {', '.join(odd[:4])}")
    return half


def export(source: Path, out: Path) -> dict[str, Any]:
    """Write the checkpoint of a run and return what its card says of its making.

    Args:
        source: the run's folder, or a state file.
        out: a .safetensors file.

    Raises:
        FileNotFoundError: no state there.
        ExportError: see :func:`weights`; or ``out`` is no .safetensors file, or would be larger than can be shipped.
    """
    from safetensors.torch import save

    if out.suffix != ".safetensors":
        raise ExportError(f"{out}: the name of a checkpoint has to end in .safetensors")
    state = load_state(source)
    content = save(weights(state))
    if len(content) > LIMIT:
        raise ExportError(f"{out} would have {len(content):,} bytes, more than {LIMIT:,}: choose a smaller backbone")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)
    recipe = state["recipe"]
    return {
        "file": out.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "backbone": recipe["backbone"],
        "steps": state["step"],
        "seconds": round(state["seconds"]),
        "budget": state["budget"],
        "recipe": recipe,
        "starts": state["starts"],
        "exported_at": git_state()["commit"],
        "same_code": state["starts"][-1].get("code") == code_digest(),
    }


def write_card(out: Path, made: Mapping[str, Any], scores: Mapping[str, Any] | None) -> None:
    """``out`` with .json and .md: the same for programs and for people."""
    record = {"checkpoint": made, "scores": scores}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(card(made, scores), encoding="utf-8")


def card(made: Mapping[str, Any], scores: Mapping[str, Any] | None) -> str:
    """The model card in Markdown."""
    recipe = made["recipe"]
    lines = [
        f"# {made['file']}",
        "",
        f"SAM of size `{made['backbone']}`, pre-trained from random weights by `python -m bench.pretrain` on generated",
        "scenes alone (`datasets/scenes.py`): no photograph, no annotation by people, and nothing of the task of the",
        "matrix `demo`. It is meant for the demonstration, tests and small comparisons, not for images of consequence.",
        "",
        "| | |",
        "| --- | --- |",
        f"| sha256 | `{made['sha256']}` |",
        f"| size | {made['bytes']:,} bytes, float16 safetensors, segment_anything's names |",
        f"| steps | {made['steps']:,} of {recipe['batch']} images at {recipe['image_size']} px "
        f"(every eighth: {max(1, recipe['batch'] // 4)} at {2 * recipe['image_size']} px) |",
        f"| data | {_scenes_seen(made):,} scenes, each seen once |",
        f"| time | {made['seconds']:,} s, {made['seconds'] / 3600:.2f} hours |",
        f"| stages | dense predictions alone for {made['budget']['dense']:.0%} of the time, then prompts beside them |",
        f"| seed | {recipe['seed']} |",
        f"| optimiser | AdamW, learning rate {recipe['lr']:g}, weight decay {recipe['weight_decay']:g}, "
        f"clip {recipe['clip']:g} |",
        f"| exported at commit | {made['exported_at']} |",
        f"| its training code | {'is' if made['same_code'] else 'is not'} the one the last start below ran with |",
        "",
        "Started and resumed:",
        "",
        "| from step | device | precision | commit | command |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {start['step']:,} | {start.get('machine', start['device'])} | {start['precision']} "
            f"| {start.get('commit') or 'not recorded'} | `{start.get('command', 'not recorded')}` |"
            for start in made["starts"]
        ),
        *(f"\n{start['note']}" for start in made["starts"] if "note" in start),
        "",
        *(score_lines(scores) if scores else ["Not scored."]),
    ]
    return "\n".join(lines) + "\n"


def _scenes_seen(made: Mapping[str, Any]) -> int:
    small, large = made["recipe"]["batch"], max(1, made["recipe"]["batch"] // 4)
    return made["steps"] * small - made["steps"] // 8 * (small - large)


def score_lines(scores: Mapping[str, Any]) -> list[str]:
    """The scores as Markdown tables, times 100."""
    lines = []
    for key, title in (("scenes", "Held-out generated scenes"), ("isic2017_test", "ISIC 2017 test images, zero-shot")):
        if key not in scores:
            continue
        found = scores[key]
        lines += [
            f"{title}, {scores['image_size']} px, {found['objects']:,} objects, mean IoU times 100 ± standard error:",
            "",
            "| | 1 click | 1 click, best of three | 3 clicks |",
            "| --- | --- | --- | --- |",
        ]
        for name, title in (("checkpoint", "this checkpoint"), ("random", "random weights")):
            cells = [
                f"{100 * found['models'][name][answer]:.1f} ± {100 * found['standard_error'][name][answer]:.1f}"
                for answer in ("chosen", "best", "refined")
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        for source, value in found["disc"].items():
            lines.append(
                f"| disc, radius {found['disc_radius'][source]:.2f} of the side from {source} | {100 * value:.1f} | | |"
            )
        lines.append("")
    first = 100 * scores["scenes"]["first_chosen"]
    return [*lines, f"One click on the first {SCENES_IN_TEST} held-out scenes, which a test repeats: {first:.1f}."]
