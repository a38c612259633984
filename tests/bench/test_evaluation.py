"""Scoring against a plain loop under both protocols, in workers too; signs of a collapsed model; the files written."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import methods
from bench import evaluation as evaluation_module
from bench import scoring
from bench.evaluation import MOST_WORKERS, Evaluation, evaluate, workers_for
from bench.machine import Machine
from bench.metrics import Scores, metrics_of
from bench.prediction import at_mask_size
from datasets import Split
from methods import Context, Embedding, Model, Output

SIZE = 32


class Scenes(Split):
    """Bright rectangles on noise, every image of another native size."""

    def __init__(self, count: int = 5) -> None:
        self.identifiers = tuple(f"scene{number}" for number in range(count))

    def image(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(index).integers(0, 120, (*self.mask(index).shape, 3))
        return (noise + 110 * self.mask(index)[..., None]).astype(np.uint8)

    def mask(self, index: int) -> np.ndarray:
        mask = np.zeros((40 + 3 * index, 70 - 2 * index), dtype=np.uint8)
        mask[5 : 15 + 3 * index, 7 : 31 + index] = 1
        return mask


class Bright(Model):
    """Says how bright a pixel is, scaled and shifted; also how often which of two experts was chosen."""

    def __init__(self, scale: float = 6.0, shift: float = -3.0, experts: bool = False) -> None:
        super().__init__()
        self.scale, self.shift, self.experts = scale, shift, experts
        self.weight = nn.Parameter(torch.zeros(()))
        self.modes: set[tuple[bool, bool]] = set()

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        self.modes.add((self.training, torch.is_grad_enabled()))
        counts = torch.tensor([[[1, 2], [3, 0]]]).expand(len(images), 2, 2) if self.experts else None
        return Embedding(images.float(), {}, counts)

    def decode(self, embedding: Embedding) -> Output:
        masks = embedding.features.mean(1, keepdim=True) / 255 * self.scale + self.shift
        return Output(masks, expert_counts=embedding.expert_counts)


def plain_loop(split: Split, scale: float = 6.0, shift: float = -3.0) -> dict[str, Scores]:
    """Both protocols' scores of :class:`Bright`, image by image and with Pillow and numpy alone."""
    scores = {"paper": Scores("paper"), "literature": Scores("literature")}
    for index in range(len(split)):
        image, mask, name = split[index]
        small = np.array(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
        probability = 1 / (1 + np.exp(-(small.mean(-1) / 255 * scale + shift), dtype=np.float32))
        nearest = np.array(Image.fromarray(mask).resize((SIZE, SIZE), Image.Resampling.NEAREST))
        scores["paper"].add(name, probability.astype(np.float32), nearest)
        native = np.rint(bilinear(probability, mask.shape) * 255).astype(np.uint8)
        scores["literature"].add(name, native, mask)
    return scores


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel centres at half coordinates, the border repeated."""
    for axis, length in enumerate(size):
        place = np.clip((np.arange(length) + 0.5) * values.shape[axis] / length - 0.5, 0, values.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        share = np.expand_dims(place - low, 1 - axis)
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    return values


def test_both_protocols_equal_a_plain_loop():
    split, model = Scenes(), Bright()
    evaluation = evaluate(model, {"easy": split, "hard": Scenes(2)}, Machine(), image_size=SIZE)
    assert evaluation.images == {"easy": 5, "hard": 2}
    assert model.modes == {(False, False)}
    for name, test_set in (("easy", split), ("hard", Scenes(2))):
        expected = plain_loop(test_set)
        for protocol in ("paper", "literature"):
            found = evaluation.scores[name][protocol]
            assert set(found) == set(metrics_of(1))
            assert found == pytest.approx(expected[protocol].mean(), abs=2e-4)
            rows = [row for row in evaluation.rows if (row["test_set"], row["protocol"]) == (name, protocol)]
            assert [row["image"] for row in rows] == list(test_set.identifiers)
            for row, plain in zip(rows, expected[protocol].rows, strict=True):
                assert row["mae"] == pytest.approx(plain["mae"], abs=1e-5)
                assert row["iou"] == pytest.approx(plain["iou"], abs=2e-3)
    assert evaluation.scores["easy"]["paper"] != evaluation.scores["easy"]["literature"]
    assert evaluation.degenerate == []
    assert evaluation.experts == []


def test_the_size_of_the_counts_is_the_protocols():
    (small, native) = evaluate(Bright(), {"test": Scenes(1)}, Machine(), image_size=SIZE).rows
    assert sum(small[key] for key in ("tp", "fp", "fn", "tn")) == SIZE * SIZE
    assert sum(native[key] for key in ("tp", "fp", "fn", "tn")) == 40 * 70


@pytest.mark.parametrize("size", [(40, 70), (16, 9), (32, 32), (2, 300)])
def test_maps_are_brought_to_native_size(size):
    probability = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    native = at_mask_size(probability, size, 1).numpy()
    assert native.dtype == np.uint8
    difference = np.abs(native.astype(int) - np.rint(bilinear(probability.numpy(), size) * 255).astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


def test_progress_is_told():
    seen: list[tuple] = []
    evaluate(Bright(), {"test": Scenes(5)}, Machine(), image_size=SIZE, watch=lambda *given: seen.append(given))
    assert seen == [("test", 4, 5), ("test", 5, 5)]


def test_a_collapsed_model_is_noticed():
    def signs(**model: float) -> list[str]:
        return evaluate(Bright(**model), {"test": Scenes(3)}, Machine(), image_size=SIZE).degenerate

    assert signs(scale=0.0, shift=-1.0) == ["test: predicts no foreground anywhere"]
    assert signs(scale=0.0, shift=1.0) == ["test: predicts foreground everywhere"]
    assert signs() == []

    class Half(Bright):
        def decode(self, embedding: Embedding) -> Output:
            masks = torch.full((len(embedding.features), 1, SIZE, SIZE), -1.0)
            masks[..., : SIZE // 2] = 1.0
            return Output(masks)

    assert evaluate(Half(), {"test": Scenes(3)}, Machine(), image_size=SIZE).degenerate == [
        "test: predicts the same area in every image"
    ]
    assert evaluate(Half(), {"test": Scenes(1)}, Machine(), image_size=SIZE).degenerate == [], "one image shows nothing"


def test_expert_counts_are_summed_over_images():
    evaluation = evaluate(Bright(experts=True), {"a": Scenes(5), "b": Scenes(1)}, Machine(), image_size=SIZE)
    rows = [(row["test_set"], row["layer"], row["expert"], row["count"]) for row in evaluation.experts]
    assert rows == [
        ("a", 0, 0, 5),
        ("a", 0, 1, 10),
        ("a", 1, 0, 15),
        ("a", 1, 1, 0),
        ("b", 0, 0, 1),
        ("b", 0, 1, 2),
        ("b", 1, 0, 3),
        ("b", 1, 1, 0),
    ]


def test_the_experts_of_conv_lora_count_every_map_they_saw():
    """At 192 pixels a window block sees 2 x 2 windows of 8 tokens, a global block one map."""
    torch.manual_seed(0)
    model = methods.create("conv_lora").build(Context(image_size=192, backbone="tiny", checkpoint="none"))
    evaluation = evaluate(model, {"test": Scenes(2)}, Machine(), image_size=192)
    seen = pandas.DataFrame(evaluation.experts).groupby("layer")["count"].sum()
    assert list(seen) == [2 if layer in (2, 5, 8, 11) else 8 for layer in range(12)]
    assert len(evaluation.experts) == 12 * 8


def test_the_tables_are_readable_and_hold_what_pooled_metrics_need(tmp_path):
    evaluation = evaluate(Bright(experts=True), {"test": Scenes(4)}, Machine(), image_size=SIZE)
    assert evaluation.write(tmp_path) == ["per_image.parquet", "experts.parquet"]
    table = pandas.read_parquet(tmp_path / "per_image.parquet")
    per_image = {key for key, metric in metrics_of(1).items() if metric.aggregate == "mean"}
    counts = {"tp", "fp", "fn", "tn", "ber_tp", "ber_fp", "ber_fn", "ber_tn"}
    assert {"test_set", "image", "protocol"} | per_image | counts == set(table.columns)
    assert len(table) == 8
    assert not table.isna().any().any()
    for protocol, rows in table.groupby("protocol"):
        scores = evaluation.scores["test"][protocol]
        assert {key: rows[key].mean() for key in per_image} == pytest.approx({key: scores[key] for key in per_image})
        pooled = rows[sorted(counts)].sum()
        recalls = [
            pooled["ber_tp"] / (pooled["ber_tp"] + pooled["ber_fn"]),
            pooled["ber_tn"] / (pooled["ber_tn"] + pooled["ber_fp"]),
        ]
        assert scores["ber_pooled"] == pytest.approx(1 - sum(recalls) / 2)
    assert list(pandas.read_parquet(tmp_path / "experts.parquet").columns) == ["test_set", "layer", "expert", "count"]


def test_without_experts_there_is_no_table_of_them(tmp_path):
    evaluation = Evaluation(rows=[{"test_set": "test", "image": "a", "protocol": "paper", "iou": 0.5}])
    assert evaluation.write(tmp_path) == ["per_image.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["per_image.parquet"]


class Labels(Bright):
    """Three classes by brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3

    def probabilities(self, output: Output) -> Tensor:
        grey = output.masks[:, 0].sigmoid()
        return torch.stack([1 - grey, grey, 1.5 * grey.square()], dim=1)


@pytest.mark.parametrize("kind", [Bright, Labels])
def test_workers_change_no_bit_and_no_order(kind, monkeypatch):
    monkeypatch.setattr(scoring, "WORTH_SECONDS", 0.0)
    test_sets = {"many": Scenes(11), "few": Scenes(2)}
    here, elsewhere = (evaluate(kind(), test_sets, Machine(), image_size=SIZE, workers=n) for n in (0, 1))
    assert repr(elsewhere) == repr(here)
    assert [row["image"] for row in elsewhere.rows[:11]] == list(Scenes(11).identifiers)


def test_a_gpus_slot_lends_its_threads_to_scoring_and_a_cpu_needs_them(monkeypatch):
    for threads, workers in ((1, 0), (8, 7), (64, MOST_WORKERS)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert workers_for(Machine("cuda:0")) == workers
        assert workers_for(Machine("cpu")) == 0


def test_the_next_batch_is_predicted_before_one_is_waited_for(monkeypatch):
    """So that a device computes while the host scores."""
    events: list[str] = []
    decode, arrive = Bright.decode, evaluation_module._Predicted.arrive
    monkeypatch.setattr(Bright, "decode", lambda *given: events.append("predict") or decode(*given))
    monkeypatch.setattr(evaluation_module._Predicted, "arrive", lambda self: events.append("arrive") or arrive(self))
    evaluate(Bright(), {"test": Scenes(12)}, Machine(), image_size=SIZE)
    assert events == ["predict", "predict", "arrive", "predict", "arrive", "arrive"]
