"""What every registered method promises, whoever wrote it: a new plugin is tested here without a line added.

Only facts that no interface can tell are listed below by name: which methods start as the frozen SAM, and
which trained parameters may go without a gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods import Context, Method, Model, SamMethod, create, load, registry, save
from methods.base import TaskLoss
from methods.compose import ParameterError, parameters_of
from methods.randomness import image_keys
from methods.sam.checkpoints import resolve

SIDE, COUNT = 128, 2

NAMES = registry.names()
SAM_METHODS = [name for name in NAMES if issubclass(registry[name], SamMethod)]

# The variants of a method are held to the promises that depend on its arithmetic.
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("conv_lora", {"variant": "paper"}),
    ("conv_lora", {"gate": "image"}),
    ("conv_lora", {"routing": "sum"}),
    ("conv_lora", {"top_k": 2}),
    ("conv_lora", {"scales": [4]}),
    ("lora", {"rank": 12}),
    ("lora+conv_lora", {}),
]

# Before the first step the output is that of the frozen SAM (decoder_only).
START_AS_SAM = {"decoder_only", "lora", "conv_lora", "lora+conv_lora"}

# Trained parameters that need not receive a gradient, by a pattern of their names.
NO_GRADIENT = {
    r"mask_decoder\..*k_proj\.bias": "softmax ignores what is added to the scores of all keys alike",
}

every_method = pytest.mark.parametrize("name", NAMES)
every_sam_method = pytest.mark.parametrize("name", SAM_METHODS)
every_variant = pytest.mark.parametrize(
    ("name", "parameters"), [*((name, {}) for name in SAM_METHODS), *VARIANTS], ids=lambda value: str(value)
)


KEYS = image_keys(0, 0, range(COUNT))


def context(*, backbone: str = "tiny", seed: int = 0) -> Context:
    return Context(backbone=backbone, checkpoint="none", image_size=SIDE, seed=seed)


def build(name: str, parameters: dict[str, object] | None = None, *, backbone: str = "tiny", seed: int = 0) -> Model:
    return create(name, parameters).build(context(backbone=backbone, seed=seed))


def added(model: Model) -> dict[str, torch.nn.Parameter]:
    """What a method trains beside the mask decoder."""
    return {name: p for name, p in model.trainable().items() if not name.startswith("mask_decoder.")}


def evaluate(model: Model, images: Tensor) -> Tensor:
    was = model.training
    with torch.no_grad():
        masks = model.eval()(images).masks
    model.train(was)
    return masks


def perturb(parameters: dict[str, torch.nn.Parameter], deviation: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))


class Trainer:
    """A few AdamW steps on one batch with one draw; keeps which parameters ever had a gradient."""

    def __init__(self, model: Model, data: tuple[Tensor, Tensor], task_loss: TaskLoss) -> None:
        self.model, self.images, self.task_loss = model, data[0], task_loss
        self.target = model.targets(data[1])
        self.reached: set[str] = set()

    def run(self, steps: int, lr: float) -> None:
        optimiser = torch.optim.AdamW(self.model.trainable().values(), lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            output = self.model(self.images, KEYS)
            self.model.loss(output, self.target, self.task_loss).mean().backward()
            self.reached |= {n for n, p in self.model.trainable().items() if p.grad is not None and p.grad.any()}
            optimiser.step()

    @torch.no_grad()
    def error(self) -> float:
        return self.task_loss(self.model(self.images, KEYS).masks, self.target).mean().item()


@pytest.fixture(scope="module")
def data(batch: Callable) -> tuple[Tensor, Tensor]:
    return batch(COUNT, SIDE)


@pytest.fixture(scope="module")
def images(data: tuple[Tensor, Tensor]) -> Tensor:
    return data[0]


@every_method
def test_is_a_described_immutable_value(name: str) -> None:
    method = create(name)
    assert isinstance(method, Method) and method.name == name
    assert method.title and type(method).__doc__ and method.version >= 1
    assert method == create(name) and hash(method) == hash(create(name))
    for field in type(method).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(method, field, getattr(method, field))


@every_method
def test_parameters_survive_a_file_and_unknown_ones_are_refused(name: str) -> None:
    assert create(name, parameters_of(create(name))) == create(name)
    assert parameters_of(create(name), changed_only=True) == {}
    with pytest.raises(ParameterError, match=f"{name}.*no_such_parameter"):
        create(name, {"no_such_parameter": 1})


@every_method
def test_builds_the_same_model_whatever_was_drawn_before(name: str) -> None:
    models = []
    for draws in (1, 2):
        torch.manual_seed(draws)
        models.append(build(name))
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(draws).get_state())
    one, other = (model.state_dict() for model in models)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@every_method
def test_is_ready_to_train(name: str) -> None:
    model = build(name)
    assert model.training and model.trainable()
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    unique = {id(p): p for p in model.parameters()}.values()
    trainable = sum(p.numel() for p in unique if p.requires_grad)
    assert model.count() == {"trainable": trainable, "total": sum(p.numel() for p in unique)}


@every_sam_method
def test_a_seed_changes_trained_values_only(name: str) -> None:
    one, other = build(name, seed=0), build(name, seed=1)
    for (label, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
        assert a.requires_grad or torch.equal(a, b), label


@every_sam_method
def test_counts_parameters_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    assert model.count() == build(name).count()


@every_method
def test_output(name: str, data: tuple[Tensor, Tensor], task_loss: TaskLoss) -> None:
    images, masks = data
    model = build(name)
    output = model(images, KEYS)
    assert output.masks.shape == (COUNT, 1, SIDE, SIDE) and output.masks.dtype == torch.float32
    assert torch.isfinite(output.masks).all()
    assert all(loss.shape == (COUNT,) and torch.isfinite(loss).all() for loss in output.aux_losses.values())
    assert output.aux_losses.keys() <= model.aux_weights.keys(), "an auxiliary loss without a weight"
    if output.expert_counts is not None:
        assert output.expert_counts.shape[0] == COUNT and output.expert_counts.dim() == 3

    target = model.targets(masks)
    assert target.shape == (COUNT, 1, SIDE, SIDE) and target.unique().tolist() == [0.0, 1.0]
    loss = model.loss(output, target, task_loss)
    assert loss.shape == (COUNT,) and torch.isfinite(loss).all()
    probabilities = model.probabilities(output)
    assert probabilities.shape == (COUNT, SIDE, SIDE) and probabilities.dtype == torch.float32
    assert probabilities.min() >= 0 and probabilities.max() <= 1

    again = model.decode(model.encode(images, KEYS))
    assert torch.equal(again.masks, output.masks) and again.aux_losses.keys() == output.aux_losses.keys()


@every_method
def test_under_autocast(name: str, images: Tensor) -> None:
    model = build(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        masks = model(images).masks
    assert masks.dtype == torch.float32
    exact = evaluate(model, images)
    assert (masks - exact).abs().max() < 0.1 * exact.abs().max()


@every_method
def test_evaluation_knows_neither_chance_nor_neighbours(name: str, images: Tensor) -> None:
    model = build(name)
    perturb(added(model))
    torch.manual_seed(1)
    first = evaluate(model, images)
    torch.manual_seed(2)
    assert torch.equal(evaluate(model, images), first)
    assert torch.equal(evaluate(model, images.float()), first)
    alone = torch.cat([evaluate(model, image[None]) for image in images])
    assert torch.allclose(alone, first, atol=1e-4 * first.abs().max().item())
    assert not model.eval()(images).aux_losses


@every_sam_method
def test_training_draws_from_keys_alone(name: str, images: Tensor) -> None:
    model = build(name)
    perturb(added(model))
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outputs.append(model(images, KEYS))
    assert torch.equal(outputs[0].masks, outputs[1].masks)
    for index in range(COUNT):
        alone, chosen = model(images[index, None], KEYS[index, None]), outputs[0].masks[index]
        assert torch.allclose(alone.masks[0], chosen, atol=1e-4 * chosen.abs().max().item())
        for label, loss in alone.aux_losses.items():
            assert loss.item() == pytest.approx(outputs[0].aux_losses[label][index].item(), rel=1e-3)


@every_method
def test_training_moves_what_it_declares_and_nothing_else(
    name: str, data: tuple[Tensor, Tensor], task_loss: TaskLoss
) -> None:
    model = build(name)
    before = {label: value.clone() for label, value in model.state_dict().items()}
    features = model.encode(data[0], KEYS).features
    trainer = Trainer(model, data, task_loss)
    start = trainer.error()
    trainer.run(steps=6, lr=1e-3)
    assert trainer.error() < 0.9 * start

    declared = model.trainable().keys()
    unmoved = before.keys() if name in SAM_METHODS else {n for n, _ in model.named_parameters()}
    for label in unmoved - declared:
        assert torch.equal(model.state_dict()[label], before[label]), label
    silent = {label for label in declared - trainer.reached if not any(re.fullmatch(p, label) for p in NO_GRADIENT)}
    assert silent == set()
    assert all(not torch.equal(model.state_dict()[label], before[label]) for label in trainer.reached)

    constant = torch.equal(model.encode(data[0], KEYS).features, features)
    assert constant is model.encoder_constant
    assert features.requires_grad is not model.encoder_constant


@every_variant
def test_the_added_parts_alone_lower_the_loss(
    name: str, parameters: dict[str, object], mini: str, data: tuple[Tensor, Tensor], task_loss: TaskLoss,
    roughen: Callable,
) -> None:  # fmt: skip
    """With the decoder frozen; every added parameter gets a gradient, a gate's from the balance loss."""
    model = build(name, parameters, backbone=mini)
    if not added(model):
        pytest.skip("trains the decoder alone")
    # A random decoder answers almost the same to any features; a rough one listens to them.
    roughen(model.mask_decoder, deviation=0.3).requires_grad_(False)
    trainer = Trainer(model, data, task_loss)
    start = trainer.error()
    trainer.run(steps=10, lr=1e-2)
    assert trainer.error() < 0.9 * start
    assert model.trainable().keys() - trainer.reached == set()


@every_variant
def test_the_added_parts_matter(name: str, parameters: dict[str, object], mini: str, images: Tensor) -> None:
    model = build(name, parameters, backbone=mini)
    before = evaluate(model, images)
    perturb(added(model) or model.trainable())
    assert (evaluate(model, images) - before).abs().max() > 0.01 * before.abs().max()


@every_variant
def test_starts_as_the_frozen_sam(name: str, parameters: dict[str, object], mini: str, images: Tensor) -> None:
    if name not in START_AS_SAM:
        pytest.skip("does not claim it")
    model, sam = build(name, parameters, backbone=mini), build("decoder_only", backbone=mini)
    assert torch.equal(evaluate(model, images), evaluate(sam, images))
    assert torch.equal(model(images, KEYS).masks, sam(images).masks)


@every_method
def test_a_saved_model_answers_the_same(name: str, images: Tensor, tmp_path: Path) -> None:
    model = build(name)
    perturb(model.trainable(), deviation=0.02)
    save(model, tmp_path, {
        "method": {"name": name, "parameters": parameters_of(create(name))},
        "context": asdict(context()),
        "backbone_digest": resolve("tiny", "none").digest(),
    })  # fmt: skip
    loaded = load(tmp_path)
    assert not torch.equal(evaluate(build(name), images), evaluate(model, images))
    assert torch.equal(evaluate(loaded, images), evaluate(model, images))
