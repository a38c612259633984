"""The file of one linear probe, ``results/probe/<name>.json``; tables of the paper read it.

All accuracies are fractions. Every file has these fields:

* ``schema``: 1. ``name``: the file's name without its ending. ``date``: UTC, ISO 8601.
* ``backbone``: "sam_vit_b", "sam_vit_l", "sam_vit_h", "sam_tiny" or "mae_vit_b", as in the paper's numbers.
* ``checkpoint``: the file's name, or "none"; ``checkpoint_digest``: its SHA-256, or "random".
* ``random_backbone``: True where the weights are random, so that the number is no number of that backbone.
* ``image_size``: pixels. ``pool``: "mean" (patch tokens) or "token" (class token). ``precision``: the encoder's.
* ``dataset``: "imagenet_1k" where the folder has exactly ImageNet-1k's 1000 classes and as many images as it has;
  otherwise the folder's name.
* ``classes``: how many. ``images``: how many of ``val`` the scores are of.
* ``data``: for "train", "held_out" and "val" ``{"images": N, "digest": ...}``; the digest is the SHA-256 of the
  sorted lines of relative path and size in bytes, without any content.
* ``mode``: "cached" (each image once, centre crop) or "augment" (random crops and flips).
* ``recipe``: optimiser, momentum, trust coefficient, epochs, warm-up, batch, share held out, seed.
* ``rates``: for each learning rate of the grid ``{"base_lr", "held_out_top1", "held_out_loss"}``; the rate itself is
  ``base_lr * batch / 256``. ``base_lr``: the chosen one. ``edge``: True where it is the grid's lowest or highest.
* ``top1``, ``top5``: on ``val``, of the head with the chosen rate after its last step; ``top5`` is None with fewer
  than six classes. ``chance``: the share of the most frequent class of ``val``.
* ``seconds``: "features" (little where they were stored), "training" and "total", of the process that wrote the file.
* ``environment``: as :func:`bench.environment.describe` tells it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.store import now, write_json

SCHEMA = 1


def path_of(results: Path, name: str) -> Path:
    """Where the probe called ``name`` is recorded."""
    return results / "probe" / f"{name}.json"


def write_record(results: Path, name: str, fields: dict[str, Any]) -> Path:
    """Write the probe's file in one step, over an older one of the same name; returns where it is."""
    path = path_of(results, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": SCHEMA, "name": name, "date": now(), **fields})
    return path


def name_of(fields: dict[str, Any]) -> str:
    """The name a probe has when it is given none: what distinguishes it, in words."""
    words = [fields["backbone"], fields["dataset"], str(fields["image_size"]), fields["mode"]]
    words += [fields["pool"]] if fields["pool"] != "mean" else []
    words += ["random"] if fields["random_backbone"] else []
    return "-".join(words)
