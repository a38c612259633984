"""TransFuse-S (Zhang et al. 2021, MICCAI, arXiv:2102.08005), the skin lesion specialist of tables 1 and 6.

A ResNet-34 without its last stage and a DeiT-S of 8 blocks see the image side by side. At strides 16, 8 and 4 a
BiFusion module joins the two, and what it makes goes from coarse to fine through attention gates. The loss is PraNet's,
the harness's task loss ``structure``, on three maps.

The text leaves open the sizes inside the modules, the heads, where norms stand and where channels are dropped; those
are the released network's, to the last parameter, written anew (its code has no licence). Its images of skin are
192 x 256, whose 192 patches have a table of 12 x 16 positions. Images here are square: 224 pixels have nearly as many
patches, 14 x 14, which is DeiT's own table. Another side resamples that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import timm
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet34_Weights, resnet34

from methods.base import Context, TaskLoss, register
from methods.complete import Answers, CompleteMethod, CompleteModel, supervise, with_imagenet_weights

TRANSFORMER, PATCH, DEPTH, TOKEN_WIDTH = "deit_small_patch16_224", 16, 8, 384
WIDTHS = (64, 128, 256)
"""Channels of the ResNet's stages, at strides 4, 8 and 16."""
DROPPED = 0.2
"""Of the channels of a branch; half as many behind a fusion."""


class ConvNorm(nn.Sequential):
    """A convolution that keeps height and width, and BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, kernel, padding="same", bias=bias), nn.BatchNorm2d(outputs))


class DoubleConv(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one, added up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvNorm(inputs, outputs, 3), nn.ReLU(inplace=True), ConvNorm(outputs, outputs, 3))
        self.shortcut = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """BatchNorm and ReLU before each of three convolutions, the middle one half as wide, beside a 1x1 one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 2
        self.layers = nn.Sequential()
        for channels_in, channels_out, kernel in ((inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)):
            conv = nn.Conv2d(channels_in, channels_out, kernel, padding="same")
            self.layers.extend([nn.BatchNorm2d(channels_in), nn.ReLU(), conv])
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


class BiFusion(nn.Module):
    """One map from two: ``Bottleneck([g', t', b])`` with t' the transformer's t by channel attention (SE), g' the
    convolutions' g by spatial attention (CBAM), and b what a convolution makes of the product of their projections.

    Args:
        convolved, attended: channels of g and of t.
        width: of the projections and of the result.
        reduction: of the channel attention's inner layer.
    """

    def __init__(self, convolved: int, attended: int, width: int, *, reduction: int) -> None:
        super().__init__()
        self.project_convolved = ConvNorm(convolved, width, 1)
        self.project_attended = ConvNorm(attended, width, 1)
        self.product = nn.Sequential(ConvNorm(width, width, 3), nn.ReLU(inplace=True))
        self.channels = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(attended, attended // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(attended // reduction, attended, 1),
            nn.Sigmoid(),
        )
        self.places = nn.Sequential(ConvNorm(2, 1, 7, bias=False), nn.Sigmoid())
        self.join = nn.Sequential(Bottleneck(convolved + attended + width, width), nn.Dropout2d(DROPPED / 2))

    def forward(self, convolved: Tensor, attended: Tensor) -> Tensor:
        product = self.product(self.project_convolved(convolved) * self.project_attended(attended))
        extent = torch.cat([convolved.amax(1, keepdim=True), convolved.mean(1, keepdim=True)], 1)
        weighed = convolved * self.places(extent), attended * self.channels(attended)
        return self.join(torch.cat([*weighed, product], 1))


class AttentionGate(nn.Module):
    """Features (B, C, h, w), weighed at each pixel by what they and a guidance say (Attention U-Net)."""

    def __init__(self, channels: int, guidance: int) -> None:
        super().__init__()
        self.from_features = ConvNorm(channels, channels, 1)
        self.from_guidance = ConvNorm(guidance, channels, 1)
        self.score = nn.Sequential(nn.ReLU(), ConvNorm(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        return x * self.score(self.from_features(x) + self.from_guidance(guidance))


class GatedUp(nn.Module):
    """A map at twice its side, beside a finer one that passes a gate, to the finer one's channels."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.gate = AttentionGate(fine, coarse)
        self.join = DoubleConv(fine + coarse, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        coarse = doubled(coarse)
        return self.join(torch.cat([self.gate(fine, coarse), coarse], 1))


def doubled(x: Tensor) -> Tensor:
    """At twice the side, bilinearly, corner pixels on corner pixels."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def head(width: int) -> nn.Sequential:
    """Logits (B, 1, h, w) from features."""
    return nn.Sequential(ConvNorm(width, width, 3), nn.ReLU(inplace=True), nn.Conv2d(width, 1, 3, padding=1))


class Stages(nn.ModuleList):
    """The first three stages of a ResNet; each sees what is left of the one before once channels were dropped."""

    def __init__(self, resnet: nn.Module) -> None:
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1)
        super().__init__(nn.Sequential(x, nn.Dropout2d(DROPPED)) for x in (stem, resnet.layer2, resnet.layer3))

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [images]
        for stage in self:
            found.append(stage(found[-1]))
        return found[1:]


class Tokens(nn.Module):
    """The first blocks of a DeiT-S, its patches only: (B, 384, side / 16, side / 16). The class token is left out.

    Args:
        deit: timm's, built for this side.
    """

    def __init__(self, deit: nn.Module) -> None:
        super().__init__()
        self.patches = deit.patch_embed
        self.positions = nn.Parameter(deit.pos_embed[:, 1:].detach().clone())
        self.blocks, self.norm, self.drop = deit.blocks[:DEPTH], deit.norm, nn.Dropout2d(DROPPED)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.patches(images) + self.positions))
        grid = images.shape[-1] // PATCH
        return self.drop(x.transpose(1, 2).unflatten(2, (grid, grid)))


class TransFuseModel(CompleteModel):
    """Answers with the fused map, the transformer's own, and that of the coarsest fusion.

    Args:
        context: the cell's.
        side: what it works at, in pixels.
        weights: of the losses of the three answers.
    """

    def __init__(self, context: Context, *, side: int, weights: tuple[float, float, float]) -> None:
        super().__init__(context, side=side)
        self.weights = weights
        resnet, no_resnet = with_imagenet_weights(
            lambda pretrained: resnet34(weights=ResNet34_Weights.IMAGENET1K_V1 if pretrained else None),
            context,
            name="resnet34",
        )
        deit, no_deit = with_imagenet_weights(
            lambda pretrained: timm.create_model(TRANSFORMER, pretrained, img_size=side), context, name=TRANSFORMER
        )
        self.random_backbone = no_resnet or no_deit
        self.convolutions, self.tokens = Stages(resnet), Tokens(deit)
        fine, middle, coarse = WIDTHS
        self.tokens_up = nn.ModuleList(
            nn.Sequential(DoubleConv(*widths), nn.Dropout2d(DROPPED))
            for widths in ((TOKEN_WIDTH, middle), (middle, fine))
        )
        self.fusions = nn.ModuleList(
            [
                BiFusion(coarse, TOKEN_WIDTH, coarse, reduction=4),
                BiFusion(middle, middle, middle, reduction=2),
                BiFusion(fine, fine, fine, reduction=1),
            ]
        )
        self.gated = nn.ModuleList([GatedUp(coarse, middle), GatedUp(middle, fine)])
        narrowed = nn.Sequential(ConvNorm(coarse, fine, 1), nn.ReLU(inplace=True), *head(fine))
        self.heads = nn.ModuleList([head(fine), head(fine), narrowed])
        for part in (self.tokens_up, self.fusions, self.gated, self.heads):
            part.apply(_draw)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The ResNet's at strides 4, 8 and 16, and the transformer's at 16."""
        return (*self.convolutions(images), self.tokens(images))

    def answers(self, features: Sequence[Tensor]) -> list[Tensor]:
        """At strides 4, 4 and 16."""
        *convolved, tokens = features
        attended = [tokens]
        for up in self.tokens_up:
            attended.append(up(doubled(attended[-1])))
        fused = [fusion(*pair) for fusion, *pair in zip(self.fusions, reversed(convolved), attended, strict=True)]
        x = fused[0]
        for up, finer in zip(self.gated, fused[1:], strict=True):
            x = up(x, finer)
        return [answer(y) for answer, y in zip(self.heads, (x, attended[-1], fused[0]), strict=True)]

    def loss(self, output: Answers, target: Tensor, task_loss: TaskLoss) -> Tensor:
        return supervise(output, target, task_loss, self.weights)


def _draw(layer: nn.Module) -> None:
    """As in the release: He's normal weights for what stands between the two networks and the maps."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


@register("transfuse")
class TransFuse(CompleteMethod):
    """A convolutional network and a transformer side by side, fused at three resolutions, for skin lesions.

    Attributes:
        side: of the images it works on, in pixels.
        fused_weight: of the loss of the answer that is scored.
        transformer_weight: of the loss of what the transformer answers by itself.
        coarse_weight: of the loss of what the coarsest fusion answers.
    """

    title: ClassVar[str] = "TransFuse"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 26.30
    several_classes: ClassVar[bool] = False
    side: Annotated[int, Field(ge=32, multiple_of=PATCH)] = 224
    fused_weight: NonNegativeFloat = 0.5
    transformer_weight: NonNegativeFloat = 0.3
    coarse_weight: NonNegativeFloat = 0.2

    def added_parameters(self, context: Context) -> int:
        """ResNet, transformer, its table of positions, and the rest."""
        return 8_170_304 + 14_491_776 + TOKEN_WIDTH * (self.side // PATCH) ** 2 + 3_512_533

    def idle_parameters(self, context: Context) -> int:
        """The transformer's class token."""
        return TOKEN_WIDTH

    def model(self, context: Context) -> TransFuseModel:
        weights = (self.fused_weight, self.transformer_weight, self.coarse_weight)
        return TransFuseModel(context, side=self.side, weights=weights)
