"""Dropout by the images' keys: what is dropped, of whom, and that the same is dropped whenever it is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from methods import Context, create
from methods.base import Execution
from methods.dropout import KeyedDropout
from methods.randomness import hand_out, image_keys

WITH_DROPOUT = ["adaptformer", "convpass"]


def told(layer: KeyedDropout, keys: torch.Tensor | None) -> KeyedDropout:
    hand_out(keys, [layer])
    return layer


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("whole_channels", [False, True])
def test_a_share_of_values_is_dropped_and_the_others_make_up_for_it(p: float, whole_channels: bool) -> None:
    layer = told(KeyedDropout(p, salt=3, whole_channels=whole_channels), image_keys(0, 1, [5, 6])).train()
    x = torch.ones(2, 5000, 3, 3)
    kept = layer(x)
    assert set(kept.unique().tolist()) == {0.0, (x[0, 0, 0, 0] / (1 - p)).item()}
    assert (kept == 0).float().mean((1, 2, 3)) == pytest.approx([p, p], abs=0.03)
    a_channel = (kept == kept[..., :1, :1]).all(-1).all(-1)
    assert a_channel.all() == whole_channels
    assert not torch.equal(kept[0], kept[1])


def test_what_an_image_loses_depends_on_its_key_and_the_layer_alone() -> None:
    keys, x = image_keys(0, 1, [5, 6, 7]), torch.ones(3, 40, 40)
    layer, other = KeyedDropout(0.5, salt=3).train(), KeyedDropout(0.5, salt=4).train()
    whole = told(layer, keys)(x)
    for index in range(3):
        assert torch.equal(told(layer, keys[index : index + 1])(x[:1])[0], whole[index])
    assert not torch.equal(told(other, keys)(x), whole)


def test_nothing_is_dropped_without_keys_in_evaluation_or_where_p_is_0() -> None:
    keys, x = image_keys(0, 0, [1]), torch.randn(1, 9)
    assert torch.equal(told(KeyedDropout(0.5).train(), None)(x), x)
    assert torch.equal(told(KeyedDropout(0.5).eval(), keys)(x), x)
    assert torch.equal(told(KeyedDropout(0.0).train(), keys)(x), x)
    with pytest.raises(ValueError, match="1 random keys for 2 images"):
        told(KeyedDropout(0.5).train(), keys)(torch.ones(2, 9))


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_blocks_computed_twice_drop_the_same(name: str, mini: str, batch: Callable, roughen: Callable) -> None:
    gradients = []
    images, keys = batch(2)[0], image_keys(0, 0, [3, 4])
    for way in ("none", "blocks", "selective"):
        model = roughen(create(name).build(Context(backbone=mini, checkpoint="none", image_size=64))).train()
        model.set_execution(Execution(checkpointing=way))
        output = model.encode(images, keys)
        hand_out(image_keys(0, 1, [5, 6]), [layer for layer in model.modules() if isinstance(layer, KeyedDropout)])
        output.features.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert any(".beside_" in name for name in gradients[0])
    for others in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_each_layer_of_a_method_draws_for_itself_and_p_can_be_chosen(name: str, mini: str) -> None:
    model = create(f"conv_lora+{name}", {f"{name}.dropout": 0.3}).build(
        Context(backbone=mini, checkpoint="none", image_size=64)
    )
    layers = [layer for layer in model.modules() if hasattr(layer, "random_keys")]
    assert len({layer.salt for layer in layers}) == len(layers)
    dropping = [layer for layer in layers if isinstance(layer, KeyedDropout)]
    assert dropping and all(layer.p == 0.3 for layer in dropping)
