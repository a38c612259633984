"""Untrained SAM with the prompts that true masks give, against segment_anything's own forward pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods import Context, Model, create
from methods.sam.sizes import SIZES
from methods.sam_zero_shot import bounding_box, innermost_point

SIDE = 64


def build(prompt: str, backbone: str) -> Model:
    method = create("sam_zero_shot", {"prompt": prompt})
    return method.build(Context(backbone=backbone, checkpoint="none", image_size=SIDE)).eval()


def expected(sam: torch.nn.Module, image: Tensor, prompts: dict, *, several: bool) -> Tensor:
    """segment_anything's logits for one image, enlarged to its size, the best-rated of several."""
    answer = sam([{"image": image, "original_size": (SIDE, SIDE), **prompts}], multimask_output=several)[0]
    low = answer["low_res_logits"][0, answer["iou_predictions"][0].argmax()]
    return torch.nn.functional.interpolate(low[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("prompt", ["none", "click", "box"])
def test_equals_segment_anything(prompt: str, mini: str, batch: Callable, segment_anything: Callable) -> None:
    images, masks = batch(2, SIDE)
    model = build(prompt, mini)
    sam = segment_anything(SIZES[mini], SIDE)
    sam.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        found = model.answer(images, masks).masks
        for image, mask, logits in zip(images, masks, found, strict=True):
            prompts = {}
            if prompt == "click":
                point = torch.tensor([[innermost_point(mask.numpy() == 1)]], dtype=torch.float32)
                prompts = {"point_coords": point, "point_labels": torch.ones(1, 1)}
            if prompt == "box":
                prompts = {"boxes": torch.tensor([bounding_box(mask.numpy() == 1)], dtype=torch.float32)}
            theirs = expected(sam, image.float(), prompts, several=prompt == "click")
            assert torch.allclose(logits, theirs, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("prompt", ["click", "box"])
def test_only_oracles_look_at_the_masks_and_say_so(prompt: str, mini: str, batch: Callable) -> None:
    images, masks = batch(2, SIDE)
    context = Context(backbone=mini, checkpoint="none", image_size=SIDE)
    oracle, plain = build(prompt, mini), build("none", mini)
    assert "true mask" in create("sam_zero_shot", {"prompt": prompt}).caveats(context)[0]
    assert not create("sam_zero_shot").caveats(context)
    with torch.no_grad():
        assert torch.equal(plain.answer(images, masks).masks, plain.answer(images, 1 - masks).masks)
        assert not torch.equal(oracle.answer(images, masks).masks, oracle.answer(images, 1 - masks).masks)
        # Where there is nothing to point at there is no prompt.
        assert torch.equal(oracle.answer(images, 0 * masks).masks, plain.answer(images, masks).masks)


@pytest.mark.parametrize("prompt", ["none", "click", "box"])
def test_several_classes_are_refused(prompt: str) -> None:
    method = create("sam_zero_shot", {"prompt": prompt})
    assert not method.several_classes
    with pytest.raises(ValueError, match="'sam_zero_shot' is for binary masks .*not for 12 classes.*--classes 12"):
        method.build(Context(num_classes=12, checkpoint="none"))


def test_the_innermost_point_of_a_disc_is_its_centre() -> None:
    rows, columns = np.mgrid[:40, :60]
    disc = (rows - 20) ** 2 + (columns - 31) ** 2 <= 9**2
    assert innermost_point(disc) == (31, 20)
    assert bounding_box(disc) == (22, 11, 40, 29)


def test_the_image_border_counts_as_a_border() -> None:
    assert innermost_point(np.ones((9, 9), bool)) == (4, 4)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_the_point_is_inside_and_no_other_is_farther_from_the_background(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((12, 10)) < share
    mask[3, 4] = True
    x, y = innermost_point(mask)
    outside = np.argwhere(~np.pad(mask, 1)) - 1

    def distance(row: float, column: float) -> float:
        return np.sqrt(((outside - (row, column)) ** 2).sum(1)).min()

    assert mask[int(y), int(x)]
    best = max(distance(row, column) for row, column in np.argwhere(mask))
    assert distance(int(y), int(x)) == pytest.approx(best)
