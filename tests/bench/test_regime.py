"""The two recipes, whose word counts where they meet, and what they do to the optimiser."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bench.regime import Regime, resolve
from bench.training import parameter_groups, total_steps


def test_the_released_recipe():
    """AutoGluon's preset for Conv-LoRA."""
    regime, changed = resolve({}, {})
    assert changed == {}
    assert (regime.optimizer, regime.lr, regime.weight_decay, regime.schedule) == ("adamw", 1e-4, 1e-4, "linear")
    assert (regime.clip_norm, regime.batch_size, regime.epochs, regime.patience) == (1.0, 4, 30, 10)
    assert (regime.loss, regime.flip, regime.max_steps) == ("structure", True, 0)


def test_the_recipe_of_the_papers_text():
    regime, changed = resolve({}, {"preset": "paper_text"})
    assert changed == {"preset": "paper_text"}
    assert (regime.optimizer, regime.eps, regime.schedule, regime.lr) == ("adam", 1e-8, "constant", 1e-4)
    assert (regime.clip_norm, regime.patience, regime.loss) == (0.0, 0, "structure_weighted")


def test_a_datasets_own_values_win_over_the_preset_and_a_matrix_over_both():
    dataset = {"loss": "balanced_bce", "epochs": 20}
    assert resolve(dataset, {})[0].loss == "balanced_bce"
    paper, changed = resolve(dataset, {"preset": "paper_text"})
    assert (paper.loss, paper.epochs, paper.optimizer) == ("balanced_bce", 20, "adam")
    assert changed == {"preset": "paper_text"}
    mine, changed = resolve(dataset, {"preset": "paper_text", "loss": "structure", "epochs": 20, "clip_norm": 0.0})
    assert (mine.loss, mine.optimizer) == ("structure", "adam")
    assert changed == {"preset": "paper_text", "loss": "structure"}


def test_what_makes_no_difference_is_no_change():
    assert resolve({"epochs": 20}, {"epochs": 20, "lr": 1e-4, "betas": [0.9, 0.999], "preset": "released"})[1] == {}
    assert resolve({"epochs": 20}, {"epochs": 30})[1] == {"epochs": 30}, (
        "the general default differs from this dataset's"
    )
    assert resolve({}, {"betas": [0.9, 0.95]}) == (Regime(betas=(0.9, 0.95)), {"betas": [0.9, 0.95]})


def test_what_changed_gives_the_same_recipe_again():
    dataset = {"loss": "balanced_bce"}
    for overrides in ({"epochs": 3, "betas": [0.8, 0.9]}, {"preset": "paper_text", "loss": "structure"}, {}):
        regime, changed = resolve(dataset, overrides)
        assert resolve(dataset, changed) == (regime, changed)


@pytest.mark.parametrize(
    "bad",
    [
        {"epoch": 3},
        {"epochs": 0},
        {"epochs": 1.5},
        {"lr": 0},
        {"lr": "1e-4"},
        {"preset": "paper"},
        {"loss": "dice"},
        {"patience": -1},
        {"betas": [0.9]},
        {"flip": 1},
    ],
)
def test_bad_values_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        resolve({}, bad)


@pytest.mark.parametrize(
    ("images", "limits", "steps"),
    [(8, {}, 60), (9, {}, 90), (3, {}, 30), (8, {"max_steps": 7}, 7), (8, {"max_steps": 61}, 60)],
)
def test_how_many_steps_a_run_has(images, limits, steps):
    assert total_steps(images, Regime(**limits)) == steps


def test_biases_and_norms_are_spared_from_decay():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.layer, self.group = nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            self.token = nn.Parameter(torch.zeros(2))

    part = Part()
    decayed, spared = parameter_groups(part, 0.01)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in part.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"linear.weight", "token"}
    assert {names[id(p)] for p in spared["params"]} == {
        "linear.bias",
        "layer.weight",
        "layer.bias",
        "group.weight",
        "group.bias",
    }
