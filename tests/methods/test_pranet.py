"""PraNet's reverse attention stage."""

from __future__ import annotations

import torch

from methods.pranet import ReverseAttention


def test_a_stage_sees_nothing_where_the_map_is_sure() -> None:
    stage = ReverseAttention(6, 4, kernel=3, depth=2, last=3).eval()
    generator = torch.Generator().manual_seed(0)
    features, other = (torch.randn(1, 6, 12, 12, generator=generator) for _ in range(2))
    unsure = torch.ones(1, 1, 12, 12)
    unsure[..., :6] = 0
    mixed = torch.where(unsure.bool(), features, other)
    assert torch.equal(stage(features, unsure), stage(mixed, unsure))
    assert not torch.equal(stage(features, 1 - unsure), stage(mixed, 1 - unsure))


def test_a_stage_weighs_features_by_the_reversed_map() -> None:
    stage = ReverseAttention(6, 4, kernel=5, depth=3, last=1)
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    first, *middle, last = stage.layers
    x = first(torch.stack([features[:, c] * weights[:, 0] for c in range(6)], 1))
    for layer in middle[::2]:
        x = layer(x).clamp(min=0)
    assert len(middle) == 6
    torch.testing.assert_close(stage(features, weights), last(x))
