"""Downloads from a server on this machine that behaves, misbehaves and keeps a record."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.download import DownloadError, ProgressLine, download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``asked`` is the Range header (or None) of every request so far.

    ``marks`` are sent as headers and compared with If-Range, unless ``heeds`` is off.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.lengths = True
        self.errors: list[int] = []
        self.cuts: list[int] = []
        self.stalls: list[threading.Event] = []
        self.content_range: str | None = None
        self.marks: dict[str, str] = {}
        self.heeds = True
        self.repeats = True
        self.chunked = False
        self.content_type = ""
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pth"

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients hang up on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        self.close_connection = True
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        condition = self.headers.get("If-Range")
        fits = condition is None or not server.heeds or condition in server.marks.values()
        ranged = asked and server.ranges and fits
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if ranged else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            sent = f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            self.send_header("Content-Range", server.content_range or sent)
        if server.lengths:
            self.send_header("Content-Length", str(len(body)))
        for name, value in server.marks.items() if server.repeats or not start else ():
            self.send_header(name, value)
        if server.content_type:
            self.send_header("Content-Type", server.content_type)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = body[: server.cuts.pop(0)] if server.cuts else body
        if server.chunked:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) + (b"0\r\n\r\n" if sent == body else b""))
        else:
            self.wfile.write(sent)
        if server.stalls:
            server.stalls.pop().wait(60)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def get(server: Server, target: Path, **options: object) -> str:
    options = {"size": len(CONTENT), "sha256": SHA256, "progress": lambda done, total: None, "pause": 0} | options
    return download(server.url, target, **options)


def get_unknown(server: Server, target: Path, **options: object) -> str:
    """Of a file whose length and digest nobody published."""
    return get(server, target, size=0, sha256="", **options)


def break_off(server: Server, target: Path) -> None:
    """What a process leaves that was stopped after a third of the file."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    server.cuts = [1_000_000]
    with pytest.raises(KeyboardInterrupt):
        get_unknown(server, target, progress=stop)
    assert target.with_name("weights.pth.part").read_bytes() == server.content[:1_000_000]
    server.asked.clear()


def part_of(target: Path, content: bytes) -> Path:
    """What an earlier, interrupted download left."""
    target.parent.mkdir(parents=True)
    part = target.with_name("weights.pth.part")
    part.write_bytes(content)
    return part


def test_a_file_arrives_whole_and_leaves_nothing_else(server: Server, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    get(server, target, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert server.asked == [None]
    assert seen == sorted(seen) and seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 1
    assert {path.name for path in target.parent.iterdir()} <= {"weights.pth", "weights.pth.lock"}


def test_a_file_that_is_there_is_not_asked_for(server: Server, target: Path) -> None:
    get(server, target)
    get(server, target)
    assert len(server.asked) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, target: Path) -> None:
    part_of(target, CONTENT[:1_234_567])
    get(server, target)
    assert server.asked == ["bytes=1234567-"]
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_request(server: Server, target: Path) -> None:
    part_of(target, CONTENT)
    get(server, target)
    assert server.asked == [] and target.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_anew(server: Server, target: Path) -> None:
    part_of(target, CONTENT + b"more")
    get(server, target)
    assert server.asked == [None] and target.read_bytes() == CONTENT


@pytest.mark.parametrize("lengths", [True, False])
def test_cut_connections_are_resumed_while_they_get_further(server: Server, target: Path, lengths: bool) -> None:
    server.lengths = lengths
    server.cuts = [400_000] * 6
    get(server, target)
    assert server.asked == [None] + [f"bytes={400_000 * n}-" for n in range(1, 7)]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_restarts(server: Server, target: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    get(server, target)
    assert server.asked == [None, "bytes=1000000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server: Server, target: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000] * 100
    with pytest.raises(DownloadError, match="1,000,000 of 3,000,000 bytes.*4 attempts without progress"):
        get(server, target)
    assert len(server.asked) == 5
    assert not target.exists()


def test_passing_errors_of_the_server_are_tried_again(server: Server, target: Path) -> None:
    server.errors = [503, 429, 500]
    get(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (503, 4)])
def test_errors_that_stay_end_it(server: Server, target: Path, code: int, requests: int) -> None:
    server.errors = [code] * 10
    with pytest.raises(DownloadError, match=f"answers {code}"):
        get(server, target)
    assert len(server.asked) == requests


def test_pauses_between_attempts_grow(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("bench.download.time.sleep", pauses.append)
    server.errors = [503] * 10
    with pytest.raises(DownloadError):
        get(server, target, pause=1.0)
    assert [pause for pause in pauses if pause >= 1] == [1, 2, 4]


def test_no_network(server: Server, target: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="no connection.*4 attempts"):
        get(server, target)


def test_another_content_of_the_same_length_is_removed(server: Server, target: Path) -> None:
    server.content = bytes(len(CONTENT))
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DownloadError, match=f"{found}, expected {SHA256}"):
        get(server, target)
    assert not target.exists() and not target.with_name("weights.pth.part").exists()
    server.content = CONTENT
    get(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("start", [0, 1000])
def test_a_file_of_another_length_is_refused_before_it_is_received(server: Server, target: Path, start: int) -> None:
    server.content = b"<html>please log in</html>" * 100
    part = part_of(target, CONTENT[:start])
    with pytest.raises(DownloadError, match="has 2,600 bytes instead of 3,000,000"):
        get(server, target)
    assert part.read_bytes() == CONTENT[:start]


def test_a_part_longer_than_the_file_at_the_address(server: Server, target: Path) -> None:
    part_of(target, CONTENT[:5000])
    server.content = b"short"
    with pytest.raises(DownloadError, match="has 5 bytes instead of 3,000,000"):
        get(server, target)


def test_more_than_expected_without_a_length_is_refused(server: Server, target: Path) -> None:
    server.lengths = False
    server.content = CONTENT + b"more"
    with pytest.raises(DownloadError, match="more than the expected 3,000,000"):
        get(server, target)
    assert not target.exists()


@pytest.mark.parametrize("sent", ["bytes 7-2999999/3000000", "nonsense"])
def test_a_range_nobody_asked_for_is_refused(server: Server, target: Path, sent: str) -> None:
    part_of(target, CONTENT[:1000])
    server.content_range = sent
    with pytest.raises(DownloadError, match=f"from 1000 on and sends '{sent}'"):
        get(server, target)


def test_a_full_disk_is_seen_before_the_first_request(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    with pytest.raises(DownloadError, match="2,000,000 bytes free and 3,000,000 are needed"):
        get(server, target)
    assert server.asked == []
    target.with_name("weights.pth.part").write_bytes(CONTENT[:1_500_000])
    get(server, target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_meanwhile(server: Server, target: Path) -> None:
    part_of(target, b"").unlink()
    target.with_name("weights.pth.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"No space left on device: .*weights\.pth\.part"):
        get(server, target)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(DownloadError, match=f"{tmp_path / 'cache'}"):
        get(server, tmp_path / "cache" / "weights.pth")


def test_threads_that_want_the_same_file_download_it_once(server: Server, target: Path) -> None:
    failures: list[Exception] = []

    def want() -> None:
        try:
            get(server, target)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=want) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and server.asked == [None]


CHILD = """
import sys
from pathlib import Path
from bench.download import download
download(sys.argv[1], Path(sys.argv[2]), size=int(sys.argv[3]), sha256="")
"""


def test_a_killed_process_leaves_its_part_and_no_lock(server: Server, target: Path) -> None:
    server.cuts = [2_000_000]
    stall = threading.Event()
    server.stalls = [stall]
    part = target.with_name("weights.pth.part")
    command = [sys.executable, "-c", CHILD, server.url, str(target), str(len(CONTENT))]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
        stall.set()
    received = part.stat().st_size
    get(server, target)
    assert server.asked == [None, f"bytes={received}-"] and received > 0
    assert target.read_bytes() == CONTENT


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
MARKS = [{"ETag": '"one"'}, {"Last-Modified": DATE}, {"ETag": '"one"', "Last-Modified": DATE}]


def test_a_file_of_which_nothing_is_known(server: Server, target: Path) -> None:
    assert get_unknown(server, target) == SHA256 == get_unknown(server, target) == get(server, target)
    assert target.read_bytes() == CONTENT and server.asked == [None]
    assert {path.name for path in target.parent.iterdir()} <= {"weights.pth", "weights.pth.lock"}


def test_another_file_under_the_name_is_refused_and_kept(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=f"{target} is there and is another file.*expected {SHA256}"):
        get(server, target)
    assert target.read_bytes() == b"mine" and server.asked == []


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("marks", MARKS)
def test_what_the_server_names_is_continued(server: Server, target: Path, marks: dict, repeats: bool) -> None:
    server.marks, server.repeats = marks, repeats
    break_off(server, target)
    assert get_unknown(server, target) == SHA256
    assert server.asked == ["bytes=1000000-"]


@pytest.mark.parametrize("marks", [{}, {"ETag": 'W/"one"'}])
def test_what_it_does_not_name_starts_anew(server: Server, target: Path, marks: dict) -> None:
    server.marks = marks
    break_off(server, target)
    assert get_unknown(server, target) == SHA256
    assert server.asked == [None]


CHANGES = [
    (old, new, length, heeds)
    for old, new in [({"ETag": '"one"'}, {"ETag": '"two"'}), ({"Last-Modified": DATE}, {}), ({}, {})]
    for length in (2_000_000, 3_000_000, 4_000_000)
    for heeds in (True, False)
    # Without If-Range, names and another length nothing would tell the two files apart.
    if heeds or new or not old or length != 3_000_000
]


@pytest.mark.parametrize(("old", "new", "length", "heeds"), CHANGES)
def test_a_file_that_changed_is_never_joined_to_the_old_part(
    server: Server, target: Path, old: dict, new: dict, length: int, heeds: bool
) -> None:
    server.marks, server.heeds = old, heeds
    break_off(server, target)
    server.marks, server.content = new, np.random.default_rng(1).bytes(length)
    get_unknown(server, target)
    assert target.read_bytes() == server.content


def test_a_known_digest_needs_no_word_of_the_server(server: Server, target: Path) -> None:
    server.marks = {"ETag": '"one"'}
    break_off(server, target)
    server.marks = {"ETag": '"of another mirror"'}
    seen: list[int] = []
    get(server, target, size=0, progress=lambda done, total: seen.append(done))
    assert server.asked == ["bytes=1000000-"] and seen[0] > 2_000_000
    assert target.read_bytes() == CONTENT


def test_a_part_from_another_address_starts_anew(server: Server, target: Path) -> None:
    server.marks = {"ETag": '"one"'}
    break_off(server, target)
    server.url += "?new"
    assert get_unknown(server, target) == SHA256 and server.asked == [None]


def test_a_torn_note_starts_anew(server: Server, target: Path) -> None:
    server.marks = {"ETag": '"one"'}
    break_off(server, target)
    note = target.with_name("weights.pth.part.json")
    note.write_text(note.read_text()[:-5])
    assert get_unknown(server, target) == SHA256 and server.asked == [None]


@pytest.mark.parametrize("chunked", [True, False])
def test_answers_of_no_stated_length(server: Server, target: Path, chunked: bool) -> None:
    server.lengths, server.chunked = False, chunked
    assert get_unknown(server, target) == SHA256


def test_a_chunked_answer_that_breaks_off_is_no_file(server: Server, target: Path) -> None:
    server.lengths, server.chunked, server.marks, server.cuts = False, True, {"ETag": '"one"'}, [1_500_000]
    assert get_unknown(server, target) == SHA256
    assert len(server.asked) == 2
    server.cuts = [1] * 10
    with pytest.raises(DownloadError, match="the connection broke"):
        get_unknown(server, target.with_name("other"))


def test_a_whole_part_is_kept_when_it_gets_no_name(server: Server, target: Path, monkeypatch) -> None:
    server.lengths = False

    def refuse(old: Path, new: Path) -> None:
        raise PermissionError(1, "not now", str(new))

    with monkeypatch.context() as patch, pytest.raises(DownloadError, match=f"not now: {target}"):
        patch.setattr("bench.download.os.replace", refuse)
        get_unknown(server, target)
    assert get_unknown(server, target) == SHA256 and server.asked == [None]


def test_no_room_for_what_the_server_announces(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    with pytest.raises(DownloadError, match="2,000,000 bytes free and 3,000,000 are needed"):
        get_unknown(server, target)


def test_a_web_page_leaves_the_part_alone(server: Server, target: Path) -> None:
    server.marks = {"ETag": '"one"'}
    break_off(server, target)
    server.content_type, server.ranges = "text/html; charset=utf-8", False
    with pytest.raises(DownloadError, match="a web page in place of the file"):
        get_unknown(server, target)
    server.content_type, server.ranges = "", True
    server.asked.clear()
    assert get_unknown(server, target) == SHA256 and server.asked == ["bytes=1000000-"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, steps: list[tuple[float, int]], total: int) -> str:
    now = iter([seconds for seconds, _ in steps])
    line = ProgressLine("w.pth", stream=stream, clock=lambda: next(now))
    for _, done in steps:
        line(done, total)
    return stream.getvalue()


def test_progress_in_a_log_is_a_line_every_ten_seconds() -> None:
    steps = [(second, 1_000_000 * second) for second in range(101)]
    lines = show(io.StringIO(), steps, 100_000_000).splitlines()
    assert len(lines) == 11
    assert lines[0] == "w.pth: 0 of 100 MB (0%)"
    assert lines[3] == "w.pth: 30 of 100 MB (30%), 1.0 MB/s, 70 s left"
    assert lines[-1] == "w.pth: 100 of 100 MB (100%), 1.0 MB/s, 0 s left"


def test_progress_on_a_terminal_rewrites_one_line() -> None:
    text = show(Terminal(), [(0, 0), (0.1, 10), (1, 50), (2, 100)], 100)
    assert text.count("\r") == 3 and text.count("\n") == 1 and text.endswith("\n")


def test_the_rate_counts_only_what_this_run_received() -> None:
    steps = [(0, 50_000_000), (10, 60_000_000), (20, 0), (30, 20_000_000)]
    lines = show(io.StringIO(), steps, 100_000_000).splitlines()
    assert ", 1.0 MB/s, 40 s left" in lines[1]
    assert lines[2].endswith("(0%)")
    assert ", 2.0 MB/s, 40 s left" in lines[3]


def test_progress_towards_an_unknown_end() -> None:
    stream = io.StringIO()
    now = iter([0, 10, 15])
    line = ProgressLine("w.pth", stream=stream, clock=lambda: next(now))
    for done, total in [(0, 0), (10_000_000, 0), (15_000_000, 15_000_000)]:
        line(done, total)
    assert stream.getvalue().splitlines() == [
        "w.pth: 0 MB",
        "w.pth: 10 MB, 1.0 MB/s",
        "w.pth: 15 of 15 MB (100%), 1.0 MB/s, 0 s left",
    ]
