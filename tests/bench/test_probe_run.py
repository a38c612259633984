"""The command ``python -m bench.probe``, from a folder of images to its record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import probe
from bench.machine import Machine
from bench.probing import backbones, store, work
from bench.probing.heads import evaluate

FEW_IMAGES = ["--epochs", "60", "--batch", "9", "--held-out", "0.25"]
CLASSES = {"dots": (60, 0, 110), "stripes": (0, 90, 140), "plain": (0, 0, 170)}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three classes that differ in texture and brightness."""
    root, random = tmp_path_factory.mktemp("data") / "textures", np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6)):
        for name, (noise, stripe, light) in CLASSES.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                waves = stripe * np.sign(np.sin(np.arange(64) * random.uniform(0.9, 1.2)))[:, None, None]
                pixels = random.uniform(light - 15, light + 15, 3) + waves + noise * random.standard_normal((64, 64, 1))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


def run(root: Path, results: Path, *more: str) -> dict:
    words = ["--backbone", "sam_tiny", "--data", str(root), "--image-size", "64", "--results", str(results)]
    assert probe.main([*words, "--device", "cpu", "--workers", "2", *FEW_IMAGES, *more]) == 0
    (path,) = (results / "probe").glob("*.json")
    return json.loads(path.read_text())


def without_times(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("date", "seconds", "environment")}


def test_separable_classes_are_told_apart_and_recorded(root, tmp_path, capsys):
    record = run(root, tmp_path)
    assert record["name"] == "sam_tiny-textures-64-cached"
    assert record["top1"] == 1.0
    assert record["top5"] is None
    assert record["chance"] == pytest.approx(1 / 3)
    expected = {"backbone": "sam_tiny", "dataset": "textures", "images": 18, "classes": 3, "image_size": 64}
    expected |= {
        "random_backbone": False,
        "mode": "cached",
        "pool": "mean",
        "schema": 1,
        "checkpoint": "tiny.safetensors",
    }
    assert {key: record[key] for key in expected} == expected
    assert {name: part["images"] for name, part in record["data"].items()} == {"train": 27, "held_out": 9, "val": 18}
    assert record["recipe"]["batch"] == 9
    assert record["base_lr"] in [line["base_lr"] for line in record["rates"]]
    said = capsys.readouterr().out
    assert "sam_tiny (tiny.safetensors), 64 px, mean of patch tokens, cached: top-1 100.0 %" in said
    assert "always the most frequent one: 33.3 %" in said


def test_random_weights_are_named_wherever_the_number_is(root, tmp_path, capsys):
    record = run(root, tmp_path, "--weights", "none")
    assert record["random_backbone"]
    assert record["name"].endswith("-random")
    assert record["checkpoint_digest"] == "random"
    assert "sam_tiny (RANDOM WEIGHTS)" in capsys.readouterr().out


def test_a_second_run_reads_features_and_says_the_same(root, tmp_path, monkeypatch):
    first = run(root, tmp_path)
    monkeypatch.setattr(store, "read_batches", lambda *given, **options: pytest.fail("computed again"))
    assert without_times(run(root, tmp_path, "--workers", "1")) == without_times(first)


def test_augmented_training_does_not_depend_on_workers(root, tmp_path):
    settings = ["--augment", "--epochs", "5", "--lr", "30,300", "--encode-batch", "4"]
    first = run(root, tmp_path / "a", *settings)
    second = run(root, tmp_path / "b", *settings, "--workers", "1")
    assert first["mode"] == "augment"
    assert first["name"] == "sam_tiny-textures-64-augment"
    assert first["top1"] > 0.6
    assert without_times(first) == without_times(second)
    other = run(root, tmp_path / "c", *settings, "--epochs", "1")
    again = run(root, tmp_path / "d", *settings, "--epochs", "1", "--seed", "1")
    assert other["rates"] != again["rates"]


def test_mae_is_probed_from_its_class_token(root, tmp_path):
    settings = ["--backbone", "mae_vit_b", "--weights", "none", "--image-size", "32", "--pool", "token"]
    record = run(root, tmp_path, *settings, "--epochs", "9")
    assert (record["backbone"], record["pool"]) == ("mae_vit_b", "token")
    assert record["name"] == "mae_vit_b-textures-32-cached-token-random"
    assert 0 <= record["top1"] <= 1


def test_the_rate_is_chosen_without_a_look_at_the_images_reported(root, tmp_path, monkeypatch):
    asked = []

    def spy(heads, features, labels):
        asked.append((len(labels), heads.count))
        return evaluate(heads, features, labels)

    monkeypatch.setattr(work, "evaluate", spy)
    monkeypatch.setattr(work, "best_head", lambda scores: asked.append("chosen") or 0)
    record = run(root, tmp_path, "--lr", "3,10")
    assert asked == [(9, 2), "chosen", (18, 2)]
    assert record["base_lr"] == 3
    assert record["edge"]


def test_the_edge_of_the_grid_is_said_with_the_next_grid():
    record = {
        "rates": [{"base_lr": rate, "held_out_top1": rate / 9} for rate in (1.0, 3.0)],
        "base_lr": 3.0, "edge": True, "top1": 0.5, "top5": 0.75, "chance": 0.1, "images": 1234, "classes": 9,
        "dataset": "birds", "data": {"held_out": {"images": 50}}, "backbone": "mae_vit_b", "checkpoint": "mae.pth",
        "random_backbone": False, "image_size": 224, "pool": "token", "mode": "augment",
    }  # fmt: skip
    said = "\n".join(probe.summary(record))
    assert "mae_vit_b (mae.pth), 224 px, class token, augment: top-1 50.0 %, top-5 75.0 %" in said
    assert "on 1,234 images of birds/val" in said
    assert "--lr 1,3,9" in said


def test_stopping_says_how_to_go_on_and_writes_no_record(root, tmp_path, monkeypatch, capsys):
    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "fit", stop)
    words = ["--backbone", "sam_tiny", "--data", str(root), "--image-size", "64", "--results", str(tmp_path)]
    assert probe.main(words) == probe.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backbone", "sam_vit_x"], "Known: mae_vit_b, sam_tiny, sam_vit_b, sam_vit_h, sam_vit_l"),
        (["--weights", "lost.pth"], "lost.pth"),
        (["--pool", "token"], "Allowed with sam_tiny: mean"),
        (["--image-size", "100"], "try 96"),
        (["--device", "cuda:99"], "Here there are: cpu"),
        (["--data", "nowhere"], "there is no folder"),
        (["--held-out", "0.99"], "Lower --held-out"),
        (["--batch", "1"], "--batch 2"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(root, tmp_path, capsys, more, message):
    words = ["--backbone", "sam_tiny", "--data", str(root), "--image-size", "32", "--results", str(tmp_path), *more]
    assert probe.main(words) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert message in said
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("more", [["--lr", "0"], ["--lr", "a"], ["--held-out", "1"], ["--epochs", "-1"]])
def test_options_out_of_bounds_are_usage_errors(more):
    with pytest.raises(SystemExit) as stopped:
        probe.parse(["--backbone", "sam_tiny", "--data", ".", *more])
    assert stopped.value.code == 2


@pytest.mark.parametrize(("name", "pool"), [("sam_tiny", "mean"), ("mae_vit_b", "mean"), ("mae_vit_b", "token")])
def test_features_are_float32_rows_whatever_the_encoder_computes_in(name, pool):
    machine = Machine("cpu", "bf16", 2)
    backbone = backbones.load(name, "none", image_size=32, pool=pool, machine=machine)
    features = backbone(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert features.dtype == torch.float32
    assert features.is_contiguous()
