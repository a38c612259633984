"""What PraNet and SINet-v2 have in common: a coarse map from receptive fields, refined where it says "nothing".

Both take the last three levels of a Res2Net-50 (strides 8, 16 and 32), bring each to a few channels by a
receptive-field block, and let a partial decoder draw a first map from them. Three stages, the deepest level first, then
correct the map of the one before, looking where that saw no object: at its reversed probabilities. All four maps are
supervised.

Sources: receptive-field block and partial decoder, Wu et al. 2019 (CPD, arXiv:1904.08739) after Liu et al. 2018 (RFB,
arXiv:1711.07767); reverse attention, Chen et al. 2018 (arXiv:1807.09940). What the texts leave open is as in the two
released networks, written anew: kernels, biases, where a ReLU stands, and that corners are aligned where the decoder
doubles a level, not where maps are resized.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, TaskLoss
from methods.complete import Answers, CompleteModel, supervise, with_imagenet_weights
from methods.systems.resizing import resize_as

BACKBONE = "res2net50d"
CHANNELS = (512, 1024, 2048)
"""Of the backbone's levels at strides 8, 16 and 32."""
WIDTH = 32
"""Channels of a level behind its receptive-field block."""


class ConvNorm(nn.Sequential):
    """A convolution that keeps height and width, and BatchNorm; without bias or activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], *, dilation: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs))


class ReceptiveField(nn.Module):
    """Few channels from many, (B, C, h, w), by branches of windows 1, 3, 5 and 7 pixels wide, dilated by as much.

    SINet-v2 calls it texture enhanced module.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(channels, width, 1),
                *(
                    nn.Sequential(
                        ConvNorm(channels, width, 1),
                        ConvNorm(width, width, (1, reach)),
                        ConvNorm(width, width, (reach, 1)),
                        ConvNorm(width, width, 3, dilation=reach),
                    )
                    for reach in (3, 5, 7)
                ),
            ]
        )
        self.join = ConvNorm(4 * width, width, 3)
        self.shortcut = ConvNorm(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.join(torch.cat([branch(x) for branch in self.branches], 1)) + self.shortcut(x))


class PartialDecoder(nn.Module):
    """A map (B, 1, h, w) from three levels: coarser ones gate finer ones, then all are joined from coarse to fine.

    Args:
        width: channels of each level.
        neighbours: the finest level is gated by the middle one as the coarsest has left it (SINet-v2's neighbour
            connections), not by the coarsest itself (CPD, PraNet).
    """

    def __init__(self, width: int, *, neighbours: bool) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.coarse_gates_middle = ConvNorm(width, width, 3)
        self.middle_gates_fine = ConvNorm(width, width, 3)
        self.above_gates_fine = ConvNorm(width, width, 3)
        self.coarse_beside_middle = ConvNorm(width, width, 3)
        self.join_middle = ConvNorm(2 * width, 2 * width, 3)
        self.middle_beside_fine = ConvNorm(2 * width, 2 * width, 3)
        self.join_fine = ConvNorm(3 * width, 3 * width, 3)
        self.answer = nn.Sequential(ConvNorm(3 * width, 3 * width, 3), nn.Conv2d(3 * width, 1, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        fine, middle, coarse = levels
        coarse_up = resize_as(coarse, middle)
        gated = middle * self.coarse_gates_middle(coarse_up)
        above = gated if self.neighbours else coarse_up
        joined = self.join_middle(torch.cat([gated, self.coarse_beside_middle(coarse_up)], 1))
        gated = fine * self.middle_gates_fine(resize_as(middle, fine)) * self.above_gates_fine(resize_as(above, fine))
        joined = self.join_fine(torch.cat([gated, self.middle_beside_fine(resize_as(joined, fine))], 1))
        return self.answer(joined)


class ReverseAttentionModel(CompleteModel):
    """Res2Net-50, receptive fields, partial decoder, and the stages that refine its map.

    A subclass sets ``stages``, one for each level from fine to coarse: (features of the level, reversed probabilities
    (B, 1, h, w)) -> what to add to the map's logits. Both papers weigh the losses of the four maps alike.

    Args:
        neighbours: see :class:`PartialDecoder`.
    """

    stages: nn.ModuleList

    def __init__(self, context: Context, *, side: int, neighbours: bool) -> None:
        super().__init__(context, side=side)
        self.backbone, self.random_backbone = with_imagenet_weights(
            lambda pretrained: timm.create_model(BACKBONE, pretrained, features_only=True, out_indices=(2, 3, 4)),
            context,
            name=BACKBONE,
        )
        self.fields = nn.ModuleList(ReceptiveField(channels, WIDTH) for channels in CHANNELS)
        self.decoder = PartialDecoder(WIDTH, neighbours=neighbours)

    @abc.abstractmethod
    def refined_on(self, features: Sequence[Tensor], fields: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the stages look at: the backbone's features or what the receptive-field blocks made of them."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        return self.backbone(images)

    def answers(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the stages from fine to coarse, and of the decoder, at strides 8, 16, 32 and 8."""
        fields = [field(level) for field, level in zip(self.fields, features, strict=True)]
        maps = [self.decoder(fields)]
        levels = self.refined_on(features, fields)
        for stage, level in zip(reversed(self.stages), reversed(levels), strict=True):
            before = resize_as(maps[-1], level, align_corners=False)
            maps.append(before + stage(level, 1 - before.sigmoid()))
        return maps[::-1]

    def loss(self, output: Answers, target: Tensor, task_loss: TaskLoss) -> Tensor:
        return supervise(output, target, task_loss, (1.0, 1.0, 1.0, 1.0))
