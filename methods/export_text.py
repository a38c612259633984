"""What an exported folder says of itself: a README.md, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from methods.delta import WEIGHTS
from methods.sam.checkpoints import BUNDLED, OFFICIAL

_LOAD = """
```python
import methods
model = methods.load("DIR")  # this folder; .to("cuda") for a GPU
mask = model.predict("image.jpg")
```"""

_MERGED = (
    """
## With segment_anything alone""",
    """
`{file}` is a complete checkpoint of Segment Anything's `{backbone}` with the answer in its mask slot 0:""",
    """
```python
import numpy, torch
from PIL import Image
from segment_anything import sam_model_registry
sam = sam_model_registry["{backbone}"](checkpoint="{file}")
image = Image.open("image.jpg").convert("RGB")
squashed = torch.from_numpy(numpy.array(image.resize(({side}, {side}), Image.Resampling.BICUBIC))).permute(2, 0, 1)
no_points = {{"point_coords": torch.zeros(1, 0, 2), "point_labels": torch.zeros(1, 0)}}
asked = {{"image": squashed, "original_size": (image.height, image.width), **no_points}}
mask = sam([asked], multimask_output=False)[0]["masks"][0, 0]
```""",
    """
Two things are not as usual. The image is squashed to a square, as in training; `SamPredictor.set_image` would keep its
aspect and pad it. And the points are an empty list rather than none: what SAM pads such a list with is part of the
answer. The logits are those of the adapter to rounding; masks may differ by pixels at borders, since here logits are
enlarged and there probabilities. Clicks and boxes mean nothing to it any more.""",
)


def readme(card: dict[str, Any], merged: str | None) -> str:
    """The text of an exported folder.

    Args:
        card: its ``adapter.json``.
        merged: the name of the checkpoint of segment_anything beside it, if there is one.
    """
    context = card["context"]
    title = f"# {card['method']['title']} on {card['dataset']['title']}"
    parts = [title, _about(card), _LOAD, _answer(card), *_scores(card)]
    if merged:
        words = {"file": merged, "backbone": context["backbone"], "side": context["image_size"]}
        parts += [part.format(**words) for part in _MERGED]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _about(card: dict[str, Any]) -> str:
    trainable, total = (f"{card['parameters'][kind]:,}" for kind in ("trainable", "total"))
    rest = f"The rest is the backbone, which is not in here: {_backbone(card)}." if card["on_backbone"] else ""
    caveats = "".join(f"\n* {caveat}" for caveat in card["caveats"])
    return (
        f"`{WEIGHTS}` holds what the cell `{card['cell']}` has learned: {trainable} of {total} parameters. "
        f"{rest or 'That is the whole network; it needs no checkpoint.'} "
        f"Written by {card['exported_with']}, which has to be installed to load it.{caveats}"
    )


def _backbone(card: dict[str, Any]) -> str:
    context, digest = card["context"], card["backbone_digest"]
    if digest == "random":
        return f"{context['backbone']} with RANDOM WEIGHTS, which are drawn when it is loaded"
    return f"{context['backbone']}, `{context['checkpoint']}` (SHA-256 {digest[:12]}...{_licence(context)})"


def _licence(context: dict[str, Any]) -> str:
    """The terms of a backbone's weights, where they are known."""
    if context["checkpoint"] in {official.file for official in OFFICIAL.values()}:
        return "; Meta's, under Apache-2.0, downloaded when first needed"
    if context["checkpoint"] in {path.name for path in BUNDLED.values()}:
        return "; it comes with the package, under Apache-2.0"
    return '; a file of its owner\'s: `methods.load("DIR", checkpoint="PATH")`'


def _answer(card: dict[str, Any]) -> str:
    names = ", ".join(f"{index} {name}" for index, name in enumerate(card["classes"]))
    return (
        f"`mask` is `(H, W)` in `uint8` at the picture's own size: {names}. A picture is a path, a picture of Pillow "
        "or an array `(H, W, 3)` in `uint8`; a list of them gives a list."
    )


def _scores(card: dict[str, Any]) -> Iterator[str]:
    """A table of the cell's test scores: the metrics of its dataset under both protocols."""
    metrics = [key for key in card["dataset_metrics"] if key in card["metrics"]]
    yield "## Its test scores"
    lines = ["| test set | protocol | " + " | ".join(card["metrics"][key]["label"] for key in metrics) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(metrics))
    for test_set, protocols in card["scores"].items():
        for protocol, scores in protocols.items():
            values = " | ".join(_value(scores[key]) for key in metrics)
            lines.append(f"| {test_set} ({card['images'][test_set]:,} images) | {protocol} | {values} |")
    yield "\n".join(lines)


def _value(score: Any) -> str:
    return f"{100 * score:.2f}" if isinstance(score, int | float) else "-"
