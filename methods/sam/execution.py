"""How an encoder block is run: as it is, compiled, or with activations computed again in the backward pass.

Numbers stay the same beyond rounding. What a layer drew for a batch is remembered with the block's input, since by the
time of the backward pass the layers may have been told of another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from methods.base import Execution
from methods.routing import Decision
from methods.sam.tiled_attention import TILED

Answer = tuple[Tensor, list[Decision]]

BACKEND = "inductor"
SHAPES = 64
"""Kinds of calls compiled at most: windows or maps, training or not, each batch size, whether the input has a graph."""

LONG = 128
"""Terms that each number of a product sums up at least, for the product to be kept rather than computed again."""

_DRAWN = ("random_keys", "noise_drawn")
_ATEN = torch.ops.aten
# Where the operands' common dimension is found: argument, axis.
_PRODUCTS = {
    _ATEN.mm.default: (0, -1),
    _ATEN.bmm.default: (0, -1),
    _ATEN.addmm.default: (1, -1),
    _ATEN.baddbmm.default: (1, -1),
}
_ATTENTION = {
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    TILED,
}


def run(block: nn.Module, x: Tensor, execution: Execution) -> Answer:
    """``block.transform(x)``, run as ``execution`` says.

    A compiled block leaves "selective" to the compiler, which keeps products and recomputes what is cheap by itself.
    """
    transform = _compiled(BACKEND) if execution.compile else _transform
    compiler_selects = execution.compile and execution.checkpointing == "selective"
    if execution.checkpointing == "none" or compiler_selects or not torch.is_grad_enabled():
        return transform(block, x)
    options: dict[str, Any] = {}
    if execution.checkpointing == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep)
    return checkpoint(_with_draws(block, transform), x, use_reentrant=False, **options)


def _transform(block: nn.Module, x: Tensor) -> Answer:
    return block.transform(x)


@cache
def _compiled(backend: str) -> Callable[[nn.Module, Tensor], Answer]:
    """One function for all blocks, so that blocks of the same structure share what was compiled."""
    return torch.compile(_transform, backend=backend, dynamic=False, recompile_limit=SHAPES)


def _keep(_: object, operator: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    """Keep attention and products with long sums: the others cost less to compute than to keep."""
    keep = operator in _ATTENTION
    if operator in _PRODUCTS:
        position, axis = _PRODUCTS[operator]
        keep = arguments[position].shape[axis] >= LONG
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _with_draws(block: nn.Module, transform: Callable[[nn.Module, Tensor], Answer]) -> Callable[[Tensor], Answer]:
    """``transform`` of the block with what its layers were told of the present batch, whenever it is called."""
    drawing = [layer for layer in block.modules() if hasattr(layer, "random_keys")]
    told = [{name: getattr(layer, name, None) for name in _DRAWN} for layer in drawing]

    def again(x: Tensor) -> Answer:
        with _told(drawing, told):
            return transform(block, x)

    return again


@contextmanager
def _told(layers: list[nn.Module], values: list[dict[str, Tensor | None]]) -> Iterator[None]:
    present = [{name: getattr(layer, name) for name in told} for layer, told in zip(layers, values, strict=True)]
    try:
        _tell(layers, values)
        yield
    finally:
        _tell(layers, present)


def _tell(layers: list[nn.Module], values: list[dict[str, Tensor | None]]) -> None:
    for layer, told in zip(layers, values, strict=True):
        for name, value in told.items():
            setattr(layer, name, value)
