"""Random numbers as a function of keys, not of a generator's state.

A draw depends on (key of the image, layer, position) alone. Micro-batches, resumed runs, activation
checkpointing and the number of workers therefore all see the same noise, and so do CPU and GPU up to
rounding. The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_STEP, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts the sign in)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX2)
    return x ^ _shift(x, 31)


def key(*parts: int) -> int:
    """One signed 64-bit key from several integers, their order counting."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + _STEP & _MASK
        state = (state ^ (state >> 30)) * _MIX1 & _MASK
        state = (state ^ (state >> 27)) * _MIX2 & _MASK
        state ^= state >> 31
    return _signed(state)


def image_keys(seed: int, step: int, images: Sequence[int]) -> Tensor:
    """(B,) int64: the keys of ``images`` (their indices) in one step of a run."""
    return torch.tensor([key(seed, step, image) for image in images], dtype=torch.int64)


def coin(*parts: int) -> bool:
    """A fair coin that is a function of its keys."""
    return bool(key(*parts) & 1)


def uniform(keys: Tensor, shape: Sequence[int], salt: int) -> Tensor:
    """Draws (B, *shape) from the interval (0, 1], multiples of 2^-25 in float32, on the device of ``keys``.

    Args:
        keys: (B,) int64.
        shape: what is drawn for each key.
        salt: tells apart those that draw for the same keys.
    """
    counters = torch.arange(1, math.prod(shape) + 1, device=keys.device, dtype=torch.int64) * _signed(_STEP)
    words = _scramble(_scramble(keys + _signed(key(salt)))[:, None] + counters)
    return ((_shift(words, 40).to(torch.float32) + 0.5) * 2.0**-24).view(keys.shape[0], *shape)


def normal(keys: Tensor, shape: Sequence[int], salt: int) -> Tensor:
    """Standard normal draws (B, *shape), float32; arguments as :func:`uniform`."""
    first, second = uniform(keys, (2, math.prod(shape)), salt).unbind(1)
    return (torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)).view(keys.shape[0], *shape)
