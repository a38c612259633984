"""Merged checkpoints: segment_anything itself loads them strictly and answers as our model does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import segment_anything as package
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

import methods
from methods import Context, Model, create
from methods.__main__ import main
from methods.compose import parameters_of
from methods.lora import LoRALinear
from methods.merge import merged_state
from methods.sam.build import build_parts, native_shapes
from methods.sam.sizes import SIZES

SIDE = 96
NO_POINTS = {"point_coords": torch.zeros(1, 0, 2), "point_labels": torch.zeros(1, 0)}
PLAIN = [
    ("decoder_only", {}),
    ("bitfit", {}),
    ("norm", {}),
    ("lora", {"rank": 2}),
    ("lora", {"last_k": 1}),
    ("ssf", {}),
    ("ssf", {"decoder_mlp": False, "init": "identity"}),
    ("bitfit+lora", {}),
    ("full_finetune", {}),
    ("scratch", {}),
]


@pytest.fixture
def known(mini: str, segment_anything: Callable, monkeypatch: pytest.MonkeyPatch) -> str:
    """The narrow backbone, which segment_anything knows too."""
    monkeypatch.setitem(package.sam_model_registry, mini, lambda: segment_anything(SIZES[mini], SIDE))
    return mini


def built(backbone: str, name: str, parameters: dict, *, size: int = SIDE, **context: int) -> tuple[Model, Context]:
    """A model of which everything that is trained has moved, and its context."""
    made = Context(backbone=backbone, checkpoint="none", image_size=size, seed=3, **context)
    model = create(name, parameters).build(made).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, made


def logits(sam: Sam, images: Tensor, prompt: dict[str, Tensor]) -> Tensor:
    """What segment_anything's own way through its model gives, at the input's size (B, 1, S, S)."""
    size = tuple(images.shape[-2:])
    answers = sam([{"image": one, "original_size": size, **prompt} for one in images.float()], multimask_output=False)
    low = torch.cat([one["low_res_logits"] for one in answers])
    return F.interpolate(low, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("name", "parameters"), PLAIN)
def test_segment_anything_answers_as_the_model(known: str, batch: Callable, name: str, parameters: dict) -> None:
    images = batch(2, SIDE)[0]
    model, context = built(known, name, parameters)
    with torch.no_grad():
        ours = model(images).masks
    assert ours.std() > 0.05
    sam = package.sam_model_registry[known]()
    sam.load_state_dict(merged_state(model, context))
    torch.testing.assert_close(logits(sam, images, NO_POINTS), ours, rtol=0, atol=1e-4)


def test_without_the_empty_list_of_points_it_is_another_answer(known: str, batch: Callable) -> None:
    """If this fails, the four repeated tokens and the empty prompt can go."""
    images = batch(2, SIDE)[0]
    model, context = built(known, "lora", {})
    with torch.no_grad():
        ours = model(images).masks
    sam = package.sam_model_registry[known]()
    sam.load_state_dict(merged_state(model, context))
    assert not torch.allclose(logits(sam, images, {}), ours, rtol=0, atol=1e-3)


def test_what_the_answer_does_not_need_is_the_base(known: str) -> None:
    model, context = built(known, "lora", {})
    state, base = merged_state(model, context), build_parts(context).state_dict()
    assert state.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], state[name])}
    others = (
        "hypernetworks_mlps.1",
        "hypernetworks_mlps.2",
        "hypernetworks_mlps.3",
        "iou_prediction",
        "prompt_encoder",
    )
    assert {name for name in changed if any(part in name for part in others)} == {
        "prompt_encoder.not_a_point_embed.weight"
    }
    encoder = {name for name in changed if name.startswith("image_encoder")}
    assert encoder == {f"image_encoder.blocks.{index}.attn.qkv.weight" for index in range(3)}


@pytest.mark.parametrize(
    ("name", "parameters", "what"),
    [
        ("conv_lora", {}, "blocks.0.attn.qkv is a methods.conv_lora.ConvLoRALinear, no layer"),
        ("adapter", {}, "image_encoder.blocks.0"),
        ("vpt", {}, "image_encoder.blocks.0.extra_kv|prompts"),
        ("lst", {}, "side"),
        ("conv_lora+vpt", {}, "image_encoder"),
        ("ssf", {"neck": True}, "Conv2d has no bias"),
    ],
)
def test_what_is_no_plain_weight_is_refused(known: str, name: str, parameters: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        merged_state(*built(known, name, parameters))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_classes": 3}, "3 classes, and segment_anything's decoder has no class head"),
        ({"size": 64}, "64 px, and segment_anything's mini at 96 px only"),
        ({"backbone": "tiny"}, "segment_anything has no tiny, only .*vit_b"),
    ],
)
def test_other_contexts_are_refused(known: str, changes: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        merged_state(*built(**({"backbone": known, "name": "lora", "parameters": {}} | changes)))


def test_what_derives_from_a_layer_that_folds_is_not_folded_as_that_one(known: str) -> None:
    class Squared(LoRALinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    model, context = built(known, "decoder_only", {})
    attention = model.image_encoder.blocks[2].attn
    attention.qkv = Squared(attention.qkv)
    with pytest.raises(ValueError, match="blocks.2.attn.qkv is a .*Squared, no layer of SAM"):
        merged_state(model, context)


def test_a_parameter_that_sam_does_not_have_is_refused(known: str) -> None:
    model, context = built(known, "decoder_only", {})
    model.image_encoder.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="1 of its parameters are none of SAM, first image_encoder.scale"):
        merged_state(model, context)


@pytest.fixture
def done(tmp_path: Path) -> Callable[..., Path]:
    """done(model, context, name): the results folder of a cell ``made`` that ended with this model."""

    def write(model: Model, context: Context, name: str) -> Path:
        folder = tmp_path / "results" / "cells" / "made"
        folder.mkdir(parents=True)
        method = create(name)
        described = {"name": name, "title": method.title, "parameters": parameters_of(method)}
        card = {"cell": "made", "method": {"name": name, "version": 1, "parameters": {}}, "context": asdict(context)}
        methods.save(model, folder, {**card, "backbone_digest": "random"})
        result = {
            "resolved": {"method": described, "dataset": {"name": "shapes", "title": "Shapes"}},
            "environment": {}, "scores": {}, "images": {}, "metrics": {}, "dataset_metrics": [], "classes": [],
            "parameters": model.count(), "random_backbone": True,
        }  # fmt: skip
        (folder / "cell.json").write_text(json.dumps({"spec": {"precision": "fp32"}}))
        (folder / "result.json").write_text(json.dumps(result))
        return tmp_path / "results"

    return write


def test_the_lines_of_the_readme_give_the_mask_of_the_adapter(
    mini: str, segment_anything: Callable, done: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At SAM's own 1024 px, through the command, the file, and segment_anything as it is installed."""
    size = replace(SIZES[mini], native=1024, window=14)

    def build(checkpoint: str) -> Sam:
        sam = segment_anything(size, 1024)
        sam.load_state_dict(torch.load(checkpoint))
        return sam

    monkeypatch.setitem(SIZES, "narrow", size)
    monkeypatch.setitem(package.sam_model_registry, "narrow", build)
    model, context = built("narrow", "lora", {}, size=1024)
    results, out = done(model, context, "lora"), tmp_path / "out"
    assert main(["export", "made", "--out", str(out), "--results", str(results), "--merged"]) == 0
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((130, 90))
    image.save(out / "image.jpg", quality=95)
    squashed = np.array(Image.open(out / "image.jpg").resize((1024, 1024), Image.Resampling.BICUBIC))
    with torch.no_grad():
        ours = model(torch.from_numpy(squashed).permute(2, 0, 1)[None]).masks
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    assert code.count('["masks"][0, 0]') == 1
    made: dict = {}
    with chdir(out):
        exec(code.replace('["masks"][0, 0]', ""), made)
    found = made["mask"]
    low = F.interpolate(found["low_res_logits"], (1024, 1024), mode="bilinear", align_corners=False)
    torch.testing.assert_close(low, ours, rtol=0, atol=1e-4)
    mask = found["masks"][0, 0].numpy()
    assert mask.shape == (90, 130) and 0.01 < mask.mean() < 0.99
    assert (mask == methods.load(out).predict(out / "image.jpg")).mean() > 0.999


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_published_sizes_have_the_names_and_shapes_of_segment_anything(name: str) -> None:
    with torch.device("meta"):
        theirs = package.sam_model_registry[name]().state_dict()
    assert native_shapes(name) == {key: value.shape for key, value in theirs.items()}


def test_the_command_says_why_it_cannot_merge(done: Callable, tmp_path: Path, capsys, known: str) -> None:
    model, context = built(known, "conv_lora", {})
    results = done(model, context, "conv_lora")
    words = ["export", "made", "--out", str(tmp_path / "out"), "--results", str(results), "--merged"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        "made (conv_lora) cannot be merged: image_encoder.blocks.0.attn.qkv is a methods.conv_lora" in said
        and "Leave out --merged" in said
    )
    assert not (tmp_path / "out").exists()
    assert main(words[:-1]) == 0
