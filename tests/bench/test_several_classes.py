"""Several classes from the matrix to the result: one real small run, and what its parts do with odd labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

import datasets
import methods
from bench.data import SquashedSplit
from bench.evaluation import evaluate
from bench.machine import Machine
from bench.prediction import at_image_size, at_mask_size, class_areas
from bench.regime import Regime
from bench.run import main
from bench.spec import make_cell
from bench.store import Results, read_json
from bench.training import Trainer
from datasets import IGNORE, Split
from methods import Context, Embedding, Model, Output

CLASSES = ("ground", "tower", "pond")
SIZE = 64
MATRIX = """
name = "towns"
backbone = "tiny"
checkpoint = "none"
image_size = 64
[[cells]]
methods = ["lora"]
regime = { epochs = 2, lr = 1e-3, mask_tokens = 4 }
[[cells.datasets]]
name = "folder"
of = "towns"
images = "{split}/images"
masks = "{split}/labels"
class_names = ["ground", "tower", "pond"]
ignore = 9
"""


def town(index: int, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a tower and a pond, and its labels; a strip at the border counts nowhere."""
    mask = np.zeros((side, side + 8), dtype=np.uint8)
    mask[4 : 20 + index, 4 + index : 16 + index] = 1
    mask[30:42, 20 : 36 + index % 4] = 2
    image = np.random.default_rng(index).integers(0, 60, (*mask.shape, 3)).astype(np.uint8)
    image[..., 0] += 150 * (mask == 1).astype(np.uint8)
    image[..., 2] += 150 * (mask == 2).astype(np.uint8)
    mask[:, :3] = IGNORE
    return image, mask


class Towns(Split):
    """The same in memory; ``odd`` puts that label into one picture."""

    def __init__(self, count: int, odd: int | None = None) -> None:
        self.identifiers = tuple(f"town{number}" for number in range(count))
        self.odd = odd

    def image(self, index: int) -> np.ndarray:
        return town(index)[0]

    def mask(self, index: int) -> np.ndarray:
        mask = town(index)[1]
        if self.odd is not None and index == 1:
            mask[5, 5] = self.odd
        return mask


class Unlabelled(Towns):
    def mask(self, index: int) -> np.ndarray:
        return np.full_like(town(index)[1], IGNORE)


def lora(**context: object) -> Model:
    torch.manual_seed(0)
    given = {"num_classes": 3, "image_size": SIZE, "backbone": "tiny", "checkpoint": "none", "mask_tokens": 4}
    return methods.create("lora").build(Context(**given | context))


def regime(**values: object) -> Regime:
    return Regime(loss="set_prediction", validation_metric="miou_all", points=64, batch_size=2, epochs=1, **values)


def squashed(split: Split) -> SquashedSplit:
    return SquashedSplit(split, SIZE, num_classes=3)


def test_a_cell_of_several_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in {"train": 6, "val": 2, "test": 3}.items():
        for name in ("images", "labels"):
            (tmp_path / "data" / "towns" / split / name).mkdir(parents=True)
        for index in range(count):
            image, mask = town(index)
            folder, file = tmp_path / "data" / "towns" / split, f"{split}{index}.png"
            Image.fromarray(image).save(folder / "images" / file)
            Image.fromarray(np.where(mask == IGNORE, 9, mask).astype(np.uint8)).save(folder / "labels" / file)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "towns.toml").write_text(MATRIX)
    words = ["--matrix", str(tmp_path / "towns.toml"), "--data-root", str(tmp_path / "data"), "--devices", "cpu"]
    assert main([*words, "--results", str(tmp_path / "results"), "--no-tracking"]) == 0

    (folder,) = Results(tmp_path / "results").cells()
    result, history = folder.result(), (folder.path / "history.jsonl").read_text().splitlines()
    assert result["classes"] == list(CLASSES) and result["resolved"]["regime"]["loss"] == "set_prediction"
    for scores in result["scores"]["test"].values():
        assert set(scores) == set(result["metrics"]) and len(scores["iou"]) == 3
        assert scores["miou_all"] == pytest.approx(np.mean([value or 0.0 for value in scores["iou"]]))
    assert [set(json.loads(line)["validation"]) for line in history] == [{"miou_all"}] * 2
    rows = pyarrow.parquet.read_table(folder.path / "per_image.parquet").to_pylist()
    assert [row["protocol"] for row in rows] == ["paper"] * 3 + ["literature"] * 3
    native = [np.bincount(town(index)[1].ravel(), minlength=256)[:3].tolist() for index in range(3)]
    counted = [np.reshape(row["confusion"], (3, 3)).sum(1).tolist() for row in rows]
    assert counted[3:] == native, "at the masks' own size every labelled pixel counts, and no other"
    assert read_json(folder.path / "adapter.json")["context"]["mask_tokens"] == 4
    assert methods.load(folder.path).num_classes == 3


def test_a_label_of_no_class_is_named_with_its_image() -> None:
    for split in (Towns(3, odd=17), Towns(3, odd=3)):
        with pytest.raises(ValueError, match=rf"town1 holds \[{split.odd}\].*\[0, 1, 2, 255\]"):
            Trainer(lora(), regime(), Machine(), seed=0).fit(squashed(split), squashed(Towns(1)))
        with pytest.raises(ValueError, match=rf"town1 holds \[{split.odd}\]"):
            evaluate(lora(), {"test": split}, Machine(), image_size=SIZE)
    with pytest.raises(ValueError, match=r"town0 holds \[2, 255\].*\[0, 1\]"):
        SquashedSplit(Towns(1), SIZE)[0]


def test_images_without_a_label_neither_train_nor_count() -> None:
    model = lora()
    before = {name: value.clone() for name, value in model.trainable().items()}
    one = Trainer(model, regime(weight_decay=0.0), Machine(), seed=0)
    record = one.fit(squashed(Unlabelled(2)), squashed(Unlabelled(1)))
    assert record.last_loss == 0.0 and record.best_epoch == 0 and record.best_validation is None
    assert all(torch.equal(value, before[name]) for name, value in model.trainable().items())
    evaluation = evaluate(model, {"test": Unlabelled(2)}, Machine(), image_size=SIZE)
    scores = evaluation.scores["test"]["paper"]
    assert scores.pop("iou") == [None] * 3 and set(scores.values()) == {None}


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_micro_batch_changes_no_weight(micro_batch: int) -> None:
    trained = []
    for size in (0, micro_batch):
        model = lora()
        Trainer(model, regime(lr=1e-3), Machine(micro_batch=size), seed=0).fit(squashed(Towns(6)), squashed(Towns(1)))
        trained.append(model.trainable())
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], atol=2e-4), name


def test_training_lowers_the_loss() -> None:
    """That classes are found is shown on real images, in ``test_camvid_real.py``: identical tokens part slowly."""
    one = Trainer(lora(checkpoint="auto"), regime(lr=1e-3).model_copy(update={"epochs": 8}), Machine(), seed=0)
    record = one.fit(squashed(Towns(4)), squashed(Towns(1)))
    assert record.last_loss < 0.95 * record.first_loss


class Constant(Model):
    """Predicts one class wherever it looks."""

    def __init__(self, label: int, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.label = label

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        return Embedding(images.float(), {})

    def decode(self, embedding: Embedding) -> Output:
        classes = torch.full((len(embedding.features), 1, self.num_classes + 1), -10.0)
        classes[..., self.label] = 10.0
        return Output(torch.full((len(embedding.features), 1, SIZE, SIZE), 5.0), classes)


def test_a_constant_prediction_is_called_one() -> None:
    signs = evaluate(Constant(0), {"test": Towns(3)}, Machine(), image_size=SIZE).degenerate
    assert signs == ["test: predicts class 0 everywhere", "test: no better than class 0 everywhere"]
    worse = evaluate(Constant(2), {"test": Towns(3)}, Machine(), image_size=SIZE)
    assert worse.degenerate == ["test: predicts class 2 everywhere", "test: no better than class 0 everywhere"]
    assert worse.constants["test"]["class"] == 0
    assert worse.constants["test"]["miou_all"] > worse.scores["test"]["paper"]["miou_all"]


class Lands(Towns):
    """The same with the ponds dried up: two named classes."""

    def mask(self, index: int) -> np.ndarray:
        mask = super().mask(index)
        return np.where(mask == 2, 0, mask).astype(np.uint8)


def test_two_named_classes_are_no_foreground_and_background() -> None:
    signs = evaluate(Constant(1, num_classes=2), {"test": Lands(3)}, Machine(), image_size=SIZE).degenerate
    assert signs == ["test: predicts class 1 everywhere", "test: no better than class 0 everywhere"]


def test_where_no_pixel_counts_there_is_no_best_constant() -> None:
    evaluation = evaluate(Constant(1), {"test": Unlabelled(2)}, Machine(), image_size=SIZE)
    assert evaluation.constants == {} and evaluation.degenerate == ["test: predicts class 1 everywhere"]


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_areas_count_what_is_decided(num_classes: int) -> None:
    shape = (3, 8, 6) if num_classes == 1 else (3, num_classes, 8, 6)
    probabilities = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    decided = at_image_size(probabilities, num_classes).numpy()
    labels = probabilities > 0.5 if num_classes == 1 else probabilities.argmax(1)
    assert decided.shape == (3, 8, 6) and decided.dtype == (np.float32 if num_classes == 1 else np.uint8)
    assert (decided == (probabilities if num_classes == 1 else labels).numpy()).all()
    expected = [[int((image == label).sum()) for label in range(max(2, num_classes))] for image in labels]
    assert class_areas(decided, num_classes) == expected


def test_scores_are_decided_at_the_masks_own_size() -> None:
    scores = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    native = at_mask_size(scores, (40, 23), 3).numpy()
    resized = [np.asarray(Image.fromarray(channel.numpy()).resize((23, 40), Image.BILINEAR)) for channel in scores]
    assert native.dtype == np.uint8 and native.shape == (40, 23)
    assert (native == np.argmax(resized, axis=0)).mean() > 0.98


def test_few_shot_cells_train_by_the_recipe_of_few_shots() -> None:
    def cell(shots: int | None, **changed: object):
        return make_cell(
            method=methods.create("lora"),
            dataset=datasets.load("trans10k_v2"),
            seed=0,
            backbone="tiny",
            checkpoint="none",
            image_size=64,
            precision="fp32",
            shots=shots,
            regime=changed,
        )

    few, whole = cell(4), cell(None)
    assert (few.regime().epochs, few.regime().patience) == (100, 0)
    assert (whole.regime().epochs, whole.regime().patience) == (30, 10)
    assert few.spec["regime"] == whole.spec["regime"] == {"version": 1}
    assert cell(4, epochs=30).spec["regime"] == {"version": 1, "epochs": 30}
    assert few.context().mask_tokens == 10 and cell(None, mask_tokens=20).context().mask_tokens == 20
