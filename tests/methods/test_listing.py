"""``python -m methods``: the list that people and scripts read."""

from __future__ import annotations

import json

import pytest

from methods import Context, create, registry
from methods.__main__ import main
from methods.complete import CompleteMethod
from methods.listing import count

# Printed by the paper (table 1), counted here.
EXACT = {
    "decoder_only": 3_505_536,
    "bitfit": 3_957_888,
    "adapter": 3_915_264,
    "sam_adapter": 3_980_576,
    "vpt": 3_997_056,
    "lst": 11_494_464,
    "ssf": 4_418_432,
    "lora": 3_997_056,
    "conv_lora": 4_020_096,
    "inception": 4_008_576,
    "convpass": 4_936_064,
    "adaptformer": 8_791_424,
    "norm": 3_670_400,
    "scratch": 640_531_840,
    "full_finetune": 640_531_840,
    "sam_zero_shot": 0,
}
OF_PEFT = {name for name in registry.names() if name.startswith("peft:")}  # tests/methods/test_hf_peft.py counts them
COMPLETE = set(registry.names()) - EXACT.keys() - OF_PEFT


def test_what_is_counted_elsewhere_is_a_complete_network() -> None:
    assert all(issubclass(registry[name], CompleteMethod) for name in COMPLETE)


@pytest.mark.parametrize("name", EXACT)
def test_counts_on_vit_h(name: str) -> None:
    row = count(name, "vit_h")
    assert row["trainable"] == EXACT[name]
    paper = row["paper_trainable_m"]
    assert paper is None or name == "scratch" or f"{row['trainable'] / 1e6:.2f}" == f"{paper:.2f}"


# Counted in the released code, but for TransFuse's four patches and LinkNet34MTL's logit of a second class.
RELEASED = {
    ("pranet", 1): 32_547_319,
    ("transfuse", 1): 26_248_725 + 4 * 384,
    ("sinet_v2", 1): 26_975_642,
    ("fdrnet", 1): 10_768_970,
    ("deeplabv3", 1): 41_993_794,
    ("linknet34mtl", 1): 22_004_903 - 129,
    ("translab", 3): 42_195_929,
    ("trans2seg", 12): 58_550_721,
}


@pytest.mark.parametrize(("name", "classes"), RELEASED)
def test_complete_networks_count_as_released(name: str, classes: int) -> None:
    row = count(name, "tiny", classes)
    assert row["trainable"] == row["total"]
    assert row["trainable"] + row["idle_in_release"] == RELEASED[name, classes]
    told = create(name).caveats(Context(num_classes=classes, checkpoint="none"))
    wanted = f"its released model counts {row['idle_in_release'] / 1e6:.2f} M more, which no gradient reaches"
    assert told == ((wanted,) if row["idle_in_release"] > 1e4 else ())


def test_what_is_idle_is_listed_beside_the_papers_count(capsys: pytest.CaptureFixture) -> None:
    assert main(["--backbone", "tiny"]) == 0
    _, idle = capsys.readouterr().out.split("no gradient reaches")
    assert ["fdrnet", "7,931,114", "2,837,856", "10,768,970", "10.77"] in [line.split() for line in idle.splitlines()]
    assert "deeplabv3" not in idle


def test_all_complete_networks_are_counted() -> None:
    assert {name for name, _ in RELEASED} == COMPLETE


def test_json(capsys: pytest.CaptureFixture) -> None:
    assert main(["--json", "--backbone", "tiny"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == registry.names()
    keys = {"name", "trainable", "total", "idle_in_release", "share_percent", "paper_trainable_m", "evidence"}
    keys |= {"package", "error"}
    assert all(set(row) == keys and row["evidence"] != "not stated" for row in rows)
    assert not any(row["package"] or row["error"] for row in rows)
    assert all(row["share_percent"] == round(100 * row["trainable"] / row["total"], 4) for row in rows)


def test_several_classes_add_a_class_head_and_tokens_to_all_methods_that_can(capsys: pytest.CaptureFixture) -> None:
    assert main(["--classes", "12", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = {row["name"]: row["trainable"] for row in rows if row["name"] not in COMPLETE | OF_PEFT}
    assert found == {name: number + 13 * 257 + 9 * 256 for name, number in EXACT.items() if name != "sam_zero_shot"}
    assert main(["--classes", "12", "--backbone", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "methods on tiny, 12 classes, 10 queries" in shown and "sam_zero_shot" not in shown


@pytest.mark.parametrize("number", ["0", "-3"])
def test_no_classes_are_refused(number: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--classes", number])
    assert f"--classes {number}: 1 for binary masks" in capsys.readouterr().err


def test_the_list_names_every_method(capsys: pytest.CaptureFixture) -> None:
    assert main(["--backbone", "vit_b"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in registry.names())
    assert main(["--backbone", "vit_x"]) == 2
    assert "vit_b" in capsys.readouterr().err
