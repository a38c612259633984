"""Trained models on pictures: any size and kind, back at the picture's own size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import evaluation
from methods import Context, Model, create
from methods.predict import BATCH, open_picture, probabilities

SIDE = 64


@pytest.fixture(scope="module")
def made(mini: str) -> Callable[..., Model]:
    """made(name, classes): a model whose answers are foreground here and background there."""
    known: dict = {}

    def build(name: str = "lora", classes: int = 1) -> Model:
        if (name, classes) not in known:
            model = create(name).build(Context(num_classes=classes, image_size=SIDE, backbone=mini, checkpoint="none"))
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.trainable().values():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
                if classes > 1:  # several mask queries start alike and stay so under small changes
                    model.mask_decoder.output_hypernetworks_mlps[0].layers[-1].weight.mul_(20)
                    model.mask_decoder.mask_tokens.weight.mul_(5)
                    model.mask_decoder.class_head.weight.mul_(5)
            known[name, classes] = model.eval()
        return known[name, classes]

    return build


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours (H, W, 3)."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(rough).resize((width, height), Image.Resampling.BILINEAR))


def bilinear(values: np.ndarray, size: int) -> np.ndarray:
    """(N, ...) resized to (size, ...) with pixel centres aligned and borders repeated, in float64."""
    place = ((np.arange(size) + 0.5) * len(values) / size - 0.5).clip(0)
    low = np.floor(place).astype(int).clip(max=len(values) - 1)
    high, part = (low + 1).clip(max=len(values) - 1), (place - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - part) + values[high] * part


@pytest.mark.parametrize(("height", "width"), [(97, 31), (1, 200), (64, 64), (200, 300), (3, 2)])
@pytest.mark.parametrize("classes", [1, 3])
def test_it_is_the_squashed_picture_enlarged_and_decided(made, height: int, width: int, classes: int) -> None:
    model, image = made(classes=classes), picture(height, width)
    squashed = np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    with torch.no_grad():
        output = model(torch.tensor(squashed.transpose(2, 0, 1).copy())[None])
    small = model.probabilities(output)[0].double().numpy().reshape(classes, SIDE, SIDE)
    large = bilinear(bilinear(small.transpose(1, 2, 0), height).transpose(1, 0, 2), width).transpose(2, 1, 0)
    found, mask = probabilities(model, image), model.predict(image)
    assert mask.dtype == np.uint8 and mask.shape == (height, width) and found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(large.shape), large, rtol=1e-4, atol=1e-5)
    sure = np.abs(large[0] - 0.5) > 0.01 if classes == 1 else np.ptp(np.sort(large, 0)[-2:], axis=0) > 1e-4
    decided = large[0] > 0.5 if classes == 1 else large.argmax(0)
    np.testing.assert_array_equal(mask[sure], decided[sure])
    if (height, width) == (200, 300):
        assert sure.mean() > 0.3 and len(np.unique(mask)) > 1


@settings(max_examples=25)
@given(height=st.integers(1, 150), width=st.integers(1, 150), seed=st.integers(0, 99))
def test_any_size_comes_back(made, height: int, width: int, seed: int) -> None:
    mask = made().predict(picture(height, width, seed))
    assert mask.shape == (height, width) and set(np.unique(mask)) <= {0, 1}


def test_8_bits_are_rounded_before_they_are_cut(made, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([0.0, 0.4980, 0.4981, 0.5, 0.5001, 1.0]).repeat(1, 6, 1)  # 127 / 255 = 0.49804
    monkeypatch.setattr(type(made()), "probabilities", lambda self, output: values)
    assert made().predict(picture(6, 6))[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_path_an_array_and_a_picture_are_one(made, tmp_path: Path) -> None:
    image, path = picture(40, 70), tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = made().predict(image)
    for other in (path, str(path), Image.fromarray(image), Image.open(path)):
        np.testing.assert_array_equal(made().predict(other), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
def test_other_kinds_of_pictures_become_rgb(made, mode: str) -> None:
    other = Image.fromarray(picture(40, 70)).convert(mode)
    np.testing.assert_array_equal(made().predict(other), made().predict(np.array(other.convert("RGB"))))


def test_grey_and_transparent_arrays(made) -> None:
    image = picture(40, 70)
    grey = image[..., 0]
    np.testing.assert_array_equal(made().predict(grey), made().predict(np.stack([grey] * 3, -1)))
    transparent = np.concatenate([image, grey[..., None]], -1)
    np.testing.assert_array_equal(made().predict(transparent), made().predict(image))
    np.testing.assert_array_equal(made().predict(image[:, ::-1]), made().predict(image[:, ::-1].copy()))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\) is no picture.*255 \* array"),
        (np.zeros((3, 5, 5), np.uint8), r"\(3, 5, 5\) is no picture: \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "is no picture"),
        (np.zeros((1, 4, 4, 3), np.uint8), "is no picture"),
        (torch.zeros(3, 4, 4), "Tensor is no picture"),
        (None, "NoneType is no picture"),
        (Image.new("I;16", (4, 4)), "more than 8 bits a channel .*I;16"),
        (Image.new("F", (4, 4)), "convert it to 8"),
    ],
)
def test_what_is_no_picture_is_refused(made, image, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made().predict(image)


def test_a_file_is_named_where_it_cannot_be_used(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png has more than 8 bits"):
        open_picture(tmp_path / "deep.png")
    with pytest.raises(FileNotFoundError, match="gone.png"):
        open_picture(tmp_path / "gone.png")


@pytest.mark.parametrize("name", ["decoder_only", "conv_lora"])
def test_a_list_gives_a_list(made, name: str) -> None:
    images = [picture(20 + 7 * index, 50 - 3 * index, index) for index in range(BATCH + 2)]
    together, one_by_one = made(name).predict(images), [made(name).predict(image) for image in images]
    assert [mask.shape for mask in together] == [image.shape[:2] for image in images]
    for mask, alone in zip(together, one_by_one, strict=True):
        assert (mask == alone).mean() > 0.99
    assert made(name).predict([]) == []
    assert made(name).predict(tuple(images[:1]))[0].shape == (20, 50)


def test_batches_are_those_of_scoring() -> None:
    assert BATCH == evaluation.BATCH


def test_probabilities_at_another_size(made) -> None:
    image = picture(40, 70)
    assert probabilities(made(), image, (9, 5)).shape == (9, 5)
    assert probabilities(made(classes=3), [image, image], (9, 5))[1].shape == (3, 9, 5)
    with torch.no_grad():
        squashed = np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        expected = made().probabilities(made()(torch.tensor(squashed.transpose(2, 0, 1).copy())[None]))[0]
    np.testing.assert_array_equal(probabilities(made(), image, (SIDE, SIDE)), expected)


def test_half_precision_is_used_where_it_was_trained(made) -> None:
    model, image = made(), picture(40, 70)
    full = probabilities(model, image)
    model.precision = "bf16"
    try:
        half = probabilities(model, image)
    finally:
        model.precision = "fp32"
    assert half.dtype == np.float32 and not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.2)


def test_a_model_in_training_is_put_into_evaluation(made) -> None:
    model, image = made("conv_lora"), picture(40, 70)
    expected = probabilities(model, image)
    np.testing.assert_array_equal(probabilities(model.train(), image), expected)
    assert not model.training


def test_an_oracle_predicts_nothing(mini: str) -> None:
    model = create("sam_zero_shot", {"prompt": "click"}).build(Context(backbone=mini, checkpoint="none", image_size=64))
    with pytest.raises(ValueError, match="PromptedSam is scored by what it answers to images and true masks"):
        model.predict(picture(4, 4))


def test_a_model_that_does_not_know_its_side_says_so(made) -> None:
    model = made()
    model.image_size = None
    try:
        with pytest.raises(ValueError, match="set model.image_size"):
            model.predict(picture(4, 4))
    finally:
        model.image_size = SIDE
