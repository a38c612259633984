"""Fetching a throwaway dataset from a server on this machine that behaves, misbehaves and keeps a record."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tarfile import TarFile, TarInfo
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

import datasets.archives
import datasets.fetch
from datasets import DatasetMissing, registry
from datasets.fetch import fetch
from datasets.files import Archive, FileDataset
from datasets.layout import Layout
from datasets.parts import Folders

PROJECT = Path(__file__).parents[2]
NOISE = random.Random(0).randbytes(50_000)
TRAINING = {f"training/{kind}/{n}.png": NOISE[: 9000 + n] for kind in ("images", "masks") for n in range(3)}
TEST = {f"images/{n}.png": NOISE[n:] for n in range(2)} | {f"masks/{n}.png": NOISE[2 * n :] for n in range(2)}
FILES = TRAINING | {f"test/{name}": content for name, content in TEST.items()}


class Toys(FileDataset):
    """Not registered: it exists in these tests alone. Names are all that fetching looks at."""

    name = "toys"
    title = "Toys"
    split_seed = 1
    metrics = ("iou",)
    layouts = (
        Layout(
            "two archives",
            {
                split: (Folders((f"{folder}/images",), (f"{folder}/masks",)),)
                for split, folder in {"train": "training", "test": "test"}.items()
            },
        ),
    )
    aliases = ("Toy-Box",)
    published = {"train": 3, "test": 5}
    steps = "https://toys.example (the folders training and test)"
    terms = "for play"


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; ``asked`` is each request so far: its path, and its Range header if it has one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.errors: list[int] = []
        self.cuts: list[int] = []
        self.lengths = True
        self.content_type = ""
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients hang up on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, path, asked = self.server, self.path.removeprefix("/"), self.headers.get("Range", "")
        server.asked.append(f"{path} {asked}".strip())
        server.gate.wait(60)
        if server.errors or path not in server.files:
            self.send_error(server.errors.pop(0) if server.errors else 404)
            return
        content = server.files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        ranged = asked and self.headers.get("If-Range") in (None, etag)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if ranged else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        if server.content_type:
            self.send_header("Content-Type", server.content_type)
        self.end_headers()
        self.wfile.write(content[start:][: server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *args: object) -> None:
        """Quiet."""


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = BytesIO()
    with TarFile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> type[Toys]:
    """As if it were registered, where ``fetch`` looks."""
    monkeypatch.setattr(datasets.fetch, "registry", {"toys": Toys})
    monkeypatch.setattr("bench.download.time.sleep", lambda seconds: None)
    monkeypatch.delenv("BENCH_DATA_ROOT", raising=False)
    return Toys


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Two archives, of which one is published with size and digest; the other has no folder of its own."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        server.files = {"training.zip": zipped(TRAINING), "test%20set.tar.gz": tarred(TEST)}
        monkeypatch.setattr(Toys, "archives", archives(server), raising=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def archives(server: Server) -> tuple[Archive, ...]:
    training, test = server.files
    content = server.files[training]
    return (
        Archive(f"{server.url}/{training}", hashlib.sha256(content).hexdigest(), len(content)),
        Archive(f"{server.url}/{test}", into="test"),
    )


def tree(folder: Path) -> dict[str, bytes]:
    """All files but those that fetching itself needs."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in files.items() if ".fetch-toys" not in name.parts}


def working(base: Path) -> set[str]:
    """What is left of fetching but locks."""
    return {path.name for path in (base / ".fetch-toys").iterdir() if path.suffix != ".lock"}


def test_archives_are_fetched_checked_unpacked_and_removed(server: Server, tmp_path: Path, capsys) -> None:
    assert fetch("toys", tmp_path / "data") == 0
    base = tmp_path / "data" / "toys"
    assert tree(base) == FILES
    assert server.asked == ["training.zip", "test%20set.tar.gz"]
    assert {re.sub("^[0-9a-f]{8}-", "", name) for name in working(base)} == {
        "training.zip.json",
        "test set.tar.gz.json",
    }
    said = capsys.readouterr().out
    for expected in (
        f"Fetching toys into {base}. Terms: for play.",
        f"{hashlib.sha256(server.files['training.zip']).hexdigest()} (as published)",
        f"{hashlib.sha256(server.files['test%20set.tar.gz']).hexdigest()} (noted, as none is published)",
        f"toys in {base} (two archives):\n  train: 3 pairs\n  test: 2 pairs of 5\n",
        f"python -m datasets verify toys --data-root {tmp_path / 'data'}",
    ):
        assert expected in said


def test_a_second_run_does_nothing(server: Server, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path))
    assert fetch("toys") == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    server.asked.clear()
    capsys.readouterr()
    assert fetch("toys") == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix != ".lock" and path.is_file()}
    assert server.asked == [] and after.items() <= before.items() and tree(tmp_path / "toys") == FILES
    said = capsys.readouterr().out
    assert said.count("unpacked already") == 2 and "train: 3 pairs" in said


def test_only_the_archive_whose_files_are_gone_is_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch("toys", tmp_path)
    (tmp_path / "toys" / "test" / "masks" / "1.png").unlink()
    server.asked.clear()
    assert fetch("toys", tmp_path) == 0
    assert server.asked == ["test%20set.tar.gz"] and tree(tmp_path / "toys") == FILES


def test_another_published_digest_is_another_archive(server: Server, tmp_path: Path) -> None:
    fetch("toys", tmp_path)
    server.files["training.zip"] = zipped(TRAINING | {"training/errata.txt": b"new"})
    Toys.archives = archives(server)
    server.asked.clear()
    assert fetch("toys", tmp_path) == 0
    assert server.asked == ["training.zip"] and (tmp_path / "toys" / "training" / "errata.txt").exists()


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [20_000, 10_000]
    assert fetch("toys", tmp_path) == 0
    assert server.asked[:3] == ["training.zip", "training.zip bytes=20000-", "training.zip bytes=30000-"]
    assert tree(tmp_path / "toys") == FILES


def test_a_download_that_was_given_up_goes_on_with_the_next_command(server: Server, tmp_path: Path, capsys) -> None:
    fetch("toys", tmp_path)
    shutil.rmtree(tmp_path / "toys" / "test")
    server.asked.clear()
    server.cuts = [7000] + [0] * 10
    assert fetch("toys", tmp_path) == 1
    message = capsys.readouterr().err
    assert "the connection ended after 7,000 of" in message
    assert f"python -m datasets fetch toys --data-root {tmp_path}" in message
    server.cuts, server.asked = [], []
    assert fetch("toys", tmp_path) == 0
    assert server.asked == ["test%20set.tar.gz bytes=7000-"] and tree(tmp_path / "toys") == FILES


def test_an_archive_that_changes_between_two_attempts(server: Server, tmp_path: Path) -> None:
    server.files["test%20set.tar.gz"] = tarred({name: NOISE[::-1] for name in TEST})
    Toys.archives = archives(server)[1:]
    server.cuts = [30_000] + [0] * 10
    assert fetch("toys", tmp_path) == 1
    server.files["test%20set.tar.gz"] = tarred(TEST)
    server.cuts = []
    fetch("toys", tmp_path)
    assert server.asked[-1] == "test%20set.tar.gz bytes=30000-"
    assert tree(tmp_path / "toys" / "test") == TEST


def test_an_archive_of_unstated_length(server: Server, tmp_path: Path) -> None:
    server.lengths = False
    assert fetch("toys", tmp_path) == 0 and tree(tmp_path / "toys") == FILES


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (503, 4)])
def test_errors_of_the_server(server: Server, tmp_path: Path, code: int, requests: int, capsys) -> None:
    server.errors = [code] * 10
    assert fetch("toys", tmp_path) == 1
    message = capsys.readouterr().err
    assert len(server.asked) == requests
    for expected in (
        f"error: cannot download {server.url}/training.zip: the server answers {code}",
        f"save it as {tmp_path}/toys/.fetch-toys/",
        f"python -m datasets fetch toys --data-root {tmp_path}",
        Toys.steps,
    ):
        assert expected in message
    server.errors = []
    assert fetch("toys", tmp_path) == 0


def test_an_archive_saved_by_hand_where_the_message_says(server: Server, tmp_path: Path, capsys) -> None:
    content = server.files.pop("test%20set.tar.gz")
    assert fetch("toys", tmp_path) == 1
    place = re.search("save it as (.*)", capsys.readouterr().err)[1]
    Path(place).write_bytes(content)
    server.asked.clear()
    assert fetch("toys", tmp_path) == 0
    assert server.asked == [] and tree(tmp_path / "toys") == FILES


def test_a_wrong_checksum(server: Server, tmp_path: Path, capsys) -> None:
    right = server.files["training.zip"]
    server.files["training.zip"] = right[:-1] + b"?"
    assert fetch("toys", tmp_path) == 1
    message = capsys.readouterr().err
    assert (
        f"expected {hashlib.sha256(right).hexdigest()}); it was removed" in message and "datasets fetch toys" in message
    )
    assert tree(tmp_path) == {} and working(tmp_path / "toys") == set()
    server.files["training.zip"] = right
    assert fetch("toys", tmp_path) == 0


def linked() -> bytes:
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        info = ZipInfo("images")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")
    return buffer.getvalue()


def encrypted() -> bytes:
    content = bytearray(zipped({"x": b"1"}))
    content[6] = content[content.index(b"PK\1\2") + 8] = 1
    return bytes(content)


def lying() -> bytes:
    content = bytearray(zipped({"zeros": bytes(10_000_000)}))
    for start in (22, content.index(b"PK\1\2") + 24):
        content[start : start + 4] = (1000).to_bytes(4, "little")
    return bytes(content)


def corrupt() -> bytes:
    content = bytearray(zipped(TEST))
    content[3000] ^= 1
    return bytes(content)


PAGE = b"<!DOCTYPE html><title>Quota exceeded</title>" * 200
BAD = {
    "out of the folder": (tarred({"fine": b"1", "../../outside": b"2"}), "leads out of the folder", "kept"),
    "absolute": (zipped({"fine": b"1", "/tmp/outside": b"2"}), "leads out of the folder", "kept"),
    "link": (linked(), "is a link", "kept"),
    "bomb": (zipped({"zeros": bytes(10_000_000)}), "unpack to more than", "kept"),
    "lying bomb": (lying(), "is damaged", "removed"),
    "half": (zipped(TEST)[:-50], "is damaged or only a part of the archive", "removed"),
    "half in tar": (tarred(TEST)[:-50], "is damaged or only a part of the archive", "removed"),
    "corrupt": (corrupt(), "is damaged", "removed"),
    "encrypted": (encrypted(), "is encrypted", "kept"),
    "twice": (tarred({"x": b"1", "X": b"2"}), "differ in case alone", "kept"),
    "page": (PAGE, "a web page in place of the archive, probably a login or quota page", "removed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_archives_leave_nothing(case: str, server: Server, tmp_path: Path, capsys) -> None:
    content, reason, fate = BAD[case]
    right = server.files["test%20set.tar.gz"]
    server.files["test%20set.tar.gz"] = content
    assert fetch("toys", tmp_path) == 1
    message = capsys.readouterr().err
    assert f"error: {tmp_path}/toys/.fetch-toys/" in message and reason in message and fate in message
    assert f"python -m datasets fetch toys --data-root {tmp_path}" in message and Toys.steps in message
    assert tree(tmp_path / "toys") == TRAINING
    assert {path.name for path in tmp_path.iterdir()} == {"toys"}
    kept = {name for name in working(tmp_path / "toys") if not name.endswith(".json")}
    assert len(kept) == (fate == "kept")
    with pytest.raises(DatasetMissing):
        Toys().find(tmp_path)
    server.files["test%20set.tar.gz"] = right
    for name in kept:
        (tmp_path / "toys" / ".fetch-toys" / name).unlink()
    assert fetch("toys", tmp_path) == 0 and tree(tmp_path / "toys") == FILES


def test_a_page_that_says_it_is_one(server: Server, tmp_path: Path, capsys) -> None:
    Toys.archives = Toys.archives[1:]
    server.content_type = "text/html"
    assert fetch("toys", tmp_path) == 1
    assert "a web page in place of the file, probably a login or quota page" in capsys.readouterr().err
    assert working(tmp_path / "toys") == set()


def test_files_of_ones_own_are_not_overwritten(server: Server, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "toys" / "test" / "masks" / "1.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert fetch("toys", tmp_path) == 1
    assert f"{mine} is there already" in capsys.readouterr().err
    assert tree(tmp_path / "toys") == TRAINING | {"test/masks/1.png": b"mine"}
    mine.write_bytes(FILES["test/masks/1.png"])
    server.asked.clear()
    assert fetch("toys", tmp_path) == 0
    assert server.asked == [] and tree(tmp_path / "toys") == FILES


def plant(base: Path, files: Mapping[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    return base


@pytest.mark.parametrize("place", ["toys", "Toy-Box", "."])
def test_a_copy_from_elsewhere_is_left_alone(place: str, server: Server, tmp_path: Path, capsys) -> None:
    base = plant(tmp_path / "data" / place)
    assert fetch("toys", tmp_path / "data") == 0
    assert server.asked == [] and tree(base) == FILES
    said = capsys.readouterr().out
    assert "there already, from elsewhere: nothing is fetched" in said and "train: 3 pairs" in said
    # Of the test set two pairs in five are there, and fetching into the same folder would add none.
    assert "To fetch all: python -m datasets fetch toys --data-root ANOTHER_DIR" in said
    assert not list(tmp_path.rglob(".fetch-toys"))


@pytest.mark.parametrize(
    ("root", "there", "base"),
    [
        ("data", {}, "data/toys"),
        ("data", {"TOYS/x": b""}, "data/TOYS"),
        ("data", {"toy-box/x": b""}, "data/toy-box"),
        ("data", {"toy-box/x": b"", "toys/x": b""}, "data/toys"),
        ("data", TRAINING, "data"),
        ("toys", {}, "toys"),
        ("Toy-Box", {"x": b""}, "Toy-Box"),
        ("toys", {"toys/x": b""}, "toys/toys"),
    ],
)
def test_where_files_go(root: str, there: dict, base: str, server: Server, tmp_path: Path) -> None:
    plant(tmp_path / root, there)
    for _ in range(2):
        assert fetch("toys", tmp_path / root) == 0
        assert FILES.items() <= tree(tmp_path / base).items()
    assert len(server.asked) == 2


def test_an_archive_may_bring_a_folder_of_the_datasets_name(server: Server, tmp_path: Path) -> None:
    server.files["whole.zip"] = zipped({f"toys/{name}": content for name, content in FILES.items()})
    Toys.archives = (Archive(f"{server.url}/whole.zip"),)
    for requests in (1, 2):
        assert fetch("toys", tmp_path / "toys") == 0
        assert tree(tmp_path) == {f"toys/toys/{name}": content for name, content in FILES.items()}
        assert len(server.asked) == requests
        shutil.rmtree(tmp_path / "toys" / "toys" / "test")


def child(archives: str, root: str, steps: str) -> int:
    """Fetch in a process of its own, which ends as by a power cut when so many files were written or moved."""
    left = int(steps)

    def dying(work: Callable) -> Callable:
        def step(*args: object) -> object:
            nonlocal left
            if left == 0:
                os._exit(9)
            left -= 1
            return work(*args)

        return step

    Path.rename = dying(Path.rename)
    datasets.archives._write = dying(datasets.archives._write)
    datasets.fetch.registry = {"toys": Toys}
    Toys.archives = tuple(Archive(**archive) for archive in json.loads(archives))
    return fetch("toys", Path(root))


CHILD = """
import runpy, sys
sys.exit(runpy.run_path(sys.argv[1])["child"](*sys.argv[2:]))
"""


def start_child(root: Path, *, steps: int = -1, largest_file: int = resource.RLIM_INFINITY) -> subprocess.Popen:
    described = json.dumps([vars(archive) for archive in Toys.archives])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, __file__, described, str(root), str(steps)],
        cwd=PROJECT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# 6 files of training are written and their folder is moved; 4 files of test are written and 2 folders are moved.
@pytest.mark.parametrize("steps", [0, 3, 6, 7, 9, 11, 12])
def test_a_process_that_dies_leaves_nothing_that_looks_whole(steps: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / "toys" / "test").mkdir(parents=True)
    died = start_child(tmp_path, steps=steps)
    died.communicate(timeout=60)
    assert died.returncode == 9
    assert tree(tmp_path / "toys").items() <= FILES.items()
    with pytest.raises(DatasetMissing):
        Toys().find(tmp_path)
    assert fetch("toys", tmp_path) == 0
    assert tree(tmp_path / "toys") == FILES
    assert sorted(server.asked) == ["test%20set.tar.gz", "training.zip"]
    assert all(name.endswith(".json") for name in working(tmp_path / "toys"))


def test_processes_that_want_the_same_dataset_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.gate.clear()
    first = start_child(tmp_path)
    while not server.asked:
        assert first.poll() is None
    second = start_child(tmp_path)
    assert second.stderr.readline() == "toys: another process fetches it; waiting for that\n"
    server.gate.set()
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert len(server.asked) == 2 and tree(tmp_path / "toys") == FILES
    assert [text.count("unpacked already") for text in said] == [0, 2]


def test_a_disk_that_fills_up_while_unpacking(server: Server, tmp_path: Path) -> None:
    large = {"images/0.png": NOISE[:5000] * 400, "masks/0.png": NOISE}
    server.files["test%20set.tar.gz"] = tarred(large)
    full = start_child(tmp_path, largest_file=1_000_000)
    message = full.communicate(timeout=60)[1]
    assert full.returncode == 1 and f"cannot write in {tmp_path}: " in message
    assert "File too large" in message and f"python -m datasets fetch toys --data-root {tmp_path}" in message
    assert tree(tmp_path / "toys") == TRAINING
    server.asked.clear()
    assert fetch("toys", tmp_path) == 0
    assert server.asked == [] and tree(tmp_path / "toys" / "test") == large


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path, capsys) -> None:
    (tmp_path / "data").write_text("a file in the way")
    assert fetch("toys", tmp_path / "data") == 1
    assert f"cannot write in {tmp_path / 'data'}: " in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(server: Server, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupt(*args: object, **options: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.fetch, "download", interrupt)
    assert fetch("toys", tmp_path / "two words") == 130
    command = f"python -m datasets fetch toys --data-root '{tmp_path}/two words'"
    assert command in capsys.readouterr().err


def test_without_a_root_both_ways_to_name_one_are_told(server: Server, capsys) -> None:
    assert fetch("toys") == 2
    message = capsys.readouterr().err
    assert "--data-root DIR" in message and "BENCH_DATA_ROOT=DIR" in message and server.asked == []


def test_archives_that_do_not_hold_the_dataset(server: Server, tmp_path: Path, capsys) -> None:
    Toys.archives = Toys.archives[:1]
    assert fetch("toys", tmp_path) == 1
    message = capsys.readouterr().err
    assert f"unpacked in {tmp_path / 'toys'}, and yet the dataset 'toys' was not found" in message
    assert "lacks test/images/, test/masks/" in message


@pytest.mark.parametrize("root", [True, False])
def test_without_addresses_the_steps_are_told(root: bool, tmp_path: Path, capsys) -> None:
    assert fetch("toys", tmp_path if root else None) == 1
    said = capsys.readouterr().out
    assert Toys.steps in said and "for play" in said
    assert f"python -m datasets verify toys --data-root {tmp_path if root else 'DIR'}" in said
    plant(tmp_path / "toys")
    assert fetch("toys", tmp_path) == 0
    said = capsys.readouterr().out
    assert "train: 3 pairs" in said and Toys.steps not in said


def test_the_registered_datasets(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(datasets.fetch, "registry", registry)
    assert fetch("shapes") == 0
    assert "shapes is generated when it is used: there is nothing to fetch." in capsys.readouterr().out
    assert fetch("isic2018") == 2
    message = capsys.readouterr().err
    assert "unknown dataset 'isic2018'. Did you mean 'isic2017'?" in message and "python -m datasets list" in message
    kinds = [registry[name] for name in registry.names()]
    fetchable = [kind for kind in kinds if issubclass(kind, FileDataset) and kind.archives]
    assert "isic2017" in [kind.name for kind in fetchable]
    for kind in fetchable:
        assert fetch(kind.name) == 2  # no root: nothing is asked for
        assert all(archive.url.startswith("https://") for archive in kind.archives)
        assert len({archive.url for archive in kind.archives}) == len(kind.archives)
