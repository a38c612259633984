"""Numbers of parameters on vit_h, as the paper prints them and its counts work out exactly."""

from __future__ import annotations

import pytest
import torch

from methods import Context, Model, create

DECODER, TOTAL, IOU_HEAD = 3_505_536, 640_670_416, 132_612
LORA_PER_RANK = 32 * (1280 + 3840)
CONV_LORA = 3 * LORA_PER_RANK + 32 * 8 * (9 * 3 * 3 + 3) + 32 * 2 * 3 * 8


def on_vit_h(name: str, **parameters: object) -> Model:
    with torch.device("meta"):
        return create(name, parameters).build(Context(backbone="vit_h", checkpoint="none"))


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
        ("conv_lora", {"scales": [4]}, 3_999_744),
        ("conv_lora", {"num_experts": 1}, 3_999_744),
        ("conv_lora", {"variant": "paper"}, 4_020_096),
        ("lora+conv_lora", {}, DECODER + 3 * LORA_PER_RANK + CONV_LORA),
    ],
)
def test_trainable_and_total_parameters(name: str, parameters: dict[str, object], trainable: int) -> None:
    model = on_vit_h(name, **parameters)
    assert model.count() == {"trainable": trainable, "total": TOTAL + trainable - DECODER}
    assert sum(p.numel() for p in model.trainable().values()) == trainable


def test_the_unused_iou_head_is_kept_and_frozen() -> None:
    head = [p for name, p in on_vit_h("decoder_only").named_parameters() if "iou_prediction_head" in name]
    assert sum(p.numel() for p in head) == IOU_HEAD
    assert not any(p.requires_grad for p in head)


def test_only_the_decoder_trains_by_default() -> None:
    assert {name.split(".")[0] for name in on_vit_h("decoder_only").trainable()} == {"mask_decoder"}
