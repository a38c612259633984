"""Numbers of parameters on vit_h, as the paper prints them and its counts work out exactly."""

from __future__ import annotations

import pytest
import torch

from methods import Context, Model, create

DECODER, TOTAL, IOU_HEAD = 3_505_536, 640_670_416, 132_612
LORA_PER_RANK = 32 * (1280 + 3840)


def on_vit_h(name: str, num_classes: int = 1, mask_tokens: int = 10, **parameters: object) -> Model:
    with torch.device("meta"):
        context = Context(num_classes=num_classes, mask_tokens=mask_tokens, backbone="vit_h", checkpoint="none")
        return create(name, parameters).build(context)


@pytest.mark.parametrize(
    ("name", "parameters", "trainable"),
    [
        ("decoder_only", {}, 3_505_536),
        ("lora", {}, 3_997_056),
        ("lora", {"rank": 6}, 4_488_576),
        ("lora", {"rank": 12}, 5_471_616),
        ("lora", {"rank": 24}, 7_437_696),
        ("conv_lora", {}, 4_020_096),
        ("conv_lora", {"num_experts": 4}, 4_008_576),
        ("conv_lora", {"routing": "sum"}, 4_018_560),
        *(("conv_lora", {"scales": [scale]}, 3_999_744) for scale in (1, 2, 4, 8)),
        ("conv_lora", {"num_experts": 1}, 3_999_744),
        ("conv_lora", {"variant": "paper"}, 4_020_096),
        ("conv_lora", {"gate": "image"}, 4_020_096),
        ("inception", {}, 4_008_576),
        ("conv_lora+vpt", {"vpt.num_tokens": 5}, 4_224_896),
        ("vpt+conv_lora", {"num_tokens": 5}, 4_224_896),
        ("adapter+lora", {}, 3_915_264 + 3 * LORA_PER_RANK),
    ],
)
def test_trainable_and_total_parameters(name: str, parameters: dict[str, object], trainable: int) -> None:
    model = on_vit_h(name, **parameters)
    assert model.count() == {"trainable": trainable, "total": TOTAL + trainable - DECODER}
    assert sum(p.numel() for p in model.trainable().values()) == trainable
    assert DECODER + create(name, parameters).added_parameters(Context()) == trainable


@pytest.mark.parametrize(
    ("name", "parameters", "trainable"),
    [
        ("decoder_only", {}, 3_511_181),
        ("lora", {}, 4_002_701),
        ("lora", {"rank": 6}, 4_494_221),
        ("lora", {"rank": 12}, 5_477_261),
        ("lora", {"rank": 24}, 7_443_341),
        ("conv_lora", {}, 4_025_741),
        ("conv_lora+vpt", {"vpt.num_tokens": 5}, 4_230_541),
    ],
)
def test_twelve_classes_with_ten_mask_tokens(name: str, parameters: dict[str, object], trainable: int) -> None:
    """Table 11's 4.00, 4.49, 5.48 and 7.44, and table 12's 4.03 and 4.23: both were counted with this decoder."""
    model = on_vit_h(name, 12, **parameters)
    assert model.count() == {"trainable": trainable, "total": TOTAL + trainable - DECODER}


@pytest.mark.parametrize(("classes", "tokens"), [(2, 1), (3, 10), (12, 7), (151, 100)])
def test_a_class_head_and_a_row_for_each_token_are_all_that_several_classes_add(classes: int, tokens: int) -> None:
    trainable = on_vit_h("decoder_only", classes, tokens).count()["trainable"]
    assert trainable == DECODER + 257 * (classes + 1) + 256 * (tokens - 1)


def test_the_unused_iou_head_is_kept_and_frozen() -> None:
    head = [p for name, p in on_vit_h("decoder_only").named_parameters() if "iou_prediction_head" in name]
    assert sum(p.numel() for p in head) == IOU_HEAD
    assert not any(p.requires_grad for p in head)


def test_only_the_decoder_trains_by_default() -> None:
    assert {name.split(".")[0] for name in on_vit_h("decoder_only").trainable()} == {"mask_decoder"}
