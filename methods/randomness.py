"""Random numbers as a function of keys, not of a generator's state.

A draw depends on (key of the image, layer, position) alone. Micro-batches, resumed runs, activation
checkpointing and the number of workers therefore all see the same noise, and so do CPU and GPU up to
rounding. The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

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
    return _uniform(keys + _signed(key(salt)), shape)


def _uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    counters = torch.arange(1, math.prod(shape) + 1, device=keys.device, dtype=torch.int64) * _signed(_STEP)
    words = _scramble(_scramble(keys)[:, None] + counters)
    return ((_shift(words, 40).to(torch.float32) + 0.5) * 2.0**-24).view(keys.shape[0], *shape)


def normal(keys: Tensor, shape: Sequence[int], salt: int) -> Tensor:
    """Standard normal draws (B, *shape), float32; arguments as :func:`uniform`."""
    return normals(keys, shape, [salt])[0]


def normals(keys: Tensor, shape: Sequence[int], salts: Sequence[int]) -> Tensor:
    """:func:`normal` for each of the salts, (salts, B, *shape), by as many operations as one of them takes."""
    own = keys + torch.tensor([key(salt) for salt in salts], device=keys.device)[:, None]
    first, second = _uniform(own.flatten(), (2, math.prod(shape))).unbind(1)
    return (torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)).view(*own.shape, *shape)


class Drawing(Protocol):
    """A layer that draws normal noise.

    Attributes:
        training: it draws in training only.
        random_keys: one key an image of the batch, (B,), or None.
        salt: tells it apart from others with the same keys.
        noise_shape: what it draws for each image, None where it cannot say before it sees one.
        noise_drawn: its draws for these keys, (B, *noise_shape), if somebody has made them already.
    """

    training: bool
    random_keys: Tensor | None
    salt: int
    noise_shape: tuple[int, ...] | None
    noise_drawn: Tensor | None


def hand_out(keys: Tensor | None, layers: Iterable[Drawing]) -> None:
    """Give each layer the keys of a batch, and its noise: what it would draw itself, but drawn for all at once."""
    alike: dict[tuple[int, ...], list[Drawing]] = {}
    for layer in layers:
        layer.random_keys, layer.noise_drawn = keys, None
        if keys is not None and layer.training and layer.noise_shape:
            alike.setdefault(layer.noise_shape, []).append(layer)
    for shape, group in alike.items():
        for layer, drawn in zip(group, normals(keys, shape, [layer.salt for layer in group]), strict=True):
            layer.noise_drawn = drawn
