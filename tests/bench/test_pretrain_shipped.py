"""The checkpoint that comes with the project is the one its card describes."""

from __future__ import annotations

import hashlib
import json

import pytest

from bench.environment import PROJECT
from bench.pretraining.export import LIMIT
from bench.pretraining.score import Clicker, first_scenes

SHIPPED = PROJECT / "methods" / "sam" / "tiny.safetensors"


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads(SHIPPED.with_suffix(".json").read_text())


def test_the_shipped_checkpoint_is_the_one_of_its_card(card):
    content = SHIPPED.read_bytes()
    assert len(content) == card["checkpoint"]["bytes"] <= LIMIT
    assert hashlib.sha256(content).hexdigest() == card["checkpoint"]["sha256"]
    assert card["checkpoint"]["sha256"] in SHIPPED.with_suffix(".md").read_text()


def test_it_answers_clicks_as_well_as_its_card_says(card):
    scores = card["scores"]
    found = first_scenes(Clicker("tiny", str(SHIPPED), scores["image_size"]))
    assert found == pytest.approx(scores["scenes"]["first_chosen"], abs=0.02)
