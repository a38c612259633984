"""A cell's identity: everything that can move a number changes it, and nothing else does."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import datasets
import methods
from bench import regime
from bench.spec import Cell, canonical, make_cell

TINY = {"train_images": 8, "validation_images": 4, "test_images": 4, "size": 64}


def cell(
    method: Any = "lora", dataset: Any = TINY, /, *, parameters: dict[str, Any] | None = None, **changes: Any
) -> Cell:
    """A small cell; ``method`` and ``dataset`` are a name and parameters, or plugins."""
    choices = {"seed": 0, "backbone": "tiny", "checkpoint": "none", "image_size": 64, "precision": "fp32"} | changes
    method = methods.create(method, parameters) if isinstance(method, str) else method
    dataset = datasets.load("shapes", **dataset) if isinstance(dataset, dict) else dataset
    return make_cell(method=method, dataset=dataset, **choices)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def turned(value: Any) -> Any:
    """An equal value written differently: keys in the other order, tuples for lists, whole floats for integers."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return tuple(map(turned, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


@given(values)
def test_canonical_writes_equal_values_equally_and_loses_nothing(value):
    text = canonical(value)
    assert canonical(turned(value)) == text
    assert json.loads(text) == value
    assert text.isascii()


@given(st.dictionaries(st.text(max_size=5), scalars, min_size=1, max_size=4), st.data())
def test_canonical_tells_different_values_apart(value, data):
    key = data.draw(st.sampled_from(sorted(value)))
    other = data.draw(
        scalars.filter(lambda new: (new, isinstance(new, bool)) != (value[key], isinstance(value[key], bool)))
    )
    assert canonical(value | {key: other}) != canonical(value)


def test_whole_numbers_have_one_spelling():
    assert canonical({"b": 224.0, "a": -0.0}) == '{"a":0,"b":224}'
    assert cell(image_size=224.0).id == cell(image_size=224).id
    assert cell(regime={"lr": 1}).id == cell(regime={"lr": 1.0}).id


def test_a_specification_holds_only_what_differs_from_the_defaults():
    assert cell(regime={"epochs": 1}).spec == {
        "kind": "accuracy",
        "method": {"name": "lora", "version": 1},
        "dataset": {"name": "shapes", "version": 1, "parameters": TINY},
        "seed": 0,
        "backbone": "tiny",
        "checkpoint": "none",
        "image_size": 64,
        "precision": "fp32",
        "regime": {"version": 1, "epochs": 1},
    }
    assert "parameters" not in cell("lora", {}).spec["dataset"]
    assert cell(parameters={"rank": 6, "alpha": 32.0}).spec["method"]["parameters"] == {"rank": 6}


def test_ids_are_for_ever():
    """A changed identity loses every result in the world; it must never happen by accident."""
    assert cell(regime={"epochs": 1}).id == "shapes-lora-s0-6920e6b6"
    assert cell("conv_lora", seed=2, parameters={"scales": [4]}).id == "shapes-conv_lora-s2-8fc22569"


CHANGES = {
    "nothing": {},
    "method": {"method": "conv_lora"},
    "parameter": {"parameters": {"rank": 6}},
    "other parameter": {"parameters": {"alpha": 6.0}},
    "dataset parameter": {"dataset": TINY | {"style": "thin"}},
    "shots": {"shots": 5},
    "seed": {"seed": 1},
    "backbone": {"backbone": "vit_b"},
    "checkpoint": {"checkpoint": "mine.safetensors"},
    "image size": {"image_size": 128},
    "precision": {"precision": "bf16"},
    "kind": {"kind": "speed"},
    "regime value": {"regime": {"lr": 2e-4}},
    "other regime value": {"regime": {"epochs": 2}},
    "regime preset": {"regime": {"preset": "paper_text"}},
    "limit": {"regime": {"max_train_images": 4}},
}


def changed_cell(change: dict[str, Any]) -> Cell:
    change = dict(change)
    return cell(change.pop("method", "lora"), change.pop("dataset", TINY), **change)


def test_whatever_moves_a_number_changes_the_id():
    ids = {name: changed_cell(change).id for name, change in CHANGES.items()}
    assert len(set(ids.values())) == len(CHANGES), ids


def test_a_new_version_changes_the_id(monkeypatch):
    method, dataset, before = methods.create("lora"), datasets.load("shapes", **TINY), cell().id
    seen = {before}
    for owner, name in ((type(method), "version"), (type(dataset), "version"), (regime, "VERSION")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, 2)
            seen.add(cell().id)
    assert len(seen) == 4
    assert cell().id == before


def test_a_part_of_a_composition_has_its_version(monkeypatch):
    combined = cell("adapter+lora", parameters={"lora.rank": 6})
    assert combined.spec["method"] == {"name": "adapter+lora", "version": [1, 1], "parameters": {"lora.rank": 6}}
    assert cell("lora+adapter", parameters={"rank": 6}).id == combined.id
    monkeypatch.setattr(type(methods.create("lora")), "version", 2)
    assert cell("adapter+lora", parameters={"lora.rank": 6}).id != combined.id


def test_saying_a_default_aloud_changes_nothing():
    plain, released = cell().id, datasets.load("shapes").regime
    assert cell(parameters={"rank": 3, "alpha": 32.0}).id == plain
    assert cell("lora", TINY | {"style": "mixed"}).id == plain
    assert cell(regime={"preset": "released", "epochs": 30, "patience": 10, "betas": [0.9, 0.999]}).id == plain
    assert cell(regime=dict(released)).id == plain
    assert cell(shots=None).id == plain
    paper = cell(regime={"preset": "paper_text"}).id
    assert cell(regime={"preset": "paper_text", "optimizer": "adam", "clip_norm": 0}).id == paper


def test_the_order_of_keys_changes_nothing():
    assert cell("lora", dict(reversed(TINY.items()))).id == cell().id
    spec = cell(parameters={"rank": 6, "alpha": 1.0}, regime={"lr": 1e-3, "epochs": 2}).spec
    assert Cell(turned(spec) | {"seed": 0}).id == Cell(spec).id


def test_a_new_option_re_keys_no_old_cell():
    plain_method, plain_dataset = methods.create("lora"), datasets.load("shapes", **TINY)

    class Extended(type(plain_method)):
        name: ClassVar[str] = "lora"
        dropout: float = 0.0

    class Larger(type(plain_dataset)):
        name: ClassVar[str] = "shapes"
        noise: float = 0.0

    assert cell(Extended(), Larger(**TINY)).id == cell().id
    assert cell(Extended(dropout=0.1)).id != cell().id
    assert cell("lora", Larger(**TINY, noise=0.1)).id != cell().id


def test_a_cell_gives_back_what_it_was_made_of():
    made = cell("conv_lora", parameters={"scales": [1, 2]}, seed=3, regime={"preset": "paper_text", "epochs": 5})
    read = Cell(json.loads(json.dumps(made.spec)))
    assert read.id == made.id
    assert read.method().scales == (1, 2)
    assert read.dataset() == datasets.load("shapes", **TINY)
    assert (read.regime().epochs, read.regime().optimizer, read.regime().loss) == (5, "adam", "structure_weighted")
    context = read.context()
    assert (context.num_classes, context.image_size, context.backbone, context.checkpoint, context.seed) == (
        1,
        64,
        "tiny",
        "none",
        3,
    )


def test_the_record_holds_every_value_it_ran_with():
    resolved = json.loads(json.dumps(cell(parameters={"rank": 6}, shots=2).resolved()))
    assert resolved["method"] == {
        "name": "lora",
        "title": "LoRA",
        "parameters": {"last_k": None, "rank": 6, "alpha": 32.0},
    }
    assert resolved["dataset"]["parameters"] == TINY | {"style": "mixed"}
    assert resolved["dataset"]["shots"] == 2
    assert resolved["regime"]["lr"] == 1e-4
    assert math.isclose(resolved["regime"]["betas"][1], 0.999)
    assert (resolved["seed"], resolved["image_size"], resolved["checkpoint"], resolved["kind"]) == (
        0,
        64,
        "none",
        "accuracy",
    )


def test_an_id_is_safe_as_a_name_and_says_what_it_is():
    assert cell("conv_lora+vpt", seed=7).id.startswith("shapes-conv_lora+vpt-s7-")
    named = [Cell(cell().spec | {"method": {"name": name, "version": 1}}).id for name in ("peft:lora", "peft/lora")]
    assert all(name.startswith("shapes-peft_lora-s0-") for name in named) and named[0] != named[1]


@pytest.mark.parametrize("shots", [0, -1, "5", True])
def test_shots_that_are_no_number_of_images_are_refused(shots):
    """0 would train on everything under another identity."""
    with pytest.raises(ValueError, match="shots"):
        cell(shots=shots)
