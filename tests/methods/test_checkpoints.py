"""Checkpoints: what a setting means, and fetching once and safely."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.sam import checkpoints
from methods.sam.build import native_shapes
from methods.sam.checkpoints import BUNDLED, OFFICIAL, Checkpoint, CheckpointError, file_digest, resolve

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


SMALL = {"image_encoder.pos_embed": torch.randn(1, 4, 4, 8), "mask_decoder.iou_token.weight": torch.randn(1, 8)}
SHAPES = {key: value.shape for key, value in SMALL.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pth"
    torch.save(SMALL, path)
    return path


def assert_small(state: dict[str, Tensor]) -> None:
    assert state.keys() == SMALL.keys()
    for key, value in SMALL.items():
        assert torch.equal(state[key], value), key


# ---------------------------------------------------------------- what a setting means


def test_the_official_checkpoints_are_consistent() -> None:
    assert sorted(OFFICIAL) == ["vit_b", "vit_h", "vit_l"]
    for backbone, official in OFFICIAL.items():
        assert official.backbone == backbone and backbone in official.file
        assert official.url.startswith("https://") and official.url.endswith(f"/{official.file}")
        assert re.fullmatch("[0-9a-f]{64}", official.sha256)
        weights = 4 * sum(shape.numel() for shape in native_shapes(backbone).values())
        assert 0 < official.bytes - weights < 400_000
    assert len({official.sha256 for official in OFFICIAL.values()}) == 3


@pytest.mark.parametrize("backbone", ["vit_h", "vit_l", "vit_b"])
def test_auto_and_the_official_names_mean_the_same_file(backbone: str, cache: Path) -> None:
    official = OFFICIAL[backbone]
    found = {resolve(backbone, name) for name in ("auto", official.file, official.file.removesuffix(".pth"))}
    assert found == {Checkpoint(official.file, cache / "checkpoints" / official.file, official)}
    assert not found.pop().random


@pytest.mark.parametrize(("backbone", "checkpoint"), [("tiny", "none"), ("vit_h", "none")])
def test_random_weights(backbone: str, checkpoint: str) -> None:
    found = resolve(backbone, checkpoint)
    assert found == Checkpoint("none") and found.random and found.digest() == "random"
    with pytest.raises(CheckpointError, match="random weights"):
        found.load()


@pytest.mark.parametrize("checkpoint", ["auto", "tiny.safetensors"])
def test_the_tiny_backbone_starts_from_the_weights_that_come_with_the_project(checkpoint: str) -> None:
    found = resolve("tiny", checkpoint)
    assert found == Checkpoint("tiny.safetensors", BUNDLED["tiny"]) and not found.random
    assert found.digest() == hashlib.sha256(BUNDLED["tiny"].read_bytes()).hexdigest()
    assert found.load(native_shapes("tiny")).keys() == native_shapes("tiny").keys()
    with pytest.raises(CheckpointError, match='belongs to tiny, not to vit_b. Set backbone = "tiny"'):
        resolve("vit_b", "tiny.safetensors")


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    path = resolve("vit_b", "auto").path
    assert path == Path("/home/somebody/.cache/sam-peft-bench/checkpoints/sam_vit_b_01ec64.pth")


def test_a_path_is_named_by_its_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("vit_b", str(file)) == Checkpoint("mine.pth", file)
    monkeypatch.chdir(file.parent)
    assert resolve("vit_b", "mine.pth").name == "mine.pth"
    monkeypatch.setenv("HOME", str(file.parent))
    assert resolve("vit_b", "~/mine.pth").path == file


def test_an_unknown_name_gets_the_nearest_and_all() -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve("vit_h", "sam_vit_h_4b8938.pth")
    message = str(caught.value)
    assert "Did you mean 'sam_vit_h_4b8939.pth'?" in message
    assert all(word in message for word in ("auto", "none", "sam_vit_b_01ec64.pth", ".safetensors"))


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no file {tmp_path}/gone.pth"):
        resolve("vit_h", f"{tmp_path}/gone.pth")
    with pytest.raises(CheckpointError, match=f"no file {tmp_path}"):
        resolve("vit_h", str(tmp_path))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of \.pth, \.pt, \.safetensors"):
        resolve("vit_h", f"{tmp_path}/model.onnx")


def test_the_official_file_of_another_backbone_is_refused_before_any_download(tmp_path: Path) -> None:
    copy = tmp_path / "sam_vit_b_01ec64.pth"
    copy.write_bytes(b"")
    for checkpoint in ("sam_vit_b_01ec64", str(copy)):
        with pytest.raises(CheckpointError, match='belongs to vit_b, not to vit_h.*backbone = "vit_b"'):
            resolve("vit_h", checkpoint)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'vit_h'"):
        resolve("vith", "auto")


# ---------------------------------------------------------------- fetching


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in for vit_b's official file on a server of this machine; yields the requests it got."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()
    torch.save(SMALL, folder / "sam_vit_b_01ec64.pth")
    content = (folder / "sam_vit_b_01ec64.pth").read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.1)  # long enough for two clients to meet
            super().do_GET()

        def log_message(self, template: str, *args: object) -> None:
            requests.append(template % args)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        official = replace(
            OFFICIAL["vit_b"],
            url=f"http://127.0.0.1:{server.server_port}/sam_vit_b_01ec64.pth",
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
        )
        monkeypatch.setitem(OFFICIAL, "vit_b", official)
        yield requests
        server.shutdown()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that checkpoints.py computes a digest of."""
    files: list[str] = []

    def file_digest(stream, name):
        files.append(stream.name)
        return compute(stream, name)

    compute = hashlib.file_digest
    monkeypatch.setattr(checkpoints.hashlib, "file_digest", file_digest)
    return files


def test_an_official_checkpoint_is_downloaded_on_first_use(served: list[str], capsys: pytest.CaptureFixture) -> None:
    checkpoint = resolve("vit_b", "auto")
    assert served == [] and not checkpoint.path.exists()
    assert checkpoint.digest() == OFFICIAL["vit_b"].sha256 and served == []
    assert_small(checkpoint.load(SHAPES))
    assert "sam_vit_b_01ec64.pth: 0 of 0 MB (100%)" in capsys.readouterr().err
    assert_small(resolve("vit_b", "auto").load(SHAPES))
    assert len(served) == 1


def test_the_digest_is_computed_once(served: list[str], hashed: list[str]) -> None:
    checkpoint = resolve("vit_b", "auto")
    checkpoint.fetch()
    of_the_file = hashed.count(str(checkpoint.path))
    assert of_the_file == 1
    for _ in range(3):
        resolve("vit_b", "auto").fetch()
    assert hashed.count(str(checkpoint.path)) == 1


def test_a_changed_file_gets_a_new_digest(file: Path, hashed: list[str]) -> None:
    old = file_digest(file)
    assert old == hashlib.sha256(file.read_bytes()).hexdigest() == resolve("tiny", str(file)).digest()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(0, 1))
    assert file_digest(file) == hashlib.sha256(content).hexdigest() != old
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    file: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "in the way"))
    assert file_digest(file) == file_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(hashed) == 2


def test_a_torn_memory_is_not_believed(file: Path, cache: Path) -> None:
    digest = file_digest(file)
    (memory,) = (cache / "digests").iterdir()
    memory.write_text(digest[:10])
    assert file_digest(file) == digest == memory.read_text()


@pytest.mark.parametrize(("damage", "problem"), [(b"", "bytes instead of"), (b"\1", "sha256 .* instead of")])
def test_a_wrong_file_under_an_official_name_is_refused(served: list[str], damage: bytes, problem: str) -> None:
    path = resolve("vit_b", "auto").fetch()
    path.write_bytes(path.read_bytes()[:-1] + damage)
    os.utime(path, ns=(0, 1))  # by a coarse clock both are of the same moment
    with pytest.raises(CheckpointError, match=problem) as caught:
        resolve("vit_b", "auto").load()
    assert "Remove it and run again" in str(caught.value)
    assert path.exists(), "it may be the user's own"


def test_a_copy_elsewhere_under_the_official_name_has_to_be_the_official_one(served: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "sam_vit_b_01ec64.pth"
    copy.write_bytes((tmp_path / "served" / "sam_vit_b_01ec64.pth").read_bytes())
    found = resolve("vit_b", str(copy))
    assert found.name == OFFICIAL["vit_b"].file and found.fetch() == copy and served == []
    torch.save(SMALL | {"more": torch.zeros(1)}, copy)
    with pytest.raises(CheckpointError, match="is not the official"):
        resolve("vit_b", str(copy)).load()


def test_a_failed_download_says_how_to_do_it_by_hand(
    served: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = replace(OFFICIAL["vit_b"], url=OFFICIAL["vit_b"].url + ".gone")
    monkeypatch.setitem(OFFICIAL, "vit_b", official)
    with pytest.raises(CheckpointError) as caught:
        resolve("vit_b", "auto").load()
    message = str(caught.value)
    wanted = ("404", official.file, official.url, f"{official.bytes:,} bytes", official.sha256)
    assert all(part in message for part in (*wanted, str(cache / "checkpoints"), "checkpoint = "))


CHILD = """
import sys
from methods.sam.checkpoints import OFFICIAL, Official, resolve
OFFICIAL["vit_b"] = Official("vit_b", "sam_vit_b_01ec64.pth", sys.argv[1], sys.argv[2], int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
print(resolve("vit_b", "auto").fetch())
"""


def test_processes_that_want_the_same_checkpoint_download_it_once(served: list[str]) -> None:
    official = OFFICIAL["vit_b"]
    command = [sys.executable, "-c", CHILD, official.url, official.sha256, str(official.bytes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, cwd=PROJECT, **pipes) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=300)[0] for child in children]
    assert answers == [f"{resolve('vit_b', 'auto').path}\n"] * 2
    assert [child.returncode for child in children] == [0, 0]
    assert len(served) == 1
