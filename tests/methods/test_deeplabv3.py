"""DeepLabv3 is torchvision's, its loss the regime's or cross-entropy, its dropout a function of keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50

from methods import Context, create
from methods.base import TaskLoss
from methods.dropout import KeyedDropout
from methods.randomness import image_keys


@pytest.mark.parametrize(("classes", "count"), [(1, 41_993_794), (2, 41_994_308)])
def test_the_count_is_torchvisions(classes: int, count: int) -> None:
    with torch.device("meta"):
        model = create("deeplabv3").build(Context(classes, image_size=64, checkpoint="none"))
    assert model.count()["trainable"] == count


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_it_answers_as_torchvisions(images: torch.Tensor) -> None:
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    model = create("deeplabv3").build(Context(3, image_size=64, checkpoint="none"))
    model.load_state_dict(theirs.state_dict())
    keyless = model.train()(images)  # without keys nothing is dropped
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for dropout in (module for module in theirs.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    wanted = theirs.train()((images / 255 - mean) / std)
    for answer, name in ((keyless.masks, "out"), (keyless.others[0], "aux")):
        torch.testing.assert_close(answer, wanted[name], rtol=1e-2, atol=2e-3)  # statistics of two pixels are touchy
    scored = model.eval()(images)
    torch.testing.assert_close(scored.masks, theirs.eval()((images / 255 - mean) / std)["out"], rtol=1e-3, atol=1e-4)
    assert scored.others == ()


def test_its_own_side_is_where_features_are_computed(images: torch.Tensor) -> None:
    model = create("deeplabv3", {"side": 96}).build(Context(image_size=64, checkpoint="none")).train()
    assert model.encode(images).features.shape == (2, 2048, 12, 12)
    output = model(images)
    assert [tuple(answer.shape) for answer in (output.masks, *output.others)] == [(2, 1, 64, 64)] * 2


def test_binary_answers_get_the_regimes_loss(images: torch.Tensor, task_loss: TaskLoss) -> None:
    model = create("deeplabv3", {"aux_weight": 0.25}).build(Context(image_size=64, checkpoint="none")).train()
    output, target = model(images), model.targets(torch.eye(64, dtype=torch.uint8).repeat(2, 1, 1))
    found = model.loss(output, target, task_loss)
    for index in range(2):
        answers = (output.masks[index], output.others[0][index])
        main, aux = (F.binary_cross_entropy_with_logits(answer, target[index]) for answer in answers)
        assert found[index].item() == pytest.approx((main + 0.25 * aux).item(), rel=1e-5)


def test_several_classes_get_cross_entropy_where_pixels_count(images: torch.Tensor) -> None:
    model = create("deeplabv3").build(Context(4, image_size=64, checkpoint="none")).train()
    masks = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    masks[0, :20], masks[1] = 255, 255
    output = model(images)
    found = model.loss(output, model.targets(masks), lambda *_: pytest.fail("the regime's loss was asked"))
    counted = [F.cross_entropy(answer[:1, :, 20:], masks[:1, 20:].long()) for answer in (output.masks, *output.others)]
    assert found[0].item() == pytest.approx((counted[0] + 0.5 * counted[1]).item(), rel=1e-5)
    assert found[1].item() == 0


def test_what_is_dropped_is_a_function_of_the_images_keys(images: torch.Tensor) -> None:
    model = create("deeplabv3").build(Context(image_size=64, checkpoint="none")).train()
    layers = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    assert [layer.p for layer in layers] == [0.5, 0.1]
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    first, again, other = (model(images, image_keys(0, step, [0, 1])).masks for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_dropout_keeps_the_mean_and_drops_each_image_alone() -> None:
    layer, x = KeyedDropout(0.3, salt=1).train(), torch.ones(2, 8, 64, 64)
    layer.random_keys = image_keys(0, 0, [4, 9])
    both = layer(x)
    assert both.unique().tolist() == pytest.approx([0, 1 / 0.7]) and both.mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(both[0], both[1])
    layer.random_keys = image_keys(0, 0, [9])
    assert torch.equal(layer(x[:1])[0], both[1])
    assert torch.equal(layer.eval()(x), x)


def test_it_learns_real_leaves(test_data: Path, task_loss: TaskLoss) -> None:
    from PIL import Image

    folder = test_data / "wheat_leaf_rust3"
    names = sorted(path.name for path in (folder / "images").iterdir())[:2]
    picture = [Image.open(folder / "images" / name).convert("RGB").resize((64, 64)) for name in names]
    truth = [Image.open(next((folder / "masks").glob(f"{Path(name).stem}*"))).convert("L") for name in names]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in picture])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([np.asarray(mask.resize((64, 64), 0)) > 0 for mask in truth])).to(torch.uint8)
    assert 0 < masks.float().mean() < 1
    model = create("deeplabv3").build(Context(image_size=64, checkpoint="none")).train()
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for step in range(6):
        output = model(images, image_keys(0, step, [0, 1]))
        loss = model.loss(output, model.targets(masks), task_loss).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
