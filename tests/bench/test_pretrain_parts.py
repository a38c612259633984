"""What pre-training learns from and the losses it learns by, each against a slow and obvious computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.pretraining import prompts
from bench.pretraining.batch import OBJECTS, STRIDE, Batch, dense_targets, make_batch
from bench.pretraining.dense import DenseHead, dense_losses
from bench.pretraining.model import Pretrained
from bench.pretraining.prompts import (
    ROUNDS,
    decode,
    embed_prompts,
    error_clicks,
    mask_losses,
    measured_iou,
    prompt_losses,
)
from datasets.scenes import Scene
from methods.base import Context
from methods.sam.build import build_parts, parts, resize_position_tables
from methods.sam.model import PIXEL_MEAN, PIXEL_STD
from methods.sam.sizes import size_of

SIDE = 64 // STRIDE


@pytest.fixture(scope="module")
def model() -> Pretrained:
    return Pretrained("tiny").eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(64, 3, 0, 5)


def test_a_batch_is_a_function_of_seed_and_step(batch):
    for first, second in zip(batch, make_batch(64, 3, 0, 5), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(batch.images, make_batch(64, 3, 1, 5).images)
    assert not torch.equal(batch.images, make_batch(64, 3, 0, 6).images)


def test_clicks_lie_inside_and_boxes_about_their_object(batch):
    assert len(batch.masks) == 3 * OBJECTS
    for mask, (x, y), box in zip(batch.masks, batch.clicks.long(), batch.boxes, strict=True):
        assert mask[y // STRIDE, x // STRIDE] > 0
        rows, columns = torch.where(mask > 0)
        tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * STRIDE
        sides = (tight[2:] - tight[:2]).repeat(2)
        assert ((box - tight).abs() <= 0.1 * sides + STRIDE).all()


def test_dense_targets_by_hand():
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    instances = np.zeros((16, 16), dtype=np.uint8)
    instances[4:12, 4:12] = 1
    instances[4:8, 4:8] = 2
    image[4:12, 4:12] = (255, 0, 51)
    targets = dense_targets(Scene(image, instances, np.array([0, 1, 1])))

    foreground = np.zeros((4, 4))
    foreground[1:3, 1:3] = 1
    np.testing.assert_array_equal(targets[0], foreground)
    # A contour shows on the first pixel after it: of the object below and right, of its part inside the object.
    np.testing.assert_array_equal(targets[1], [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])
    on = foreground > 0
    assert np.isnan(targets[2:, ~on]).all()
    np.testing.assert_allclose(targets[2][on], [2 / 16, -2 / 16, 2 / 16, -2 / 16])
    np.testing.assert_allclose(targets[3][on], [2 / 16, 2 / 16, -2 / 16, -2 / 16])
    np.testing.assert_allclose(targets[4][on], 0.5 * math.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(targets[5:, on].mean(1), [1, -1, -0.6], rtol=1e-6)


def test_dense_losses_leave_the_background_out():
    targets = torch.full((1, 8, 2, 2), torch.nan)
    targets[:, :2] = 0.5
    targets[0, 2:, 0, 1] = torch.arange(6.0)
    predicted = torch.zeros_like(targets).requires_grad_()
    losses = dense_losses(predicted, targets)
    assert losses["foreground"].item() == pytest.approx(math.log(2))
    assert losses["offset"].item() == pytest.approx((0 + 1) / 2)
    assert losses["size"].item() == pytest.approx(2)
    assert losses["colour"].item() == pytest.approx((3 + 4 + 5) / 3)
    sum(losses.values()).backward()
    assert predicted.grad.isfinite().all()
    assert predicted.grad[0, 2:, 1].abs().sum() == 0


def test_without_any_object_dense_losses_are_finite():
    targets = torch.full((1, 8, 2, 2), torch.nan)
    targets[:, :2] = 0
    assert all(loss.isfinite() for loss in dense_losses(torch.randn(1, 8, 2, 2), targets).values())


def test_the_dense_head_sees_one_token_at_a_place():
    head = DenseHead(6, side=4)
    features = torch.randn(1, 6, 2, 2)
    changed = features.clone()
    changed[0, :, 0, 1] += 1
    differs = (head(features) != head(changed)).any(1)[0]
    assert differs[:4, 4:].all()
    assert differs.sum() == 16


def test_mask_losses_by_the_formulas():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 4), (torch.rand(2, 4, 4) > 0.5).float()
    found = mask_losses(logits, masks)
    for n in range(2):
        for m in range(3):
            focal = 0.0
            for z, t in zip(logits[n, m].flatten().tolist(), masks[n].flatten().tolist(), strict=True):
                p = 1 / (1 + math.exp(-z))
                p_t, alpha = (p, 0.25) if t else (1 - p, 0.75)
                focal -= alpha * (1 - p_t) ** 2 * math.log(p_t) / 16
            p = logits[n, m].sigmoid()
            dice = 1 - (2 * (p * masks[n]).sum() + 1) / (p.sum() + masks[n].sum() + 1)
            assert found[n, m].item() == pytest.approx(20 * focal + dice.item(), rel=1e-5)


def test_measured_iou_counts_cells():
    logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    masks = torch.tensor([[[1.0, 0.2], [0.7, 0.0]]])
    torch.testing.assert_close(measured_iou(logits, masks), torch.tensor([[1 / 3, 0.0]]))


def test_clicks_fall_on_what_is_wrong_and_say_on_which_side():
    torch.manual_seed(1)
    for _ in range(30):
        masks = (torch.rand(5, SIDE, SIDE) > 0.5).float()
        logits = torch.randn(5, SIDE, SIDE)
        clicks, labels = error_clicks(logits, masks, torch.rand(5, SIDE, SIDE))
        cells = ((clicks + 0.5) / STRIDE).long()
        for n in range(5):
            x, y = cells[n].tolist()
            assert bool(logits[n, y, x] > 0) != bool(masks[n, y, x])
            assert labels[n] == masks[n, y, x]


def test_a_perfect_answer_is_clicked_inside_the_object():
    masks = torch.zeros(1, SIDE, SIDE)
    masks[0, 3, 5] = 1
    clicks, labels = error_clicks(masks[...] * 20 - 10, masks, torch.rand(1, SIDE, SIDE))
    assert ((clicks + 0.5) / STRIDE).long().tolist() == [[5, 3]]
    assert labels.tolist() == [1]
    faint, labels = error_clicks(masks - 2, 0.3 * masks, torch.rand(1, SIDE, SIDE))
    assert ((faint + 0.5) / STRIDE).long().tolist() == [[5, 3]], "an object that fills no cell by half"


def test_decoding_a_batch_equals_segment_anything_prompt_by_prompt(model):
    encoder, decoder = model.prompt_encoder(64), model.sam["mask_decoder"]
    torch.manual_seed(2)
    features, clicks, labels = torch.randn(3, 128, 4, 4), torch.rand(3, 2, 2) * 64, torch.tensor([[1.0, 0.0]] * 3)
    with torch.no_grad():
        sparse, dense = encoder(points=(clicks, labels), boxes=None, masks=torch.randn(3, 1, 16, 16))
        masks, promised = decode(decoder, features, encoder.get_dense_pe(), sparse, dense)
        for n in range(3):
            one = decoder.predict_masks(
                features[n : n + 1], encoder.get_dense_pe(), sparse[n : n + 1], dense[n : n + 1]
            )
            torch.testing.assert_close(masks[n : n + 1], one[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(promised[n : n + 1], one[1], rtol=1e-4, atol=1e-5)


def test_boxes_stand_in_place_of_the_first_click(model):
    encoder = model.prompt_encoder(64)
    clicks, labels, boxes = torch.rand(2, 2, 2) * 64, torch.ones(2, 2), torch.rand(2, 4) * 64
    with torch.no_grad():
        found = embed_prompts(encoder, clicks, labels, boxes, torch.tensor([True, False]))
        box, _ = encoder(points=(clicks[:1, 1:], labels[:1, 1:]), boxes=boxes[:1], masks=None)
        points, _ = encoder(points=(clicks[1:], labels[1:]), boxes=None, masks=None)
    torch.testing.assert_close(found, torch.cat([box, points]))


def _losses(model: Pretrained, batch: Batch, seed: int = 0) -> dict:
    """Of random features."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(batch.images), 128, 4, 4, generator=generator)
    noise = torch.rand((ROUNDS - 1, *batch.masks.shape), generator=generator)
    model.zero_grad(set_to_none=True)
    return prompt_losses(model.prompt_encoder(64), model.sam["mask_decoder"], features, batch, noise)


def _trained_networks(model: Pretrained) -> list[bool]:
    """For each mask token whether its hypernetwork has a gradient."""
    gradients = [network.layers[0].weight.grad for network in model.sam["mask_decoder"].output_hypernetworks_mlps]
    return [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients]


def test_of_three_masks_the_best_alone_is_trained(model, batch, monkeypatch):
    """With one prompt and one round, one hypernetwork has a gradient: that of the lowest loss that is not barred."""
    monkeypatch.setattr(prompts, "ROUNDS", 1)
    seen = []
    monkeypatch.setattr(prompts, "mask_losses", lambda *given: seen.append(mask_losses(*given)) or seen[-1])
    chosen = set()
    for n in range(len(batch.masks)):
        one = Batch(batch.images[:1], batch.dense[:1], *(part[n : n + 1] for part in batch[2:]))
        barred = (1, 2, 3, -1)[n % 4]
        one = one._replace(boxed=torch.tensor([False]), barred=torch.tensor([barred]))
        losses = _losses(model, one, seed=n)
        losses["mask"].backward()
        best = min({1, 2, 3} - {barred}, key=lambda token: seen[-1][0, token].item())
        assert _trained_networks(model) == [index == best for index in range(4)]
        assert losses["mask"].item() == pytest.approx(seen[-1][0, best].item())
        chosen.add(best)
    assert len(chosen) > 1, "the same mask was the best one of all prompts: the test shows nothing"


def test_boxes_and_later_clicks_are_answered_by_token_0(model, batch):
    """Boxes alone: the other three tokens never have a gradient, and token 0 has one."""
    losses = _losses(model, batch._replace(boxed=torch.ones_like(batch.boxed)))
    (losses["mask"] + losses["iou"]).backward()
    assert _trained_networks(model) == [True, False, False, False]


def test_a_prompt_reaches_all_parts_of_the_prompt_encoder(model, batch):
    losses = _losses(model, batch._replace(boxed=torch.arange(len(batch.boxed)) % 2 == 0))
    (losses["mask"] + losses["iou"]).backward()
    without = [name for name, value in model.sam["prompt_encoder"].named_parameters() if value.grad is None]
    assert without == []
    assert 0 <= losses["first_iou"] <= 1


def test_iou_is_promised_for_every_mask_that_answers(model, batch, monkeypatch):
    monkeypatch.setattr(prompts, "ROUNDS", 1)
    losses = _losses(model, batch._replace(boxed=torch.zeros_like(batch.boxed)))
    losses["iou"].backward()
    last = model.sam["mask_decoder"].iou_prediction_head.layers[-1]
    assert last.bias.grad[0] == 0
    assert (last.bias.grad[1:] != 0).all()


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_model_at_any_size_equals_a_sam_built_for_it(model, size):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8))
    built = parts(size_of("tiny"), size)
    native = {name: value.detach() for name, value in model.sam.state_dict().items()}
    built.load_state_dict(resize_position_tables(native, size_of("tiny"), size))
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    with torch.no_grad():
        expected = built["image_encoder"]((images - mean) / deviation).features
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
        positions = model.prompt_encoder(size).get_dense_pe()
        torch.testing.assert_close(positions, built["prompt_encoder"].get_dense_pe())


def test_small_images_train_the_native_tables(model):
    model.zero_grad(set_to_none=True)
    model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).square().mean().backward()
    encoder = model.sam["image_encoder"]
    assert encoder.pos_embed.grad.abs().sum() > 0
    assert encoder.blocks[2].attn.rel_pos_h.grad.abs().sum() > 0


def test_a_new_model_starts_from_the_random_backbone(model):
    random = build_parts(Context(backbone="tiny", checkpoint="none", image_size=256)).state_dict()
    assert random.keys() == model.sam.state_dict().keys()
    assert F.mse_loss(random["mask_decoder.iou_token.weight"], model.sam["mask_decoder"].iou_token.weight) == 0
