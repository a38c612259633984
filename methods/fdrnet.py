"""FDRNet (Zhu et al. 2021, ICCV), the shadow specialist of tables 1 and 8.

"Mitigating Intensity Bias in Shadow Detection via Feature Decomposition and Reweighting": every second block of an
EfficientNet-B3 is brought to a few channels, all of them are joined, and what they make is decomposed into features
that follow an image's intensity and features that do not. Both, made of unit length, are mixed into what the map is
drawn from.

The decomposition is learnt from a copy of each image whose intensity is shifted by a random amount: the one kind must
stay as it was, from the other the shift must be told. Both losses are auxiliary ones beside the regime's task loss. As
in the release (MIT) a level comes from blocks 0, 2, ... 24; the last block and the head behind it take no part there
and are left out here. Two things differ: the shift is drawn for each image, from its key, not for each batch; and the
share of the mixture is that of the scoring from the start, where the release lowers it from 1 over the epochs, which a
model here is not told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import timm
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, Embedding, register
from methods.complete import Answers, CompleteMethod, CompleteModel, with_imagenet_weights
from methods.randomness import uniform

BACKBONE = "tf_efficientnet_b3.aa_in1k"
"""The release takes weights ported from TensorFlow, padded as there; which of timm's ports they are is inferred."""
LEVELS = (24, 32, 32, 48, 96, 96, 96, 136, 136, 232, 232, 232, 384)
"""Channels of the backbone's blocks 0, 2, ... 24."""
LEVEL_WIDTH, WIDTH = 16, 32
"""Of a level as it is joined with the others, and of the features that are decomposed."""
SHIFT_SALT = 0x5817


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution, BatchNorm and ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and what they started from, in features (B, width, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class EveryOtherBlock(nn.Module):
    """An EfficientNet-B3 up to its last block but one: outputs of blocks 0, 2, ... 24, from fine to coarse."""

    def __init__(self, efficientnet: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(efficientnet.conv_stem, efficientnet.bn1)
        self.blocks = nn.Sequential(*(block for stage in efficientnet.blocks for block in stage))[:-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        x, levels = self.stem(images), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index % 2 == 0:
                levels.append(x)
        return levels


class FDRNetModel(CompleteModel):
    """Decomposes, and in training compares with a copy of shifted intensity wherever images come with keys.

    Args:
        context: the cell's.
        side: what it works at, in pixels.
        variant_share: of the intensity-variant features in the mixture.
        largest_shift: of the copy's intensity, of the range from black to white.
        invariance_weight, variance_weight: of the auxiliary losses "invariance" and "variance".
    """

    def __init__(
        self,
        context: Context,
        *,
        side: int,
        variant_share: float,
        largest_shift: float,
        invariance_weight: float,
        variance_weight: float,
    ) -> None:
        super().__init__(context, side=side)
        self.variant_share, self.largest_shift = variant_share, largest_shift
        self.aux_weights = {"invariance": invariance_weight, "variance": variance_weight}
        efficientnet, self.random_backbone = with_imagenet_weights(
            lambda pretrained: timm.create_model(BACKBONE, pretrained), context, name=BACKBONE
        )
        self.backbone = EveryOtherBlock(efficientnet)
        self.levels = nn.ModuleList(projection(width, LEVEL_WIDTH) for width in LEVELS)
        self.join = projection(LEVEL_WIDTH * len(LEVELS), WIDTH)
        self.invariant, self.variant = ResidualBlock(WIDTH), ResidualBlock(WIDTH)
        self.shift = nn.Linear(WIDTH, 1)
        self.head = nn.Conv2d(WIDTH, 1, 1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Intensity-invariant and -variant features, (B, 32, h, w) at half the side, of unit length at each pixel."""
        levels = [project(level) for project, level in zip(self.levels, self.backbone(images), strict=True)]
        size = levels[0].shape[-2:]
        levels = [F.interpolate(level, size, mode="bilinear", align_corners=False) for level in levels]
        x = self.join(torch.cat(levels, 1))
        return F.normalize(self.invariant(x).float(), dim=1), F.normalize(self.variant(x).float(), dim=1)

    def answers(self, features: Sequence[Tensor]) -> list[Tensor]:
        invariant, variant = features
        return [self.head(torch.lerp(invariant, variant, self.variant_share))]

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        embedding = super().encode(images, keys)
        if not self.training or keys is None:
            return embedding
        shift = self.largest_shift * (2 * uniform(keys, (1,), SHIFT_SALT) - 1)
        shifted = super().encode((images + 255 * shift[..., None, None]).clamp(0, 255), keys)
        return embedding._replace(aux_losses=self.consistency(embedding.features, shifted, shift))

    def consistency(self, invariant: Tensor, shifted: Embedding, shift: Tensor) -> dict[str, Tensor]:
        """The auxiliary losses, each (B,).

        Args:
            invariant: features of the images themselves, which the copies' are to equal.
            shifted: of the copies.
            shift: by how much each was shifted, (B, 1).
        """
        (variant,) = shifted.taps
        told = self.shift(variant.mean((2, 3))).float()
        return {
            "invariance": (shifted.features - invariant.detach()).abs().mean((1, 2, 3)),
            "variance": (told - shift).abs().mean(1),
        }

    def decode(self, embedding: Embedding) -> Answers:
        return replace(super().decode(embedding), aux_losses=embedding.aux_losses)


@register("fdrnet")
class FDRNet(CompleteMethod):
    """Features that follow an image's intensity and features that do not, reweighted, for shadows.

    Attributes:
        side: of the images it works on, in pixels.
        variant_share: of the intensity-variant features in the mixture, from 0 to 1 (the paper's mu).
        largest_shift: of the shifted copies' intensity, up or down, of the range from black to white.
        invariance_weight: of the loss that keeps invariant features as they are without the shift.
        variance_weight: of the loss that tells the shift from variant features.
    """

    title: ClassVar[str] = "FDRNet"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 10.77
    several_classes: ClassVar[bool] = False
    side: Annotated[int, Field(ge=32)] = 512
    variant_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    largest_shift: Annotated[float, Field(gt=0, le=1)] = 0.3
    invariance_weight: NonNegativeFloat = 1.0
    variance_weight: NonNegativeFloat = 0.1

    def added_parameters(self, context: Context) -> int:
        return 7_931_114

    def idle_parameters(self, context: Context) -> int:
        """The backbone's last block, and the convolution and norm behind it."""
        return 2_244_960 + 592_896

    def model(self, context: Context) -> FDRNetModel:
        return FDRNetModel(context, **self.model_dump())
