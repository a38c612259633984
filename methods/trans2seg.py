"""Trans2Seg (Xie et al. 2021, IJCAI, arXiv:2101.08461), a specialist for transparent objects.

A transformer encodes what a ResNet-50 with a deep stem saw, at an output stride of 16. Learned prototypes, one a class,
then look it up in four layers: the attention scores of the last, a map for each head, are what a small convolutional
head turns into the class's logits, beside the encoded features and the backbone's finest level.

The structure is that of the released code (Apache-2.0) in its medium size, to the last parameter. Two things that look
like slips are kept, for the printed scores come from a network that has them: where a residual branch of the decoder
begins, a value is added to itself, so that what came before attention is not in it; and of the maps only the last
layer's reach the head. A third of its parameters therefore never learn: the perceptrons over the positions of a map in
the first three layers, and what the last one does to prototypes and features. They are left out here
(:meth:`Trans2Seg.idle_parameters`), as is the backbone's classifier. One slip is not kept: there prototypes are cut
into heads in the order of their memory, which gives a class's head a part of another class's prototype. Of one class
the loss is the regime's.
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
from methods.complete import CLASSIFIER, CompleteMethod, CompleteModel, cross_entropy, with_imagenet_weights
from methods.systems.resizing import resize_as
from methods.systems.separable import ConvNormReLU, Separable

BACKBONE = "resnet50s"
"""What the release calls resnet50c: a ResNet-50 with a stem of three convolutions, of 64, 64 and 128 channels."""
STRIDE = 16
FINE, COARSE = 256, 2048
"""Channels of the backbone's levels at strides 4 and 16."""
WIDTH, HEADS, DEPTH, RATIO, HEAD_WIDTH = 256, 8, 4, 3, 64


def residual_mlp(width: int) -> nn.Sequential:
    """A norm and a perceptron, for a residual branch."""
    return nn.Sequential(nn.LayerNorm(width), Mlp(width, RATIO * width))


def residual_mlp_size(width: int) -> int:
    """Parameters of :func:`residual_mlp`."""
    return 2 * RATIO * width**2 + (RATIO + 3) * width


class Scores(nn.Module):
    """How much each prototype attends to each position, before a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_prototypes, self.norm_features = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, prototypes: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, K, n), and the features after their norm."""
        normed = self.norm_features(features)
        query = _by_head(self.query(self.norm_prototypes(prototypes)))
        return query @ _by_head(self.key(normed)).mT * (WIDTH // HEADS) ** -0.5, normed


class LookUp(nn.Module):
    """A decoder layer but the last: what prototypes find in the features."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = Scores()
        self.value, self.project = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.refine_prototypes, self.refine_features = residual_mlp(WIDTH), residual_mlp(WIDTH)

    def forward(self, prototypes: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Prototypes (B, K, d) and features (B, n, d): both refined."""
        scores, normed = self.scores(prototypes, features)
        seen = scores.softmax(-1) @ _by_head(self.value(normed))
        prototypes = 2 * self.project(seen.transpose(1, 2).flatten(2))
        features = 2 * features
        return prototypes + self.refine_prototypes(prototypes), features + self.refine_features(features)


def _by_head(x: Tensor) -> Tensor:
    """(B, n, d) -> (B, heads, n, d / heads)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Decoder(nn.Module):
    """Prototypes, the layers that look them up, and the last layer's maps, refined by a perceptron over positions.

    Args:
        classes: number of prototypes.
        positions: number of features.
    """

    def __init__(self, classes: int, positions: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.empty(1, classes, WIDTH))
        self.layers = nn.ModuleList(LookUp() for _ in range(DEPTH - 1))
        self.last, self.refine_map = Scores(), residual_mlp(positions)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, n, d) -> maps (B, heads, K, n)."""
        prototypes = self.prototypes.expand(len(features), -1, -1)
        for layer in self.layers:
            prototypes, features = layer(prototypes, features)
            prototypes = prototypes + self.prototypes
        maps = 2 * self.last(prototypes, features)[0]
        return maps + self.refine_map(maps)


class SmallHead(nn.Module):
    """Logits of each class alone, by the same convolutions for all, from its maps, the features and the fine level."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(Separable(WIDTH + HEADS, HEAD_WIDTH), Separable(HEAD_WIDTH, HEAD_WIDTH))
        self.fine = ConvNormReLU(FINE, HEAD_WIDTH, 1)
        self.answer = nn.Sequential(Separable(HEAD_WIDTH, HEAD_WIDTH), nn.Conv2d(HEAD_WIDTH, 1, 1))

    def forward(self, maps: Tensor, features: Tensor, fine: Tensor) -> Tensor:
        """Maps (B, K, heads, h, w), features (B, d, h, w), fine level (B, C, H, W) -> (B, K, H, W)."""
        classes = maps.shape[1]
        beside = features.unsqueeze(1).expand(-1, classes, -1, -1, -1)
        x = self.coarse(torch.cat([beside, maps], 2).flatten(0, 1))
        x = resize_as(x, fine) + self.fine(fine).repeat_interleave(classes, 0)
        return self.answer(x).unflatten(0, (-1, classes))[:, :, 0]


class Encoder(nn.Module):
    """A transformer over the positions of the coarse level and a class token, which nothing reads afterwards."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.embed = nn.Linear(COARSE, WIDTH)
        self.token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.empty(1, 1 + positions, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, RATIO) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, coarse: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h w, d)."""
        x = self.embed(coarse.flatten(2).mT)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(self.blocks(x))[:, 1:]


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
        self.encoder = Encoder(self.grid**2)
        self.decoder = Decoder(context.num_classes, self.grid**2)
        self.head = SmallHead()
        for part in (self.encoder, self.decoder):
            part.apply(_draw)
        for drawn in (self.encoder.token, self.encoder.positions, self.decoder.prototypes):
            nn.init.trunc_normal_(drawn, std=0.02)

    def features(self, images: Tensor) -> Sequence[Tensor]:
        fine, coarse = self.backbone(images)
        return coarse, fine

    def answers(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        coarse, fine = features
        x, grid = self.encoder(coarse), (self.grid, self.grid)
        maps = self.decoder(x)
        return (self.head(maps.transpose(1, 2).unflatten(-1, grid), x.mT.unflatten(-1, grid), fine),)

    def loss(self, output: Output, target: Tensor, task_loss: TaskLoss) -> Tensor:
        """Cross-entropy; of one class the regime's loss."""
        return cross_entropy(output.masks, target) if self.num_classes > 1 else task_loss(output, target)


def _draw(layer: nn.Module) -> None:
    """As in the release: small weights for what the transformer multiplies by."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@register("trans2seg")
class Trans2Seg(CompleteMethod):
    """Segmentation as looking up prototypes of classes, of the paper's medium size.

    Attributes:
        side: of the images it works on, in pixels; positions and their perceptrons grow with it.
    """

    title: ClassVar[str] = "Trans2Seg"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 56.20
    side: Annotated[int, Field(ge=32, multiple_of=STRIDE)] = 512

    @property
    def positions(self) -> int:
        """Number of features that the transformer sees."""
        return (self.side // STRIDE) ** 2

    def added_parameters(self, context: Context) -> int:
        return 30_125_273 + WIDTH * (self.positions + context.num_classes) + residual_mlp_size(self.positions)

    def idle_parameters(self, context: Context) -> int:
        """Of three layers the maps' perceptrons, of the last one all but its scores; and the backbone's classifier."""
        last = 2 * residual_mlp_size(WIDTH) + 2 * WIDTH**2 + WIDTH
        return (DEPTH - 1) * residual_mlp_size(self.positions) + last + CLASSIFIER

    def model(self, context: Context) -> Trans2SegModel:
        return Trans2SegModel(context, side=self.side)
