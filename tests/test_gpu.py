"""What only a CUDA device can tell: the same numbers as on the CPU, and a whole cell in bf16."""

from __future__ import annotations

import json
import statistics
import time
import warnings

import pytest
import torch

import datasets
from bench import embeddings, run, scoring, speed
from bench.embeddings import encoder_of
from bench.evaluation import evaluate
from bench.losses import BINARY
from bench.losses.set_prediction import SetPrediction
from bench.machine import Machine
from methods import Context, create, registry
from methods.base import Output
from methods.randomness import image_keys, normal

pytestmark = pytest.mark.gpu
CONTEXT = Context(backbone="tiny", checkpoint="none", image_size=128)


def test_noise_is_the_same_on_both_devices():
    keys = image_keys(1, 2, range(64))
    here, there = normal(keys, (25, 8), salt=3), normal(keys.cuda(), (25, 8), salt=3).cpu()
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", registry.names())
def test_outputs_and_gradients_agree_with_the_cpu(name):
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] > 127).to(torch.uint8)
    keys, gradients, outputs = image_keys(0, 0, [0, 1]), [], []
    for device in ("cpu", "cuda"):
        model = create(name).build(CONTEXT).to(device).train()
        if not model.trainable():
            pytest.skip("trains nothing")
        output = model(images.to(device), keys.to(device))
        target = model.targets(masks.to(device))
        loss = model.loss(output, target, lambda output, target: BINARY["structure"](output.masks, target)).mean()
        loss.backward()
        outputs.append(output.masks.detach().cpu())
        gradients.append({n: p.grad.cpu() for n, p in model.trainable().items() if p.grad is not None})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert ((gradient - gradients[1][key]).abs().max() / scale) < 1e-2, key


def predictions(batch, device):
    """An output for 12 classes that wants a gradient, a target with ignored pixels, and keys."""
    generator = torch.Generator().manual_seed(0)
    masks = 3 * torch.randn(batch, 10, 128, 128, generator=generator)
    classes = torch.randn(batch, 10, 13, generator=generator)
    target = torch.randint(0, 12, (batch, 8, 8), generator=generator, dtype=torch.uint8)
    target[:, 0] = 255
    target = target.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    output = Output(masks.to(device).requires_grad_(), classes.to(device).requires_grad_())
    return output, target.to(device), image_keys(0, 0, range(batch)).to(device)


def test_set_prediction_agrees_with_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        output, target, keys = predictions(4, device)
        loss = SetPrediction()(output, target, keys)
        loss.mean().backward()
        found.append([value.cpu() for value in (loss.detach(), output.masks.grad, output.classes.grad)])
    for here, there in zip(*found, strict=True):
        assert (here - there).abs().max() < 1e-3 * here.abs().max()


def test_set_prediction_waits_for_the_device_as_often_for_one_image_as_for_eight():
    waits, loss = [], SetPrediction()
    for batch in (1, 1, 8):
        arguments = predictions(batch, "cuda")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss(*arguments).mean().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[1] == waits[2] and 0 < waits[2] <= 5, waits


def test_stored_embeddings_and_workers_change_no_score(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(embeddings, "KEPT_FREE", 0.0)  # however full the disk is
    counts = {"train_images": 1, "validation_images": 1, "test_images": 12}
    test_sets = {"test": datasets.load("shapes", **counts, size=128).open()["test"]}
    machine, found = Machine("cuda", "bf16"), []
    for folder, workers in ((None, 0), (tmp_path, 2), (tmp_path, 0)):
        torch.manual_seed(0)
        model = create("decoder_only").build(CONTEXT).to("cuda")
        encoder = encoder_of(model, machine, image_size=128, folder=folder)
        options = {"image_size": 128, "encoder": encoder, "workers": workers}
        found.append(repr(evaluate(model, test_sets, machine, **options)))
    assert len(list(tmp_path.glob("*/*/*"))) == 12
    assert len(set(found)) == 1


def test_set_prediction_is_a_twentieth_of_a_step_of_vit_h():
    """LoRA, 12 classes, four images of 1024 px in bf16; random weights, as speed does not depend on them here."""
    size, device = 1024, torch.device("cuda")
    context = Context(num_classes=12, image_size=size, backbone="vit_h", checkpoint="none")
    model = create("lora").build(context).to(device).train()
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, device=device)
    target = torch.randint(0, 12, (4, 8, 8), dtype=torch.uint8, device=device)
    target = target.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    loss, keys = SetPrediction(), image_keys(0, 0, range(4)).to(device)

    def step(lossy: bool) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            output = model(images, keys)
        if lossy:
            loss(output, target, keys).mean().backward()
        else:
            (output.masks.mean() + output.classes.mean()).backward()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    whole, without = ([step(lossy) for _ in range(7)] for lossy in (True, False))
    share = 1 - statistics.median(without[2:]) / statistics.median(whole[2:])
    print(f"set prediction takes {share:.1%} of a step of {statistics.median(whole[2:]):.3f} s")
    assert share <= 0.05


def test_a_cell_runs_on_a_gpu_in_bf16(tmp_path):
    matrix = tmp_path / "gpu.toml"
    matrix.write_text(
        'name = "gpu"\nbackbone = "tiny"\nimage_size = 64\n[[cells]]\nmethods = ["conv_lora"]\n'
        'datasets = [{ name = "shapes", train_images = 8, validation_images = 4, test_images = 4, size = 64 }]\n'
        "regime = { epochs = 1 }\n"
    )
    words = ["--matrix", str(matrix), "--results", str(tmp_path / "results"), "--no-tracking", "--devices", "0"]
    assert run.main(words) == 0
    (result,) = (tmp_path / "results" / "cells").glob("*/result.json")
    record = json.loads(result.read_text())
    assert record["resolved"]["precision"] == "bf16"
    assert record["environment"]["device"] == torch.cuda.get_device_name(0)
    assert record["training"]["peak_memory_bytes"] > 0


def test_speed_is_measured_on_a_gpu(tmp_path):
    words = ["--device", "cuda:0", "--methods", "lora", "--backbone", "tiny", "--image-size", "128", "--batch", "4"]
    words += ["--repeats", "3", "--seconds", "0.05", "--results", str(tmp_path), "--beside-others"]
    assert speed.main(words) == 0
    (exported,) = (tmp_path / "speed").glob("*.json")
    (entry,) = json.loads(exported.read_text())["measurements"].values()
    assert entry["precision"] == "bf16"
    assert entry["speed"]["memory"] == "allocated on the device"
    assert entry["speed"]["train_memory_gb"] > entry["speed"]["inference_memory_gb"] > 0
    assert 0 < entry["speed"]["train_share"] < 1
