"""Which normalisations are trained, and their gradients against segment_anything's own encoder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from methods import Context, create
from methods.sam.sizes import SIZES
from methods.trial import added

NORMS = [*(f"blocks.{index}.{layer}" for index in range(3) for layer in ("norm1", "norm2")), "neck.1", "neck.3"]
TRAINED = {f"{norm}.{part}" for norm in NORMS for part in ("weight", "bias")}


def test_counts_on_vit_h() -> None:
    with torch.device("meta"):
        model = create("norm").build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": 3_505_536 + 164_864, "total": 640_670_416}


def test_gradients_are_those_of_segment_anythings_normalisations(
    mini: str, batch: Callable, segment_anything: Callable, roughen: Callable
) -> None:
    images, gradients = batch(2)[0].double() / 64 - 1, []
    model = create("norm").build(Context(backbone=mini, checkpoint="none", image_size=64))
    ours = roughen(model.image_encoder).double()
    theirs = segment_anything(SIZES[mini], 64).image_encoder.double()
    theirs.load_state_dict(ours.state_dict())
    for encoder, features in ((ours, ours(images).features), (theirs, theirs(images))):
        (features * torch.linspace(-1, 1, features.numel(), dtype=torch.double).view_as(features)).sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    found, expected = gradients
    assert found.keys() == TRAINED == {name.removeprefix("image_encoder.") for name in added(model)}
    for name, gradient in found.items():
        assert gradient.any()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("last_k", "count"), [(1, 2), (2, 4), (3, 6)])
def test_the_neck_is_trained_whatever_blocks_are(mini: str, last_k: int, count: int) -> None:
    model = create("norm", {"last_k": last_k}).build(Context(backbone=mini, checkpoint="none", image_size=64))
    trained = {name.removeprefix("image_encoder.").rpartition(".")[0] for name in added(model)}
    assert trained == set(NORMS[-2 - count :])
