"""The reduced decoder and the whole segmenter against segment_anything's modules, one image at a time.

The tokens of a decoder attend to each other, so mask 0 of the published four-token decoder is another mask;
what is compared is segment_anything's class with as many tokens as the reduced one has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import Context
from methods.sam.build import build_segmenter, parts, random_parts
from methods.sam.decoder import ReducedMaskDecoder
from methods.sam.sizes import SIZES

TINY = SIZES["tiny"]


def with_tokens(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """A complete SAM's state with ``count`` mask tokens, each of them the first one with its hypernetwork."""
    kept = {name: value for name, value in state.items() if "hypernetworks" not in name}
    first = "mask_decoder.output_hypernetworks_mlps.0."
    for name, value in state.items():
        if name.startswith(first):
            kept |= {name.replace(first, first.replace("0", str(i))): value for i in range(count)}
    kept["mask_decoder.mask_tokens.weight"] = state["mask_decoder.mask_tokens.weight"][:1].repeat(count, 1)
    for name in ("weight", "bias"):
        last = f"mask_decoder.iou_prediction_head.layers.2.{name}"
        kept[last] = state[last][:1].repeat(count, *[1] * (state[last].dim() - 1))
    return kept


@torch.no_grad()
@pytest.mark.parametrize("apart", [False, True], ids=["copies", "tokens apart"])
@pytest.mark.parametrize(("tokens", "classes"), [(1, 1), (4, 3)])
def test_equals_segment_anything_with_as_many_tokens(
    tokens: int, classes: int, apart: bool, segment_anything: Callable, roughen: Callable
) -> None:
    complete = roughen(parts(TINY, 128))
    theirs = segment_anything(TINY, 128, mask_tokens=tokens)
    theirs.load_state_dict(with_tokens(complete.state_dict(), tokens))
    ours = ReducedMaskDecoder(complete["mask_decoder"], tokens, classes)
    assert torch.equal(ours.mask_tokens.weight, theirs.mask_decoder.mask_tokens.weight)
    if apart:
        roughen(ours.mask_tokens)
        theirs.mask_decoder.mask_tokens.weight.copy_(ours.mask_tokens.weight)

    features = torch.randn(3, 128, 8, 8, generator=torch.Generator().manual_seed(4))
    positions = theirs.prompt_encoder.get_dense_pe()
    sparse, dense = theirs.prompt_encoder(points=None, boxes=None, masks=None)
    masks, class_logits = ours(features, positions, dense)
    assert masks.shape == (3, tokens, 32, 32)
    for index in range(3):
        expected, _ = theirs.mask_decoder.predict_masks(features[index, None], positions, sparse, dense)
        assert (masks[index] - expected[0]).abs().max() <= 1e-5 * expected.abs().max()
    if classes == 1:
        assert class_logits is None
        return
    assert class_logits.shape == (3, tokens, classes + 1)
    queries = torch.cat([theirs.mask_decoder.iou_token.weight, theirs.mask_decoder.mask_tokens.weight])[None]
    weight, bias = ours.class_head.weight.double().numpy(), ours.class_head.bias.double().numpy()
    for index in range(3):
        hidden, _ = theirs.mask_decoder.transformer(features[index, None] + dense, positions, queries)
        expected = hidden[0, 1:].double().numpy() @ weight.T + bias
        assert np.abs(class_logits[index].numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    between = (masks[:, 1:] - masks[:, :1]).abs().max() / masks.abs().max()
    assert between > 1e-2 if apart else between < 1e-5


def test_the_tokens_left_out_change_nothing(roughen: Callable) -> None:
    complete = roughen(parts(TINY, 128))["mask_decoder"]
    reduced = ReducedMaskDecoder(complete)
    features, positions = torch.randn(1, 128, 8, 8), torch.randn(1, 128, 8, 8)
    before, _ = reduced(features, positions, torch.zeros(1, 128, 1, 1))
    with torch.no_grad():
        complete.mask_tokens.weight.fill_(7.0)
        for left_out in complete.output_hypernetworks_mlps[1:]:
            left_out.layers[0].weight.fill_(7.0)
    after, _ = reduced(features, positions, torch.zeros(1, 128, 1, 1))
    assert torch.equal(before, after)


@torch.no_grad()
@pytest.mark.parametrize("side", [128, 160])
def test_the_segmenter_equals_segment_anything_put_together(
    side: int, segment_anything: Callable, batch: Callable
) -> None:
    images, _ = batch(2, side)
    sam = segment_anything(TINY, side, mask_tokens=1)
    sam.load_state_dict(with_tokens(random_parts(TINY, side).state_dict(), 1))
    model = build_segmenter(Context(backbone="tiny", checkpoint="none", image_size=side)).eval()
    output = model(images)
    assert output.masks.shape == (2, 1, side, side)

    for image, ours in zip(images, output.masks, strict=True):
        features = sam.image_encoder(sam.preprocess(image)[None])
        sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        low, _ = sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
        theirs = sam.postprocess_masks(low, (side, side), (side, side))[0]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_float_image_is_the_same_as_its_bytes(batch: Callable) -> None:
    images, _ = batch(2, 128)
    model = build_segmenter(Context(backbone="tiny", checkpoint="none", image_size=128)).eval()
    with torch.no_grad():
        assert torch.equal(model(images).masks, model(images.float()).masks)
