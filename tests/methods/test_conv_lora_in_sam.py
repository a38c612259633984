"""Conv-LoRA in SAM's blocks: routing per window, the balance loss of all blocks, and what trains what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods import Context, Model, create
from methods.base import TaskLoss
from methods.conv_lora import ConvLoRALinear
from methods.randomness import image_keys, normal


def build(backbone: str, **parameters: object) -> Model:
    return create("conv_lora", parameters).build(Context(backbone=backbone, checkpoint="none", image_size=64))


def test_every_block_draws_its_own_noise(mini: str) -> None:
    layers = [block.attn.qkv for block in build(mini).image_encoder.blocks]
    assert [type(layer) for layer in layers] == [ConvLoRALinear] * 3
    assert len({layer.salt for layer in layers}) == 3


@pytest.mark.parametrize(
    ("parameters", "per_image"),
    [
        ({}, False),
        ({"variant": "paper"}, True),
        ({"gate": "image"}, True),
        ({"variant": "paper", "gate": "window"}, False),
    ],
)
def test_the_gate_is_per_window_as_released_and_per_image_in_the_paper(
    mini: str, parameters: dict, per_image: bool, batch: Callable
) -> None:
    model = build(mini, **parameters)
    assert all(block.attn.qkv.gate_per_image is per_image for block in model.image_encoder.blocks)
    # The counts say on how many maps a choice was made: four windows, but one global map in the second block.
    embedding = model.encode(batch()[0], image_keys(0, 0, range(4)))
    assert embedding.expert_counts.shape == (4, 3, 8)
    assert embedding.expert_counts.sum(-1).tolist() == [[1, 1, 1] if per_image else [4, 1, 4]] * 4


@pytest.mark.parametrize("gate", ["window", "image"])
def test_noise_drawn_for_all_blocks_at_once_is_each_blocks_own(mini: str, gate: str, batch: Callable) -> None:
    model, images, keys = build(mini, gate=gate).train(), batch()[0], image_keys(0, 3, range(4))
    layers = [block.attn.qkv for block in model.image_encoder.blocks]
    model.encode(images, keys)
    for layer in layers:
        drawn, used = layer.noise_drawn, layer.decision.noise
        assert drawn is not None and used.data_ptr() == drawn.data_ptr()
        assert torch.equal(used, normal(keys, used.shape[1:], layer.salt))
    model.eval().encode(images, keys)
    assert [layer.noise_drawn for layer in layers] == [None] * 3


@pytest.mark.parametrize(("given", "classes", "weight"), [(None, 1, 1.0), (None, 3, 2.0), (0.5, 3, 0.5), (0.0, 1, 0.0)])
def test_the_weight_of_the_balance_loss(mini: str, given: float | None, classes: int, weight: float) -> None:
    context = Context(num_classes=classes, backbone=mini, checkpoint="none", image_size=64)
    assert create("conv_lora", {"balance_weight": given}).build(context).aux_weights == {"balance": weight}
    assert create("vpt+conv_lora", {"conv_lora.balance_weight": given}).build(context).aux_weights["balance"] == weight


def test_the_balance_losses_of_all_blocks_are_summed(mini: str, batch: Callable, task_loss: TaskLoss) -> None:
    model, (images, masks) = build(mini, balance_weight=0.5), batch()
    output = model(images, image_keys(0, 0, range(4)))
    layers = [block.attn.qkv for block in model.image_encoder.blocks]
    total = sum(layer.balance_loss for layer in layers)
    assert torch.allclose(output.aux_losses["balance"], total)
    target = model.targets(masks)
    assert torch.allclose(model.loss(output, target, task_loss), task_loss(output, target) + 0.5 * total)


@pytest.mark.parametrize("parameters", [{}, {"variant": "paper"}, {"top_k": 2}, {"routing": "sum"}])
def test_four_images_equal_four_batches_of_one(
    mini: str, parameters: dict, batch: Callable, task_loss: TaskLoss, roughen: Callable
) -> None:
    images, masks = batch()
    keys = image_keys(0, 5, range(4))
    model = roughen(build(mini, **parameters))

    def step(chosen: slice) -> tuple[Tensor, Tensor]:
        output = model(images[chosen], keys[chosen])
        losses = model.loss(output, model.targets(masks[chosen]), task_loss)
        (losses.sum() / 4).backward()
        return output.masks.detach(), losses.detach()

    together, losses = step(slice(None))
    gradients = {name: p.grad.clone() for name, p in model.trainable().items()}
    model.zero_grad()
    alone = [step(slice(index, index + 1)) for index in range(4)]
    assert torch.allclose(torch.cat([mask for mask, _ in alone]), together, atol=1e-5 * together.abs().max().item())
    assert torch.allclose(torch.cat([loss for _, loss in alone]), losses, rtol=1e-5)
    for name, parameter in model.trainable().items():
        scale = gradients[name].abs().max().item()
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4 * scale + 1e-8), name


def test_the_task_trains_the_chosen_experts_and_the_balance_loss_the_gate(
    mini: str, batch: Callable, task_loss: TaskLoss, roughen: Callable
) -> None:
    images, masks = batch()
    model = roughen(build(mini))
    for weight in (0.0, 1.0):
        model.zero_grad()
        model.aux_weights["balance"] = weight
        output = model(images, image_keys(0, 0, range(4)))
        model.loss(output, model.targets(masks), task_loss).sum().backward()
        for block, counts in zip(model.image_encoder.blocks, output.expert_counts.sum(0), strict=True):
            layer = block.attn.qkv
            for parameter in (layer.experts.weight, layer.experts.bias):
                assert torch.equal(parameter.grad.flatten(1).any(1), counts > 0)
            for parameter in (layer.gate, layer.noise):
                assert parameter.grad.any().item() is (weight > 0)
