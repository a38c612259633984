"""How long a layer of Conv-LoRA takes beside one of LoRA, and a whole training step or prediction with either.

All trained parameters are given noise, so that experts are chosen about evenly, as after training.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods import trial
from methods.conv_lora import ConvLoRALinear
from methods.lora import LoRALinear
from methods.randomness import image_keys

INPUTS = {"tiny, windows": (4, 4, 8, 8, 192), "tiny, global": (4, 16, 16, 192), "vit_b, windows": (1, 4, 14, 14, 768)}
LAYERS: dict[str, Callable[[nn.Module, tuple[int, int]], nn.Module]] = {
    "lora": lambda base, grid: LoRALinear(base),
    "conv_lora": lambda base, grid: ConvLoRALinear(base, grid=grid),
    "conv_lora, explicit": lambda base, grid: ConvLoRALinear(base, implementation="explicit"),
}
TWIN = {"lora": "lora", "conv_lora": "conv_lora, explicit", "conv_lora, explicit": "conv_lora"}


def made(form: str, kind: str) -> nn.Module:
    """A layer from C to 3C channels on a frozen base, with the same weights whatever the implementation."""
    *_, height, width, channels = INPUTS[kind]
    torch.manual_seed(1)
    layer = LAYERS[form](nn.Linear(channels, 3 * channels).requires_grad_(False), (height, width))
    layer.random_keys = image_keys(0, 0, range(INPUTS[kind][0]))
    trial.shake({name: p for name, p in sorted(layer.named_parameters()) if p.requires_grad}, 0.05)
    return layer


def inference(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer.eval()(x)


def training(layer: nn.Module, x: Tensor) -> Tensor:
    """Forward and backward; the gradient at the input."""
    leaf = x.clone().requires_grad_()
    loss = layer.train()(leaf).square().sum()
    balance = getattr(layer, "balance_loss", None)
    (loss if balance is None else loss + balance.sum()).backward()
    return leaf.grad


@pytest.mark.parametrize("form", LAYERS)
@pytest.mark.parametrize("work", [inference, training])
@pytest.mark.parametrize("kind", INPUTS)
def test_layer(compare, kind: str, work, form: str) -> None:
    layer, x = made(form, kind), torch.randn(INPUTS[kind])
    group = f"layer, {work.__name__} ({kind})"
    found = compare(lambda: work(layer, x), group=group, candidate=form, reference="lora")
    twin, plain = (work(made(other, kind), x) for other in (TWIN[form], "lora"))
    assert (found - twin).abs().max() <= 1e-4 * twin.abs().max()
    assert torch.equal(found, plain) == (form == "lora"), "experts change the answer"


@pytest.mark.parametrize("method", ["lora", "conv_lora"])
def test_prediction(compare, method: str) -> None:
    subject = trial.Subject(method, image_size=128)
    model = subject.build()
    trial.shake(model.trainable(), 0.05)
    images, _ = subject.batch
    group = "prediction for 4 images (tiny, 128 px)"
    (masks,) = compare(lambda: trial.predict(model, images), group=group, candidate=method, reference="lora")
    assert masks.shape[0] == 4 and masks.isfinite().all()


@pytest.mark.parametrize("method", ["lora", "conv_lora"])
def test_training_step(compare, method: str) -> None:
    subject = trial.Subject(method, image_size=128)
    model = subject.build()
    trial.shake(model.trainable(), 0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=1e-4)

    def step() -> Tensor:
        optimiser.zero_grad()
        losses, _ = trial.losses(subject, model)
        losses.mean().backward()
        optimiser.step()
        return losses

    group = "training step of 4 images (tiny, 128 px)"
    losses = compare(step, group=group, candidate=method, reference="lora")
    assert losses.shape == (4,) and losses.isfinite().all()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= model.trainable().keys()
    assert {name for name in trial.added(model) if "lora" in name} <= changed
