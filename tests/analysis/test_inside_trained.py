"""Cells trained here are opened again: they answer as they were scored, and both commands show them."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import datasets
import methods
from analysis import features, predictions
from analysis.inside.picks import confusion, iou
from analysis.inside.trained import Trained, another_copy, decide, open_splits
from bench import cell as bench_cell
from bench.metrics.classes import score_classes
from bench.metrics.overlap import Counts
from bench.metrics.overlap import iou as bench_iou
from bench.prediction import at_image_size, at_mask_size
from bench.spec import make_cell
from bench.store import Results

CLASSES = ("ground", "left", "right")
SIZES = [(70, 53), (33, 90), (64, 64), (81, 80), (47, 47), (120, 64), (64, 30), (90, 91), (64, 64), (55, 70)]
"""(H, W) of the images of several classes: odd ones, flat ones, tall ones."""


def several_classes(root: Path) -> datasets.Dataset:
    """Ten images in three classes with pixels that do not count; some hold one class alone."""
    for folder in ("images", "masks"):
        (root / "plain" / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 3] = 1
        mask[height // 2 :, 2 * width // 3 :] = 2
        mask[: height // 8] = 9
        mask = np.full_like(mask, index % 3) if index in (2, 5) else mask
        image = random.integers(0, 60, (height, width, 3)) + 60 * mask[..., None].clip(0, 2)
        Image.fromarray(image.astype(np.uint8)).save(root / "plain" / "images" / f"{index:02d}.png")
        Image.fromarray(mask).save(root / "plain" / "masks" / f"{index:02d}.png")
    return datasets.load("folder", of="plain", class_names=CLASSES, ignore=9, test_share=0.5)


def train(results: Path, dataset: datasets.Dataset, method: methods.Method, seed: int, root: Path) -> Path:
    """The folder of a cell that is done, of a random backbone at 64 px."""
    setting = {"backbone": "tiny", "checkpoint": "none", "image_size": 64, "precision": "fp32"}
    cell = make_cell(method=method, dataset=dataset, seed=seed, regime={"epochs": 1}, **setting)
    folder = Results(results).cell(cell.id)
    folder.create(cell, {})
    words = ["--results", str(results), "--threads", "1", "--data-root", str(root)]
    assert bench_cell.main([cell.id, *words]) == 0
    return folder.path


def stir(folder: Path, root: Path) -> None:
    """Change what was trained and score that, for one epoch has taught one class to all pixels."""
    random = torch.Generator().manual_seed(5)
    state = load_file(folder / "adapter.safetensors")
    for name in [name for name in state if "hypernetworks" in name]:  # which make masks of mask tokens
        state[name] += torch.randn(state[name].shape, generator=random)
    save_file(state, folder / "adapter.safetensors")
    words = ["--results", str(folder.parent.parent), "--threads", "1", "--data-root", str(root), "--evaluate"]
    assert bench_cell.main([folder.name, *words]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A results folder and the data root: two methods and an oracle on shapes, two methods on several classes."""
    results, root = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("data")
    shapes = datasets.load("shapes", train_images=8, validation_images=2, test_images=5, size=72)
    plain = several_classes(root)
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("lora", "conv_lora"):
        for seed in (0, 1):
            train(results, shapes, methods.create(name), seed, root)
        stir(train(results, plain, methods.create(name), 0, root), root)
    train(results, shapes, methods.create("sam_zero_shot", {"prompt": "box"}), 0, root)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    return results, root


@pytest.fixture
def copied(made, tmp_path) -> tuple[Path, Path]:
    """A copy to be changed."""
    shutil.copytree(made[0], tmp_path / "results")
    return tmp_path / "results", made[1]


def cell_of(results: Path, begins: str) -> Path:
    return next(path for path in sorted((results / "cells").iterdir()) if path.name.startswith(begins))


def start(command: Callable, made: tuple[Path, Path], out: Path, *words: str) -> int:
    return command([*words, "--results", str(made[0]), "--data-root", str(made[1]), "--out", str(out)])


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize("size", [(64, 64), (31, 97), (200, 1)])
def test_pixels_are_decided_as_bench_decides_them(num_classes, size):
    torch.manual_seed(num_classes)
    shape = (1, 32, 32) if num_classes == 1 else (1, num_classes, 32, 32)
    probabilities = torch.rand(shape)
    probabilities.view(-1)[:5] = torch.tensor([0.5, 0.5000001, 0.498, 0.502, 0.0])
    found = decide(probabilities, size, num_classes)
    small = at_image_size(probabilities, num_classes)[0].numpy()
    large = at_mask_size(probabilities[0], size, num_classes).numpy()
    if num_classes == 1:
        small, large = small * np.float32(255) > 127.5, large > 127.5
    np.testing.assert_array_equal(found["paper"], small)
    np.testing.assert_array_equal(found["literature"], large)


@pytest.mark.parametrize(
    "begins", ["shapes-lora-s0", "shapes-conv_lora-s1", "shapes-sam_zero_shot", "folder-conv_lora"]
)
def test_every_image_gets_the_score_it_was_given(made, begins):
    folder = cell_of(made[0], begins)
    rows = pd.read_parquet(folder / "per_image.parquet").set_index(["image", "protocol"])
    trained, split = Trained(folder), open_splits(folder, made[1])["test"]
    several = "confusion" in rows
    assert len(rows) == 2 * len(split) == 10
    labels = []
    for index, image in enumerate(split.identifiers):
        squashed, mask = split.squashed(index, trained.size)
        predicted = trained.predict(squashed, mask)
        for protocol, truth in {"paper": datasets.squash_mask(mask, trained.size), "literature": mask}.items():
            labels.append(predicted.labels[protocol])
            counts = confusion(truth, labels[-1], 3 if several else 2)
            row = rows.loc[image, protocol]
            if several:
                assert counts.ravel().tolist() == list(row["confusion"])
            else:
                assert counts.ravel().tolist() == row[["tn", "fp", "fn", "tp"]].tolist()
                assert iou(counts, binary=True) == pytest.approx(row["iou"], abs=1e-6)
    assert any(len(np.unique(one)) > 1 for one in labels)


def test_features_are_what_the_encoder_hands_to_the_decoder(made):
    folder = cell_of(made[0], "shapes-conv_lora-s0")
    trained, split = Trained(folder), open_splits(folder, None)["test"]
    image, mask = split.squashed(0, trained.size)
    with torch.no_grad():
        embedding = methods.load(folder).encode(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
    predicted = trained.predict(image, mask)
    assert predicted.features.shape == (128, 4, 4)
    np.testing.assert_array_equal(predicted.features, embedding.features[0].numpy())


def test_another_copy_of_the_images_is_known_by_its_digest(copied):
    folder = cell_of(copied[0], "folder-lora")
    split = open_splits(folder, copied[1])["test"]
    assert not another_copy(folder, "test", split)
    assert another_copy(folder, "test", split.subset([0, 1]))


@pytest.mark.parametrize("prediction", ["random", "empty"])
@pytest.mark.parametrize("truth", ["random", "empty"])
def test_scores_are_those_of_bench(truth, prediction):
    random = np.random.default_rng(3)
    masks = {"random": random.integers(0, 2, (9, 7)).astype(np.uint8), "empty": np.zeros((9, 7), np.uint8)}
    counts = confusion(masks[truth], masks[prediction], 2)
    (tn, fp), (fn, tp) = counts.tolist()
    assert iou(counts, binary=True) == bench_iou(Counts(tp, fp, fn, tn))
    real = random.choice([0, 1, 2, 3, 255], (9, 7)).astype(np.uint8)
    guess = random.integers(0, 4, (9, 7)).astype(np.uint8)
    assert confusion(real, guess, 4).ravel().tolist() == score_classes(guess, real, "paper", 4)["confusion"]


def test_the_commands_write_what_was_scored(made, tmp_path, capsys):
    for command, kind in ((predictions.main, "predictions"), (features.main, "features")):
        assert start(command, made, tmp_path, "--images", "2") == 0
        cards = [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{kind}-*.json"))]
        assert {(card["about"]["dataset"].split()[0], card["about"]["rule"]) for card in cards} == {
            ("shapes", "random"), ("shapes", "difference"), ("folder", "random"), ("folder", "difference"),
        }  # fmt: skip
        for card in cards:
            assert card["kind"] == kind and card["caption"].startswith("RANDOM BACKBONE")
            assert "protocol literature" in card["caption"] and "tiny" in card["caption"]
            assert str(made[0].parent) not in card["caption"] and str(made[1]) not in json.dumps(card)
            data = pd.read_csv(tmp_path / f"{card['name']}.csv")
            np.testing.assert_allclose(data["score"], data["scored"], rtol=0, atol=1e-6)
            assert (data["differing_pixels"] == 0).all() and data["image"].nunique() <= 2
            assert all(
                (tmp_path / f"{card['name']}.{ending}").stat().st_size > 1000 for ending in ("svg", "pdf", "png")
            )
    assert "wrote" in capsys.readouterr().out


def test_both_commands_show_the_same_images(made, tmp_path):
    start(predictions.main, made, tmp_path, "--dataset", "shapes", "--rule", "random")
    start(features.main, made, tmp_path, "--dataset", "shapes", "--rule", "random")
    first, second = (pd.read_csv(next(tmp_path.glob(f"{kind}-*.csv"))) for kind in ("predictions", "features"))
    assert list(first["image"].unique()) == list(second["image"].unique())


def test_means_and_differences_are_those_of_the_files(made, tmp_path):
    assert start(predictions.main, made, tmp_path, "--dataset", "shapes", "--rule", "difference") == 0
    data = pd.read_csv(next(tmp_path.glob("*.csv")))
    means = {}
    for method in ("lora", "conv_lora"):
        files = [pd.read_parquet(cell_of(made[0], f"shapes-{method}-s{seed}") / "per_image.parquet") for seed in (0, 1)]
        means[method] = sum(f[f["protocol"] == "literature"].set_index("image")["iou"] for f in files) / 2
    difference = means["conv_lora"] - means["lora"]
    for line in data.itertuples():
        assert line.mean == pytest.approx(means[line.method][line.image])
        assert line.difference == pytest.approx(difference[line.image])
        assert line.ahead == ("conv_lora" if line.difference > 0 else "lora")
    ahead = difference[difference > 0].sort_values(ascending=False).index[:3]
    behind = difference[difference < 0].sort_values().index[:3]
    assert list(data["image"].unique()) == [*ahead, *behind]


def test_the_same_figure_is_the_same_files(made, tmp_path):
    for out in ("a", "b"):
        assert start(features.main, made, tmp_path / out, "--dataset", "shapes", "--rule", "random") == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 5
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_rows_are_named_as_in_tables_and_an_oracle_is_asked_with_the_mask(made, tmp_path):
    words = ["--dataset", "shapes", "--methods", "sam_zero_shot (prompt = box),lora", "--rule", "random"]
    assert start(predictions.main, made, tmp_path, *words, "--protocol", "paper") == 0
    data = pd.read_csv(next(tmp_path.glob("*.csv")))
    assert set(data["row"]) == {"sam_zero_shot (prompt = box)", "lora"}
    card = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert "--methods 'sam_zero_shot (prompt = box),lora'" in card["command"]
    assert "SAM zero-shot (prompt = box)" in card["caption"] or "(prompt = box)" in card["caption"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "lora,nope"], "unknown method 'nope'. With results here: conv_lora, lora, sam_zero_shot"),
        (["--methods", "lora,lora"], "twice"),
        (["--dataset", "isic"], "unknown dataset 'isic'. With results here: folder, shapes"),
        (["--test-set", "val"], "unknown test set 'val'. With results here: test"),
        (["--seed-of-cells", "7"], "have seeds 0, 1 and not 7. Next: --seed-of-cells 0"),
        (["--methods", "lora", "--rule", "difference"], "needs two methods; there is lora alone. Next: --rule random"),
        (["--methods", "vpt"], "unknown method 'vpt'"),
        (["--device", "abacus"], "no device 'abacus' here"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(made, tmp_path, capsys, words, said):
    assert start(predictions.main, made, tmp_path, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(said in line for line in lines) and all(line.startswith("analysis.predictions: ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_method_without_the_seed_is_left_out_and_told(copied, tmp_path, capsys):
    shutil.rmtree(cell_of(copied[0], "shapes-lora-s1"))
    words = ["--dataset", "shapes", "--seed-of-cells", "1", "--rule", "random", "--images", "1"]
    assert start(predictions.main, copied, tmp_path, *words) == 0
    assert "lora has no done cell of seed 1 and is left out" in capsys.readouterr().err
    assert list(pd.read_csv(next(tmp_path.glob("*.csv")))["method"]) == ["conv_lora"]


def test_features_need_two_methods(made, tmp_path, capsys):
    assert start(features.main, made, tmp_path, "--methods", "lora", "--dataset", "shapes") == 2
    assert "needs 2 methods" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["per_image.parquet"], "per_image.parquet is missing"),
        (["adapter.json"], "holds no adapter.json"),
        (["adapter.safetensors"], "holds no adapter.safetensors"),
        (["adapter.json", "adapter.safetensors", "per_image.parquet"], "--again"),
    ],
)
def test_a_missing_file_and_what_makes_it_are_named(copied, tmp_path, capsys, missing, said):
    folder = cell_of(copied[0], "shapes-lora-s0")
    for name in missing:
        (folder / name).unlink()
    assert start(predictions.main, copied, tmp_path / "out", "--dataset", "shapes") == 2
    error = capsys.readouterr().err
    assert said in error and f"python -m bench.cell {folder.name} --" in error and error.count("\n") == 1


def test_a_dataset_that_is_not_here_is_no_reason_to_show_no_other(made, tmp_path, capsys):
    assert start(predictions.main, (made[0], tmp_path), tmp_path / "out", "--images", "1") == 0
    error = capsys.readouterr().err
    assert "the dataset 'plain' was not found" in error and "--data-root DIR" in error
    assert all("shapes" in path.name for path in (tmp_path / "out").iterdir())


def test_pixels_decided_otherwise_on_another_machine_are_told(copied, tmp_path):
    path = cell_of(copied[0], "shapes-lora-s0") / "per_image.parquet"
    table = pd.read_parquet(path)
    table[["tp", "fn"]] += [3, -3]
    table.to_parquet(path)
    assert start(predictions.main, copied, tmp_path, "--dataset", "shapes", "--rule", "random") == 0
    data = pd.read_csv(next(tmp_path.glob("*.csv")))
    off = data["differing_pixels"] * 72 * 72
    np.testing.assert_allclose(off, np.where(data["method"] == "lora", 3, 0))
    largest = 100 * (data["score"] - data["scored"]).abs().max()
    caption = json.loads(next(tmp_path.glob("*.json")).read_text())["caption"]
    assert f"up to {largest:.2g} off what was scored elsewhere" in caption


def test_scores_of_other_parameters_are_refused(copied, tmp_path, capsys):
    first, second = cell_of(copied[0], "shapes-lora-s0"), cell_of(copied[0], "shapes-sam_zero_shot")
    shutil.copyfile(second / "per_image.parquet", first / "per_image.parquet")
    assert start(predictions.main, copied, tmp_path / "out", "--dataset", "shapes") == 2
    error = capsys.readouterr().err
    assert "otherwise than when it was scored: on the same images" in error
    assert "--evaluate" in error


def test_another_copy_of_the_images_is_refused(made, tmp_path, capsys):
    shutil.copytree(made[1], tmp_path / "data")
    for path in (tmp_path / "data" / "plain" / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(mask[: len(mask) // 2]).resize(mask.shape[::-1], Image.Resampling.NEAREST).save(path)
    words = ["--dataset", "folder", "--rule", "random"]
    assert start(predictions.main, (made[0], tmp_path / "data"), tmp_path / "out", *words) == 2
    assert "another copy" in capsys.readouterr().err


def test_an_unknown_folder_of_results(tmp_path, capsys):
    assert predictions.main(["--results", str(tmp_path / "no")]) == 2
    assert "Next: python -m bench.run" in capsys.readouterr().err
