"""Relative log amplitudes of Fourier-transformed feature maps (Park & Kim 2022, "How do vision transformers work?").

As their released notebook: the two-dimensional transform of each channel over the tokens' grid, the natural logarithm
of its absolute value plus 1e-6, the mean over channels and images, along the diagonal from the zero frequency, minus
the value there. Two things differ. Frequencies are named by what they are, 2 pi j / h for the j-th, where the notebook
stretches the ones it has over 0 to pi; and pi itself is included, which its slice of the shifted spectrum leaves out
for even h. The class token is dropped.

Of white noise the amplitude is not quite flat: ln 2 / 2 = 0.35 above that of the zero frequency, and level with it
at pi. Both are real numbers where the others are complex ones, and the logarithm of |normal| has the lower mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from analysis.inside.encoders import Encoder

EPSILON = 1e-6


def frequencies(side: int) -> np.ndarray:
    """Those of a map's diagonal from 0, in units of pi, a token being one step: 1 at most."""
    return 2 * np.arange(side // 2 + 1) / side


def log_amplitudes(features: Tensor) -> Tensor:
    """Relative log amplitudes (h // 2 + 1,) of a map (h, h, C), at :func:`frequencies`; float32 inside."""
    with torch.autocast(features.device.type, enabled=False):
        spectrum = torch.fft.fft2(features.float(), dim=(0, 1))
        diagonal = spectrum.diagonal(dim1=0, dim2=1)[:, : features.shape[0] // 2 + 1]
        logs = (diagonal.abs() + EPSILON).log().mean(0, dtype=torch.float64)
    return logs - logs[0]


def amplitudes(encoder: Encoder, image: Tensor) -> np.ndarray:
    """(layers, frequencies): :func:`log_amplitudes` of each block's output for one image (1, 3, S, S)."""
    found: dict[int, Tensor] = {}

    def see(layer: int, given: tuple[Any, ...], made: Any) -> None:
        found[layer] = log_amplitudes(encoder.feature_map(made))

    with encoder.watched(encoder.blocks, see):
        encoder(image)
    return torch.stack([found[layer] for layer in range(len(encoder.blocks))]).cpu().numpy()
