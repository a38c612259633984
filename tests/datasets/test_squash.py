"""The one resize: Pillow's, bicubic for images and nearest for masks, the aspect given up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets import squash_image, squash_mask


@pytest.mark.parametrize(("height", "width", "size"), [(37, 91, 64), (300, 200, 32), (5, 7, 128), (64, 64, 64)])
def test_image_equals_pillow(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image, "RGB").resize((size, size), Image.BICUBIC))
    squashed = squash_image(image, size)
    np.testing.assert_array_equal(squashed, expected)
    assert squashed.dtype == np.uint8 and squashed.flags.writeable


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_mask_takes_the_nearest_value(height: int, width: int, size: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    squashed = squash_mask(mask, size)
    assert squashed.shape == (size, size) and squashed.dtype == np.uint8
    (rows, sure_rows), (columns, sure_columns) = under_centres(height, size), under_centres(width, size)
    np.testing.assert_array_equal(squashed[sure_rows][:, sure_columns], mask[rows][:, columns])


def under_centres(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The old pixel under each new pixel's centre, and the new pixels whose centre lies on no border of old ones."""
    position = (2 * np.arange(size) + 1) * length
    sure = position % (2 * size) != 0
    return (position // (2 * size))[sure], sure


def test_shrinking_an_image_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert abs(squash_image(stripes, 16)[4:-4, 4:-4].astype(int) - 128).max() < 8
