"""Exported cells: alone in another folder and process they repeat their cell's test scores to the last bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import datasets
import methods
from bench import cell as bench_cell
from bench.metrics import scores_of
from bench.spec import make_cell
from bench.store import Results
from methods import Context
from methods.__main__ import main
from methods.delta import CARD, WEIGHTS, AdapterError
from methods.export import CannotExport, export, find
from methods.export_text import readme
from methods.lora import LoRA
from methods.sam.build import random_parts
from methods.sam.checkpoints import OFFICIAL
from methods.sam.sizes import SIZES

CLASSES = ("ground", "left", "right")
SIDE = 64
CELLS = {
    "lora": ("shapes", "lora", "fp32"),
    "conv_lora": ("shapes", "conv_lora", "bf16"),
    "decoder_only": ("shapes", "decoder_only", "fp32"),
    "several": ("plain", "lora", "fp32"),
}
"""Dataset, method and precision of the cells trained here."""

ALONE = """
import sys
from pathlib import Path
import numpy as np
import torch

torch.set_num_threads(1)
import methods
from methods.predict import probabilities

for folder in map(Path, sys.argv[1:]):
    images = [np.load(path) for path in sorted((folder / "images").glob("*.npy"))]
    model = methods.load(folder)
    side = (model.image_size, model.image_size)
    own, square, masks = probabilities(model, images), probabilities(model, images, side), model.predict(images)
    for index, one in enumerate(zip(own, square, masks, strict=True)):
        np.savez(folder / f"{index}.npz", own=one[0], square=one[1], mask=one[2])
assert not {"bench.evaluation", "datasets", "pandas", "mlflow"} & sys.modules.keys()
"""
"""What a stranger runs: ``datasets`` may be Hugging Face's there."""


def several_classes(root: Path) -> datasets.Dataset:
    """Twelve images of odd sizes in three classes, with pixels that do not count."""
    for folder in ("images", "masks"):
        (root / "plain" / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(12):
        height, width = 40 + 7 * index, 90 - 5 * index
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 3], mask[height // 2 :, 2 * width // 3 :], mask[: height // 8] = 1, 2, 9
        image = random.integers(0, 60, (height, width, 3)) + 60 * mask[..., None].clip(0, 2)
        Image.fromarray(image.astype(np.uint8)).save(root / "plain" / "images" / f"{index:02d}.png")
        Image.fromarray(mask).save(root / "plain" / "masks" / f"{index:02d}.png")
    return datasets.load("folder", of="plain", class_names=CLASSES, ignore=9, test_share=0.5)


def train(results: Path, root: Path, dataset: datasets.Dataset, method: methods.Method, precision: str) -> Path:
    """The folder of a done cell, on the backbone that comes with the project."""
    setting = {"backbone": "tiny", "checkpoint": "tiny.safetensors", "image_size": SIDE, "precision": precision}
    regime = {"epochs": 4, "lr": 0.003} if dataset.num_classes == 1 else {"epochs": 1}
    cell = make_cell(method=method, dataset=dataset, seed=1, regime=regime, **setting)
    folder = Results(results).cell(cell.id)
    folder.create(cell, {})
    assert bench_cell.main([cell.id, "--results", str(results), "--threads", "1", "--data-root", str(root)]) == 0
    return folder.path


def stir(folder: Path, root: Path) -> None:
    """Change what was learned and score that: so short a training has taught one class to all pixels."""
    random, state = torch.Generator().manual_seed(5), load_file(folder / WEIGHTS)
    for name in [name for name in state if "hypernetworks" in name]:
        state[name] += torch.randn(state[name].shape, generator=random)
    save_file(state, folder / WEIGHTS)
    words = ["--results", str(folder.parent.parent), "--threads", "1", "--data-root", str(root), "--evaluate"]
    assert bench_cell.main([folder.name, *words]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[tuple[dict[str, Path], dict[str, datasets.Dataset], Path]]:
    """Folders of done cells by name, the datasets, and where these lie."""
    results, root = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("data")
    given = {
        "shapes": datasets.load("shapes", train_images=8, validation_images=2, test_images=6, size=72),
        "plain": several_classes(root),
    }
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    folders = {
        name: train(results, root, given[dataset], methods.create(method), precision)
        for name, (dataset, method, precision) in CELLS.items()
    }
    stir(folders["several"], root)
    yield folders, given, root
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


def test_an_exported_adapter_repeats_its_scores_elsewhere(trained, tmp_path: Path) -> None:
    """Every metric under both protocols, from another process that knows nothing but the folder."""
    folders, given, root = trained
    tested = {name: given[CELLS[name][0]].open(root)["test"] for name in folders}
    for name, folder in folders.items():
        export(folder, tmp_path / name)
        (tmp_path / name / "images").mkdir()
        for index in range(len(tested[name])):
            np.save(tmp_path / name / "images" / f"{index:02d}.npy", tested[name].image(index))
    words = [sys.executable, "-c", ALONE, *(str(tmp_path / name) for name in folders)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(methods.__file__).parents[1])
    assert done.returncode == 0, done.stderr

    for name, folder in folders.items():
        split, classes = tested[name], given[CELLS[name][0]].num_classes
        scores = {protocol: scores_of(protocol, classes) for protocol in ("paper", "literature")}
        kinds = set()
        for index, identifier in enumerate(split.identifiers):
            found, mask = np.load(tmp_path / name / f"{index}.npz"), split.mask(index)
            assert found["mask"].shape == mask.shape and found["mask"].dtype == np.uint8
            if classes == 1:
                map_, small = (found["own"] * 255).round().astype(np.uint8), found["square"]
                np.testing.assert_array_equal(found["mask"], map_ > 127)
            else:
                map_, small = found["mask"], found["square"].argmax(0).astype(np.uint8)
            kinds |= set(np.unique(found["mask"]).tolist())
            scores["literature"].add(identifier, map_, mask)
            scores["paper"].add(identifier, small, datasets.squash_mask(mask, SIDE))
        assert len(kinds) > 1, f"{name} predicts one class everywhere"
        result = json.loads((folder / "result.json").read_text())
        assert {protocol: score.mean() for protocol, score in scores.items()} == result["scores"]["test"]


def test_masks_alone_give_what_is_counted_in_masks(trained) -> None:
    folders, given, root = trained
    split, literature = given["shapes"].open(root)["test"], scores_of("literature", 1)
    masks = methods.load(folders["lora"]).predict([split.image(index) for index in range(len(split))])
    for index, mask in enumerate(masks):
        literature.add(split.identifiers[index], 255 * mask, split.mask(index))
    scored = json.loads((folders["lora"] / "result.json").read_text())["scores"]["test"]["literature"]
    for metric in ("iou", "dice", "accuracy", "t_jaccard"):
        assert literature.mean()[metric] == scored[metric]


def test_a_cell_is_loaded_as_it_was_computed(trained) -> None:
    for name, folder in trained[0].items():
        model = methods.load(folder)
        assert (model.image_size, model.precision) == (SIDE, CELLS[name][2])


def test_the_card_says_what_it_is_and_where_it_comes_from(trained, tmp_path: Path) -> None:
    folder = trained[0]["several"]
    files = export(folder, tmp_path / "out")
    assert [path.name for path in files] == [WEIGHTS, CARD, "README.md"]
    assert sorted(tmp_path.glob("out/*")) == sorted(files)
    card, result = json.loads(files[1].read_text()), json.loads((folder / "result.json").read_text())
    assert card["cell"] == folder.name and card["scores"] == result["scores"] and card["precision"] == "fp32"
    assert card["method"]["parameters"] == {"rank": 3, "alpha": 32.0, "last_k": None}
    assert card["context"] | {"checkpoint": "tiny.safetensors", "num_classes": 3, "seed": 1} == card["context"]
    assert card["classes"] == list(CLASSES) and card["decision"] == "the largest score"
    assert card["trained_with"]["commit"] == result["environment"]["commit"] and "host" not in card["trained_with"]
    assert files[0].read_bytes() == (folder / WEIGHTS).read_bytes()


def test_the_readme_has_lines_that_work_scores_and_terms(trained, tmp_path: Path) -> None:
    folder = trained[0]["lora"]
    export(folder, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "image.jpg")
    code = text.split("```python\n")[1].split("```")[0]
    made: dict = {}
    exec(code.replace("DIR", str(tmp_path / "out")).replace("image.jpg", str(tmp_path / "image.jpg")), made)
    assert made["mask"].shape == (30, 50)
    scores = json.loads((folder / "result.json").read_text())["scores"]["test"]["literature"]
    assert f"| test (6 images) | literature | {100 * scores['iou']:.2f} | {100 * scores['dice']:.2f} |" in text
    assert "# LoRA on Shapes" in text and "0 background, 1 foreground" in text and "Apache-2.0" in text
    assert "segment_anything" not in text


def test_a_complete_network_needs_no_checkpoint(trained, tmp_path: Path, caplog) -> None:
    context = Context(backbone="vit_h", checkpoint="no_such_sam.pth", image_size=SIDE)
    model = methods.create("linknet34mtl").build(replace(context, checkpoint="none")).eval()
    card = {
        "method": {"name": "linknet34mtl", "parameters": {}},
        "context": asdict(context),
        "backbone_digest": "0" * 64,
    }
    methods.save(model, tmp_path, card)
    caplog.clear()
    loaded = methods.load(tmp_path)
    assert not caplog.records, "nothing is downloaded or missed"
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    model.image_size, model.precision = loaded.image_size, loaded.precision
    np.testing.assert_array_equal(loaded.predict(picture), model.predict(picture))
    with pytest.raises(AdapterError, match="no_such_sam.pth"):
        methods.save(model, tmp_path, {**card, "method": {"name": "lora", "parameters": {}}})
        methods.load(tmp_path)

    export(trained[0]["lora"], tmp_path / "out")
    card = json.loads((tmp_path / "out" / CARD).read_text())
    assert card["on_backbone"] is True and "The rest is the backbone" in readme(card, merged=None)
    text = readme({**card, "on_backbone": False}, merged=None)
    assert "That is the whole network; it needs no checkpoint." in text and "The rest" not in text


def test_the_command(trained, tmp_path: Path, capsys) -> None:
    folder = trained[0]["lora"]
    words = ["export", folder.name[:12], "--results", str(folder.parent.parent), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert all(str(tmp_path / "out" / name) in capsys.readouterr().out for name in (WEIGHTS,))
    assert main(words) == 2
    assert "is not empty; name another folder" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "merged"), "--merged"]) == 2
    assert "segment_anything has no tiny" in capsys.readouterr().err and not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shapes-lorra", r"no cell 'shapes-lorra' in .*cells: shapes-lora-s1-\w{8}, folder-lora"),
        ("shapes", r"3 cells begin with 'shapes' in .*: shapes-conv_lora.*, shapes-decoder_only.*, shapes-lora"),
    ],
)
def test_an_unknown_cell_is_answered_with_those_there_are(trained, name: str, said: str) -> None:
    with pytest.raises(CannotExport, match=said):
        find(trained[0]["lora"].parent.parent, name)


def test_an_empty_results_folder(tmp_path: Path) -> None:
    with pytest.raises(CannotExport, match=r"no cell 'x' in .*cells: there are none"):
        find(tmp_path, "x")


def test_a_cell_that_is_not_done_is_refused_with_its_state(tmp_path: Path) -> None:
    shapes = datasets.load("shapes")
    setting = {"backbone": "tiny", "checkpoint": "none", "image_size": SIDE, "precision": "fp32"}
    cell = make_cell(method=methods.create("lora"), dataset=shapes, seed=0, **setting)
    folder = Results(tmp_path).cell(cell.id)
    folder.create(cell, {})
    for state in ("planned", "failed"):
        folder.set_state(state)
        with pytest.raises(CannotExport, match=f"{cell.id} is not done: {state}. .*bench.why {cell.id} --results"):
            export(folder.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_published_copy_and_a_cell_that_trained_nothing_are_refused(trained, tmp_path: Path) -> None:
    copy = tmp_path / "cells" / trained[0]["lora"].name
    shutil.copytree(trained[0]["lora"], copy)
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"parameters": {"trainable": 0, "total": 9}}))
    with pytest.raises(CannotExport, match="has trained nothing"):
        export(copy, tmp_path / "out")
    (copy / WEIGHTS).unlink()
    with pytest.raises(CannotExport, match=f"holds no {WEIGHTS}: published copies leave it out"):
        export(copy, tmp_path / "out")


def test_what_a_method_writes_for_other_programs_is_there_too(trained, tmp_path: Path, monkeypatch) -> None:
    def extras(self: LoRA, model: methods.Model, folder: Path) -> list[Path]:
        file = folder / "other.txt"
        file.write_text(" ".join(sorted(model.trainable())))
        return [file]

    monkeypatch.setattr(LoRA, "export_extras", extras)
    files = export(trained[0]["lora"], tmp_path / "out")
    assert files[-1] == tmp_path / "out" / "other.txt" and "lora_A" in files[-1].read_text()


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """adapter(backbone, checkpoint, digest): a folder whose card says that it was trained on that."""

    def write(backbone: str, checkpoint: str, digest: str) -> Path:
        context = asdict(Context(backbone=backbone, checkpoint=checkpoint))
        card = {"method": {"name": "lora", "parameters": {}}, "context": context, "backbone_digest": digest}
        (tmp_path / CARD).write_text(json.dumps(card))
        return tmp_path

    return write


def test_another_published_backbone_is_refused_with_both_names(adapter) -> None:
    digest = OFFICIAL["vit_b"].sha256
    folder = adapter("vit_b", OFFICIAL["vit_b"].file, digest)
    said = rf"trained on vit_b \(sam_vit_b_01ec64.pth, digest {digest[:12]}\), but .*belongs to vit_h, not to vit_b"
    with pytest.raises(AdapterError, match=said):
        methods.load(folder, checkpoint=OFFICIAL["vit_h"].file)


def test_a_card_of_another_backbone_is_refused_with_both_names(adapter) -> None:
    folder = adapter("vit_h", OFFICIAL["vit_b"].file, OFFICIAL["vit_b"].sha256)
    with pytest.raises(AdapterError, match=r"trained on vit_h \(sam_vit_b_01ec64.pth.*belongs to vit_b, not to vit_h"):
        methods.load(folder)


def test_a_file_of_another_backbone_is_refused_with_both_names(adapter, tmp_path: Path) -> None:
    size = SIZES["tiny"]
    torch.save(random_parts(size, size.native).state_dict(), tmp_path / "mine.pth")
    folder = adapter("vit_b", OFFICIAL["vit_b"].file, OFFICIAL["vit_b"].sha256)
    with pytest.raises(AdapterError, match=r"trained on vit_b \(sam_vit_b.*here is tiny \(mine.pth, digest \w{12}\)"):
        methods.load(folder, checkpoint=tmp_path / "mine.pth")


def test_random_weights_and_a_missing_file_are_named(adapter) -> None:
    folder = adapter("vit_b", "/elsewhere/own.pth", "0" * 64)
    with pytest.raises(AdapterError, match=r"trained on vit_b \(own.pth, digest 0{12}\), but here is vit_b \(random"):
        methods.load(folder, checkpoint="none")
    with pytest.raises(
        AdapterError, match=r"no file /elsewhere/own.pth. Where that one lies: methods.load\(DIR, check"
    ):
        methods.load(folder)


def test_the_backbone_may_lie_elsewhere(trained, tmp_path: Path) -> None:
    """A file of one's own is known by its content; the exported card holds no path of the machine it was trained on."""
    folder = tmp_path / "cell"
    shutil.copytree(trained[0]["lora"], folder)
    card = json.loads((folder / CARD).read_text())
    card["context"]["checkpoint"] = "/home/somebody/mine.safetensors"
    (folder / CARD).write_text(json.dumps(card))
    export(folder, tmp_path / "out")
    assert "somebody" not in "".join(path.read_text() for path in tmp_path.glob("out/*.*[nd]"))
    assert "a file of its owner's" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(AdapterError, match=r"mine.safetensors.*checkpoint=PATH"):
        methods.load(tmp_path / "out")
    own = tmp_path / "here.safetensors"
    shutil.copy(Path(methods.__file__).parent / "sam" / "tiny.safetensors", own)
    image = np.full((20, 30, 3), 90, np.uint8)
    expected = methods.load(trained[0]["lora"]).predict(image)
    np.testing.assert_array_equal(methods.load(tmp_path / "out", checkpoint=own).predict(image), expected)
