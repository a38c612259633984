"""A trained SAM as a checkpoint of segment_anything: what a method has learned, written into plain weights.

A layer that is a plain one in disguise says so by a method ``fold()``, which writes its effect into the weights of the
layer it holds and returns that one. What then still differs from a SAM in structure is refused, whatever method it is.

segment_anything's decoder has four mask tokens where ours has one. Tokens attend to each other, and the image to all of
them, so three more would change the answer of the first. But softmax over keys of which each is there three times is
softmax over keys that are there once: slots 1 and 2 repeat our mask token, and slot 3 and the token with which SAM pads
points repeat the token of quality. Asked with a list of no points, which SAM pads by one, those six answer in slot 0 as
our two do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from methods.base import Context, Model
from methods.sam.build import build_parts, build_segmenter
from methods.sam.sizes import SIZES, size_of

MASKS, QUALITY, PADDING = (
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.iou_token.weight",
    "prompt_encoder.not_a_point_embed.weight",
)


@torch.no_grad()
def merged_state(model: Model, context: Context) -> dict[str, Tensor]:
    """The weights of a complete SAM, under segment_anything's names, that answers in slot 0 as ``model`` does.

    Args:
        model: a trained model for binary masks; its layers are folded in place, so it is of no further use.
        context: what it was built for; the hypernetworks of slots 1 to 3, the head of quality and what prompts need
            are those of its checkpoint.

    Raises:
        ValueError: a backbone or a size that segment_anything has not, several classes, or layers that do not fold.
    """
    refuse_unmergeable(context)
    _fold(model)
    with torch.device("meta"):
        plain = build_segmenter(replace(context, checkpoint="none"))
    _compare(model, plain)
    state = build_parts(context).state_dict() | model.state_dict()
    mask, quality = state[MASKS], state[QUALITY]
    state |= {MASKS: torch.cat([mask, mask, mask, quality]), PADDING: quality.clone()}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def refuse_unmergeable(context: Context) -> None:
    """Raise what :func:`merged_state` raises for a context, before anything is loaded."""
    if context.backbone not in sam_model_registry:
        known = ", ".join(name for name in sam_model_registry if name in SIZES)
        raise ValueError(f"segment_anything has no {context.backbone}, only {known}")
    if context.num_classes > 1:
        raise ValueError(f"it has {context.num_classes} classes, and segment_anything's decoder has no class head")
    native = size_of(context.backbone).native
    if context.image_size != native:
        raise ValueError(
            f"it works at {context.image_size} px, and segment_anything's {context.backbone} at {native} px only: "
            "position tables that were resized do not fit into its checkpoint"
        )


def _fold(module: nn.Module) -> nn.Module:
    """``module`` with all layers in it folded, from the inside out, or what it folds to itself."""
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    # Not an inherited one: what derives from a layer that folds computes something else.
    return module.fold() if "fold" in vars(type(module)) else module


def _compare(model: nn.Module, plain: nn.Module) -> None:
    """Refuse a model that has other modules or weights than a plain one."""
    found, expected = ({path: type(module) for path, module in one.named_modules()} for one in (model, plain))
    odd = [path for path in {**found, **expected} if found.get(path) is not expected.get(path)]
    if odd:
        kind = found.get(odd[0], type(None))
        place = odd[0] or "the model itself"
        raise ValueError(f"{place} is a {kind.__module__}.{kind.__qualname__}, no layer of SAM with other weights")
    names = model.state_dict().keys() ^ plain.state_dict().keys()
    if names:
        raise ValueError(f"{len(names)} of its parameters are none of SAM, first {min(names)}")
