"""Draws that are functions of their keys: SplitMix64 in Python integers, moments, independence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from methods.randomness import coin, image_keys, key, normal, uniform

WORD = 1 << 64
INT64 = st.integers(-(2**63), 2**63 - 1)


def signed(value: int) -> int:
    return (value + 2**63) % WORD - 2**63


def finalise(x: int) -> int:
    """SplitMix64's output function on an unsigned word."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def splitmix64(seed: int, count: int) -> list[int]:
    return [finalise((seed + i * 0x9E3779B97F4A7C15) % WORD) for i in range(1, count + 1)]


def test_the_formulation_here_is_splitmix64() -> None:
    """The reference generator's published output for seed 1234567."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_key_of_one_part_is_the_first_output() -> None:
    for seed in (0, 1, 1234567, 2**63, WORD - 1):
        assert key(seed) == signed(splitmix64(seed, 1)[0])


@given(st.lists(INT64, min_size=1, max_size=4))
def test_keys_are_signed_words_that_depend_on_every_part_and_its_place(parts: list[int]) -> None:
    whole = key(*parts)
    assert -(2**63) <= whole < 2**63
    assert whole != key(*parts, 0)
    for index, part in enumerate(parts):
        changed = [*parts[:index], part ^ 1, *parts[index + 1 :]]
        assert key(*changed) != whole
    if len(set(parts)) > 1 and parts != parts[::-1]:
        assert key(*parts[::-1]) != whole


@pytest.mark.parametrize("start", [0, 1, -1, 2**63 - 1, -(2**63), key(3, 1, 4)])
@pytest.mark.parametrize("salt", [0, 31])
def test_draws_equal_python_integers_and_box_muller(start: int, salt: int) -> None:
    stream = splitmix64(finalise((start + key(salt)) % WORD), 12)
    uniform = [((word >> 40) + 0.5) / 2**24 for word in stream]
    expected = [
        math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)
        for first, second in zip(uniform[:6], uniform[6:], strict=True)
    ]
    draws = normal(torch.tensor([start]), (2, 3), salt)
    assert draws.shape == (1, 2, 3) and draws.dtype == torch.float32
    assert draws.flatten().tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("start", [0, -1, 2**63 - 1, key(3, 1, 4)])
@pytest.mark.parametrize("salt", [0, 1 << 32])
def test_uniform_draws_equal_python_integers(start: int, salt: int) -> None:
    stream = splitmix64(finalise((start + key(salt)) % WORD), 6)
    draws = uniform(torch.tensor([start]), (3, 2), salt)
    assert draws.shape == (1, 3, 2) and draws.dtype == torch.float32
    assert draws.flatten().tolist() == pytest.approx([((word >> 40) + 0.5) / 2**24 for word in stream], abs=2**-25)


def test_image_keys_follow_the_images() -> None:
    keys = image_keys(7, 3, [5, 0, 5, 9])
    assert keys.dtype == torch.int64
    assert keys.tolist() == [key(7, 3, image) for image in (5, 0, 5, 9)]
    assert image_keys(7, 3, []).shape == (0,)
    places = [(seed, step, image) for seed in range(4) for step in range(20) for image in range(20)]
    assert len({image_keys(seed, step, [image]).item() for seed, step, image in places}) == len(places)


@given(st.lists(INT64, min_size=1, max_size=6), st.integers(0, 40), st.data())
def test_a_draw_does_not_depend_on_the_batch(keys: list[int], salt: int, data) -> None:
    subset = data.draw(st.lists(st.integers(0, len(keys) - 1), min_size=1, max_size=6))
    for draw in (uniform, normal):
        together = draw(torch.tensor(keys), (2, 5), salt)
        assert torch.equal(draw(torch.tensor([keys[i] for i in subset]), (2, 5), salt), together[subset])


def test_a_draw_ignores_and_leaves_the_running_generator() -> None:
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), normal(image_keys(0, 0, [1]), (8,), 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(normal(image_keys(0, 0, [1]), (8,), 0), first)


def test_draws_are_standard_normal() -> None:
    sample = normal(image_keys(0, 0, range(400)), (25, 8), 0).flatten().double().numpy()
    error = 1 / math.sqrt(len(sample))
    assert abs(sample.mean()) < 4 * error
    assert abs(sample.var() - 1) < 4 * math.sqrt(2) * error
    assert abs(stats.skew(sample)) < 4 * math.sqrt(6) * error
    assert abs(stats.kurtosis(sample)) < 4 * math.sqrt(24) * error
    assert stats.kstest(sample, "norm").pvalue > 1e-3


def test_uniform_draws_are_uniform() -> None:
    sample = uniform(image_keys(0, 0, range(400)), (100, 2), 0).double().numpy()
    assert 0 < sample.min() < 1e-3 and 1 - 1e-3 < sample.max() <= 1
    assert stats.kstest(sample.flatten(), "uniform").pvalue > 1e-3
    cells = np.histogram2d(*sample.reshape(-1, 2).T, bins=20, range=[(0, 1), (0, 1)])[0]
    assert stats.chisquare(cells.flatten()).pvalue > 1e-3


def test_keys_salts_and_positions_are_independent() -> None:
    count = 20_000
    streams = [normal(image_keys(0, step, [0]), (count,), 0)[0] for step in range(4)]
    streams += [normal(image_keys(0, 0, [0]), (count,), salt)[0] for salt in range(1, 5)]
    streams += [streams[0].roll(shift) for shift in (1, 2, 8)]
    streams += [normal(torch.arange(count) + offset, (1,), 0)[:, 0] for offset in (0, 1)]
    for one, other in itertools.combinations(streams, 2):
        for power in (1, 2):
            r = torch.corrcoef(torch.stack([one**power, other**power]))[0, 1]
            assert abs(r) < 4.5 / math.sqrt(count)


def test_coins_are_fair_and_functions_of_their_keys() -> None:
    faces = [coin(0, epoch, index) for epoch in range(20) for index in range(500)]
    assert abs(sum(faces) - 5_000) < 4 * 50
    assert coin(0, 3, 7) == coin(0, 3, 7) == bool(key(0, 3, 7) & 1)
    agreement = sum(coin(0, 0, index) == coin(1, 0, index) for index in range(10_000))
    assert abs(agreement - 5_000) < 4 * 50
