"""SINet-v2's group-reversal attention against slices put together one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.sinet_v2 import GroupReversal, GroupReversalStage


def by_slices(block: GroupReversal, features: Tensor, guidance: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    parts = []
    for start in range(0, features.shape[1], group_size):
        parts += [features[:, start : start + group_size], guidance]
    mixed = F.conv2d(torch.cat(parts, 1), block.mix.weight, block.mix.bias, padding=1)
    features = features + mixed.clamp(min=0)
    return features, guidance + F.conv2d(features, block.score.weight, block.score.bias, padding=1)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 32, 5, 7, generator=generator), torch.rand(2, 1, 5, 7, generator=generator)


@pytest.mark.parametrize(("group_size", "copies"), [(32, 1), (8, 4), (1, 32)])
def test_the_guidance_stands_behind_every_group(group_size: int, copies: int, inputs: tuple[Tensor, Tensor]) -> None:
    block = GroupReversal(32, group_size)
    assert block.mix.in_channels == 32 + copies
    for found, wanted in zip(block(*inputs), by_slices(block, *inputs, group_size), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_stage_is_three_blocks_from_coarse_groups_to_fine(inputs: tuple[Tensor, Tensor]) -> None:
    stage = GroupReversalStage(32)
    features, guidance = inputs
    for block, size in zip(stage.blocks, (32, 8, 1), strict=True):
        features, guidance = by_slices(block, features, guidance, size)
    torch.testing.assert_close(stage(*inputs), guidance)
