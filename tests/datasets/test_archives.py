"""Archives that are whole, broken or hostile, against the standard library's own unpacking."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets import archives
from datasets.archives import ArchiveDamaged, ArchiveError, Limits, merge, unpack

FILES = {
    "images/1.jpg": random.Random(1).randbytes(5000),
    "images/2.jpg": random.Random(2).randbytes(700),
    "masks/1.png": b"mask " * 400,
    "read me": b"",
}
KINDS = ("zip", "tar", "gz")


def pack(kind: str, path: Path, files: Mapping[str, bytes] | list[tuple[str, bytes]] = FILES) -> Path:
    """An archive of these files in this order; a name that ends in / is a folder."""
    entries = list(files.items()) if isinstance(files, Mapping) else files
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Duplicate name")
            for name, content in entries:
                info = zipfile.ZipInfo("x")
                info.filename = name
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
        return path
    with tarfile.open(path, "w:gz" if kind == "gz" else "w") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(archive: Path, folder: Path, kind: type[ArchiveError] = ArchiveError, **options: object) -> str:
    """The message; an archive that is refused for what it lists has written nothing."""
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, folder, **options)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{archive}: ")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_as_they_went_in(kind: str, tmp_path: Path) -> None:
    sizes = unpack(pack(kind, tmp_path / "archive"), tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert sizes == {name: len(content) for name, content in FILES.items()}


parts = st.text("aB.\\:é ~", min_size=1, max_size=4)
names = st.lists(parts, min_size=1, max_size=3).map("/".join) | st.sampled_from(
    ["/etc/x", "a/../../x", "C:x", "..", "."]
)


@pytest.mark.parametrize("kind", KINDS)
@given(entries=st.lists(st.tuples(names, st.binary(max_size=20)), max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_of_all_sorts_stay_in_the_folder_or_are_refused(kind: str, entries: list, tmp_path: Path) -> None:
    place = tmp_path / kind
    shutil.rmtree(place, ignore_errors=True)
    archive = pack(kind, place / "archive", entries)
    try:
        sizes = unpack(archive, place / "in" / "out")
    except ArchiveError:
        assert not (place / "in").exists()
        return
    assert {path.name for path in place.iterdir()} == {"archive", "in"}
    assert [path.name for path in (place / "in").iterdir()] == ["out"]
    whole = {Path(name).as_posix(): content for name, content in entries}
    assert tree(place / "in" / "out") == whole and sizes.keys() == whole.keys()


OUTSIDE = ["../x", "a/../../x", "/x", "//x", "C:x", "c:/x", "a\\x", "..\\x", "a/.."]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_entries_that_leave_the_folder(kind: str, name: str, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path / "archive", [("fine", b"1"), (name, b"2")])
    assert f"entry {name!r} leads out of the folder" in refused(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


TYPES = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]


@pytest.mark.parametrize("type", TYPES)
def test_links_and_devices_in_tar(type: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        info = tarfile.TarInfo("a/link")
        info.type, info.linkname = type, "fine"
        archive.addfile(info)
    assert "'a/link' is a link or a device" in refused(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_zip(mode: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "'link' is a link or a device" in refused(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a/x", b"1"), ("a/x", b"2")], "two entries 'a/x'"),
        ([("a/x", b"1"), ("./a//x", b"2")], "two entries 'a/x'"),
        ([("a", b"1"), ("a/x", b"2")], "two entries 'a'"),
        ([("a/x", b"1"), ("a", b"2")], "two entries 'a'"),
        ([("a/x", b"1"), ("a/X", b"2")], "'a/x' and 'a/X' differ in case alone"),
        ([("a/x", b"1"), ("A/y", b"2")], "'a' and 'A' differ in case alone"),
        ([("e\u0301", b"1"), ("\u00e9", b"2")], "differ in case alone"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_entries_that_meet(kind: str, entries: list, message: str, tmp_path: Path) -> None:
    assert message in refused(pack(kind, tmp_path / "archive", entries), tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_folders_may_come_at_any_time(kind: str, tmp_path: Path) -> None:
    entries = [("./", b""), ("a/b/x", b"1"), ("a/", b""), ("a/b/", b""), ("a/", b""), ("empty/", b"")]
    unpack(pack(kind, tmp_path / "archive", entries), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/b/x": b"1"} and (tmp_path / "out" / "empty").is_dir()


@pytest.mark.parametrize("kind", KINDS)
def test_what_macos_leaves_is_left_out(kind: str, tmp_path: Path) -> None:
    entries = [("__MACOSX/a/._x", b"1"), ("a/.DS_Store", b"2"), ("a/x", b"3")]
    assert unpack(pack(kind, tmp_path / "archive", entries), tmp_path / "out") == {"a/x": 1}
    assert tree(tmp_path / "out") == {"a/x": b"3"} and [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ("zip", "gz"))
def test_a_bomb_is_seen_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path / "archive", {"zeros": bytes(20_000_000)})
    assert f"its {archive.stat().st_size:,} bytes unpack to more than" in refused(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_that_claims_more_than_it_has_is_a_bomb_too(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 40
    (tmp_path / "archive").write_bytes(info.tobuf())
    assert "its 1,536 bytes unpack to more than 768,000" in refused(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize(
    ("type", "size"), [(tarfile.REGTYPE, -512), (tarfile.GNUTYPE_LONGNAME, -1), (tarfile.XHDTYPE, 1 << 30)]
)
def test_tar_headers_that_would_be_read_for_ever_or_fill_the_memory(type: bytes, size: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = type, size
    (tmp_path / "archive").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert f"a header of {size:,} bytes" in refused(tmp_path / "archive", tmp_path / "out", ArchiveDamaged)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(files=3), "more than 3 entries"),
        (Limits(bytes=7699), "unpack to more than 7,699:"),
        (Limits(ratio=0), "unpack to more than 0:"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_limits(kind: str, limits: Limits, message: str, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path / "archive")
    assert message in refused(archive, tmp_path / "out", limits=limits)
    unpack(archive, tmp_path / "out", limits=Limits(files=4, bytes=7700, ratio=2))


def patch_zip(path: Path, *, local: tuple[int, bytes], central: tuple[int, bytes]) -> Path:
    """Overwrite a field of the first entry in both of a zip's headers."""
    content = bytearray(path.read_bytes())
    for at, (offset, value) in ((content.index(b"PK\3\4"), local), (content.index(b"PK\1\2"), central)):
        content[at + offset : at + offset + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("claimed", [10, 19_999_999, 20_000_001])
def test_a_bomb_with_a_lying_header(claimed: int, tmp_path: Path) -> None:
    archive = pack("zip", tmp_path / "archive", {"zeros": bytes(20_000_000)})
    size = struct.pack("<I", claimed)
    patch_zip(archive, local=(22, size), central=(24, size))
    refused(archive, tmp_path / "out", ArchiveDamaged, limits=Limits(ratio=2000))
    assert sum(map(len, tree(tmp_path / "out").values())) <= claimed


@pytest.mark.parametrize("more", [True, False])
def test_the_bytes_that_come_are_counted(more: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader that trusts no header would give them."""
    blocks = [b"x" * 600, b"x" * 99] + more * [b"x" * 2, b"x" * 10**6]
    monkeypatch.setattr(archives, "_blocks", lambda entry: iter(blocks))
    archive = pack("tar", tmp_path / "archive", {"f": bytes(700)})
    assert "'f' has not the 700 bytes that it states" in refused(archive, tmp_path / "out", ArchiveDamaged)
    assert (tmp_path / "out" / "f").stat().st_size == 699


def test_encrypted_zips(tmp_path: Path) -> None:
    archive = patch_zip(pack("zip", tmp_path / "archive"), local=(6, b"\1"), central=(8, b"\1"))
    assert "'images/1.jpg' is encrypted" in refused(archive, tmp_path / "out")


def test_a_way_of_packing_that_nobody_knows(tmp_path: Path) -> None:
    archive = patch_zip(pack("zip", tmp_path / "archive"), local=(8, b"\x63"), central=(10, b"\x63"))
    assert "packed in a way that Python cannot read" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf\n <html lang=en>", b"<?xml version='1.0'?>"])
def test_a_web_page_is_called_one(page: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(page + b"please log in" * 1000)
    assert "web page in place of the archive" in refused(tmp_path / "archive.zip", tmp_path / "out", ArchiveDamaged)


@pytest.mark.parametrize("content", [b"", b"Rar!\x1a\x07\x00", b"PK", b"PK\5\6", b"\x1f\x8b", bytes(10240)])
def test_files_that_are_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(content)
    refused(tmp_path / "archive", tmp_path / "out", ArchiveDamaged)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_part_of_an_archive_is_taken_for_the_whole(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    whole = pack(kind, tmp_path / "whole").read_bytes()
    # Behind a tar's end mark is padding.
    necessary = len(whole) if kind != "tar" else whole.rindex(b"\0ustar") - 256 + 512 + 1
    (tmp_path / "half").write_bytes(whole[: data.draw(st.integers(0, necessary - 1))])
    refused(tmp_path / "half", tmp_path / "out", ArchiveDamaged)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("kind", ("zip", "gz"))
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_noticed_or_changes_nothing(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(pack(kind, tmp_path / "whole").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "changed").write_bytes(content)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try:
        unpack(tmp_path / "changed", tmp_path / "out")
    except ArchiveError:
        return
    assert tree(tmp_path / "out") == FILES


def test_a_tar_with_a_damaged_header_does_not_end_there(tmp_path: Path) -> None:
    archive = pack("tar", tmp_path / "archive", {"a": b"1", "b": b"2", "c": b"3"})
    content = bytearray(archive.read_bytes())
    content[1024 + 150] ^= 1  # the second header's checksum
    archive.write_bytes(content)
    with tarfile.open(archive) as believed:
        assert believed.getnames() == ["a"]
    refused(archive, tmp_path / "out", ArchiveDamaged)


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=7699))
    message = refused(pack("zip", tmp_path / "archive"), tmp_path / "out")
    assert f"its files have 7,700 bytes and {tmp_path / 'out'} has 7,699 free" in message
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=7700))
    unpack(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_written_is_no_fault_of_the_archive(kind: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "images" / "2.jpg").mkdir(parents=True)
    with pytest.raises(OSError, match="2.jpg"):
        unpack(pack(kind, tmp_path / "archive"), tmp_path / "out")


def plant(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_merging_joins_folders_and_moves_whole_ones_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = plant(tmp_path / "target", {"a/x": b"1", "a/deep/y": b"2", "mine": b"3"})
    source = plant(tmp_path / "source", {"a/z": b"4", "a/deep/y": b"2", "new/b/c": b"5", "new/d": b"6"})
    moved: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda old, new: (moved.append(new.name), rename(old, new)))
    merge(source, target)
    assert moved == ["z", "new"]
    assert tree(target) == {
        "a/x": b"1", "a/deep/y": b"2", "mine": b"3", "a/z": b"4", "new/b/c": b"5", "new/d": b"6",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "way"),
    [
        ({"a/x": b"2"}, "a/x"),
        ({"a": b"2"}, "a"),
        ({"a/x/y": b"1"}, "a/x"),
        ({"A/y": b"1"}, "a"),
        ({"a/X": b"1"}, "a/x"),
    ],
)
def test_merging_overwrites_nothing(files: dict, way: str, tmp_path: Path) -> None:
    target = plant(tmp_path / "target", {"a/x": b"1"})
    source = plant(tmp_path / "source", {"0": b"would come first"} | files)
    for path in (*target.rglob("*"), *source.rglob("*")):
        os.utime(path, (0, 0))  # size and time are no proof that two files are one
    with pytest.raises(ArchiveError, match=f"^{target / way} is there already"):
        merge(source, target)
    assert tree(target) == {"a/x": b"1"}


def interrupted(count: int) -> Callable[[Path, Path], Path]:
    rename, left = os.rename, iter(range(count))

    def move(old: Path, new: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        rename(old, new)

    return move


@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_interrupted_merge_goes_on(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a/x": b"1", "b/y": b"2", "c": b"3"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted(count))
        merge(plant(tmp_path / "source", files), tmp_path / "target")
    assert len(tree(tmp_path / "target")) == count
    merge(plant(tmp_path / "again", files), tmp_path / "target")
    assert tree(tmp_path / "target") == files
