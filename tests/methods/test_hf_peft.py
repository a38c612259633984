"""Hugging Face peft's tuners in SAM: their arithmetic, their place in the harness, and their files in plain peft."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.matrix import entries
from methods import Context, Model, create, load, registry, save
from methods.base import Execution
from methods.check import CHECKS, one_thread
from methods.compose import ParameterError, SlotTaken, parameters_of
from methods.sam.build import build_segmenter
from methods.sam.checkpoints import resolve
from methods.sam.encoder import ImageEncoder
from methods.sam.sizes import SIZES
from methods.trial import Subject, added, losses, predict, same, shake

peft = pytest.importorskip("peft", reason="the extra [peft] is not installed")

NAMES = [name for name in registry.names() if name.startswith("peft:")]
DECOMPOSED = ["peft:olora", "peft:pissa"]


def trained(name: str, backbone: str, parameters: dict[str, Any] | None = None) -> tuple[Subject, Model]:
    """A method and its model, the added parts of which have left their initial values."""
    subject = Subject(name, parameters or {}, backbone=backbone)
    model = subject.build()
    shake(added(model), 0.02)
    return subject, model


def answer(encoder: ImageEncoder, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Features in double precision, and the gradients of a scalar of them in the encoder's trained parts."""
    features = encoder.double()(images.double()).features
    # The neck's last layer normalises: a sum of squares, say, would hardly have a gradient.
    (features * torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features).sin()).sum().backward()
    return features.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> bool:
    """Whether two tensors agree within ``tolerance`` of the largest value."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plain_encoder(subject: Subject) -> ImageEncoder:
    """SAM's encoder as the checkpoint has it."""
    return build_segmenter(subject.context).image_encoder


@pytest.mark.parametrize("rank", [3, 4])
def test_lora_is_this_projects_lora(rank: int, mini: str, images: Tensor) -> None:
    ours = trained("lora", mini, {"rank": rank})[1]
    theirs = trained("peft:lora", mini, {"r": rank})[1]
    with torch.no_grad():
        for own, other in zip(ours.image_encoder.blocks, theirs.image_encoder.blocks, strict=True):
            other.attn.qkv.lora_A["default"].weight.copy_(own.attn.qkv.lora_A)
            other.attn.qkv.lora_B["default"].weight.copy_(own.attn.qkv.lora_B)
    (features, gradients), (again, others) = answer(ours.image_encoder, images), answer(theirs.image_encoder, images)
    assert close(again, features, 1e-12) and len(gradients) == len(others) == 6
    for name, gradient in gradients.items():
        assert gradient.any() and close(others[f"{name}.default.weight"], gradient, 1e-11)
    assert ours.count() == theirs.count()


def low_rank(layer: nn.Module) -> Tensor:
    return layer.lora_B["default"].weight @ layer.lora_A["default"].weight


def dora(layer: nn.Module, weight: Tensor) -> Tensor:
    moved = weight + 32 / 3 * low_rank(layer)
    return layer.lora_magnitude_vector["default"].weight[:, None] * F.normalize(moved, dim=1)


UPDATED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "peft:lora": lambda layer, weight: weight + 32 / 3 * low_rank(layer),
    "peft:rslora": lambda layer, weight: weight + 32 / math.sqrt(3) * low_rank(layer),
    "peft:dora": dora,
    "peft:hira": lambda layer, weight: weight * (1 + layer.hira_B["default"] @ layer.hira_A["default"]),
}


@pytest.mark.parametrize("name", UPDATED)
def test_the_weights_are_those_of_the_papers(name: str, mini: str) -> None:
    layer = trained(name, mini)[1].image_encoder.blocks[0].attn.qkv.double()
    base, x = (
        layer.get_base_layer(),
        torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    assert close(layer(x), F.linear(x, UPDATED[name](layer, base.weight), base.bias), 1e-9)


@pytest.mark.parametrize("name", DECOMPOSED)
def test_what_starts_from_the_weights_is_what_peft_makes_of_them(name: str, mini: str, images: Tensor) -> None:
    """peft changes the weights themselves; here they stay and a frozen adapter takes as much away."""
    subject = Subject(name, backbone=mini)
    ours, twin = subject.build(), subject.build()
    plain = plain_encoder(subject)
    assert close(ours.image_encoder(images).features, plain(images).features, 1e-5)
    for path, module in plain.named_modules():
        if isinstance(module, nn.Linear) and path.endswith("qkv"):
            layer = ours.image_encoder.get_submodule(path)
            assert torch.equal(layer.get_base_layer().weight, module.weight)
            assert layer.lora_B["default"].weight.norm() > 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft.get_peft_model(plain, subject.method.config(plain))
    with torch.no_grad():
        for path, value in twin.image_encoder.named_parameters():
            if ".default." in path:
                plain.get_parameter(path).copy_(value)
                changed = 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
                plain.get_parameter(path).add_(changed)
                ours.image_encoder.get_parameter(path).add_(changed)
    (features, gradients), (again, others) = answer(ours.image_encoder, images), answer(plain, images)
    assert close(again, features, 1e-5) and len(gradients) == len(others) == 6
    assert all(close(others[path], gradient, 1e-4) for path, gradient in gradients.items())


@pytest.mark.parametrize("name", NAMES)
def test_plain_peft_loads_what_is_exported(name: str, mini: str, images: Tensor, tmp_path: Path) -> None:
    subject, model = trained(name, mini)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model.image_encoder(images).features
    files = subject.method.export_extras(model, tmp_path)
    assert sorted(path.name for path in files) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = peft.PeftModel.from_pretrained(plain_encoder(subject), files[0].parent)
    features = loaded(images).features
    assert torch.equal(features, expected) if name not in DECOMPOSED else close(features, expected, 1e-5)
    assert not close(features, plain_encoder(subject)(images).features, 1e-3)
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[key], value) for key, value in state.items())
    assert torch.equal(model.image_encoder(images).features, expected)


def test_plain_peft_loads_it_into_segment_anything(
    segment_anything: Callable[..., Any], mini: str, tmp_path: Path
) -> None:
    subject = Subject("peft:dora", backbone=mini, image_size=96, parameters={"target_modules": ["qkv", "proj", "lin1"]})
    model = subject.build()
    shake(added(model), 0.02)
    files = subject.method.export_extras(model, tmp_path)
    theirs = segment_anything(SIZES[mini], 96).image_encoder
    theirs.load_state_dict(plain_encoder(subject).state_dict())
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(4))
    loaded = peft.PeftModel.from_pretrained(theirs, files[0].parent)
    assert close(loaded(images), model.image_encoder(images).features, 1e-5)


def test_a_composition_exports_each_of_its_tuners(mini: str, images: Tensor, tmp_path: Path) -> None:
    parameters = {"target_modules": ["lin2"], "feedforward_modules": ["lin2"], "peft:pissa.r": 2}
    subject, model = trained("peft:ia3+peft:pissa+vpt", mini, parameters)
    for part in subject.method.parts:
        part.export_extras(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peft-ia3", "peft-pissa"]
    encoder = plain_encoder(subject)
    for folder in tmp_path.iterdir():
        encoder = peft.PeftModel.from_pretrained(encoder, folder).get_base_model()
        del encoder.peft_config
    for block in model.image_encoder.blocks:
        block.extra_kv = None
    assert close(encoder(images).features, model.image_encoder(images).features, 1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("peft:pissa", {"init_lora_weights": "pissa_niter_1"}),
        ("peft:vera", {"projection_prng_key": 1}),
        ("peft:randlora", {"projection_prng_key": 1}),
    ],
)
def test_a_loaded_adapter_hangs_on_nothing_that_is_drawn(
    name: str, change: dict[str, Any], mini: str, tmp_path: Path
) -> None:
    """Another machine or version may decompose or draw otherwise; other parameters certainly do."""
    subject, model = trained(name, mini)
    method = {"name": name, "parameters": parameters_of(subject.method) | change}
    other = create(name, method["parameters"]).build(subject.context)
    assert all(not torch.equal(other.state()[kept], model.state()[kept]) for kept in model.kept) and model.kept
    digest = resolve(mini, "none").digest()
    save(model, tmp_path, {"method": method, "context": asdict(subject.context), "backbone_digest": digest})
    assert same(predict(load(tmp_path), subject.batch[0]), predict(model, subject.batch[0]))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_fields_of_pefts_configuration(name: str, mini: str) -> None:
    method = create(name)
    config = method.config(plain_encoder(Subject("decoder_only", backbone=mini)))
    fields = {field.name: field for field in dataclasses.fields(config)}
    own = type(method).model_fields.keys() - {"layers_to_transform"}
    assert own | method.fixed.keys() <= fields.keys() and own.isdisjoint(method.fixed)
    for key in own - {"target_modules", "feedforward_modules"}:
        value = getattr(method, key)
        assert value is None or getattr(config, key) == value
    dropouts = {key: getattr(config, key) for key in fields if key.endswith("dropout")}
    assert not any(dropouts.values()) and own.isdisjoint(dropouts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", ["proj", "lin1", "lin2"])
def test_other_layers_and_some_blocks(name: str, layer: str, mini: str, images: Tensor) -> None:
    own = {"peft:ia3": {"feedforward_modules": [layer]}}.get(name, {})
    subject = Subject(name, {"target_modules": [layer], "layers_to_transform": [0, 2], **own}, backbone=mini)
    model = subject.build()
    blocks = {name.split(".")[2] for name in added(model) if "blocks" in name}
    assert blocks == {"0", "2"} and all(f".{layer}." in name for name in added(model))
    assert sum(p.numel() for p in added(model).values()) == subject.method.added_parameters(subject.context)
    model.image_encoder(images).features.square().mean().backward()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("peft:lora+vpt", {}),
    ("bitfit+peft:dora", {}),
    ("peft:ia3+peft:pissa", {"target_modules": ["lin2"]}),
    ("peft:dora", {"target_modules": ["lin1", "qkv"], "use_rslora": True}),
    ("peft:lora", {"init_lora_weights": "gaussian", "layers_to_transform": [1]}),
    ("peft:pissa", {"init_lora_weights": "pissa"}),
    ("peft:road", {"variant": "road_4"}),
]


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_variants_keep_all_promises(name: str, parameters: dict[str, Any], mini: str) -> None:
    subject = Subject(name, parameters, backbone=mini)
    with one_thread():
        for check in CHECKS.values():
            check(subject)


def test_nothing_but_its_parts_and_the_decoder_is_trained(mini: str) -> None:
    model = Subject("bitfit+peft:lora", backbone=mini).build()
    encoder = [name for name in model.trainable() if not name.startswith("mask_decoder.")]
    assert all(".lora_" in name or name.endswith("bias") or "bias" in name for name in encoder)
    assert sum(".lora_" in name for name in encoder) == 6 and any("norm1.bias" in name for name in encoder)
    assert isinstance(model.image_encoder, ImageEncoder) and not hasattr(model.image_encoder, "peft_config")


@pytest.mark.parametrize(
    "name", ["lora+peft:lora", "conv_lora+peft:ia3", "peft:dora+peft:lora", "peft:lora+ssf", "inception+peft:vera"]
)
def test_a_taken_slot_is_refused(name: str) -> None:
    with pytest.raises(SlotTaken, match=r"slot image_encoder.*blocks\.0"):
        create(name)


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("peft:lora", {"rank": 3}, r"takes no parameter 'rank'.*target_modules, layers_to_transform, r, lora_alpha"),
        ("peft:lora", {"lora_dropout": 0.1}, "takes no parameter 'lora_dropout'"),
        ("peft:lora", {"r": 0}, "parameter r = 0"),
        ("peft:lora", {"target_modules": ["value"]}, "'qkv', 'proj', 'lin1' or 'lin2'"),
        ("peft:lora", {"target_modules": []}, "at least 1"),
        ("peft:lora", {"layers_to_transform": []}, "at least 1"),
        ("peft:lora", {"init_lora_weights": "pissa"}, "True or 'gaussian'"),
        ("peft:pissa", {"init_lora_weights": "pissa_niter_0"}, "pattern"),
        ("peft:ia3", {"feedforward_modules": ["lin1"]}, "target_modules lacks"),
        ("peft:lorra", {}, "Did you mean 'peft:lora'"),
    ],
)
def test_refusals(name: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        create(name, parameters)
    assert isinstance(caught.value, ParameterError) or name == "peft:lorra"


def test_a_block_that_is_not_there_is_refused(mini: str) -> None:
    with pytest.raises(ValueError, match="block 3, but the blocks are 0 to 2"):
        Subject("peft:lora", {"layers_to_transform": [3, 0]}, backbone=mini).build()


def test_one_choice_is_one_identity() -> None:
    one = create("peft:lora", {"target_modules": ["proj", "qkv"], "layers_to_transform": [3, 1, 3], "r": 3})
    other = create("peft:lora", {"target_modules": ["qkv", "proj"], "layers_to_transform": [1, 3]})
    changed = {"target_modules": ["qkv", "proj"], "layers_to_transform": [1, 3]}
    assert one == other and parameters_of(one, changed_only=True) == changed
    assert all(not parameters_of(create(name), changed_only=True) for name in NAMES)
    assert all(json.loads(json.dumps(parameters_of(create(name)))) == parameters_of(create(name)) for name in NAMES)


def test_in_a_matrix_a_list_of_lists_is_an_axis() -> None:
    given = [{"name": "peft:lora", "r": [2, 4], "target_modules": [["qkv"], ["qkv", "proj"]]}]
    found = list(entries([type("Entry", (), {"model_dump": lambda self: given[0]})()], registry))
    assert [create(name, parameters).r for name, parameters, _ in found] == [2, 2, 4, 4]


def test_the_version_is_said_wherever_numbers_stand(mini: str) -> None:
    context = Context(backbone=mini)
    assert create("peft:lora").caveats(context) == (f"computed by the layers of Hugging Face peft {peft.__version__}",)
    assert create("peft:ia3+peft:lora", {"target_modules": ["lin2"]}).caveats(context) == create("peft:lora").caveats(
        context
    )


@pytest.mark.parametrize("name", ["peft:dora", "peft:pissa", "peft:c3a"])
def test_activation_checkpointing_changes_no_gradient(name: str, mini: str) -> None:
    subject, model = trained(name, mini)
    found = []
    for checkpointing in ("none", "selective"):
        model.set_execution(replace(Execution(), checkpointing=checkpointing))
        model.zero_grad()
        losses(subject, model)[0].mean().backward()
        found.append({key: p.grad.clone() for key, p in added(model).items()})
    assert all(close(found[1][key], gradient, 1e-5) for key, gradient in found[0].items())


def test_the_page_lists_what_is_offered_with_its_counts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(peft:\w+)` \| ([\d,]+) \|", page, re.MULTILINE))
    context = Context(backbone="vit_h")
    assert listed == {name: f"{create(name).added_parameters(context):,}" for name in NAMES}
