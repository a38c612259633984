"""Relative log amplitudes: white noise, waves, a constant, a transform written out, and which maps they are of."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.inside import encoders
from analysis.inside.encoders import About, VitEncoder
from analysis.inside.fourier import amplitudes, frequencies, log_amplitudes


def test_white_noise_is_flat_but_for_the_two_frequencies_whose_values_are_real():
    noise = torch.randn(16, 16, 40_000, generator=torch.Generator().manual_seed(1))
    found = log_amplitudes(noise).numpy()
    np.testing.assert_allclose(found[1:-1], math.log(2) / 2, atol=0.03)
    assert found[0] == 0
    assert found[-1] == pytest.approx(0, abs=0.03)


@given(side=st.integers(4, 17), data=st.data())
def test_a_wave_along_the_diagonal_peaks_at_its_frequency(side, data):
    wanted = data.draw(st.integers(1, side // 2))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = torch.cos(2 * math.pi * wanted * (row + column) / side)
    found = log_amplitudes(wave[..., None].repeat(1, 1, 3))
    assert int(found.argmax()) == wanted
    assert found[wanted] > found[[i for i in range(len(found)) if i != wanted]].max() + 5
    assert frequencies(side)[wanted] == pytest.approx(2 * wanted / side)


def test_a_constant_has_nothing_but_frequency_zero():
    found = log_amplitudes(torch.full((8, 8, 2), 3.0))
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], math.log(1e-6) - math.log(3 * 64), rtol=1e-4)


@given(side=st.integers(2, 6), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_it_is_the_transform_written_out(side, channels, seed):
    values = np.random.Generator(np.random.PCG64(seed)).normal(size=(side, side, channels))
    expected = []
    for j in range(side // 2 + 1):
        logs = []
        for c in range(channels):
            total = sum(
                values[y, x, c] * cmath.exp(-2j * math.pi * j * (x + y) / side)
                for y in range(side)
                for x in range(side)
            )
            logs.append(math.log(abs(total) + 1e-6))
        expected.append(sum(logs) / channels)
    expected = np.array(expected) - expected[0]
    np.testing.assert_allclose(log_amplitudes(torch.tensor(values)), expected, rtol=1e-3, atol=1e-3)
    assert frequencies(side)[0] == 0
    assert frequencies(side)[-1] == pytest.approx(1 if side % 2 == 0 else 1 - 1 / side)


def test_scale_changes_nothing_where_amplitudes_are_not_tiny():
    noise = torch.randn(8, 8, 50, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(log_amplitudes(noise), log_amplitudes(100 * noise), atol=1e-3, rtol=0)


def test_maps_are_the_outputs_of_the_blocks_without_the_class_token():
    torch.manual_seed(6)
    vit = timm.models.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=12, depth=3, num_heads=3, num_classes=0
    ).eval()
    encoder, image = VitEncoder(About("vit", "vit", "mae", 64, "none", "random"), vit), torch.rand(1, 3, 64, 64) * 255
    made = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, given, out: made.append(out))
    with torch.no_grad():
        found = amplitudes(encoder, image)
    expected = [log_amplitudes(out[0, 1:].reshape(4, 4, 12)).numpy() for out in made]
    np.testing.assert_array_equal(found, expected)


def test_every_layer_of_a_sam_has_a_line():
    encoder, kept = encoders.sam("tiny", "auto", 96), []
    encoder.model.image_encoder.neck.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    with torch.no_grad():
        found = amplitudes(encoder, torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8))
    assert found.shape == (12, 4)
    np.testing.assert_array_equal(found[-1], log_amplitudes(kept[0][0].permute(1, 2, 0)))
