"""Stored embeddings: nothing is encoded twice and not a bit changes, whatever happens to the disk."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import datasets
import methods
from bench import embeddings
from bench.data import SquashedSplit, as_tensor
from bench.embeddings import Encoder, encoder_of, folder_of
from bench.evaluation import evaluate
from bench.machine import Machine
from bench.regime import Regime
from bench.training import Trainer
from datasets import Split
from methods import Context, Embedding, Model
from methods.sam.encoder import ImageEncoder

SIZE = 64
TRAIN, VALIDATION, EPOCHS = 5, 1, 3


def disk(monkeypatch, free: int) -> None:
    """Let so many percent of every disk be free."""
    usage = shutil._ntuple_diskusage(*(10**10 * percent for percent in (100, 100 - free, free)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.fixture(autouse=True)
def room(monkeypatch) -> None:
    """However full the disk of this machine is."""
    disk(monkeypatch, free=50)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images each call of the image encoder was given."""
    calls: list[int] = []
    forward = ImageEncoder.forward

    def counting(self: nn.Module, images: Tensor) -> Embedding:
        calls.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    return calls


def build(name: str = "decoder_only", *, size: int = SIZE, num_classes: int = 1, **parameters: Any) -> Model:
    torch.manual_seed(0)
    context = Context(num_classes, size, backbone="tiny", checkpoint="none")
    return methods.create(name, parameters).build(context)


class Classes(Split):
    """The binary shapes with their index's parity as class."""

    def __init__(self, split: Split) -> None:
        self.split, self.identifiers = split, split.identifiers

    def image(self, index: int) -> np.ndarray:
        return self.split.image(index)

    def mask(self, index: int) -> np.ndarray:
        return (self.split.mask(index) * (1 + index % 2)).astype(np.uint8)


def splits(num_classes: int = 1) -> dict[str, Split]:
    counts = {"train_images": TRAIN, "validation_images": VALIDATION, "test_images": 5}
    opened = datasets.load("shapes", **counts, size=SIZE).open()
    return opened if num_classes == 1 else {name: Classes(split) for name, split in opened.items()}


class Trained(NamedTuple):
    adapter: dict[str, Tensor]
    losses: tuple[float | None, ...]

    def same(self, other: Trained) -> bool:
        return self.losses == other.losses and all(torch.equal(self.adapter[n], other.adapter[n]) for n in self.adapter)


def train(folder: Path | None, *, num_classes: int = 1, machine: Machine | None = None, plain: bool = False) -> Trained:
    """A short training; ``plain`` as if there were no encoder but the model."""
    model, machine = build(num_classes=num_classes), machine or Machine()
    encoder = None if plain else encoder_of(model, machine, image_size=SIZE, folder=folder)
    of_classes = {"loss": "set_prediction", "validation_metric": "miou_all"} if num_classes > 1 else {}
    trainer = Trainer(model, Regime(epochs=EPOCHS, lr=1e-3, **of_classes), machine, seed=0, encoder=encoder)
    opened = splits(num_classes)
    data = [SquashedSplit(opened[name], SIZE, num_classes=num_classes) for name in ("train", "validation")]
    record = trainer.fit(*data)
    adapter = {name: parameter.detach() for name, parameter in model.trainable().items()}
    return Trained(adapter, (record.first_loss, record.last_loss, record.best_validation))


def pictures(count: int = 3) -> list[Tensor]:
    split = SquashedSplit(splits()["train"], SIZE)
    return [as_tensor(split[index][0]) for index in range(count)]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("precision", "num_classes"), [("fp32", 1), ("bf16", 1), ("fp32", 3)])
def test_stored_embeddings_train_the_same_adapter_bit_for_bit(tmp_path, encoded, precision, num_classes):
    options = {"num_classes": num_classes, "machine": Machine("cpu", precision)}
    computed = train(None, **options)
    every_time = len(encoded)
    assert every_time == 1 + EPOCHS * (TRAIN + VALIDATION), "one for the fixed picture"
    encoded.clear()
    assert train(tmp_path, **options).same(computed)
    assert len(encoded) <= 1 + 2 * TRAIN + VALIDATION, "an image was encoded twice"
    assert len(files(tmp_path)) == len(encoded) - 1 > TRAIN + VALIDATION, "flipped images are images of their own"
    encoded.clear()
    assert train(tmp_path, **options).same(computed)
    assert encoded == [1], "only the fixed picture"


def test_the_same_is_trained_as_by_the_model_alone(tmp_path):
    """The way of every other model, which encodes micro-batches: here of one image."""
    alone = Machine(micro_batch=1)
    stored, plain = train(tmp_path, machine=alone), train(None, machine=alone, plain=True)
    assert all(torch.equal(stored.adapter[name], value) for name, value in plain.adapter.items())


def test_an_evaluation_reads_what_another_has_stored(tmp_path, encoded):
    found = []
    for folder in (None, tmp_path, tmp_path):
        model = build()
        encoder = encoder_of(model, Machine(), image_size=SIZE, folder=folder)
        encoded.clear()
        test_sets = {"test": splits()["test"]}
        found.append((evaluate(model, test_sets, Machine(), image_size=SIZE, encoder=encoder).rows, list(encoded)))
    assert found[0] == found[1]
    assert found[2] == (found[0][0], [])


def test_an_oracle_embeds_the_images_itself(tmp_path, encoded):
    model = build("sam_zero_shot", prompt="box")
    encoder = encoder_of(model, Machine(), image_size=SIZE, folder=tmp_path)
    assert type(encoder) is Encoder
    assert evaluate(model, {"test": splits()["test"]}, Machine(), image_size=SIZE, encoder=encoder).rows
    assert encoded == [4, 1]


def test_an_encoder_that_is_trained_is_always_asked(tmp_path, encoded):
    model = build("lora")
    encoder = encoder_of(model, Machine(), image_size=SIZE, folder=tmp_path)
    assert type(encoder) is Encoder
    images = torch.stack(pictures())
    assert [encoder.find(image) for image in images] == [None] * 3
    assert torch.equal(encoder(images).features, model.encode(images).features)
    assert encoded == [3, 3]
    assert files(tmp_path) == []


def test_an_embedding_that_holds_more_than_features_is_not_stored(tmp_path, monkeypatch):
    model, images = build(), torch.stack(pictures())
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *given: encode(*given)._replace(aux_losses={"a": torch.ones(3)}))
    encoder = encoder_of(model, Machine(), image_size=SIZE, folder=tmp_path)
    assert encoder(images).aux_losses["a"].tolist() == [1, 1, 1]
    assert files(tmp_path) == []


def changed_weight(model: Model) -> None:
    with torch.no_grad():
        model.image_encoder.blocks[0].mlp.lin1.weight[0, 0] += 1e-2


@pytest.mark.parametrize("what", ["weights", "decoder", "size", "precision", "code"])
def test_a_folder_holds_the_embeddings_of_one_encoder(tmp_path, monkeypatch, what):
    model, machine, size = build(), Machine(), SIZE
    before = encoder_of(model, machine, image_size=size, folder=tmp_path).folder
    if what == "weights":
        changed_weight(model)
    elif what == "decoder":
        nn.init.ones_(model.mask_decoder.mask_tokens.weight)
    elif what == "size":
        size = SIZE + 32
        model = build(size=size)
    elif what == "precision":
        machine = Machine("cpu", "bf16")
    else:
        monkeypatch.setattr(embeddings, "module_digest", lambda module: f"another {module}")
    after = encoder_of(model, machine, image_size=size, folder=tmp_path).folder
    assert (after == before) is (what == "decoder")
    assert after.parent == tmp_path


def test_the_folder_is_named_after_the_weights_below_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    assert folder_of("vit_b", "0123456789abcdef") == tmp_path / "embeddings" / "vit_b-0123456789ab"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def wrong(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, wrong])
def test_a_damaged_file_is_made_anew(tmp_path, damage, caplog):
    images = torch.stack(pictures())
    first = encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path)
    expected = first(images).features
    (path, *_) = files(tmp_path)
    whole = path.read_bytes()
    damage(path)
    again = encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path)
    assert torch.equal(again(images).features, expected)
    assert f"{path} is damaged" in caplog.text
    assert path.read_bytes() == whole
    caplog.clear()
    assert torch.equal(again(images).features, expected)
    assert not caplog.records


def nearly_full(monkeypatch) -> None:
    disk(monkeypatch, free=10)


def full(monkeypatch) -> None:
    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", replace)


def a_file(monkeypatch) -> None:
    """Somebody's file lies where the folder should be."""
    monkeypatch.setattr(embeddings.ConstantEncoder, "_path", lambda self, image: self.folder / "a" / "b")


@pytest.mark.parametrize(
    ("refuse", "why"), [(nearly_full, "less than 10%"), (full, "No space left"), (a_file, "Not a directory")]
)
def test_where_nothing_can_be_stored_it_is_computed_with_one_warning(tmp_path, monkeypatch, caplog, refuse, why):
    images = torch.stack(pictures())
    expected = encoder_of(build(), Machine(), image_size=SIZE)(images).features
    encoder = encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path)
    if refuse is a_file:
        encoder.folder.write_text("")
    refuse(monkeypatch)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert torch.equal(encoder(images).features, expected)
    (record,) = caplog.records
    assert why in record.getMessage()
    assert [path for path in files(tmp_path) if path != encoder.folder] == []


def test_what_is_stored_is_still_read_when_the_disk_is_full(tmp_path, monkeypatch, encoded):
    images = torch.stack(pictures())
    encoder = encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path)
    expected = encoder(images[:2]).features
    nearly_full(monkeypatch)
    encoded.clear()
    assert torch.equal(encoder(images).features[:2], expected)
    assert encoded == [1]


def test_the_log_says_where_and_how_much(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    encoder = encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path, images=1_000_000)
    assert encoder.bytes == 128 * (SIZE // 16) ** 2 * 4
    assert f"{encoder.folder}: 0 are there, up to 1,000,000 are needed, {encoder.bytes:,} MB" in caplog.text


def test_several_can_fill_one_folder_at_once(tmp_path):
    images = torch.stack(pictures(TRAIN))
    expected = encoder_of(build(), Machine(), image_size=SIZE)(images).features
    encoders = [encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path) for _ in range(3)]
    together, found = threading.Barrier(len(encoders)), []

    def fill(encoder: Callable[[Tensor], Embedding]) -> None:
        together.wait()
        found.append(encoder(images).features)

    threads = [threading.Thread(target=fill, args=[encoder]) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(one, expected) for one in found)
    assert len(files(tmp_path)) == TRAIN
    reader = encoder_of(build(), Machine(), image_size=SIZE, folder=tmp_path)
    assert all(torch.equal(reader.find(image), one) for image, one in zip(images, expected, strict=True))
