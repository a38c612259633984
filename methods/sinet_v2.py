"""SINet-v2 (Fan et al. 2021, TPAMI, arXiv:2102.10274), the camouflage specialist of tables 1 and 7.

A search phase draws a first map by texture enhanced modules and the neighbour connection decoder; an identification
phase refines it by group-reversal attention. The loss is PraNet's, the harness's task loss ``structure``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.complete import CLASSIFIER, CompleteMethod
from methods.systems.receptive_field import CHANNELS, WIDTH, ReverseAttentionModel

GROUP_SIZES = (32, 8, 1)
"""Channels between two copies of the guidance, in the three blocks of a stage."""


class GroupReversal(nn.Module):
    """A block: the guidance is put behind every group of channels; what they make together refines both.

    Args:
        width: channels of the features.
        group_size: channels of a group, a divisor of ``width``.
    """

    def __init__(self, width: int, group_size: int) -> None:
        super().__init__()
        self.groups = width // group_size
        self.mix = nn.Conv2d(width + self.groups, width, 3, padding=1)
        self.score = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, features: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, width, h, w) and guidance (B, 1, h, w), both refined."""
        groups = features.unflatten(1, (self.groups, -1))
        copies = guidance.unsqueeze(1).expand(-1, self.groups, -1, -1, -1)
        features = features + F.relu(self.mix(torch.cat([groups, copies], 2).flatten(1, 2)))
        return features, guidance + self.score(features)


class GroupReversalStage(nn.Module):
    """A stage: three blocks one after another, the reversed map being the first one's guidance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GroupReversal(width, size) for size in GROUP_SIZES)

    def forward(self, features: Tensor, reversed_map: Tensor) -> Tensor:
        guidance = reversed_map
        for block in self.blocks:
            features, guidance = block(features, guidance)
        return guidance


class SINetV2Model(ReverseAttentionModel):
    """Its map is refined on what the receptive-field blocks made of the levels."""

    def __init__(self, context: Context, *, side: int) -> None:
        super().__init__(context, side=side, neighbours=True)
        self.stages = nn.ModuleList(GroupReversalStage(WIDTH) for _ in CHANNELS)

    def refined_on(self, features: Sequence[Tensor], fields: Sequence[Tensor]) -> Sequence[Tensor]:
        return fields


@register("sinet_v2")
class SINetV2(CompleteMethod):
    """Search by neighbour connections, identification by group-reversal attention, for camouflaged objects.

    Attributes:
        side: of the images it works on, in pixels.
    """

    title: ClassVar[str] = "SINet-v2"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 26.98
    several_classes: ClassVar[bool] = False
    side: Annotated[int, Field(ge=32)] = 352

    def added_parameters(self, context: Context) -> int:
        return 24_926_642

    def idle_parameters(self, context: Context) -> int:
        """The backbone's classifier."""
        return CLASSIFIER

    def model(self, context: Context) -> SINetV2Model:
        return SINetV2Model(context, side=self.side)
