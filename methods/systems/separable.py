"""What TransLab and Trans2Seg build their heads of: separable convolutions, after DeepLabv3+ (arXiv:1802.02611)."""

from __future__ import annotations

from torch import nn


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps height and width, BatchNorm and ReLU; no bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, padding="same", bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Separable(nn.Sequential):
    """A 3x3 convolution of each channel alone, then a 1x1 convolution of all; BatchNorm and ReLU behind either."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int = 1) -> None:
        each = nn.Conv2d(inputs, inputs, 3, padding="same", dilation=dilation, groups=inputs, bias=False)
        super().__init__(each, nn.BatchNorm2d(inputs), nn.ReLU(), *ConvNormReLU(inputs, outputs, 1))
