"""How many floating-point operations a step has, and how many the device can do: their ratio is the share it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bench.timing.clock import Pace, rates

SIDES = {"cuda": 8192, "cpu": 1024}
_SECONDS = 0.2  # of a stretch: the best is wanted, not the typical

Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter knows the kernels of GPUs only.
_CPU_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop(call: Callable[[], object]) -> int:
    """Floating-point operations of one call: matrix products, convolutions and attention, as they are executed.

    Products with padding count, and so does what is computed a second time in the backward pass. Compiled code runs
    uncompiled here, as its operations are not seen one by one.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=_CPU_KERNELS) as seen:
        call()
    return seen.get_total_flops()


def matrix_rate(device: str, precision: str, pace: Pace, **clocks: Callable) -> float:
    """Floating-point operations per second in the product of two large square matrices: the best stretch.

    Random matrices: products of zeros are faster, as they need less power.

    Args:
        clocks: as for :func:`bench.timing.clock.rates`.
    """
    side = SIDES[device.partition(":")[0]]
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    out = torch.empty_like(left)
    short = Pace(pace.repeats, min(pace.seconds, _SECONDS))
    return 2 * side**3 * max(rates(lambda: torch.mm(left, right, out=out), short, **clocks))
