"""What every registered method promises beside the conformance suite (test_conformance.py), whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods import Context, Method, Model, SamMethod, create, registry
from methods.base import TaskLoss
from methods.compose import ParameterError, parameters_of
from methods.randomness import image_keys

SIDE, COUNT = 128, 2

NAMES = registry.names()
SAM_METHODS = [name for name in NAMES if issubclass(registry[name], SamMethod)]

every_method = pytest.mark.parametrize("name", NAMES)
every_sam_method = pytest.mark.parametrize("name", SAM_METHODS)
KEYS = image_keys(0, 0, range(COUNT))


def context(*, backbone: str = "tiny", seed: int = 0) -> Context:
    return Context(backbone=backbone, checkpoint="none", image_size=SIDE, seed=seed)


def build(name: str, parameters: dict[str, object] | None = None, *, backbone: str = "tiny", seed: int = 0) -> Model:
    small = {"side": SIDE} if "+" not in name and "side" in registry[name].model_fields else {}
    return create(name, small | (parameters or {})).build(context(backbone=backbone, seed=seed))


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
    assert model.training
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
    # What is large blows up in a network whose running statistics are not its own, and rounding with it.
    perturb(added(model), 0.02 if model.batch_statistics else 0.1)
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
