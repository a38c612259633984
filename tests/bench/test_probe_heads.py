"""Heads of a linear probe: a grid trained at once, LARS and batch norm as in MAE's code, choosing among the rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.probing import fit as fitting
from bench.probing.fit import Recipe, fit
from bench.probing.heads import Heads, Optimiser, Scores, best_head, evaluate, losses_of, schedule

WIDTH, CLASSES = 12, 7


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of classes that overlap, far from mean 0 and deviation 1."""
    random = torch.Generator().manual_seed(3)
    labels = torch.arange(140) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=random)
    return 50 + 9 * (centres[labels] + 0.6 * torch.randn(140, WIDTH, generator=random)), labels


def train(data, rates, tmp_path, **recipe) -> Heads:
    features, labels = data
    return fit(
        lambda wanted, epoch: features[wanted],
        labels,
        range(len(labels)),
        Recipe(tuple(rates), **{"epochs": 12, "batch": 32, **recipe}),
        classes=CLASSES,
        width=WIDTH,
        device="cpu",
        state=tmp_path / "state.pt",
        told=lambda epoch, losses: None,
    )


def test_heads_trained_together_are_the_heads_trained_one_at_a_time(data, tmp_path):
    rates = [0.1, 3.0, 40.0]
    together = train(data, rates, tmp_path)
    for head, rate in enumerate(rates):
        alone = train(data, [rate], tmp_path)
        torch.testing.assert_close(together.weights[head], alone.weights[0])
        torch.testing.assert_close(together.biases[head], alone.biases[0])
    assert not torch.allclose(together.weights[0], together.weights[1])


def test_a_head_that_diverges_leaves_the_others_alone(data, tmp_path):
    together, alone = train(data, [10.0, 1e30], tmp_path), train(data, [10.0], tmp_path)
    assert not together.weights[1].isfinite().all()
    torch.testing.assert_close(together.weights[0], alone.weights[0])
    scores = evaluate(together, *data)
    assert best_head(scores) == 0


def test_training_is_that_of_a_plain_head_with_lars_written_out(data, tmp_path):
    """Steps of MAE's ``util/lars.py``, written from its formulas, on torch's own modules."""
    features, labels = data
    base, batch, epochs = 5.0, 70, 9
    heads = train(data, [base], tmp_path, batch=batch, epochs=epochs)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6), nn.Linear(WIDTH, CLASSES))
    start = Heads(WIDTH, CLASSES, 1, seed=0)
    model[1].load_state_dict({"weight": start.weights[0].detach(), "bias": start.biases[0].detach()})
    momenta = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for epoch in range(epochs):
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, epoch]))).permutation(140)
        for step in range(2):
            chosen = order[step * batch : (step + 1) * batch].tolist()
            model.zero_grad()
            F.cross_entropy(model(features[chosen]), labels[chosen]).backward()
            done = (epoch + step / 2) / epochs
            # A ninth of nine epochs is one of warm-up.
            share = done * 9 if done < 1 / 9 else (1 + math.cos(math.pi * (9 * done - 1) / 8)) / 2
            with torch.no_grad():
                for name, value in model.named_parameters():
                    change = value.grad
                    if value.ndim > 1:
                        change = change * 0.001 * value.norm() / change.norm()
                    momenta[name] = 0.9 * momenta[name] + change
                    value -= base * batch / 256 * share * momenta[name]
    torch.testing.assert_close(heads.weights[0], model[1].weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(heads.biases[0], model[1].bias, rtol=1e-4, atol=1e-6)
    expected = model.eval()(features)
    scores = evaluate(heads, features, labels, batch=33)
    assert scores.top1[0] == pytest.approx((expected.argmax(1) == labels).float().mean().item())
    within = (expected.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert scores.top5[0] == pytest.approx(within)
    assert scores.loss[0] == pytest.approx(F.cross_entropy(expected, labels).item(), rel=1e-4)
    assert heads.training


def test_a_trained_head_is_as_good_as_logistic_regression(data, tmp_path):
    features, labels = data
    heads = train(data, [30.0], tmp_path, epochs=300)
    normal = (features - features.mean(0)) / features.std(0)
    weight, bias = torch.zeros(CLASSES, WIDTH, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)
    newton = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        newton.zero_grad()
        value = F.cross_entropy(normal @ weight.T + bias, labels)
        value.backward()
        return value

    newton.step(loss)
    expected = ((normal @ weight.T + bias).argmax(1) == labels).float().mean().item()
    assert expected > 0.8
    assert evaluate(heads, features, labels).top1[0] == pytest.approx(expected, abs=0.03)


def test_evaluation_uses_running_statistics_and_not_those_of_the_batch(data, tmp_path):
    features, labels = data
    heads = train(data, [10.0], tmp_path, epochs=60)
    assert not list(heads.norm.parameters())
    torch.testing.assert_close(heads.norm.running_mean, features.mean(0), rtol=0.02, atol=0)
    one_class = labels == 2
    scores = evaluate(heads, features[one_class], labels[one_class])
    assert scores.top1[0] > 0.5  # normalised by themselves, images of one class would have no class
    single = evaluate(heads, features[:1], labels[:1])
    assert math.isfinite(single.loss[0])


def test_stopped_training_goes_on_to_the_same_heads(data, tmp_path, monkeypatch):
    whole = train(data, [1.0, 10.0], tmp_path / "a")
    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0)
    features, labels = data
    seen: list[int] = []
    stops = iter([5])

    def source(wanted, epoch):
        seen.append(epoch)
        if len(seen) == 6 and next(stops, None):
            raise KeyboardInterrupt
        return features[wanted]

    arguments = {"classes": CLASSES, "width": WIDTH, "device": "cpu", "state": tmp_path / "state.pt"}
    recipe = Recipe((1.0, 10.0), epochs=12, batch=140)
    with pytest.raises(KeyboardInterrupt):
        fit(source, labels, range(140), recipe, told=lambda epoch, losses: None, **arguments)
    resumed = fit(source, labels, range(140), recipe, told=lambda epoch, losses: None, **arguments)
    assert seen == [*range(6), *range(5, 12)]
    other = train(data, [1.0, 10.0], tmp_path / "b", batch=140)
    for name, value in other.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(whole.weights[0], other.weights[0])


def test_a_damaged_state_begins_anew(data, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"half a state")
    whole = train(data, [1.0], tmp_path)
    (tmp_path / "state.pt").unlink()
    assert torch.equal(whole.weights[0], train(data, [1.0], tmp_path).weights[0])


def test_the_rate_rises_and_falls():
    values = [schedule(step / 90) for step in range(90)]
    assert values[0] == 0
    assert values[10] == pytest.approx(1)
    assert values[50] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.001
    assert np.argmax(values) == 10


def test_the_best_rate_has_the_highest_accuracy_then_the_lowest_loss():
    nan = math.nan
    assert best_head(Scores([0.5, 0.7, 0.7, 0.9], None, [1.0, 0.9, 0.8, nan])) == 2
    with pytest.raises(FloatingPointError, match="--lr"):
        best_head(Scores([0.5], None, [nan]))


def test_top5_of_few_classes_means_nothing():
    heads = Heads(4, 5, 2, seed=0)
    assert evaluate(heads, torch.randn(6, 4), torch.arange(6) % 5).top5 is None
    losses = losses_of(heads.eval()(torch.randn(6, 4)), torch.arange(6) % 5)
    assert losses.shape == (2,)
    assert losses[0] == losses[1]  # all heads start equal
    Optimiser(heads, [1.0, 2.0]).step(losses, 0.5)
    assert not torch.equal(heads.weights[0], heads.weights[1])


def test_a_batch_of_one_image_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="--batch 2"):
        train(data, [1.0], tmp_path, batch=1)
