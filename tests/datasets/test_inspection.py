"""Damage is found by decoding once, and what was found is remembered until a file changes."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import evidence, inspection, load
from datasets.encoding import threshold
from datasets.inspection import inspect_files as inspect_both
from datasets.inspection import inspect_image, inspect_mask


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def inspect_files(name: str, base: Path, images: list[Path]) -> dict[Path, inspection.Inspected]:
    return inspect_both(name, base, images, [], threshold())[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded."""
    names: list[str] = []

    def counted(path: Path, *encoding) -> inspection.Inspected:
        names.append(path.name)
        return inspect_mask(path, *encoding) if encoding else inspect_image(path)

    monkeypatch.setattr(inspection, "inspect_image", counted)
    monkeypatch.setattr(inspection, "inspect_mask", counted)
    return names


def encoded(format_: str, **options) -> bytes:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 200, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(grey).resize((160, 120), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, format=format_, **options)
    return stream.getvalue()


JPEG = encoded("JPEG")
DAMAGE = {
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "JPEG without its last bytes": JPEG[:-10],
    "JPEG with a tail of zeros": JPEG[: len(JPEG) // 2] + bytes(len(JPEG) - len(JPEG) // 2),
    "half a progressive JPEG": encoded("JPEG", progressive=True)[:-400],
    "half a PNG": encoded("PNG")[:-2000],
    "PNG with one byte changed": encoded("PNG")[:5000] + b"\x01\x02" + encoded("PNG")[5002:],
    "header alone": JPEG[:400],
    "a web page": b"<html>404 Not Found</html>",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DAMAGE[kind])
    found = inspect_image(path)
    assert found.problem
    assert found.sha256 == hashlib.sha256(DAMAGE[kind]).hexdigest()


@pytest.mark.parametrize(
    ("format_", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {}), ("BMP", {})],
)
def test_sound_files_are_measured(format_: str, options: dict, tmp_path: Path) -> None:
    content = encoded(format_, **options)
    path = tmp_path / "file"
    path.write_bytes(content)
    found = inspect_image(path)
    assert found.problem == ""
    assert (found.width, found.height) == (160, 120)
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "file.jpg"
    path.write_bytes(JPEG + bytes(500))
    assert inspect_image(path).problem == ""


def test_unreadable_file_is_a_problem(tmp_path: Path) -> None:
    found = inspect_files("any", tmp_path, [tmp_path / "gone.jpg"])
    assert "cannot be read" in found[tmp_path / "gone.jpg"].problem


@pytest.mark.parametrize(
    ("error", "remedy"), [(PermissionError(13, "Permission denied"), "chmod u"), (OSError(5, "I/O error"), "again")]
)
def test_unreadable_file_says_what_to_do(
    error: OSError, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", refuse)
    problem = inspect_image(tmp_path / "a.png").problem
    assert problem.startswith(f"cannot be read: {error.strerror} (") and remedy in problem


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    (tmp_path / "folder.png").mkdir()
    for found in inspect_files("any", tmp_path, [tmp_path / "pipe.png", tmp_path / "folder.png"]).values():
        assert found.problem == "is no regular file"


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_refused(channels: int, suffix: str, tmp_path: Path) -> None:
    """Pillow keeps one of two bytes, so that 255 is read as 0."""
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), np.full((6, 5, channels), 255, dtype=np.uint16))
    with Image.open(path) as picture:
        assert not np.asarray(picture).any()
    for found in (inspect_image(path), inspect_mask(path, threshold())):
        assert found.problem == "has 16 bits a channel or more: convert it to 8"


def test_channels_of_16_bits_one_after_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.full((3, 6, 5), 255, dtype=np.uint16)
    pytest.importorskip("tifffile").imwrite(path, pixels, photometric="rgb", planarconfig="separate")
    assert inspect_image(path).problem == "has 16 bits a channel or more: convert it to 8"


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_grey_of_16_bits_is_refused_where_it_would_saturate(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for top, mask_problem in ((255, ""), (300, f"its values reach {dtype(300)}: convert it to 8 bits a channel")):
        Image.fromarray(np.array([[0, top]], dtype=dtype)).save(path)
        assert inspect_image(path).problem == "has 16 bits a channel or more: convert it to 8"
        assert inspect_mask(path, threshold()).problem == mask_problem
    Image.fromarray(np.array([[0, 255]], dtype=dtype)).save(path)
    assert inspect_mask(path, threshold()).levels == ((0, 1), (255, 1))


def test_a_bitmap_of_16_bits_a_pixel_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    pixels = np.full((4, 6), 0b11111_000000_00000, dtype="<u2").tobytes()
    masks = struct.pack("<3I", 0b11111_000000_00000, 0b111111_00000, 0b11111)
    header = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    path.write_bytes(struct.pack("<2sIHHI", b"BM", 66 + len(pixels), 0, 0, 66) + header + masks + pixels)
    found = inspect_image(path)
    assert (found.problem, found.mode, found.width, found.height) == ("", "RGB", 6, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "data"
    base.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (base / name).write_bytes(encoded("PNG"))
    return base


def test_second_pass_decodes_nothing(folder: Path, decoded: list[str]) -> None:
    files = sorted(folder.iterdir())
    first = inspect_files("any", folder, files)
    assert sorted(decoded) == ["a.png", "b.png", "c.png"]
    decoded.clear()
    assert inspect_files("any", folder, files) == first
    assert decoded == []


def test_changed_file_alone_is_decoded_again(folder: Path, decoded: list[str]) -> None:
    files = sorted(folder.iterdir())
    first = inspect_files("any", folder, files)

    decoded.clear()
    (folder / "a.png").write_bytes(encoded("PNG", compress_level=0))
    stat = (folder / "b.png").stat()
    os.utime(folder / "b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    second = inspect_files("any", folder, files)
    assert sorted(decoded) == ["a.png", "b.png"]
    assert second[folder / "a.png"].sha256 != first[folder / "a.png"].sha256
    assert second[folder / "b.png"] == first[folder / "b.png"]


def test_size_is_compared_apart_from_time(folder: Path, decoded: list[str]) -> None:
    path = folder / "a.png"
    stat = path.stat()
    inspect_files("any", folder, [path])
    path.write_bytes(path.read_bytes()[:-1000])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert inspect_files("any", folder, [path])[path].problem


def test_a_file_may_be_image_and_mask(folder: Path, decoded: list[str]) -> None:
    path = folder / "a.png"
    first = inspect_both("any", folder, [path], [path], threshold())
    images, masks = first
    assert images[path].fingerprint and not images[path].levels
    assert masks[path].levels and not masks[path].fingerprint
    assert inspect_both("any", folder, [path], [path], threshold()) == first
    assert decoded == ["a.png", "a.png"]


def test_an_interruption_ends_soon_and_keeps_what_was_done(
    folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are being decoded when the second one is interrupted are decoded to their end, and no others."""
    files, told = [folder / f"{number}.png" for number in range(40)], threading.Event()
    for path in files:
        path.write_bytes(encoded("PNG"))

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            told.set()
            super().shutdown(wait=wait)

    def interrupted(path: Path) -> inspection.Inspected:
        if path == files[1]:
            raise KeyboardInterrupt
        assert path == files[0] or told.wait(60)
        decoded.append(path.name)
        return inspect_image(path)

    with monkeypatch.context() as patched:
        patched.setattr(inspection, "inspect_image", interrupted)
        patched.setattr(inspection, "ThreadPoolExecutor", Pool)
        with pytest.raises(KeyboardInterrupt):
            inspect_files("any", folder, files)
    assert len(decoded) <= 1 + inspection._THREADS
    decoded.clear()
    inspect_files("any", folder, files)
    assert "0.png" not in decoded and len(decoded) == 39


def test_names_that_are_no_utf8(folder: Path, decoded: list[str]) -> None:
    base = folder / os.fsdecode(b"d\xe9")
    path = base / os.fsdecode(b"\xe9.png")
    base.mkdir()
    path.write_bytes(encoded("PNG"))
    first = inspect_files("any", base, [path])
    assert inspect_files("any", base, [path]) == first and len(decoded) == 1


def test_damaged_files_are_never_remembered(folder: Path, decoded: list[str]) -> None:
    path = folder / "a.png"
    path.write_bytes(b"broken")
    for _ in range(2):
        assert inspect_files("any", folder, [path])[path].problem
    assert decoded == ["a.png", "a.png"]


def test_folders_do_not_share_what_is_remembered(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")  # with the same times
    stat = (folder / "a.png").stat()
    content = (folder / "a.png").read_bytes()
    (tmp_path / "other" / "a.png").write_bytes(bytes(len(content)))
    os.utime(tmp_path / "other" / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for base, expected in ((folder, False), (tmp_path / "other", True)):
        found = inspect_files("any", base, [base / "a.png"])
        assert bool(found[base / "a.png"].problem) is expected


SPOILT = {
    "nothing": lambda content: "",
    "no digest": lambda content: "{",
    "JSON of another version": lambda content: '{"format": 3, "files": {}}',
    "a list": lambda content: content.partition("\n")[0] + "\n[]",
    "cut short": lambda content: content[:-10],
    "a short entry": lambda content: re.sub(r"\[.*\]", "[1]", content),
    "one digit": lambda content: content.replace("160", "161"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_memory_is_made_anew(how: str, folder: Path, cache: Path, decoded: list[str]) -> None:
    files = [folder / "a.png"]
    first = inspect_files("any", folder, files)
    (stored,) = (cache / "inspection").iterdir()
    spoilt = SPOILT[how](stored.read_text())
    assert spoilt != stored.read_text()
    stored.write_text(spoilt)
    assert inspect_files("any", folder, files) == first
    assert inspect_files("any", folder, files) == first
    assert decoded == ["a.png", "a.png"]


def test_memory_is_replaced_in_one_step(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect_files("any", folder, [folder / "a.png"])
    (stored,) = (cache / "inspection").iterdir()
    before = stored.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        inspect_files("any", folder, [folder / "b.png"])
    assert list((cache / "inspection").iterdir()) == [stored] and stored.read_bytes() == before


def test_unwritable_cache_only_costs_time(
    folder: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="BENCH_CACHE"):
            found = inspect_files("any", folder, [folder / "a.png"])
        assert not found[folder / "a.png"].problem
    assert decoded == ["a.png", "a.png"]


def test_second_open_of_the_real_sample_is_quick(test_data: Path, decoded: list[str]) -> None:
    dataset = load("isic2017")
    first = dataset.open(test_data / "isic2017_512")
    assert len(decoded) == 2 * (1800 + 121 + 529)
    decoded.clear()
    started = time.process_time()
    second = dataset.open(test_data / "isic2017_512")
    assert time.process_time() - started < 1
    assert decoded == []
    assert evidence(second) == evidence(first)
