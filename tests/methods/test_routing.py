"""Noisy top-k routing against Shazeer's definitions, image by image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from methods.routing import Decision, choose, squared_variation, statistics

EXPERTS = 8


class Case(NamedTuple):
    clean: Tensor
    deviation: Tensor
    noise: Tensor


class Routing(NamedTuple):
    chosen: Tensor
    weights: Tensor
    balance: Tensor | None
    counts: Tensor


def route(*parts) -> Routing:
    """All that becomes of one layer's decision."""
    decision = Decision(*parts)
    balance, counts = statistics([decision])
    chosen, weights = choose(decision)
    return Routing(chosen, torch.ones_like(chosen).float() if weights is None else weights, balance, counts[:, 0])


def draw(images: int = 3, maps: int = 5, experts: int = EXPERTS, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, maps, experts)
    clean, spread, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    return Case(clean, torch.nn.functional.softplus(spread) + 1e-2, noise)


def variation(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / (values.mean() ** 2 + 1e-10))


def literal_balance(clean: np.ndarray, deviation: np.ndarray, noise: np.ndarray, top_k: int) -> float:
    """Importance and load of one image's maps (S, E), expert by expert."""
    importance, load = np.zeros(clean.shape[1]), np.zeros(clean.shape[1])
    for mean, sigma, epsilon in zip(clean, deviation, noise, strict=True):
        noisy = mean + epsilon * sigma
        best = sorted(range(len(noisy)), key=lambda e: -noisy[e])[:top_k]
        gates = np.exp(noisy[best] - noisy[best].max())
        importance[best] += gates / gates.sum()
        for expert in range(len(noisy)):
            others = np.delete(noisy, expert)
            if top_k <= len(others):
                # It is chosen when it beats the k-th best of the others.
                load[expert] += norm.cdf((mean[expert] - np.sort(others)[-top_k]) / sigma[expert])
            else:
                load[expert] += expert in best
    return variation(importance) + variation(load)


@pytest.mark.parametrize("top_k", [1, 2, 7, 8])
@pytest.mark.parametrize("maps", [1, 5])
def test_balance_is_shazeers_per_image(maps: int, top_k: int) -> None:
    case = draw(maps=maps)
    balance = route(*case, top_k).balance
    expected = [literal_balance(*image, top_k) for image in zip(*(t.double().numpy() for t in case), strict=True)]
    assert balance.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 3])
def test_load_is_the_chance_of_being_chosen_under_fresh_noise(top_k: int) -> None:
    """Each expert's own noise drawn again and again, the others' kept."""
    clean, deviation, noise = (t[0, 0].double().numpy() for t in draw(images=1, maps=1))
    noisy, fresh = clean + noise * deviation, np.random.default_rng(0).standard_normal(40_000)
    load = np.array([
        np.mean(clean[e] + fresh * deviation[e] > np.sort(np.delete(noisy, e))[-top_k]) for e in range(EXPERTS)
    ])  # fmt: skip
    routing = route(*draw(images=1, maps=1), top_k)
    gates = np.zeros(EXPERTS)
    gates[routing.chosen[0, 0].numpy()] = routing.weights[0, 0].numpy()
    assert routing.balance.item() == pytest.approx(variation(gates) + variation(load), rel=0.02)


def test_squared_variation() -> None:
    x = np.random.default_rng(0).uniform(size=(4, 8))
    assert squared_variation(torch.tensor(x)).tolist() == pytest.approx([variation(row) for row in x])
    assert squared_variation(torch.ones(3, 8)).tolist() == [0, 0, 0]
    assert torch.isfinite(squared_variation(torch.zeros(2, 8))).all()


@given(
    images=st.integers(1, 3), maps=st.integers(1, 4), experts=st.integers(2, 9), training=st.booleans(),
    seed=st.integers(0, 2**20), data=st.data(),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_the_best_are_chosen(images: int, maps: int, experts: int, training: bool, seed: int, data) -> None:
    top_k = data.draw(st.integers(1, experts))
    case = draw(images, maps, experts, seed)
    routing = route(*case, top_k) if training else route(case.clean, None, None, top_k)
    logits = case.clean + case.noise * case.deviation if training else case.clean
    assert routing.chosen.shape == routing.weights.shape == (images, maps, top_k)
    chosen = torch.zeros(images, maps, experts, dtype=torch.bool).scatter(-1, routing.chosen, True)
    assert (chosen.sum(-1) == top_k).all(), "an expert was chosen twice"
    worst_in = logits.masked_fill(~chosen, torch.inf).amin(-1)
    best_out = logits.masked_fill(chosen, -torch.inf).amax(-1)
    assert (worst_in > best_out).all()
    expected = logits.gather(-1, routing.chosen).exp()
    assert torch.allclose(routing.weights, expected / expected.sum(-1, keepdim=True), atol=1e-5)
    assert torch.equal(routing.counts, chosen.sum(1).float())
    assert (routing.balance is None) is not training


def test_of_equal_logits_the_first_is_chosen() -> None:
    logits = torch.zeros(2, 3, EXPERTS)
    logits[1, :, 2::3] = 1.0
    for top_k in (1, 2):
        chosen, weights = choose(Decision(logits, None, None, top_k))
        assert chosen.tolist() == [[[0, 1][:top_k]] * 3, [[2, 5][:top_k]] * 3]
        assert weights is None if top_k == 1 else (weights == 0.5).all()


def test_an_image_is_routed_the_same_alone() -> None:
    together = route(*draw(), 2)
    for index in range(3):
        alone = route(*(t[index : index + 1] for t in draw()), 2)
        assert torch.equal(alone.chosen[0], together.chosen[index])
        assert torch.equal(alone.counts[0], together.counts[index])
        assert alone.balance.item() == pytest.approx(together.balance[index].item(), rel=1e-6)


def test_one_expert_a_map_is_learnt_from_the_load_alone() -> None:
    clean, deviation, noise = (t.requires_grad_() for t in draw())
    routing = route(clean, deviation, noise, 1)
    assert choose(Decision(clean, deviation, noise, 1))[1] is None
    for gradient in torch.autograd.grad(routing.balance.sum(), (clean, deviation)):
        assert (gradient != 0).any(-1).all()


def test_the_weights_of_several_experts_are_learnt_from_the_task() -> None:
    clean, deviation, noise = (t.requires_grad_() for t in draw())
    weights = route(clean, deviation, noise, 2).weights
    assert torch.autograd.grad(weights[..., 0].sum(), clean)[0].any()


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_the_gradient_of_the_balance_loss_is_its_slope(top_k: int) -> None:
    """Also through the thresholds, which are other experts' logits."""
    clean, deviation, noise = (t.double() for t in draw())

    def balance(clean: Tensor, deviation: Tensor) -> Tensor:
        return route(clean, deviation, noise, top_k).balance

    given = (clean.requires_grad_(), deviation.requires_grad_())
    assert torch.autograd.gradcheck(balance, given, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_layers_together_have_the_statistics_of_each(training: bool, top_k: int) -> None:
    """Layers of different numbers of maps and scales, in an order that groups them otherwise."""
    made = []
    for seed, (maps, scale) in enumerate([(5, 1.0), (1, 1.0), (5, 1.0), (1, 0.5), (5, 0.5)]):
        clean, deviation, noise = draw(maps=maps, seed=seed)
        parts = (clean, deviation, noise) if training else (clean, None, None)
        made.append(Decision(*parts, top_k, scale))
    balance, counts = statistics(made)
    alone = [statistics([decision]) for decision in made]
    assert torch.equal(counts, torch.cat([count for _, count in alone], dim=1))
    assert counts.sum(-1).tolist() == [[top_k * n for n in (5, 1, 5, 1, 5)]] * 3
    if training:
        torch.testing.assert_close(balance, sum(loss for loss, _ in alone))
        torch.testing.assert_close(alone[3][0], 0.5 * route(*made[3][:4]).balance)
    else:
        assert balance is None
