"""Methods from names and parameters, several in one SAM, and what is refused with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from bench.registry import UnknownName
from methods import Context, Method, Model, SamMethod, create, load, registry, save
from methods.base import TaskLoss
from methods.compose import Composition, ParameterError, SlotTaken, parameters_of, version_of
from methods.sam.checkpoints import resolve
from methods.trial import shake


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
    with pytest.raises(UnknownName, match=f"unknown method.*'{near}'.*conv_lora, .*decoder_only, .*lora"):
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
        ("vpt+conv_lora", {"conv_lora.rnk": 3}, ["conv_lora", "rnk", "rank"]),
        ("vpt+conv_lora", {"top_k": 1}, ["vpt", "top_k"]),
        ("vpt+conv_lora", {"lora.rank": 3}, ["lora.rank", "vpt+conv_lora"]),
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
    assert "rank" in refusal("lora+vpt", {"rank": 2, "lora.rank": 4})


def test_a_composition_distributes_parameters() -> None:
    method = create("vpt+conv_lora", {"num_tokens": 2, "conv_lora.rank": 4, "conv_lora.scales": [2]})
    assert isinstance(method, Composition) and method.name == "conv_lora+vpt" and method.title == "Conv-LoRA+VPT"
    assert method.parts == (create("conv_lora", {"rank": 4, "scales": [2]}), create("vpt", {"num_tokens": 2}))
    assert create("vpt+conv_lora", {"vpt.num_tokens": 2}) == create("vpt+conv_lora", {"num_tokens": 2})


def test_the_order_in_which_it_is_written_makes_no_other_method() -> None:
    """Alphabetical: a plugin that comes later changes the order of none that were there."""
    wanted = create("conv_lora+vpt", {"rank": 6, "vpt.num_tokens": 5})
    for name, parameters in [
        ("vpt+conv_lora", {"num_tokens": 5, "conv_lora.rank": 6}),
        ("vpt+conv_lora", {"vpt.num_tokens": 5, "conv_lora.rank": 6}),
        ("conv_lora+vpt", {"conv_lora.rank": 6, "vpt.num_tokens": 5}),
    ]:
        found = create(name, parameters)
        assert found == wanted and found.name == "conv_lora+vpt"
        assert parameters_of(found, changed_only=True) == {"rank": 6, "vpt.num_tokens": 5}
    every = {create("+".join(names)).name for names in permutations(["vpt", "adapter", "lora"])}
    assert every == {"adapter+lora+vpt"}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("decoder_only", {}),
        ("lora", {"rank": 6, "alpha": 16.0}),
        ("conv_lora", {"scales": [4], "gate": "image", "balance_weight": 0.0}),
        ("conv_lora+vpt", {"num_experts": 4, "vpt.num_tokens": 2}),
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
    method = create("vpt+conv_lora", {"num_tokens": 12, "conv_lora.alpha": 32, "conv_lora.top_k": 1})
    assert parameters_of(method, changed_only=True) == {}


def test_versions() -> None:
    assert version_of(create("lora")) == 1
    assert version_of(create("vpt+conv_lora")) == [1, 1]


PAIRS = ["conv_lora+vpt", "adapter+lora", "bitfit+vpt", "lora+sam_adapter", "inception+lst", "convpass+vpt"]


@pytest.mark.parametrize("name", PAIRS)
def test_counts_of_a_pair_add_up(mini: str, name: str) -> None:
    plain, pair = build(mini, "decoder_only"), build(mini, name)
    alone = {part: build(mini, part) for part in name.split("+")}
    added = [model.count()["trainable"] - plain.count()["trainable"] for model in alone.values()]
    assert pair.count()["trainable"] == plain.count()["trainable"] + sum(added)
    assert create(name).added_parameters(Context(backbone=mini, image_size=64)) == sum(added)
    assert pair.trainable().keys() == set().union(*(model.trainable() for model in alone.values()))
    assert pair.aux_weights == {key: weight for model in alone.values() for key, weight in model.aux_weights.items()}


def answer(model: Model, batch: tuple, task_loss: TaskLoss) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Masks in evaluation, and the gradients there."""
    images, masks = batch
    output = model.eval()(images)
    model.loss(output, model.targets(masks), task_loss).sum().backward()
    return output.masks.detach(), {name: p.grad for name, p in model.trainable().items() if p.grad is not None}


def give(model: Model, values: dict[str, torch.nn.Parameter]) -> Model:
    """The model with these values of its parameters."""
    model.load_state_dict({name: value.detach() for name, value in values.items()}, strict=False)
    return model


@pytest.mark.parametrize("name", PAIRS)
def test_beside_a_part_that_does_nothing_yet_the_other_is_what_it_is_alone(
    mini: str, name: str, batch: Callable, task_loss: TaskLoss
) -> None:
    parts, compared = name.split("+"), 0
    for neutral, other in (parts, parts[::-1]):
        if create(neutral).starts_as_sam:
            alone, compared = build(mini, other), compared + 1
            shake(alone.trainable(), 0.05)
            pair = give(build(mini, name), alone.trainable())
            masks, gradients = answer(alone, batch(), task_loss)
            found, also = answer(pair, batch(), task_loss)
            assert torch.equal(found, masks)
            assert all(torch.allclose(also[key], value, rtol=1e-4, atol=1e-7) for key, value in gradients.items())
    assert compared


@pytest.mark.parametrize("name", PAIRS)
def test_no_part_depends_on_the_order_or_hides_the_other(
    mini: str, name: str, batch: Callable, task_loss: TaskLoss
) -> None:
    context, method = Context(backbone=mini, checkpoint="none", image_size=64), create(name)
    one, other = method.build(context), Composition(parts=method.parts[::-1]).build(context)
    shake(one.trainable(), 0.05)
    masks, gradients = answer(one, batch(), task_loss)
    same, also = answer(give(other, one.trainable()), batch(), task_loss)
    assert torch.equal(same, masks) and gradients.keys() == also.keys()
    assert all(torch.equal(also[key], value) for key, value in gradients.items())
    for part in name.split("+"):
        own = build(mini, part).trainable().keys() - build(mini, "decoder_only").trainable().keys()
        assert any(gradients[key].any() for key in own & gradients.keys())
        moved = method.build(context)
        give(moved, one.trainable())
        shake({key: value for key, value in moved.trainable().items() if key in own}, 0.2)
        assert not torch.allclose(answer(moved, batch(), task_loss)[0], masks, rtol=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_a_trained_pair_is_saved_and_loaded(mini: str, name: str, batch: Callable, tmp_path: Path) -> None:
    model, images = build(mini, name), batch()[0]
    shake(model.trainable(), 0.05)
    context = Context(backbone=mini, checkpoint="none", image_size=64)
    written = "+".join(reversed(name.split("+")))  # as somebody may have written it by hand
    card = {"method": {"name": written, "parameters": {}}, "context": asdict(context)}
    save(model, tmp_path, card | {"backbone_digest": resolve(mini, "none").digest()})
    assert torch.equal(load(tmp_path)(images).masks, model.eval()(images).masks)


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("lora+conv_lora", "attn.qkv"),
        ("conv_lora+inception", "attn.qkv"),
        ("ssf+lora", "attn.qkv"),
        ("vpt+lora+ssf", "attn.qkv"),
    ],
)
def test_two_methods_that_want_one_slot_are_refused(name: str, slot: str) -> None:
    with pytest.raises(SlotTaken) as caught:
        create(name)
    first, second = sorted(set(name.split("+")) - {"vpt"})
    assert f"{first!r} and {second!r} both want the slot image_encoder.blocks.0.{slot}." in str(caught.value)


class Around(torch.nn.Module):
    """What a plugin puts in place of a layer, or where nothing was."""

    def __init__(self, base: object) -> None:
        super().__init__()
        self.base = base
        self.part = torch.nn.Parameter(torch.zeros(1))


def plugin(name: str, slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a method that somebody else could have written, which declares nothing."""

    class Filling(SamMethod):
        title: ClassVar[str] = name

        def adapt(self, sam, context: Context) -> None:
            *way, last = slot.split(".")
            for holder in sam.image_encoder.blocks if way[:1] == ["block"] else [sam]:
                for step in way[1:] if way[:1] == ["block"] else way:
                    holder = getattr(holder, step)
                old = getattr(holder, last)
                setattr(holder, last, tuple(range(len(name))) if last == "taps" else Around(old))

    Filling.name = name
    monkeypatch.setitem(registry._classes, name, Filling)


BLOCK_SLOTS = (
    "attn.qkv",
    "extra_kv",
    "before_block",
    "after_attention",
    "after_mlp",
    "beside_attention",
    "beside_mlp",
    "mlp.lin1",
)
SLOTS = [*(f"block.{slot}" for slot in BLOCK_SLOTS), "image_encoder.block_prompts", "image_encoder.taps", "side"]


@pytest.mark.parametrize("slot", SLOTS)
def test_what_plugins_fill_is_observed(slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin("mine", slot, monkeypatch)
    plugin("theirs", slot, monkeypatch)
    where = re.escape(slot.replace("block.", "image_encoder.blocks.0."))
    with pytest.raises(SlotTaken, match=f"'mine' and 'theirs' both want the slot {where}\\."):
        create("theirs+mine")
    for other in set(SLOTS) - {slot}:
        plugin("theirs", other, monkeypatch)
        assert create("theirs+mine").name == "mine+theirs"


@pytest.mark.parametrize(("outer", "inner"), [("block.attn", "block.attn.qkv"), ("block.mlp", "block.mlp.lin2")])
def test_a_slot_inside_of_what_another_replaces_is_taken_too(
    outer: str, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin("a", inner, monkeypatch)
    plugin("b", outer, monkeypatch)
    with pytest.raises(SlotTaken, match="'a' and 'b' both want the slot"):
        create("a+b")
    plugin("a", outer, monkeypatch)
    plugin("b", f"{outer}.base.{inner.rpartition('.')[2]}", monkeypatch)
    with pytest.raises(SlotTaken, match="'a' and 'b' both want the slot"):
        create("a+b")


def test_a_composition_whose_trial_fails_for_another_reason_waits_for_its_own_backbone(mini: str) -> None:
    """The trial is made on vit_h; what fails there says so where the model is built."""
    method = create("lora+sam_adapter", {"sam_adapter.scale_factor": 2000})
    with pytest.raises(ValueError, match="scale_factor = 2000"):
        method.build(Context(backbone=mini, checkpoint="none", image_size=64))


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
    assert create("conv_lora+vpt").several_classes
    for name in ("binary_only", "lora+binary_only", "binary_only+lora"):
        method = create(name)
        name = method.name
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
