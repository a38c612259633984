"""Trans2Seg: its look-up and head against loops over classes and heads, its count, and training on real streets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import Context, create
from methods.base import Output, TaskLoss
from methods.compose import ParameterError
from methods.randomness import image_keys
from methods.trans2seg import FINE, HEADS, WIDTH, Decoder, Encoder, LookUp, Scores, SmallHead, residual_mlp

RELEASED = 56_501_721  # twelve classes, without the backbone's classifier


def context(classes: int = 1, image_size: int = 64) -> Context:
    return Context(classes, image_size=image_size, checkpoint="none")


def test_the_count_is_the_released_models() -> None:
    method = create("trans2seg")
    with torch.device("meta"):
        model = method.build(context(12))
    classifier = nn.Linear(2048, 1000)
    idle = [residual_mlp(32 * 32) for _ in range(3)]  # of the maps that no answer reads
    idle += [residual_mlp(WIDTH), residual_mlp(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)]
    count = sum(p.numel() for module in idle for p in module.parameters())
    assert model.count()["trainable"] + count == RELEASED
    assert method.idle_parameters(context(12)) == count + sum(p.numel() for p in classifier.parameters())


@pytest.mark.parametrize(("classes", "side"), [(1, 64), (12, 512), (3, 96)])
def test_the_count_is_its_formulas(classes: int, side: int) -> None:
    method = create("trans2seg", {"side": side})
    with torch.device("meta"):
        model = method.build(context(classes))
    assert model.count()["trainable"] == method.added_parameters(context(classes))


def test_a_side_that_cuts_a_patch_is_refused() -> None:
    with pytest.raises(ParameterError, match="multiple of 16"):
        create("trans2seg", {"side": 72})


def scores_by_hand(layer: Scores, prototypes: Tensor, features: Tensor) -> Tensor:
    width, found = WIDTH // HEADS, []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        query = layer.norm_prototypes(prototypes) @ layer.query.weight[part].T
        key = layer.norm_features(features) @ layer.key.weight[part].T
        found.append(torch.einsum("bkd,bnd->bkn", query, key) / width**0.5)
    return torch.stack(found, 1)


@torch.no_grad()
def test_prototypes_look_up_features_head_by_head() -> None:
    layer = LookUp()
    generator = torch.Generator().manual_seed(0)
    prototypes, features = (torch.randn(2, count, WIDTH, generator=generator) for count in (3, 6))
    scores = scores_by_hand(layer.scores, prototypes, features)
    torch.testing.assert_close(layer.scores(prototypes, features)[0], scores, rtol=1e-4, atol=1e-5)
    value = layer.scores.norm_features(features) @ layer.value.weight.T
    width = WIDTH // HEADS
    seen = torch.cat([scores[:, h].softmax(-1) @ value[..., h * width : (h + 1) * width] for h in range(HEADS)], -1)
    wanted = layer.project(seen) + layer.project(seen)  # a value added to itself, as released
    new_prototypes, new_features = layer(prototypes, features)
    torch.testing.assert_close(new_prototypes, wanted + layer.refine_prototypes(wanted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new_features, features + features + layer.refine_features(features + features))


@torch.no_grad()
def test_prototypes_come_back_before_each_layer_and_the_last_ones_maps_are_refined() -> None:
    generator = torch.Generator().manual_seed(3)
    decoder, features = Decoder(3, 6), torch.randn(2, 6, WIDTH, generator=generator)
    nn.init.normal_(decoder.prototypes, generator=generator)
    x, own = features, decoder.prototypes.expand(2, -1, -1)
    prototypes = own
    assert len(decoder.layers) == 3
    for layer in decoder.layers:
        prototypes, x = layer(prototypes, x)
        prototypes = prototypes + own
    maps = 2 * scores_by_hand(decoder.last, prototypes, x)
    found = decoder(features)
    assert found.shape == (2, HEADS, 3, 6)
    torch.testing.assert_close(found, maps + decoder.refine_map(maps), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_encoder_is_a_transformer_with_a_class_token_in_front() -> None:
    generator = torch.Generator().manual_seed(4)
    encoder, coarse = Encoder(6), torch.randn(2, 2048, 2, 3, generator=generator)
    for drawn in (encoder.token, encoder.positions):
        nn.init.normal_(drawn, generator=generator)
    x = torch.stack([encoder.embed(coarse[:, :, row, column]) for row in range(2) for column in range(3)], 1)
    x = torch.cat([encoder.token.expand(2, -1, -1), x], 1) + encoder.positions
    assert len(encoder.blocks) == 4
    for block in encoder.blocks:
        query, key, value = (block.norm1(x) @ block.attn.qkv.weight.T).unflatten(-1, (3, HEADS, -1)).unbind(2)
        weights = (torch.einsum("bnhd,bmhd->bhnm", query, key) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + block.attn.proj(torch.einsum("bhnm,bmhd->bnhd", weights, value).flatten(2))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        assert block.mlp.fc1.out_features == 3 * WIDTH and block.attn.qkv.bias is None
    torch.testing.assert_close(encoder(coarse), encoder.norm(x)[:, 1:], rtol=1e-4, atol=1e-4)


def test_the_head_answers_each_class_of_each_image_alone() -> None:
    head = SmallHead().eval()
    generator = torch.Generator().manual_seed(1)
    maps, features = (
        torch.randn(2, 3, HEADS, 4, 4, generator=generator),
        torch.randn(2, WIDTH, 4, 4, generator=generator),
    )
    fine = torch.randn(2, FINE, 16, 16, generator=generator)
    found = head(maps, features, fine)
    assert found.shape == (2, 3, 16, 16)
    for image in range(2):
        for index in range(3):
            x = head.coarse(torch.cat([features[image : image + 1], maps[image, index][None]], 1))
            x = F.interpolate(x, (16, 16), mode="bilinear", align_corners=True) + head.fine(fine[image : image + 1])
            torch.testing.assert_close(found[image, index], head.answer(x)[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("parameters", "side"), [({"side": 96}, 96), ({}, 512)])
def test_levels_are_at_strides_4_and_16_of_its_own_side(parameters: dict[str, int], side: int) -> None:
    model = create("trans2seg", parameters).build(context(3)).eval()
    with torch.no_grad():
        embedding = model.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        output = model.decode(embedding)
    shapes = [tuple(level.shape[1:]) for level in (embedding.features, *embedding.taps)]
    assert shapes == [(c, side // stride, side // stride) for c, stride in ((2048, 16), (256, 4))]
    assert output.masks.shape == (1, 3, 64, 64) and output.classes is None


def test_one_class_gets_the_regimes_loss_and_several_cross_entropy(task_loss: TaskLoss) -> None:
    generator = torch.Generator().manual_seed(2)
    for classes in (1, 4):
        with torch.device("meta"):
            model = create("trans2seg", {"side": 64}).build(context(classes))
        logits = torch.randn(2, classes, 64, 64, generator=generator)
        masks = torch.randint(0, max(2, classes), (2, 64, 64), generator=generator, dtype=torch.uint8)
        target = model.targets(masks)
        found = model.loss(Output(logits), target, task_loss)
        for index in range(2):
            one = slice(index, index + 1)
            wanted = (
                F.cross_entropy(logits[one], masks[one].long())
                if classes > 1
                else F.binary_cross_entropy_with_logits(logits[one, 0], masks[one].float())
            )
            assert found[index].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_it_learns_real_streets(test_data: Path) -> None:
    from PIL import Image

    folder = test_data / "camvid_val_101" / "CamVid"
    names = sorted(path.name for path in (folder / "val").iterdir())[::60][:2]
    picture, truth = (
        np.stack([np.asarray(Image.open(folder / kind / name).resize((64, 64), 0)) for name in names])
        for kind in ("val", "valannot")
    )
    images = torch.from_numpy(picture).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.where(truth > 10, 255, truth).astype(np.uint8))
    assert masks[masks != 255].unique().numel() > 4
    model = create("trans2seg", {"side": 64}).build(context(11)).train()
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-4), []
    for step in range(35):
        output = model(images, image_keys(0, step, [0, 1]))
        loss = model.loss(output, model.targets(masks), lambda *_: pytest.fail("the regime's loss was asked")).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = model(images)
    assert model.loss(output, model.targets(masks), lambda *_: None).isfinite().all()
