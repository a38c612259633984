"""What a training leaves behind: saved, put back, loaded from its folder alone, refused where it does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods import Context, Model, create, load, restore, save
from methods.compose import parameters_of
from methods.delta import CARD, WEIGHTS, AdapterError
from methods.sam.build import random_parts
from methods.sam.checkpoints import resolve
from methods.sam.sizes import SIZES


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


class Trained(NamedTuple):
    """An adapter's folder, the model it was saved from, and the context."""

    folder: Path
    model: Model
    context: Context


@pytest.fixture
def trained(mini: str, tmp_path: Path, roughen: Callable) -> Callable[..., Trained]:
    """trained(name, parameters, checkpoint): a model whose trainable parameters have moved, saved."""

    def make(
        name: str = "conv_lora", parameters: dict | None = None, checkpoint: str = "none", **classes: int
    ) -> Trained:
        method = create(name, parameters)
        context = Context(backbone=mini, checkpoint=checkpoint, image_size=64, seed=3, **classes)
        model = method.build(context)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / "cell"
        folder.mkdir()
        save(model, folder, {
            "method": {"name": method.name, "parameters": parameters_of(method)},
            "context": asdict(context),
            "backbone_digest": resolve(mini, checkpoint).digest(),
        })  # fmt: skip
        return Trained(folder, model.eval(), context)

    return make


def masks(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).masks


def write_checkpoint(path: Path, backbone: str, shift: float = 0.0) -> None:
    size = SIZES[backbone]
    state = random_parts(size, size.native).state_dict()
    torch.save({name: value + shift for name, value in state.items()}, path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("decoder_only", {}),
        ("lora", {"rank": 2}),
        ("conv_lora", {"scales": [1, 4], "variant": "paper"}),
        ("conv_lora+vpt", {"vpt.num_tokens": 2}),
    ],
)
def test_load_gives_the_model_that_was_saved(trained: Callable, batch: Callable, name: str, parameters: dict) -> None:
    adapter, images = trained(name, parameters), batch()[0]
    loaded = load(str(adapter.folder))
    assert not loaded.training
    assert torch.equal(masks(loaded, images), masks(adapter.model, images))
    for own, other in zip(loaded.parameters(), adapter.model.parameters(), strict=True):
        assert torch.equal(own, other) and own.requires_grad == other.requires_grad


@pytest.mark.parametrize("name", ["decoder_only", "conv_lora", "lst", "full_finetune", "conv_lora+vpt"])
def test_an_adapter_of_several_classes_answers_as_before(trained: Callable, batch: Callable, name: str) -> None:
    adapter, images = trained(name, num_classes=5, mask_tokens=3), batch()[0]
    loaded = load(adapter.folder)
    assert loaded.num_classes == 5 and loaded.mask_decoder.num_tokens == 3
    with torch.no_grad():
        found, expected = loaded(images), adapter.model(images)
        assert found.masks.shape == (4, 3, 64, 64) and found.classes.shape == (4, 3, 6)
        assert torch.equal(found.masks, expected.masks) and torch.equal(found.classes, expected.classes)
        assert torch.equal(loaded.probabilities(found), adapter.model.probabilities(expected))
    state = load_file(adapter.folder / WEIGHTS)
    assert {"mask_decoder.class_head.weight", "mask_decoder.class_head.bias"} <= state.keys()
    assert state["mask_decoder.mask_tokens.weight"].shape == (3, 32)
    assert loaded.aux_weights == ({"balance": 2.0} if "conv_lora" in name else {})


def test_an_adapter_from_before_there_were_mask_queries_loads(trained: Callable, batch: Callable) -> None:
    adapter, images = trained("lora"), batch()[0]
    card = json.loads((adapter.folder / CARD).read_text())
    del card["context"]["mask_tokens"]
    (adapter.folder / CARD).write_text(json.dumps(card))
    assert torch.equal(masks(load(adapter.folder), images), masks(adapter.model, images))


@pytest.mark.parametrize(
    ("classes", "name"),
    [({"num_classes": 1}, "class_head"), ({"num_classes": 7}, "class_head"), ({"mask_tokens": 4}, "mask_tokens")],
)
def test_an_adapter_of_other_classes_is_refused(trained: Callable, classes: dict, name: str) -> None:
    adapter = trained(num_classes=5, mask_tokens=3)
    model = create("conv_lora").build(replace(adapter.context, **classes))
    with pytest.raises(AdapterError, match=f"does not fit this model: .*mask_decoder.{name}"):
        restore(model, adapter.folder)


def test_the_file_holds_the_trained_parameters_in_float32(trained: Callable) -> None:
    adapter = trained()
    state = load_file(adapter.folder / WEIGHTS)
    assert state.keys() == adapter.model.trainable().keys()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert json.loads((adapter.folder / CARD).read_text())["method"]["name"] == "conv_lora"


def test_restore_puts_values_into_another_model_and_leaves_the_rest(trained: Callable, batch: Callable) -> None:
    adapter, images = trained(), batch()[0]
    model = create("conv_lora").build(adapter.context).eval()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert not torch.equal(masks(model, images), masks(adapter.model, images))
    restore(model, adapter.folder)
    assert torch.equal(masks(model, images), masks(adapter.model, images))
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert all(p.requires_grad for p in model.trainable().values())


@pytest.mark.parametrize(("name", "parameters"), [("lora", {}), ("decoder_only", {}), ("conv_lora", {"rank": 4})])
def test_restore_refuses_another_method_or_shape(trained: Callable, name: str, parameters: dict) -> None:
    adapter = trained()
    model = create(name, parameters).build(adapter.context)
    before = {key: p.clone() for key, p in model.trainable().items()}
    with pytest.raises(AdapterError, match=r"does not fit this model: .*image_encoder") as caught:
        restore(model, adapter.folder)
    assert CARD in str(caught.value) and WEIGHTS in str(caught.value)
    assert all(torch.equal(p, before[key]) for key, p in model.trainable().items()), "half restored"


def test_restore_refuses_a_file_that_lacks_a_parameter(trained: Callable) -> None:
    adapter = trained()
    state = load_file(adapter.folder / WEIGHTS)
    missing = sorted(state)[-1]
    del state[missing]
    save_file(state, adapter.folder / WEIGHTS)
    with pytest.raises(AdapterError, match=f"the file lacks 1, first {missing}"):
        load(adapter.folder)


def test_frozen_values_that_a_model_keeps_are_saved_with_it(trained: Callable) -> None:
    """A method that draws them need not draw the same ones on another machine."""
    adapter, name = trained("lora"), "image_encoder.blocks.0.attn.proj.weight"
    adapter.model.kept.add(name)
    adapter.model.get_parameter(name).data.add_(1)
    save(adapter.model, adapter.folder, json.loads((adapter.folder / CARD).read_text()))
    assert load_file(adapter.folder / WEIGHTS).keys() == adapter.model.trainable().keys() | {name}
    other = create("lora").build(adapter.context)
    other.kept.add(name)
    restore(other, adapter.folder)
    assert torch.equal(other.get_parameter(name), adapter.model.get_parameter(name))
    assert not other.get_parameter(name).requires_grad
    with pytest.raises(AdapterError, match=f"the model lacks 1, first {name}"):
        load(adapter.folder)


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_an_adapter_is_named(tmp_path: Path, folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"holds no {CARD}.*results/cells"):
        load(tmp_path / folder)


def test_an_adapter_works_on_its_own_checkpoint_alone(
    mini: str, trained: Callable, batch: Callable, tmp_path: Path
) -> None:
    checkpoint, images = tmp_path / "own.pth", batch()[0]
    write_checkpoint(checkpoint, mini)
    adapter = trained("lora", {}, str(checkpoint))
    assert torch.equal(masks(load(adapter.folder), images), masks(adapter.model, images))

    was = resolve(mini, str(checkpoint)).digest()
    write_checkpoint(checkpoint, mini, shift=0.01)
    now = resolve(mini, str(checkpoint)).digest()
    with pytest.raises(AdapterError, match=f"digest {was[:12]}.*here is .*digest {now[:12]}"):
        load(adapter.folder)
