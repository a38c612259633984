"""Saved states: a training that goes on from one is the training that was never interrupted, or begins anew."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import methods
from bench import saved
from bench.cell import Interrupted
from bench.data import SquashedSplit
from bench.embeddings import encoder_of
from bench.machine import Machine
from bench.regime import Regime
from bench.saved import MAGIC, SavedStates
from bench.training import Trainer, Validation
from datasets import Split
from methods import Context, Embedding, Model, Output
from methods.trial import Subject, losses

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
EVIDENCE = {
    "checkpoint": "0" * 64,
    "data": {"train": "a", "validation": "b", "test": "c"},
    "images": {"train": 6, "validation": 2, "test": 1},
    "source": {"method": "d", "training": "e", "evaluation": "f", "dataset": "g"},
}
MOMENTS = ("seconds", "images_per_second", "first_step_at", "peak_memory_bytes", "resumed")
"""What a record says of when and where it was made."""


class Pictures(Split):
    """A square on noise; with several classes every second one has the second class."""

    def __init__(self, count: int, classes: int = 1) -> None:
        self.identifiers, self.classes = tuple(f"p{number}" for number in range(count)), classes

    def image(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(index).integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
        noise[self.mask(index) > 0] += 120
        return noise

    def mask(self, index: int) -> np.ndarray:
        mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
        mask[8:32, 8 : 24 + 4 * index] = 1 + (self.classes > 1) * (index % 2)
        return mask


class Line(Model):
    """Brightness times a weight plus a bias, and a weight that nothing depends on."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.linspace(0.1, 1, width)), nn.Parameter(torch.zeros(()))
        self.idle = nn.Parameter(torch.ones(2))

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        return Embedding(images.float() / 255, {})

    def decode(self, embedding: Embedding) -> Output:
        return Output(embedding.features.mean(1, keepdim=True) * self.weight.sum() + self.bias)


class Killed(Exception):
    """The process was killed."""


def states(folder: Path, **given: Any) -> SavedStates:
    values = {"cell": "a-cell", "evidence": EVIDENCE, "surroundings": {"torch": "2", "threads": 1}}
    return SavedStates(folder, **values | given)


def trainer(model: Model | None = None, *, history: Path | None = None, micro_batch: int = 0, **regime: Any) -> Trainer:
    recipe = Regime(**{"epochs": 4, "lr": 0.05, "batch_size": 4} | regime)
    return Trainer(model or Line(), recipe, Machine(micro_batch=micro_batch), seed=3, history=history)


def data(classes: int = 1) -> list[SquashedSplit]:
    return [SquashedSplit(Pictures(count, classes), SIZE, num_classes=classes) for count in (6, 2)]


DATA = data()


def outcome(one: Trainer) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, bytes]]:
    """Record and history but for times, and the trained parameters' bytes."""
    record = {name: value for name, value in asdict(one.record).items() if name not in MOMENTS}
    lines = [{key: value for key, value in line.items() if key not in MOMENTS} for line in one.lines]
    return record, lines, {name: p.detach().numpy().tobytes() for name, p in one.model.trainable().items()}


def interrupt(one: Trainer, after: int) -> None:
    """Let a trainer be killed when it has taken so many steps more."""
    step, left = one.step, iter(range(after))

    def killed(*batch: Any) -> tuple[Tensor, Tensor]:
        if next(left, None) is None:
            raise Killed
        return step(*batch)

    one.step = killed


@pytest.fixture
def every_epoch(monkeypatch):
    """However slow the disk is, and all are kept."""
    monkeypatch.setattr(saved, "ALWAYS_SECONDS", math.inf)
    monkeypatch.setattr(saved, "KEPT", 99)


@settings(max_examples=25, deadline=None)
@given(
    kills=st.lists(st.integers(0, 7), max_size=6),
    regime=st.fixed_dictionaries(
        {
            "epochs": st.integers(1, 6),
            "batch_size": st.integers(1, 4),
            "patience": st.integers(0, 2),
            "max_steps": st.integers(0, 9),
            "schedule": st.sampled_from(["linear", "constant"]),
            "optimizer": st.sampled_from(["adam", "adamw"]),
            "lr": st.sampled_from([1e-3, 0.3, 3.0]),
            "micro_batch": st.integers(0, 3),
        }
    ),
)
def test_whatever_the_recipe_and_whenever_it_is_killed_the_numbers_are_the_same(kills, regime):
    """In the middle of epochs, several times, also twice within one."""
    before = saved.ALWAYS_SECONDS
    saved.ALWAYS_SECONDS = math.inf
    try:
        whole = trainer(**regime)
        whole.fit(*DATA)
        with tempfile.TemporaryDirectory() as name:
            for after in [*kills, 1000]:
                one = trainer(history=Path(name) / f"history-{after}-{len(os.listdir(name))}.jsonl", **regime)
                interrupt(one, after)
                try:
                    one.fit(*DATA, saved=states(Path(name) / "states"))
                except Killed:
                    continue
                lines = [json.loads(line) for line in one.history.read_text().splitlines()] if one.lines else []
                assert lines == one.lines
                break
        assert outcome(one) == outcome(whole)
    finally:
        saved.ALWAYS_SECONDS = before


def built(name: str, classes: int, folder: Path, **regime: Any) -> Trainer:
    """A trainer of a method on the tiny backbone, its embeddings kept in ``folder``."""
    torch.manual_seed(0)
    given = {"image_size": SIZE, "backbone": "tiny", "checkpoint": "none", "seed": 3}
    model = methods.create(name).build(Context(num_classes=classes, mask_tokens=4, **given))
    several = {"loss": "set_prediction", "validation_metric": "miou_all", "points": 64} if classes > 1 else {}
    recipe = Regime(**{"epochs": 3, "lr": 1e-3, "batch_size": 4} | several | regime)
    machine = Machine(micro_batch=3)
    encoder = encoder_of(model, machine, image_size=SIZE, folder=folder)
    return Trainer(model, recipe, machine, seed=3, encoder=encoder)


@pytest.mark.parametrize(
    ("name", "classes", "regime"),
    [
        ("conv_lora", 1, {}),
        ("conv_lora", 3, {"schedule": "constant"}),
        ("decoder_only", 1, {"max_steps": 5}),
        ("decoder_only", 3, {}),
        ("lst", 1, {"optimizer": "adam"}),
        ("bitfit", 1, {"patience": 1}),
        ("scratch", 1, {}),
        ("adapter+vpt", 1, {}),
    ],
)
def test_after_whichever_epoch_a_method_is_killed_it_ends_as_if_it_was_not(
    name, classes, regime, tmp_path, every_epoch
):
    """Noise of gates, points of set prediction, cached embeddings, rates, patience: all go on where they were."""
    whole = built(name, classes, tmp_path / "embeddings", **regime)
    whole.fit(*data(classes), saved=states(tmp_path / "whole"))
    assert whole.record.first_loss != whole.record.last_loss or whole.record.epochs == 1
    for epoch in range(1, whole.record.epochs + 1):
        (tmp_path / str(epoch)).mkdir()
        (tmp_path / "whole" / f"epoch-{epoch}.ckpt").rename(tmp_path / str(epoch) / f"epoch-{epoch}.ckpt")
        one = built(name, classes, tmp_path / "embeddings", **regime)
        one.fit(*data(classes), saved=states(tmp_path / str(epoch)))
        assert [entry["epoch"] for entry in one.record.resumed] == [epoch]
        assert outcome(one) == outcome(whole)


@pytest.mark.gpu
def test_a_card_goes_on_with_the_moments_it_had(tmp_path, every_epoch):
    """Up to what sums on a card differ by from run to run."""

    def on_card() -> Trainer:
        regime = Regime(epochs=4, lr=0.05, batch_size=4)
        return Trainer(Line().to("cuda"), regime, Machine("cuda"), seed=3)

    whole, first, second = on_card(), on_card(), on_card()
    whole.fit(*DATA)
    interrupt(first, 5)
    with pytest.raises(Killed):
        first.fit(*DATA, saved=states(tmp_path / "states"))
    second.fit(*DATA, saved=states(tmp_path / "states"))
    assert resumed(second) == [2]
    assert {value.device.type for state in second.optimiser.state.values() for value in state.values()} == {"cuda"}
    for name, expected in whole.model.trainable().items():
        torch.testing.assert_close(second.model.trainable()[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", methods.registry.names())
def test_a_method_has_no_state_but_what_is_saved(name):
    """A buffer that a step changes is in the state, and no draw of the running generator changes a loss."""
    subject = Subject(name, {"side": 64} if "side" in methods.registry[name].model_fields else {})
    model = subject.build()
    before, found = {key: value.clone() for key, value in model.named_buffers()}, []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(losses(subject, model)[0])
    changed = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
    assert changed <= model.state().keys()
    assert torch.equal(*found)


@pytest.fixture
def folder(tmp_path, every_epoch) -> Path:
    """The states after epochs 1 to 3 of a training of four."""
    path = tmp_path / "states"
    one = trainer()
    interrupt(one, 7)
    with pytest.raises(Killed):
        one.fit(*DATA, saved=states(path))
    assert names(path) == {f"epoch-{epoch}.ckpt" for epoch in (1, 2, 3)}
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ended(folder: Path, model: Model | None = None, **given: Any) -> Trainer:
    """A training that begins with what is in the folder, and is what it would have been without."""
    one, whole = trainer(model), trainer(copy.deepcopy(model))
    one.fit(*DATA, saved=states(folder, **given))
    whole.fit(*DATA)
    assert outcome(one) == outcome(whole)
    return one


def resumed(one: Trainer) -> list[int]:
    return [entry["epoch"] for entry in one.record.resumed]


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-900] + bytes([content[-900] ^ 1]) + content[-899:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (halved, "is damaged"),
        (flipped, "is damaged"),
        (lambda content: b"", "is no saved state"),
        (lambda content: content + b"more", "is damaged"),
        (lambda content: b"\x80\x04K\x01.", "is no saved state"),
        (lambda content: content.replace(b"state 1", b"state 0", 1), "is no saved state of this version"),
        (lambda content: MAGIC + hashlib.sha256(b"no archive").digest() + b"no archive", "cannot be read"),
    ],
)
def test_a_file_that_is_not_whole_gives_way_to_the_one_before(damage, said, folder, caplog):
    newest = folder / "epoch-3.ckpt"
    newest.write_bytes(damage(newest.read_bytes()))
    assert resumed(ended(folder)) == [2]
    assert f"epoch-3.ckpt {said}" in caplog.text


def test_without_any_good_one_it_starts_anew_and_what_was_there_goes_with_the_next_one(folder, caplog, monkeypatch):
    monkeypatch.setattr(saved, "KEPT", 2)
    (folder / "epoch-9.ckpt").mkdir()
    for epoch in (1, 2, 3):
        (folder / f"epoch-{epoch}.ckpt").write_bytes(b"")
    (folder / "epoch-9.ckpt").rmdir()
    (folder / "epoch-x.ckpt").write_bytes(b"not ours")
    assert resumed(ended(folder)) == []
    assert "starts anew: no saved state can be used" in caplog.text
    assert names(folder) == {"epoch-3.ckpt", "epoch-4.ckpt"}


@pytest.mark.parametrize(
    ("changed", "piece"),
    [
        ({"checkpoint": "1" * 64}, "checkpoint"),
        ({"data": EVIDENCE["data"] | {"train": "other"}}, "data.train"),
        ({"data": EVIDENCE["data"] | {"validation": "other"}}, "data.validation"),
        ({"source": EVIDENCE["source"] | {"method": "other"}}, "source.method"),
        ({"source": EVIDENCE["source"] | {"evaluation": "other"}}, "source.evaluation"),
    ],
)
def test_a_state_made_from_something_else_is_not_gone_on_from(changed, piece, folder, caplog):
    one = ended(folder, evidence=EVIDENCE | changed)
    assert resumed(one) == []
    assert f"epoch-3.ckpt was made from other {piece}" in caplog.text


@pytest.mark.parametrize("test_sets", [{}, {"test": "other"}, {"test": "c", "more": "d"}])
def test_other_test_sets_are_nothing_to_a_training(test_sets, folder):
    data = {"train": "a", "validation": "b", **test_sets}
    assert resumed(ended(folder, evidence=EVIDENCE | {"data": data})) == [3]


def test_a_state_of_another_cell_or_model_is_not_gone_on_from(folder, caplog):
    assert resumed(ended(folder, cell="another-cell")) == []
    assert "is of the cell a-cell" in caplog.text
    assert resumed(ended(folder, Line(width=5), cell="another-cell")) == []
    assert "is of another model" in caplog.text


def test_it_goes_on_elsewhere_and_says_so(folder, caplog):
    """Another version or number of threads rounds otherwise; days of training are not thrown away for that."""
    caplog.set_level(logging.INFO)
    one = ended(folder, surroundings={"torch": "3", "threads": 1, "device": "a card"})
    assert one.record.resumed == [{"epoch": 3, "changed": {"torch": ["2", "3"], "device": [None, "a card"]}}]
    assert "after epoch 3, numbers may move by rounding: torch was '2', is '3'" in caplog.text


def test_a_training_that_is_over_is_not_trained_again(folder):
    whole = ended(folder)
    again = trainer()
    interrupt(again, 0)
    again.fit(*DATA, saved=states(folder))
    assert outcome(again) == outcome(whole)
    assert resumed(again) == [3, 4]


def test_seconds_add_up(folder):
    one = trainer()
    first = torch.load(io.BytesIO((folder / "epoch-3.ckpt").read_bytes()[len(MAGIC) + 32 :]))["state"]["record"]
    assert first["seconds"] > 0
    assert one.fit(*DATA, saved=states(folder)).seconds > first["seconds"]
    assert one.record.first_step_at == first["first_step_at"]


def test_two_are_kept_and_nothing_else(tmp_path):
    path, seen = tmp_path / "states", []
    one = trainer(epochs=5)
    kept = states(path)
    offer, kept.offer = kept.offer, lambda *given: (offer(*given), seen.append(names(path)))
    (path / ".epoch-1.ckpt.0123").write_bytes(b"left by a process that was killed")
    one.fit(*DATA, saved=kept)
    assert seen[0] == {"epoch-1.ckpt"}
    assert seen[1:] == [{f"epoch-{epoch - 1}.ckpt", f"epoch-{epoch}.ckpt"} for epoch in (2, 3, 4, 5)]
    assert {path.stat().st_mode & 0o777 for path in path.iterdir()} == {0o666 & ~umask()}


def umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


class Clock:
    """A clock that says what it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("epoch", "save", "kept"),
    [
        (10.0, 0.2, {1, 2, 3, 4, 5, 6, 7, 8}),
        (0.1, 0.25, {1, 2, 3, 4, 5, 6, 7, 8}),
        (10.0, 0.5, {1, 2, 3, 4, 5, 6, 7, 8}),
        (10.0, 1.0, {1, 3, 5, 7, 8}),
        (10.0, 1.5, {1, 4, 7, 8}),
        (1.0, 60.0, {1, 8}),
    ],
)
def test_saving_takes_a_twentieth_of_the_time_at_most(epoch, save, kept, tmp_path, monkeypatch):
    """But where it takes no time to speak of; and the last state is saved whatever it takes."""
    clock, one, found = Clock(), trainer(epochs=8), set()

    def write(path: Path, content: dict[str, Any]) -> None:
        clock.now += save
        found.add(content["state"]["record"]["epochs"])

    monkeypatch.setattr(saved, "_write", write)
    train = one._train_epoch

    def train_epoch(*given: Any) -> dict[str, Any]:
        clock.now += epoch
        return train(*given)

    one._train_epoch = train_epoch
    one.fit(*DATA, saved=states(tmp_path / "states", clock=clock))
    assert found == kept


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    """Half a file is left by nobody; and when there is room again, states are saved again."""
    path, writes = tmp_path / "states", []
    write = saved._Digesting.write

    def full(self: Any, content: Any) -> int:
        writes.append(len(content))
        if 3 < len(writes) < 3 + 2 * 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    monkeypatch.setattr(saved._Digesting, "write", full)
    monkeypatch.setattr(saved, "ALWAYS_SECONDS", math.inf)
    one = trainer(epochs=12)
    one.fit(*DATA, saved=states(path))
    assert caplog.text.count("No space left on device") == 1
    assert "the state after epoch 1 is not saved, training goes on" in caplog.text
    assert names(path) == {"epoch-11.ckpt", "epoch-12.ckpt"}
    whole = trainer(epochs=12)
    whole.fit(*DATA)
    assert outcome(one) == outcome(whole)


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_saved import DATA, Path, outcome, states, trainer
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
one = trainer()
one.fit(*DATA, saved=states(Path(sys.argv[1])))
"""


def test_a_file_that_may_not_grow_stops_nothing(tmp_path):
    """As a quota does it, and not as a patch of ours: a write that fails half way through the archive."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "states", Path(__file__).parent],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("File too large") == 1
    assert names(tmp_path / "states") == set()


@pytest.mark.parametrize("signal", [Interrupted, KeyboardInterrupt])
def test_a_signal_while_saving_is_a_signal(signal, folder, monkeypatch):
    """The archive's writer makes an error of its own out of what is raised within."""

    def write(self: Any, content: Any) -> int:
        raise signal

    monkeypatch.setattr(saved._Digesting, "write", write)
    with pytest.raises(signal):
        trainer().fit(*DATA, saved=states(folder))
    monkeypatch.undo()
    assert names(folder) == {"epoch-1.ckpt", "epoch-2.ckpt", "epoch-3.ckpt"}
    assert resumed(ended(folder)) == [3]


def test_one_who_was_given_up_leaves_nothing_where_another_has_committed(folder, caplog):
    one = trainer()
    kept = states(folder)
    states(folder).forget()
    one.fit(*DATA, saved=kept)
    assert not folder.exists()
    assert "is not saved" in caplog.text


def test_what_is_saved_twice_is_written_once(tmp_path, every_epoch):
    """Four copies of the weights after an epoch that is not the best one, three after one that is, one at the end."""
    one = trainer(Line(width=100_000), epochs=3, lr=1e-6)
    scores = iter([0.5, 0.4, 0.6])
    one.validate = lambda data: Validation(next(scores), None)
    one.fit(*DATA, saved=states(tmp_path / "states"))
    sizes = [(tmp_path / "states" / f"epoch-{epoch}.ckpt").stat().st_size / 400_000 for epoch in (1, 2, 3)]
    assert sizes == pytest.approx([3, 4, 1], abs=0.05)
