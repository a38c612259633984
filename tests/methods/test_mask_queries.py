"""Several classes: mask queries and what is made of them, the same for every method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import Context, Embedding, Model, Output, create, registry
from methods.complete import CompleteMethod
from methods.randomness import image_keys

CLASSES, QUERIES, SIDE = 4, 3, 64
HEAD = {"mask_decoder.class_head.weight", "mask_decoder.class_head.bias"}

every_method = pytest.mark.parametrize(
    "name",
    [
        *(n for n in registry.names() if registry[n].several_classes and not issubclass(registry[n], CompleteMethod)),
        "lora+lst",
    ],
)


class Answering(Model):
    """Nothing but what every model has."""

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        raise NotImplementedError

    def decode(self, embedding: Embedding) -> Output:
        raise NotImplementedError


def build(name: str, backbone: str, classes: int = CLASSES) -> Model:
    return create(name).build(Context(classes, SIDE, backbone, checkpoint="none", mask_tokens=QUERIES))


def answer(seed: int, shape: tuple[int, int, int, int, int], spread: float = 3.0) -> Output:
    """Random logits of B images, N queries, K classes, H rows and W columns."""
    batch, queries, classes, height, width = shape
    generator = np.random.default_rng(seed)
    masks = spread * generator.standard_normal((batch, queries, height, width))
    labels = spread * generator.standard_normal((batch, queries, classes + 1))
    return Output(torch.from_numpy(masks).float(), torch.from_numpy(labels).float())


def summed_one_by_one(output: Output) -> np.ndarray:
    """Scores (B, K, H, W) in Python floats, one query, class and pixel at a time."""
    masks, labels = output.masks.double().numpy(), output.classes.double().numpy()
    (batch, queries, height, width), classes = masks.shape, labels.shape[2] - 1
    scores = np.zeros((batch, classes, height, width))
    for image, query, label, row, column in np.ndindex(batch, queries, classes, height, width):
        shares = np.exp(labels[image, query] - labels[image, query].max())
        inside = 1 / (1 + np.exp(-masks[image, query, row, column]))
        scores[image, label, row, column] += shares[label] / shares.sum() * inside
    return scores


@pytest.mark.parametrize(
    ("shape", "spread"), [((2, 3, 4, 5, 6), 3.0), ((1, 1, 2, 3, 3), 0.1), ((3, 10, 12, 4, 2), 30.0)]
)
def test_scores_are_summed_over_queries_without_the_class_of_no_object(shape: tuple, spread: float) -> None:
    output, model = answer(0, shape, spread), Answering(shape[2])
    found, expected = model.probabilities(output), summed_one_by_one(output)
    assert found.dtype == torch.float32 and found.shape == (shape[0], shape[2], *shape[3:])
    assert np.abs(found.numpy() - expected).max() < 2e-6
    assert np.array_equal(found.argmax(1).numpy(), expected.argmax(1))


def test_a_query_that_is_no_object_says_nothing_and_a_sure_one_decides() -> None:
    masks = torch.full((1, 2, 2, 2), -30.0)
    masks[0, 0, 0], masks[0, 1] = 30.0, 30.0
    classes = torch.full((1, 2, 4), -30.0)
    classes[0, 0, 2] = classes[0, 1, 3] = 30.0
    scores = Answering(3).probabilities(Output(masks, classes))
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 2, 0] = 1.0
    assert torch.allclose(scores, expected, atol=1e-6)


def test_scores_stay_exact_under_autocast_and_for_logits_in_half_precision() -> None:
    output = answer(1, (2, 10, 5, 8, 8))
    model = Answering(5)
    with torch.autocast("cpu", torch.bfloat16):
        summed = model.probabilities(output)
    assert summed.dtype == torch.float32
    assert np.abs(summed.numpy() - summed_one_by_one(output)).max() < 2e-6
    half = Output(output.masks.bfloat16(), output.classes.bfloat16())
    assert np.abs(model.probabilities(half).numpy() - summed_one_by_one(half)).max() < 2e-6


def test_indices_of_several_classes_are_compared_as_they_are() -> None:
    masks = torch.tensor([[[0, 1, 3, 255]]], dtype=torch.uint8)
    assert torch.equal(Answering(CLASSES).targets(masks), masks)
    assert Answering().targets(masks).tolist() == [[[[0.0, 1.0, 0.0, 0.0]]]]


@every_method
def test_a_method_trains_what_it_does_for_binary_masks_and_the_class_head(name: str, mini: str) -> None:
    several, binary = build(name, mini), build(name, mini, 1)
    assert several.num_classes == CLASSES and binary.num_classes == 1
    assert several.trainable().keys() - binary.trainable().keys() == HEAD
    assert binary.trainable().keys() <= several.trainable().keys()
    assert several.encoder_constant is binary.encoder_constant
    assert several.backbone_needs_grad is binary.backbone_needs_grad
    expected = (CLASSES + 1) * (32 + 1) + (QUERIES - 1) * 32
    assert several.count()["trainable"] - binary.count()["trainable"] == expected


@torch.no_grad()
@every_method
def test_an_image_is_embedded_as_for_binary_masks(name: str, mini: str, batch: Callable) -> None:
    images, keys = batch()[0], image_keys(0, 0, range(4))
    one, other = (build(name, mini, classes).encode(images, keys) for classes in (CLASSES, 1))
    assert torch.equal(one.features, other.features)
    assert one.aux_losses.keys() == other.aux_losses.keys()
    assert all(torch.equal(loss, other.aux_losses[label]) for label, loss in one.aux_losses.items())


@torch.no_grad()
def test_queries_start_alike_and_answer_in_their_own_order(mini: str, batch: Callable) -> None:
    model, images = build("decoder_only", mini).eval(), batch()[0]
    start = model(images)
    for values in (start.masks, start.classes):
        assert torch.allclose(values, values[:, :1].expand_as(values), atol=1e-6 * values.abs().max().item())

    tokens = model.mask_decoder.mask_tokens.weight
    tokens.add_(torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1)))
    apart = model(images)
    assert all((apart.masks[:, one] - apart.masks[:, 0]).abs().max() > 1e-2 for one in (1, 2))
    order = [2, 0, 1]
    tokens.copy_(tokens[order].clone())
    moved = model(images)
    scale = apart.masks.abs().max().item()
    assert torch.allclose(moved.masks, apart.masks[:, order], atol=1e-5 * scale)
    assert torch.allclose(moved.classes, apart.classes[:, order], atol=1e-5)
    assert torch.allclose(model.probabilities(moved), model.probabilities(apart), atol=1e-5)
