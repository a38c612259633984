"""Methods from names and parameters, several in one SAM, and what is refused with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch

from bench.registry import UnknownName
from methods import Context, Method, Model, SamMethod, create, registry
from methods.base import TaskLoss
from methods.compose import Composition, ParameterError, parameters_of, version_of
from methods.conv_lora import ConvLoRALinear
from methods.lora import LoRALinear
from methods.randomness import image_keys


def build(backbone: str, name: str, **parameters: object) -> Model:
    return create(name, parameters).build(Context(backbone=backbone, checkpoint="none", image_size=64))


def refusal(name: str, parameters: dict[str, object]) -> str:
    with pytest.raises(ParameterError) as caught:
        create(name, parameters)
    return str(caught.value)


def test_lists_become_the_tuples_of_an_immutable_value() -> None:
    method = create("conv_lora", {"scales": [1, 4]})
    assert method.scales == (1, 4)
    assert hash(method) == hash(create("conv_lora", {"scales": (1, 4)}))


@pytest.mark.parametrize(
    ("name", "near"), [("lorra", "lora"), ("conv-lora", "conv_lora"), ("lora+convlora", "conv_lora")]
)
def test_an_unknown_method_gets_the_nearest_and_all(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown method.*'{near}'.*conv_lora, decoder_only, .*lora"):
        create(name)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("lora", {"rnk": 3}, ["lora", "rnk", "rank", "alpha"]),
        ("decoder_only", {"rank": 3}, ["decoder_only", "rank", "none"]),
        ("lora", {"rank": 0}, ["rank = 0", "greater than 0"]),
        ("lora", {"rank": "3"}, ["rank = '3'", "integer"]),
        ("lora", {"rank": True}, ["rank = True", "integer"]),
        ("lora", {"rank": 3.0}, ["rank = 3.0", "integer"]),
        ("lora", {"alpha": float("nan")}, ["alpha = nan"]),
        ("lora", {"rank": 0, "alpha": -1, "x": 1}, ["rank = 0", "alpha = -1", "'x'"]),
        ("conv_lora", {"num_experts": 65}, ["num_experts = 65", "64"]),
        ("conv_lora", {"scales": [1, 0]}, ["scales", "= 0", "greater than 0"]),
        ("conv_lora", {"variant": "original"}, ["variant = 'original'", "'released'", "'paper'"]),
        ("conv_lora", {"gate": "pixel"}, ["gate = 'pixel'", "'window'", "'image'"]),
        ("conv_lora", {"routing": "soft"}, ["routing = 'soft'", "'moe'", "'sum'"]),
        ("conv_lora", {"balance_weight": -1.0}, ["balance_weight = -1.0"]),
        ("conv_lora", {"top_k": 9}, ["top_k = 9", "8 experts"]),
        ("conv_lora", {"top_k": 2, "scales": [4]}, ["top_k = 2", "1 expert"]),
        ("conv_lora", {"top_k": 5, "num_experts": 4}, ["top_k = 5", "4 experts"]),
        ("lora+conv_lora", {"conv_lora.rnk": 3}, ["conv_lora", "rnk", "rank"]),
        ("lora+conv_lora", {"top_k": 1}, ["lora", "top_k"]),
        ("lora+conv_lora", {"vpt.num_tokens": 3}, ["vpt.num_tokens", "lora+conv_lora"]),
        ("lora+lora", {}, ["lora+lora", "once"]),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, object], words: list[str]) -> None:
    message = refusal(name, parameters)
    assert [word for word in words if word not in message] == []


def test_a_refusal_does_not_name_a_parameter_that_does_not_exist() -> None:
    """Rules over several parameters are reported as what they are."""
    message = refusal("conv_lora", {"top_k": 9})
    assert "parameter parameters" not in message and "Value error" not in message


def test_a_misspelt_parameter_gets_the_nearest() -> None:
    assert "Did you mean 'variant'?" in refusal("conv_lora", {"varient": "paper"})


def test_no_scales_are_refused() -> None:
    assert "scales" in refusal("conv_lora", {"scales": []})


def test_a_parameter_given_twice_is_refused() -> None:
    assert "rank" in refusal("lora+conv_lora", {"rank": 2, "lora.rank": 4})


def test_a_composition_distributes_parameters() -> None:
    method = create("lora+conv_lora", {"rank": 2, "conv_lora.rank": 4, "conv_lora.scales": [2]})
    assert isinstance(method, Composition) and method.name == "lora+conv_lora"
    assert method.parts == (create("lora", {"rank": 2}), create("conv_lora", {"rank": 4, "scales": [2]}))
    assert create("lora+conv_lora", {"lora.rank": 2}) == create("lora+conv_lora", {"rank": 2})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("decoder_only", {}),
        ("lora", {"rank": 6, "alpha": 16.0}),
        ("conv_lora", {"scales": [4], "gate": "image", "balance_weight": 0.0}),
        ("conv_lora+lora", {"num_experts": 4, "lora.rank": 2}),
    ],
)
def test_parameters_make_the_same_method_again(name: str, parameters: dict[str, object]) -> None:
    method = create(name, parameters)
    assert parameters_of(method, changed_only=True) == parameters
    everything = parameters_of(method)
    assert parameters.items() <= everything.items()
    assert create(name, everything) == create(name, parameters_of(method, changed_only=True)) == method
    assert method.name == name


def test_a_parameter_at_its_default_is_no_change() -> None:
    method = create("lora+conv_lora", {"rank": 3, "alpha": 32, "conv_lora.top_k": 1})
    assert parameters_of(method, changed_only=True) == {}


def test_versions() -> None:
    assert version_of(create("lora")) == 1
    assert version_of(create("lora+conv_lora")) == [1, 1]


@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [("lora+conv_lora", ConvLoRALinear, LoRALinear), ("conv_lora+lora", LoRALinear, ConvLoRALinear)],
)
def test_one_sam_carries_both(
    mini: str, name: str, outer: type, inner: type, batch: Callable, task_loss: TaskLoss
) -> None:
    both, plain = build(mini, name), build(mini, "decoder_only")
    for block in both.image_encoder.blocks:
        assert type(block.attn.qkv) is outer and type(block.attn.qkv.base) is inner
    added = {n: build(mini, n).count()["trainable"] - plain.count()["trainable"] for n in name.split("+")}
    assert both.count()["trainable"] == plain.count()["trainable"] + sum(added.values())
    assert both.aux_weights == {"balance": 1.0}

    images, masks = batch()
    output = both(images, image_keys(0, 0, range(4)))
    assert torch.equal(output.masks, plain(images).masks)
    assert output.expert_counts.shape == (4, 3, 8)
    both.loss(output, both.targets(masks), task_loss).sum().backward()
    for block in both.image_encoder.blocks:
        assert block.attn.qkv.lora_B.grad.any() and block.attn.qkv.base.lora_B.grad.any()


@pytest.mark.parametrize("name", ["lora+decoder_only", "decoder_only+lora"])
def test_decoder_only_adds_nothing_and_takes_nothing_away(
    mini: str, name: str, batch: Callable, task_loss: TaskLoss
) -> None:
    model, (images, masks) = build(mini, name), batch()
    assert not model.encoder_constant and model.backbone_needs_grad
    model.loss(model(images), model.targets(masks), task_loss).sum().backward()
    assert all(block.attn.qkv.lora_B.grad.any() for block in model.image_encoder.blocks)


def test_a_composition_takes_several_classes_if_all_its_parts_do(mini: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class BinaryOnly(SamMethod):
        name: ClassVar[str] = "binary_only"
        title: ClassVar[str] = "for binary masks"
        several_classes: ClassVar[bool] = False

        def adapt(self, sam, context: Context) -> None:
            """Adds nothing."""

    monkeypatch.setitem(registry._classes, "binary_only", BinaryOnly)
    assert create("lora+conv_lora").several_classes
    for name in ("binary_only", "lora+binary_only", "binary_only+lora"):
        method = create(name)
        assert not method.several_classes
        assert method.build(Context(backbone=mini, checkpoint="none", image_size=64)).num_classes == 1
        with pytest.raises(
            ValueError, match=f"'{re.escape(name)}' is for binary masks .*not for 5 classes.*--classes 5"
        ):
            method.build(Context(backbone=mini, checkpoint="none", image_size=64, num_classes=5))


def test_a_complete_model_is_no_part_of_a_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(Method):
        name: ClassVar[str] = "whole"
        title: ClassVar[str] = "a model of its own"

        def build(self, context: Context) -> Model:
            raise NotImplementedError

    monkeypatch.setitem(registry._classes, "whole", Whole)
    for name in ("whole+lora", "lora+whole"):
        assert "whole" in refusal(name, {})
