"""``python -m datasets``: what people and scripts read, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import listing, registry
from datasets.__main__ import main, parameters
from datasets.files import FileDataset
from datasets.layout import Layout
from datasets.parts import Folders

PROJECT = Path(__file__).resolve().parents[2]
COUNTS = {"train": 3, "validation": 2, "test": 2}
REPORT = {
    "dataset", "title", "parameters", "base", "layout", "note", "splits", "usable", "left_out", "published", "paper",
    "missing", "more", "problems", "leftovers", "images", "masks", "blank", "all_foreground", "foreground", "classes",
    "duplicates", "leaked", "near_duplicates", "uniform", "digests", "whole", "errors", "warnings",
}  # fmt: skip


class Tiny(FileDataset):
    """A dataset for these tests."""

    title = "Tiny pictures"
    split_seed = 1
    metrics = ("iou",)
    layouts = (
        Layout(
            "three folders", {split: (Folders((f"{split}/a",), (f"{split}/b",)),) for split in COUNTS}, note="[new]"
        ),
    )
    published = COUNTS
    steps = "draw it"
    terms = "free"


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tiny.name = "tiny"
    monkeypatch.setitem(registry._classes, "tiny", Tiny)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BENCH_DATA_ROOT", raising=False)
    monkeypatch.delenv("BENCH_TRACEBACK", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with a whole copy of tiny; its path holds what rich takes for markup."""
    root = tmp_path / "data [red]"
    for place, (split, count) in enumerate(COUNTS.items()):
        for number in range(count):
            picture = np.random.default_rng(10 * place + number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
            for folder, pixels in (("a", picture), ("b", (picture[..., 0] > 99) * np.uint8(255))):
                (root / "tiny" / split / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / "tiny" / split / folder / f"{split}{number}.png")
    return root


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "datasets", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def test_help_is_quick_and_documents_the_exit_codes(capsys: pytest.CaptureFixture) -> None:
    for words in ([], ["list"], ["fetch"], ["verify"], ["prepare"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
    assert "exit code: 0 the copy is whole" in capsys.readouterr().out
    code = (
        "import sys, contextlib, datasets.__main__ as it\n"
        "with contextlib.suppress(SystemExit): it.main(['--help'])\n"
        "print({'torch', 'rich', 'scipy', 'pandas', 'cv2', 'filelock'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_list_has_a_line_for_every_dataset(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "--data-root", str(root)]) == 0
    shown = capsys.readouterr().out
    assert f"datasets in {root}: each was looked for in {root}/NAME and in the folder itself" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert set(registry.names()) <= set(lines)
    assert lines["tiny"].split() == ["tiny", "there", "3", "2", "Tiny", "pictures,", "test", "2"]
    assert lines["isic2017"].split()[1] == "missing" and "python -m datasets fetch isic2017" in shown
    assert shown.endswith(f"to each of these commands belongs --data-root {root}\n")
    assert lines["shapes"].split()[1] == "generated" and "needs --set" in lines["folder"]


def test_list_for_scripts(root: Path, capsys: pytest.CaptureFixture) -> None:
    (root / "tiny" / "train" / "b" / "train0.png").unlink()
    assert main(["list", "--json", "--data-root", str(root)]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert sorted(entries) == registry.names()
    assert entries["tiny"] == {
        "name": "tiny",
        "title": "Tiny pictures",
        "state": "there",
        "layout": "three folders",
        "base": str(root / "tiny"),
        "splits": {"train": 2, "val": 2, "test": 2},
        "published": {"train": 3, "val": 2, "test": 2},
        "problems": 1,
        "package": None,
        "error": "",
    }
    assert entries["isic2017"]["state"] == "missing"
    assert f"{root / 'isic2017'} (no such folder)" in entries["isic2017"]["error"]
    assert all(entry["state"] in listing.STATES and entry["title"] for entry in entries.values())


def test_list_says_what_is_short(root: Path, capsys: pytest.CaptureFixture) -> None:
    (root / "tiny" / "train" / "b" / "train0.png").unlink()
    main(["list", "--data-root", str(root)])
    shown = capsys.readouterr().out
    assert "published are 3 train; files that do not fit: 1" in shown and "python -m datasets verify tiny" in shown


def test_list_names_an_unreadable_table_and_asks_for_no_parameters(root: Path, capsys: pytest.CaptureFixture) -> None:
    (root / "sbu").mkdir()
    for name in ("train", "val", "test"):
        (root / "sbu" / f"{name}.csv").write_text("image,label\n", encoding="utf-16")
    main(["list", "--data-root", str(root)])
    lines = capsys.readouterr().out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("sbu")]
    assert lines[place].split()[1] == "there" and "files that do not fit: 3" in "".join(lines[place : place + 4])
    assert main(["verify", "sbu", "--data-root", str(root)]) == 1
    assert "train.csv: it is no text in UTF-8" in capsys.readouterr().out


def test_list_needs_parameters_where_they_are_wrong_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listing.entry("folder", root)["state"] == "needs --set"
    assert listing.entry("folder", root, {"of": "/"})["state"] == "error"

    def failing(self: Tiny, root: Path | None = None) -> None:
        raise ValueError("a broken file")

    monkeypatch.setattr(Tiny, "find", failing)
    assert listing.entry("tiny", root)["state"] == "error"


def test_a_root_with_many_files_is_listed_once_for_each_dataset(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        (root / f"{number}.jpg").touch()
    listings: list[str] = []
    listdir = os.listdir

    def counting(path: str | Path) -> list[str]:
        listings.append(str(path))
        return listdir(path)

    monkeypatch.setattr("datasets.tree.os.listdir", counting)
    for name in registry.names():
        listings.clear()
        listing.entry(name, root)
        assert listings.count(str(root)) <= 1 and len(listings) == len(set(listings)), name


def test_list_without_a_folder_says_how_to_name_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["list"])
    assert "no data folder is named: --data-root DIR or BENCH_DATA_ROOT=DIR" in capsys.readouterr().out
    main(["list", "--data-root", str(tmp_path / "gone")])
    assert "gone, which is no folder" in capsys.readouterr().out


def test_a_failing_dataset_hides_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def failing(self: Tiny, root: Path | None = None) -> None:
        raise KeyError("oh")

    monkeypatch.setattr(Tiny, "find", failing)
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "KeyError: 'oh'" in shown and "shapes" in shown
    assert main(["list", "--json"]) == 0
    assert "KeyError" in next(e for e in json.loads(capsys.readouterr().out) if e["name"] == "tiny")["error"]


@pytest.mark.parametrize("name", registry.names())
def test_every_dataset_in_full(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", name, "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"({name})" in shown
    assert main(["list", name, "--json", "--data-root", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["about"]
    if found["state"] == "missing":
        assert str(tmp_path / name) in shown
        assert found["layouts"] and found["steps"] and found["test_sets"] and found["paper"]
        assert all(archive["url"] in shown.replace("\n", "") for archive in found["archives"])


def test_a_dataset_in_full(root: Path, capsys: pytest.CaptureFixture) -> None:
    main(["list", "tiny", "--data-root", str(root)])
    shown = capsys.readouterr().out
    for words in ("there, in", "draw it", "free", "train/a/", "train 3, val 2, test 2", "foreground is above 127"):
        assert words in shown


def test_parameters_of_a_dataset(root: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--set", "of=tiny", "--set", "images={split}/a", "--set", "masks={split}/b", "--data-root", str(root)]
    assert main(["list", "folder", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 3, "val": 2, "test": 2}
    assert main(["verify", "folder", "--json", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == {"of": "tiny", "images": "{split}/a", "masks": "{split}/b"}
    assert report["published"] == report["missing"] == {}


def test_set_reads_toml() -> None:
    words = ["of=lungs", "threshold=3", "shares=[0.1, 2]", "text='4'", "odd=a=b", "yes=true"]
    expected = {"of": "lungs", "threshold": 3, "shares": [0.1, 2], "text": "4", "odd": "a=b", "yes": True}
    assert parameters(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "isic2018"], "Did you mean 'isic2017'"),
        (["list", "isic2018"], "Did you mean 'isic2017'"),
        (["verify", "shapes", "--set", "size"], "write KEY=VALUE"),
        (["verify", "shapes", "--set", "siz=3"], "Did you mean 'size'"),
        (["list", "--set", "of=lungs"], "needs the NAME"),
        (["verify", "tiny"], "No data folder was named"),
    ],
)
def test_usage_errors(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.out == ""


def test_verify_of_a_whole_copy(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", "tiny", "--data-root", str(root)]) == 0
    captured = capsys.readouterr()
    assert f"three folders, in {root / 'tiny'}" in captured.out and "whole" in captured.out and "[new]" in captured.out
    assert main(["verify", "tiny", "--json", "--data-root", str(root)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == REPORT
    assert report["splits"] == report["published"] == report["paper"] == {"train": 3, "val": 2, "test": 2}


def test_verify_of_a_copy_with_everything_wrong(root: Path, capsys: pytest.CaptureFixture) -> None:
    here = root / "tiny"
    (here / "train" / "a" / "train0.png").write_bytes(b"<html>404</html>")
    (here / "test" / "a" / "test1.png").write_bytes((here / "train" / "a" / "train1.png").read_bytes())
    with Image.open(here / "train" / "a" / "train2.png") as picture:
        picture.point([level * 3 // 4 for level in range(256)] * 3).save(here / "test" / "a" / "test0.png")
    Image.new("L", (40, 32)).save(here / "test" / "b" / "test0.png")
    (here / "validation" / "b" / "validation1.png").unlink()
    assert main(["verify", "tiny", "--data-root", str(root)]) == 1
    shown = capsys.readouterr().out
    for words in (
        "1 missing",
        "corrupt images (1)\n  train/a/train0.png: is no picture",
        "images without a mask (1)\n  validation/a/validation1.png",
        "train train1 = test test1",
        "test test0 ~ train train2",
        "blank masks (1)\n  test test0",
        "error: missing pairs: 1 of 2 val",
        "error: 1 of 2 images of test are files for training or validation too",
        "error: files that cannot be used: images without a mask (1), corrupt images (1)",
        "warning: 1 of 2 images of test closely resemble",
        "warning: blank masks: 1 test",
        "not whole; 5 pairs are usable",
        "python -m datasets list tiny",
        "--allow-broken",
    ):
        assert words in shown
    assert main(["verify", "tiny", "--json", "--data-root", str(root)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["whole"] and len(report["errors"]) == 3 and report["missing"] == {"val": 1}
    assert report["usable"] == {"train": 2, "val": 1, "test": 2}


def test_long_lists_are_cut_for_people_only(root: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(30):
        Image.new("L", (40, 32)).save(root / "tiny" / "test" / "b" / f"spare{number}.png")
    assert main(["verify", "tiny", "--data-root", str(root)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("test/b/spare") == 20 and "and 10 more (--json names all)" in shown
    main(["verify", "tiny", "--json", "--data-root", str(root)])
    assert len(json.loads(capsys.readouterr().out)["problems"][0]["files"]) == 30


def test_json_stands_alone_on_stdout() -> None:
    words = ("verify", "shapes", "--set", "train_images=2", "--set", "validation_images=1", "--set", "test_images=1")
    done = run(*words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["splits"] == {"train": 2, "val": 1, "test": 1}
    done = run("verify", "isic2017", "--json", "--data-root", PROJECT / "docs")
    assert (done.returncode, done.stdout) == (2, "") and "ISIC-2017_Training_Data" in done.stderr


def test_fetch_and_prepare_get_their_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    fetch = types.ModuleType("datasets.fetch")
    fetch.fetch = lambda *given: called.append(given) or 3
    prepared = types.ModuleType("datasets.prepared")
    prepared.prepare_command = lambda *given, **named: called.append((*given, named)) or 4
    monkeypatch.setitem(sys.modules, "datasets.fetch", fetch)
    monkeypatch.setitem(sys.modules, "datasets.prepared", prepared)
    assert main(["fetch", "tiny", "--data-root", str(tmp_path)]) == 3
    assert main(["prepare", "tiny", "--image-size", "64"]) == 4
    words = ["--workers", "2", "--allow-broken", "--set", "of=lungs", "--data-root", str(tmp_path)]
    assert main(["prepare", "folder", "--image-size", "1024", *words]) == 4
    assert called == [
        ("tiny", tmp_path),
        ("tiny", None, {"image_size": 64, "workers": 0, "allow_broken": False, "parameters": {}}),
        (
            "folder",
            tmp_path,
            {"image_size": 1024, "workers": 2, "allow_broken": True, "parameters": {"of": "lungs"}},
        ),
    ]


def test_fetch_and_prepare_take_these_options() -> None:
    import inspect

    from datasets.fetch import fetch
    from datasets.prepared import prepare_command

    inspect.signature(fetch).bind("tiny", None)
    options = {"image_size": 64, "workers": 0, "allow_broken": False, "parameters": {}}
    inspect.signature(prepare_command).bind("tiny", None, **options)


def test_the_real_partial_copy_of_isic(test_data: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", "isic2017", "--data-root", str(test_data / "isic2017_512"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] == report["usable"] == {"train": 1800, "val": 121, "test": 529}
    assert report["published"] == report["paper"] == {"train": 2000, "val": 150, "test": 600}
    assert report["missing"] == {"train": 200, "val": 29, "test": 71}
    assert report["problems"] == report["duplicates"] == [] and report["errors"] == [
        "missing pairs: 200 of 2,000 train, 29 of 150 val, 71 of 600 test"
    ]
    assert report["masks"]["modes"] == {"L": 2450} and report["masks"]["levels"] == [0, 255]
    # Seen by eye: the same photograph under two numbers, and the same lesion photographed anew.
    near = {(entry["image"][1], *entry["nearest"]) for entry in report["near_duplicates"]}
    assert {
        ("ISIC_0012989", "train", "ISIC_0012887"),
        ("ISIC_0016003", "val", "ISIC_0012222"),
        ("ISIC_0014826", "train", "ISIC_0000162"),
    } <= near
    assert 10 <= len(near) <= 16


def test_real_masks_of_kvasir_are_noisy_and_read(test_data: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", "folder", "--set", "of=Kvasir-SEG", "--data-root", str(test_data / "kvasir_seg_5")]) == 0
    assert "5 in mode RGB; values 0-8, 247-255; foreground is above 127" in capsys.readouterr().out
