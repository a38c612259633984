"""Training: it repeats, the micro-batch is a matter of memory, and the recipe does to the optimiser what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import datasets
import methods
from bench.data import SquashedSplit, shuffled
from bench.machine import Machine
from bench.regime import Regime
from bench.training import NonFiniteLoss, Progress, Trainer, Validation
from datasets import Split
from methods import Context, Embedding, Model, Output

SIZE = 64


class Memory(Split):
    """Images of one grey value each, 10 times their index, with masks of growing squares."""

    def __init__(self, count: int) -> None:
        self.identifiers = tuple(f"n{number}" for number in range(count))

    def image(self, index: int) -> np.ndarray:
        return np.full((SIZE, SIZE, 3), 10 * index, dtype=np.uint8)

    def mask(self, index: int) -> np.ndarray:
        mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
        mask[: 8 + 4 * index, : 8 + 4 * index] = 1
        return mask


class Dot(Model):
    """The least that can be trained: brightness times a weight plus a bias; no number for images of one grey value."""

    def __init__(self, poison: int | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.poison = poison
        self.seen: list[tuple[bool, bool]] = []

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        self.seen.append((self.training, torch.is_autocast_enabled("cpu")))
        return Embedding(images.float(), {})

    def decode(self, embedding: Embedding) -> Output:
        grey = embedding.features.mean(1, keepdim=True)
        masks = grey / 255 * self.weight.sum() + self.bias
        if self.poison is not None:
            masks = masks.masked_fill(grey == self.poison, math.nan)
        return Output(masks)


class Normed(Model):
    """A pixel's logit is a weight times its normalised brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        return Embedding(self.norm(images.float().mean(1, keepdim=True) / 255), {})

    def decode(self, embedding: Embedding) -> Output:
        return Output(embedding.features)


def trainer(
    model: Model,
    *,
    micro_batch: int = 0,
    precision: str = "fp32",
    seed: int = 0,
    history: Path | None = None,
    **regime: Any,
) -> Trainer:
    return Trainer(model, Regime(**regime), Machine("cpu", precision, micro_batch), seed=seed, history=history)


def data(train: int = 8, validation: int = 2) -> tuple[SquashedSplit, SquashedSplit]:
    return SquashedSplit(Memory(train), SIZE), SquashedSplit(Memory(validation), SIZE)


def shapes() -> tuple[SquashedSplit, SquashedSplit]:
    splits = datasets.load("shapes", train_images=4, validation_images=1, test_images=1, size=64).open()
    return SquashedSplit(splits["train"], SIZE), SquashedSplit(splits["validation"], SIZE)


def tiny(name: str = "conv_lora", seed: int = 0) -> Model:
    torch.manual_seed(0)
    return methods.create(name).build(Context(image_size=SIZE, backbone="tiny", checkpoint="none", seed=seed))


def trained(tmp_path: Path, *, shake: int, **options: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Adapter and history of a short training; ``shake`` disturbs the global generators."""
    model, history = tiny(), tmp_path / f"history-{shake}.jsonl"
    torch.manual_seed(shake)
    np.random.seed(shake)
    trainer(model, history=history, epochs=2, batch_size=2, **options).fit(*shapes())
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    return {name: value.detach() for name, value in model.trainable().items()}, lines


def test_a_training_repeats_bit_for_bit(tmp_path):
    """Whatever the global generators hold: everything random is a function of the seed."""
    (first, lines), (second, again) = trained(tmp_path, shake=1), trained(tmp_path, shake=2)
    assert lines == again
    assert len(lines) == 2
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in tiny().trainable().items()), "it learned nothing"
    other, _ = trained(tmp_path, shake=3, seed=1)
    assert any(not torch.equal(first[name], other[name]) for name in first), "the seed changed nothing"


def test_the_micro_batch_changes_nothing_but_rounding():
    """Losses and gradients of one step of Conv-LoRA, whose gate draws noise and whose balance loss counts images."""
    gradients, losses = {}, {}
    for size in (0, 1, 2, 3, 4):
        model = tiny()
        one = trainer(model, micro_batch=size, epochs=1, max_steps=1, clip_norm=0.0)
        one.fit(*shapes())
        losses[size] = one.progress.loss
        gradients[size] = {
            name: parameter.grad.clone() for name, parameter in model.trainable().items() if parameter.grad is not None
        }
    assert sum(gradient.abs().sum() for gradient in gradients[0].values()) > 0
    for size in (1, 2, 3, 4):
        assert losses[size] == pytest.approx(losses[0], rel=1e-5)
        assert gradients[size].keys() == gradients[0].keys()
        for name, expected in gradients[0].items():
            torch.testing.assert_close(
                gradients[size][name], expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert all(torch.equal(gradients[4][name], gradients[0][name]) for name in gradients[0]), "0 means the whole batch"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_step_and_images(bad, monkeypatch):
    """Also when other steps, ruined by this one, were taken before anybody looked."""
    count, step = 24, 7  # neither the first step, which is looked at, nor the last
    poisoned = shuffled(count, 0, 1)[2 * step - 1]
    model = Dot(poison=10 * poisoned)
    if bad == math.inf:
        plain = model.loss
        monkeypatch.setattr(model, "loss", lambda *given: plain(*given).nan_to_num(math.inf))
    with pytest.raises(NonFiniteLoss) as error:
        trainer(model, batch_size=2).fit(*data(count))
    assert str(error.value) == f"non-finite loss at step {step}, images n{poisoned}"


def scripted(scores: list[float], **regime: Any) -> tuple[Trainer, list[float]]:
    """A fitted trainer whose validations gave ``scores``, and the bias after each epoch."""
    model, biases, left = Dot(), [], iter(scores)
    one = trainer(model, epochs=len(scores), lr=0.1, **regime)

    def validate(split: SquashedSplit) -> Validation:
        biases.append(model.bias.item())
        return Validation(next(left), None)

    one.validate = validate
    one.fit(*data())
    return one, biases


def test_running_statistics_are_part_of_the_best_epoch():
    """A network with BatchNorm ends as it was at its best epoch in all that training changes."""
    one, seen, left = trainer(Normed(), epochs=3, lr=0.1), [], iter([0.1, 0.5, 0.3])

    def validate(split: SquashedSplit) -> Validation:
        seen.append({name: value.clone() for name, value in one.model.state().items()})
        return Validation(next(left), None)

    one.validate = validate
    one.fit(*data())
    running = [name for name in seen[0] if name.startswith("norm.running")]
    assert running == ["norm.running_mean", "norm.running_var"]
    assert all(not torch.equal(seen[1][name], seen[2][name]) for name in (*running, "norm.weight"))
    assert all(torch.equal(value, seen[1][name]) for name, value in one.model.state().items())


def test_a_batch_with_statistics_of_its_own_is_never_cut():
    whole, cut = trainer(Normed(), epochs=1), trainer(Normed(), epochs=1, micro_batch=1)
    for one in (whole, cut):
        one.fit(*data())
    assert all(torch.equal(value, cut.model.state()[name]) for name, value in whole.model.state().items())


def test_the_best_epoch_is_restored():
    one, biases = scripted([0.1, 0.5, 0.5, 0.3])
    assert len(set(biases)) == 4
    assert one.model.bias.item() == biases[1]
    assert (one.record.best_epoch, one.record.best_validation, one.record.epochs, one.record.steps) == (2, 0.5, 4, 8)
    assert not one.record.stopped_early


def test_a_lower_error_is_better():
    one, biases = scripted([0.5, 0.2, 0.3], validation_metric="mae")
    assert one.model.bias.item() == biases[1]


def test_without_a_valid_score_the_last_state_is_kept():
    one, biases = scripted([math.nan, math.nan])
    assert one.model.bias.item() == biases[1]
    assert (one.record.best_epoch, one.record.best_validation) == (0, None)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 5), (3, 6), (0, 8)])
def test_patience_counts_epochs_without_a_better_one(patience, epochs):
    one, _ = scripted([0.5, 0.4, 0.6, 0.6, 0.5, 0.5, 0.6, 0.2], patience=patience)
    assert one.record.epochs == epochs
    assert one.record.stopped_early is bool(patience)
    assert one.record.best_epoch == (1 if patience == 1 else 3)


def watched_steps(one: Trainer) -> Callable[[], list[dict[str, float]]]:
    """Notes rate and gradient norm of every optimiser step from now on."""
    seen, step = [], one.optimiser.step

    def watch() -> None:
        (rate,) = {group["lr"] for group in one.optimiser.param_groups}
        norm = torch.stack([p.grad.norm() for p in one.model.parameters() if p.grad is not None]).norm().item()
        seen.append({"rate": rate, "norm": norm})
        step()

    one.optimiser.step = watch
    return lambda: seen


@pytest.mark.parametrize("limit", [0, 5])
def test_the_rate_falls_linearly_to_nothing_at_the_end(limit, tmp_path):
    one = trainer(Dot(), epochs=3, lr=0.5, max_steps=limit, history=tmp_path / "history.jsonl")
    seen = watched_steps(one)
    record = one.fit(*data())
    count = limit or 6
    assert record.steps == count
    assert [step["rate"] for step in seen()] == pytest.approx([0.5 * (count - n) / count for n in range(count)])
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([0.5 * (count - n) / count for n in (1, 3, count - 1)])
    assert [line["step"] for line in lines] == [2, 4, count]


def test_a_constant_rate_stays():
    one = trainer(Dot(), epochs=2, lr=0.5, schedule="constant")
    seen = watched_steps(one)
    one.fit(*data())
    assert {step["rate"] for step in seen()} == {0.5}


def test_gradients_are_clipped():
    norms = {}
    for clip in (0.0, 0.01, 1000.0):
        one = trainer(Dot(), epochs=1, max_steps=1, clip_norm=clip)
        seen = watched_steps(one)
        one.fit(*data())
        norms[clip] = seen()[0]["norm"]
    assert norms[0.0] > 0.02
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[1000.0] == norms[0.0]


def test_the_optimiser_is_the_recipes():
    adamw = trainer(Dot(), weight_decay=0.25).optimiser
    assert type(adamw) is torch.optim.AdamW
    (decayed, spared) = adamw.param_groups
    assert [group["weight_decay"] for group in (decayed, spared)] == [0.25, 0.0]
    assert (decayed["betas"], decayed["eps"], decayed["lr"]) == ((0.9, 0.999), 1e-6, 1e-4)
    assert [len(group["params"]) for group in (decayed, spared)] == [1, 1], "what is frozen is not there"
    assert type(trainer(Dot(), optimizer="adam").optimiser) is torch.optim.Adam


def test_training_and_validating_use_their_modes_and_the_precision():
    for precision, reduced in (("fp32", False), ("bf16", True)):
        model = Dot()
        trainer(model, precision=precision, epochs=1).fit(*data(8, 2))
        assert model.seen == [(True, reduced)] * 2 + [(False, reduced)]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.frozen.item() == 1.0


def test_validation_is_the_mean_of_the_metric_over_images():
    model = Dot()
    with torch.no_grad():
        model.bias.fill_(-0.1)
    _, validation = data(8, 7)
    one = trainer(model)
    expected = []
    for index in range(7):
        image, mask = validation[index]
        probability = torch.sigmoid(torch.tensor(image).float().mean(-1) / 255 * 2 - 0.1)
        predicted = probability.numpy() > 0.5
        expected.append((predicted & (mask == 1)).sum() / (predicted | (mask == 1)).sum())
    assert len(set(expected)) > 2
    assert one.validate(validation) == (pytest.approx(sum(expected) / 7), None)


def test_who_watches_is_told_how_far_it_is(tmp_path):
    seen: list[tuple] = []

    def watch(progress: Progress) -> None:
        seen.append((progress.stage, progress.epoch, progress.step, progress.loss is not None))

    one = Trainer(Dot(), Regime(epochs=2, batch_size=1), Machine(), seed=0, watch=watch)
    record = one.fit(*data(20))
    assert seen == [
        ("training", 1, 1, True),
        ("training", 1, 17, True),
        ("validating", 1, 20, True),
        ("training", 2, 36, True),
        ("validating", 2, 40, True),
    ]
    assert (one.progress.steps, one.progress.epochs) == (40, 2)
    assert (record.train_images, record.validation_images, record.steps) == (20, 2, 40)
    assert record.seconds > 0
    assert record.first_step_at is not None


def test_every_image_is_seen_once_an_epoch_in_an_order_that_changes():
    batches: list[list[int]] = []
    model = Dot()
    encode = model.encode

    def noting(images: Tensor, keys: Tensor | None = None) -> Embedding:
        if model.training:
            batches.append([int(image[0, 0, 0]) // 10 for image in images])
        return encode(images, keys)

    model.encode = noting
    trainer(model, epochs=2, flip=False).fit(*data(10))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    first, second = [[index for batch in batches[n : n + 3] for index in batch] for n in (0, 3)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first == shuffled(10, 0, 1) != second
