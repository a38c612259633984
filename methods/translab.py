"""TransLab (Xie et al. 2020, ECCV, arXiv:2003.13948), a specialist for transparent objects.

Glass looks like what is behind it; its edges do not. A boundary stream predicts them, and the regular stream attends to
them at five places. Both streams are DeepLabv3+ on the same ResNet-50 at an output stride of 16; the regular one takes
in the level at stride 8 too.

The structure is that of the released code (Apache-2.0), to the last parameter: 40,146,929 with three classes, beside
which it carries the backbone's classifier. From it are also the loss's weight of 5, Dice's form, the 512 pixels a side,
and boundaries 8 pixels thick. Two things differ. It draws the contours of all that is not background, along the edge of
the image too; here a boundary is where two labels meet, so that classes that touch have one and the image's edge has
none. And it computes Dice of the boundary's logits themselves, where its attention takes their sigmoid; here both take
that. Of one class the loss is the regime's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models.feature_extraction import create_feature_extractor

from methods.base import Context, TaskLoss, register
from methods.complete import (
    CLASSIFIER,
    Answers,
    CompleteMethod,
    CompleteModel,
    cross_entropy,
    with_imagenet_weights,
)
from methods.systems.resizing import resize_as
from methods.systems.separable import ConvNormReLU, Separable

STAGES = {"layer1": "fine", "layer2": "middle", "layer4": "coarse"}
CHANNELS = (256, 512, 2048)
"""Of the backbone's levels at strides 4, 8 and 16."""
WIDTH, FINE_WIDTH, MIDDLE_WIDTH, RATES = 256, 48, 24, (6, 12, 18)
"""Of the pyramid's result, of the levels joined to it, and the pyramid's dilations."""
IGNORED = 255


class BoundaryAttention(nn.Module):
    """Features beside themselves weighted by the boundary map, mixed, and their channels weighted.

    The channels' weights come from their means through two layers, a sixteenth as wide in between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = Separable(2 * channels, channels)
        narrow = channels // 16
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, channels, 1), nn.Sigmoid()
        )

    def forward(self, features: Tensor, boundary: Tensor) -> Tensor:
        """Features (B, C, h, w) and the probabilities of a boundary (B, 1, any, any)."""
        mixed = self.mix(torch.cat([features, features * resize_as(boundary, features)], 1))
        return mixed * self.weigh(mixed.mean((2, 3), keepdim=True))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling with separable convolutions, and the image's mean; a tenth of it dropped."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormReLU(channels, width, 1)])
        self.branches.extend(Separable(channels, width, dilation=rate) for rate in RATES)
        self.image = ConvNormReLU(channels, width, 1)
        self.join = nn.Sequential(ConvNormReLU((len(RATES) + 2) * width, width, 1), nn.Dropout2d(0.1))

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.join(torch.cat([*(branch(x) for branch in self.branches), image], 1))


def answer(channels: int, classes: int) -> nn.Sequential:
    """Logits from joined levels."""
    return nn.Sequential(Separable(channels, WIDTH), Separable(WIDTH, WIDTH), nn.Conv2d(WIDTH, classes, 1))


class BoundaryStream(nn.Module):
    """DeepLabv3+: the pyramid on the coarse level, joined to the fine one; one logit a pixel, at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        fine, _, coarse = CHANNELS
        self.pyramid, self.reduce = Pyramid(coarse, WIDTH), ConvNormReLU(fine, FINE_WIDTH, 1)
        self.answer = answer(WIDTH + FINE_WIDTH, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        fine, _, coarse = levels
        return self.answer(torch.cat([resize_as(self.pyramid(coarse), fine), self.reduce(fine)], 1))


class RegularStream(nn.Module):
    """The same by way of the middle level, with attention to boundaries on each level and wherever two are joined."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        fine, middle, coarse = CHANNELS
        self.attend = nn.ModuleList(BoundaryAttention(channels) for channels in CHANNELS)
        self.pyramid = Pyramid(coarse, WIDTH)
        self.reduce_middle, self.reduce_fine = ConvNormReLU(middle, MIDDLE_WIDTH, 1), ConvNormReLU(fine, FINE_WIDTH, 1)
        joined = WIDTH + MIDDLE_WIDTH
        self.join = nn.Sequential(Separable(joined, joined), Separable(joined, joined))
        self.attend_joined = nn.ModuleList([BoundaryAttention(joined), BoundaryAttention(joined + FINE_WIDTH)])
        self.answer = answer(joined + FINE_WIDTH, classes)

    def forward(self, levels: Sequence[Tensor], boundary: Tensor) -> Tensor:
        """Levels as in :data:`CHANNELS` and the probabilities of a boundary (B, 1, h, w)."""
        fine, middle, coarse = (attend(level, boundary) for attend, level in zip(self.attend, levels, strict=True))
        after_middle, after_fine = self.attend_joined
        x = torch.cat([resize_as(self.pyramid(coarse), middle), self.reduce_middle(middle)], 1)
        x = self.join(after_middle(x, boundary))
        return self.answer(after_fine(torch.cat([resize_as(x, fine), self.reduce_fine(fine)], 1), boundary))


def strided_resnet50(pretrained: bool) -> nn.Module:
    """torchvision's ResNet-50 at a sixteenth of the input's side, with its first published ImageNet weights."""
    weights = ResNet50_Weights.IMAGENET1K_V1 if pretrained else None
    return resnet50(weights=weights, replace_stride_with_dilation=[False, False, True])


def boundaries(labels: Tensor, reach: int) -> Tensor:
    """What lies within ``reach`` pixels of another label, along rows, columns or diagonals, (B, H, W) boolean.

    Args:
        labels: (B, H, W); no boundary runs along what is 255, which does not count.
        reach: half the thickness of a boundary.
    """
    labels = labels.float().unsqueeze(1)
    ignored, window = labels == IGNORED, 2 * reach + 1
    highest = F.max_pool2d(labels.masked_fill(ignored, -1), window, 1, reach)
    lowest = -F.max_pool2d(-labels, window, 1, reach)  # 255 is above all labels
    return ((highest > lowest) & ~ignored)[:, 0]


def dice_loss(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """One minus Dice's coefficient with squares below (Milletari et al. 2016), smoothed by 1, one an image, (B,).

    Args:
        logits: (B, H, W); also ``truth``, and where pixels count.
    """
    probability, truth = logits.float().sigmoid() * counted, truth.float() * counted
    both = (probability * truth).sum((1, 2))
    each = (probability**2).sum((1, 2)) + (truth**2).sum((1, 2))
    return 1 - (2 * both + 1) / (each + 1)


class TransLabModel(CompleteModel):
    """Answers classes, and behind them one boundary, which evaluation needs too.

    Args:
        context: the cell's.
        side: as in :class:`CompleteModel`.
        thickness: of boundaries, in pixels at ``side``.
        boundary_weight: of their loss.
    """

    def __init__(self, context: Context, *, side: int, thickness: int, boundary_weight: float) -> None:
        super().__init__(context, side=side)
        resnet, self.random_backbone = with_imagenet_weights(strided_resnet50, context, name="resnet50")
        self.backbone = create_feature_extractor(resnet, STAGES)
        self.boundary, self.regular = BoundaryStream(), RegularStream(context.num_classes)
        self.reach = max(1, round(thickness / 2 * context.image_size / side))
        self.boundary_weight = boundary_weight

    def features(self, images: Tensor) -> Sequence[Tensor]:
        found = self.backbone(images)
        return [found[name] for name in STAGES.values()]

    def answers(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        boundary = self.boundary(features)
        return self.regular(features, boundary.sigmoid()), boundary

    def loss(self, output: Answers, target: Tensor, task_loss: TaskLoss) -> Tensor:
        """Cross-entropy, of one class the regime's loss, plus the weighted dice loss of the boundaries."""
        several = self.num_classes > 1
        labels = target if several else target[:, 0]
        own = cross_entropy(output.masks, target) if several else task_loss(output, target)
        (boundary,) = output.others
        dice = dice_loss(boundary[:, 0], boundaries(labels, self.reach), labels != IGNORED)
        return own + self.boundary_weight * dice


@register("translab")
class TransLab(CompleteMethod):
    """Boundaries guide the segmentation of transparent objects.

    Attributes:
        side: of the images it works on, in pixels.
        thickness: of boundaries, in pixels at ``side``.
        boundary_weight: of the boundaries' loss; the classes' weighs 1.
    """

    title: ClassVar[str] = "TransLab"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 42.19
    side: Annotated[int, Field(ge=32)] = 512
    thickness: Annotated[int, Field(ge=2)] = 8
    boundary_weight: NonNegativeFloat = 5.0

    def added_parameters(self, context: Context) -> int:
        return 40_146_158 + 257 * context.num_classes

    def idle_parameters(self, context: Context) -> int:
        """The backbone's classifier."""
        return CLASSIFIER

    def model(self, context: Context) -> TransLabModel:
        return TransLabModel(context, side=self.side, thickness=self.thickness, boundary_weight=self.boundary_weight)
