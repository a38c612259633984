"""LinkNet34MTL (Batra et al. 2019, "Improved Road Connectivity by Joint Learning of Orientation and Segmentation").

A ResNet-34 and on it two LinkNet decoders of one kind (Chaurasia and Culurciello 2017): one says where roads are, the
other in which of 36 directions each runs. The structure is that of the released code (MIT), to the last parameter: with
two road classes, as published, 21,284,672 + 2 * 357,600 + 129 * (2 + 37) = 22,004,903. Binary masks need one logit
here, which is two classes' difference, so there are 129 fewer.

The loss is that of their code: soft IoU, the mean of road and background, and the orientation's cross-entropy, which
weigh alike; the regime's loss takes no part. Answers at several scales belong to their larger, stacked network; they
train this one without. Their ResNet starts from random weights; here it starts from ImageNet's, as the other systems do
(inferred).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torchvision.models import ResNet34_Weights, resnet34
from torchvision.models.feature_extraction import create_feature_extractor

from methods.base import Context, Output, TaskLoss, register
from methods.complete import CompleteMethod, CompleteModel, cross_entropy, with_imagenet_weights
from methods.systems.orientation import BACKGROUND, orientations

WIDTHS = (64, 128, 256, 512)


def pretrained_resnet34(pretrained: bool) -> nn.Module:
    """torchvision's, with its only published ImageNet weights."""
    return resnet34(weights=ResNet34_Weights.IMAGENET1K_V1 if pretrained else None)


def upsampling(width_in: int, width_out: int) -> nn.Sequential:
    """LinkNet's block: to a quarter of the channels, twice the side, and to the channels wanted."""
    inner = width_in // 4
    return nn.Sequential(
        nn.Conv2d(width_in, inner, 1),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, width_out, 1),
        nn.BatchNorm2d(width_out),
        nn.ReLU(inplace=True),
    )


class Decoder(nn.Module):
    """From four stages of an encoder, a quarter to a 32nd of the image, to logits at its size.

    Each block's output is added to the next finer stage. Where a stage's side is odd, the last row and column of what
    was doubled is left out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(upsampling, WIDTHS, WIDTHS[:1] + WIDTHS[:-1]))
        self.head = nn.Sequential(
            nn.ConvTranspose2d(WIDTHS[0], 32, 3, stride=2),  # one pixel too many,
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(32, 32, 3),  # one too few,
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(32, channels, 2, padding=1),  # and the size of the image
        )

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        x = stages[-1]
        for block, finer in zip(self.blocks[:0:-1], stages[-2::-1], strict=True):
            x = block(x)[..., : finer.shape[-2], : finer.shape[-1]] + finer
        return self.head(self.blocks[0](x))


def soft_iou_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - the IoU of probabilities (B, 1, H, W) with what is true, the mean of road and background, (B,)."""
    road, losses = logits.float().sigmoid(), []
    for found, true in ((road, target), (1 - road, 1 - target)):
        both = (found * true).sum((1, 2, 3))
        losses.append(1 - both / ((found + true).sum((1, 2, 3)) - both + 1e-8))
    return torch.stack(losses).mean(0)


class LinkNet34MTLModel(CompleteModel):
    """Answers with one road logit a pixel, and in training with the logits of 36 directions and of no road.

    Args:
        context: the cell's.
        side: as in :class:`CompleteModel`.
        orientation_weight: of the second task's loss.
    """

    def __init__(self, context: Context, *, side: int | None, orientation_weight: float) -> None:
        super().__init__(context, side=side)
        resnet, self.random_backbone = with_imagenet_weights(pretrained_resnet34, context, name="resnet34")
        stages = [f"layer{number}" for number in (1, 2, 3, 4)]
        self.encoder = create_feature_extractor(resnet, stages)
        self.segmentation = Decoder(1)
        self.orientation = Decoder(BACKGROUND + 1)
        self.orientation_weight = orientation_weight

    def features(self, images: Tensor) -> Sequence[Tensor]:
        return tuple(self.encoder(images).values())

    def answers(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        scored = self.segmentation(features)
        return (scored, self.orientation(features)) if self.training else (scored,)

    def loss(self, output: Output, target: Tensor, task_loss: TaskLoss) -> Tensor:
        """Soft IoU, and in training the orientation's cross-entropy over all pixels; not the regime's loss."""
        loss = soft_iou_loss(output.masks, target)
        for logits in output.others:
            loss = loss + self.orientation_weight * cross_entropy(logits, orientations(target[:, 0]))
        return loss


@register("linknet34mtl")
class LinkNet34MTL(CompleteMethod):
    """Roads and their directions from one ResNet-34.

    Args:
        side: what it works at, in pixels; None for the cell's image size.
        orientation_weight: of the orientation's loss; the segmentation's weighs 1.
    """

    title: ClassVar[str] = "LinkNet34MTL"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 22.00
    several_classes: ClassVar[bool] = False
    side: int | None = Field(None, ge=32, multiple_of=16)
    orientation_weight: NonNegativeFloat = 1.0

    def added_parameters(self, context: Context) -> int:
        return 21_284_672 + 2 * 357_600 + 129 * (1 + BACKGROUND + 1)

    def model(self, context: Context) -> CompleteModel:
        return LinkNet34MTLModel(context, side=self.side, orientation_weight=self.orientation_weight)
