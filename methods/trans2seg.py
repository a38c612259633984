"""Trans2Seg (Xie et al. 2021, IJCAI, arXiv:2101.08461), a specialist for transparent objects.

A transformer encodes what a ResNet-50c saw, at an output stride of 16. A learned prototype of each class then looks it
up: its attention maps, one a head, are what a small convolutional head turns into that class's logits, beside the
encoded features and the backbone's finest level.

Neither the paper's text nor its code was opened for this: the structure is as remembered of both, and its sizes agree
with the released model's count. That has room for a perceptron over the positions of an attention map, three times as
wide as there are positions, in each of four decoder layers; prototypes and features have one of their own. Inferred:
each layer's map is added to that of the layer before; the prototypes' update of the last layer, which no answer would
depend on, is left out; kernels of the head; GELU, and norms before each part; of one class the regime's loss.

Parameters at 512 pixels: 56,001,145 and 256 for each class; the released model has 56,501,721 (twelve classes) without
the backbone's classifier, which takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import timm
import torch
from pydantic import Field
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from methods.base import Context, Output, TaskLoss, register
from methods.complete import CompleteMethod, CompleteModel, cross_entropy, with_imagenet_weights
from methods.systems.receptive_field import resize_as
from methods.systems.separable import ConvNormReLU, Separable

BACKBONE = "resnet50c"
"""A deep stem is all that it has beyond a ResNet-50."""
STRIDE = 16
FINE, COARSE = 256, 2048
"""Channels of the backbone's levels at strides 4 and 16."""
WIDTH, HEADS, DEPTH, RATIO, HEAD_WIDTH = 256, 8, 4, 3, 64


def residual_mlp(width: int) -> nn.Sequential:
    """A norm and a perceptron, for a residual branch."""
    return nn.Sequential(nn.LayerNorm(width), Mlp(width, RATIO * width))


class LookUp(nn.Module):
    """A decoder layer: how much each prototype attends to each position.

    Args:
        positions: how many there are.
        last: no layer comes after, so prototypes are not updated.
    """

    def __init__(self, positions: int, *, last: bool) -> None:
        super().__init__()
        self.norm_prototypes, self.norm_features = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.refine_map, self.refine_features = residual_mlp(positions), residual_mlp(WIDTH)
        self.last = last
        if not last:
            self.value, self.project = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
            self.refine_prototypes = residual_mlp(WIDTH)

    def forward(self, prototypes: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes (B, K, d), features (B, n, d): both refined, and the attention's logits (B, heads, K, n)."""
        normed = self.norm_features(features)
        query = _by_head(self.query(self.norm_prototypes(prototypes)))
        scores = query @ _by_head(self.key(normed)).mT * (WIDTH // HEADS) ** -0.5
        if not self.last:
            seen = scores.softmax(-1) @ _by_head(self.value(normed))
            prototypes = prototypes + self.project(seen.transpose(1, 2).flatten(2))
            prototypes = prototypes + self.refine_prototypes(prototypes)
        features = features + self.refine_features(features)
        return prototypes, features, scores + self.refine_map(scores)


def _by_head(x: Tensor) -> Tensor:
    """(B, n, d) -> (B, heads, n, d / heads)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class SmallHead(nn.Module):
    """Logits of each class alone, by the same convolutions for all, from its maps, the features and the fine level."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(Separable(WIDTH + HEADS, HEAD_WIDTH), Separable(HEAD_WIDTH, HEAD_WIDTH))
        self.fine = ConvNormReLU(FINE, HEAD_WIDTH, 3)
        self.answer = nn.Sequential(Separable(HEAD_WIDTH, HEAD_WIDTH), nn.Conv2d(HEAD_WIDTH, 1, 1))

    def forward(self, maps: Tensor, features: Tensor, fine: Tensor) -> Tensor:
        """Maps (B, K, heads, h, w), features (B, d, h, w), fine level (B, C, H, W) -> (B, K, H, W)."""
        classes = maps.shape[1]
        beside = features.unsqueeze(1).expand(-1, classes, -1, -1, -1)
        x = self.coarse(torch.cat([beside, maps], 2).flatten(0, 1))
        x = resize_as(x, fine) + self.fine(fine).repeat_interleave(classes, 0)
        return self.answer(x).unflatten(0, (-1, classes))[:, :, 0]


class Trans2SegModel(CompleteModel):
    """One answer; there are no mask queries: a prototype is a class.

    Args:
        context: the cell's.
        side: as in :class:`CompleteModel`; positions are learned for it.
    """

    def __init__(self, context: Context, *, side: int) -> None:
        super().__init__(context, side=side)
        self.backbone, self.random_backbone = with_imagenet_weights(
            lambda pretrained: timm.create_model(
                BACKBONE, pretrained, features_only=True, out_indices=(1, 4), output_stride=STRIDE
            ),
            context,
            name=BACKBONE,
        )
        self.grid = side // STRIDE
        self.embed = nn.Conv2d(COARSE, WIDTH, 1)
        self.positions = nn.Parameter(torch.randn(1, self.grid**2, WIDTH) * 0.02)
        self.encoder = nn.Sequential(*(Block(WIDTH, HEADS, RATIO, qkv_bias=True) for _ in range(DEPTH)))
        self.prototypes = nn.Parameter(torch.randn(1, context.num_classes, WIDTH) * 0.02)
        self.decoder = nn.ModuleList(LookUp(self.grid**2, last=layer == DEPTH - 1) for layer in range(DEPTH))
        self.head = SmallHead()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        fine, coarse = self.backbone(images)
        return coarse, fine

    def answers(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        coarse, fine = features
        x = self.encoder(self.embed(coarse).flatten(2).mT + self.positions)
        prototypes, maps = self.prototypes.expand(len(x), -1, -1), None
        for look_up in self.decoder:
            prototypes, x, found = look_up(prototypes, x)
            maps = found if maps is None else maps + found
        grid = (self.grid, self.grid)
        return (self.head(maps.transpose(1, 2).unflatten(-1, grid), x.mT.unflatten(-1, grid), fine),)

    def loss(self, output: Output, target: Tensor, task_loss: TaskLoss) -> Tensor:
        """Cross-entropy; of one class the regime's loss."""
        return cross_entropy(output.masks, target) if self.num_classes > 1 else task_loss(output, target)


@register("trans2seg")
class Trans2Seg(CompleteMethod):
    """Segmentation as looking up prototypes of classes, of the paper's medium size.

    Attributes:
        side: of the images it works on, in pixels; positions and their perceptrons grow with it.
    """

    title: ClassVar[str] = "Trans2Seg"
    evidence: ClassVar[str] = "inferred"
    paper_trainable_m: ClassVar[float | None] = 56.20
    side: Annotated[int, Field(ge=32, multiple_of=STRIDE)] = 512

    def added_parameters(self, context: Context) -> int:
        positions = (self.side // STRIDE) ** 2
        maps = 2 * RATIO * positions**2 + (RATIO + 3) * positions  # two layers with biases, and the norm
        return 30_548_601 + WIDTH * (positions + context.num_classes) + DEPTH * maps

    def model(self, context: Context) -> Trans2SegModel:
        return Trans2SegModel(context, side=self.side)
