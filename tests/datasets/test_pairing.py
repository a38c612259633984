"""Which mask is whose: by the names in two folders, or by a list."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.pairing import list_files, pair_files
from datasets.parts import Listing
from datasets.tree import Tree

stems = st.lists(st.sampled_from(["a", "A", "b", "b_mask", "a.b", "1", "01", "x y"]), max_size=6)
suffixes = st.sampled_from([".png", ".PNG", ".jpg"])


@settings(deadline=None)
@given(stems, stems, suffixes, suffixes, st.booleans(), st.integers(0, 2))
def test_pairs_are_those_of_equal_names(
    images: list[str], masks: list[str], of_images: str, of_masks: str, spare: bool, unpaired: int
) -> None:
    image_paths = [Path("i") / f"{stem}{of_images}" for stem in dict.fromkeys(images)]
    mask_paths = [Path("m") / f"{stem}{of_masks}" for stem in dict.fromkeys(masks)]
    pairs, problems = pair_files(image_paths, mask_paths, spare_masks=spare, unpaired=unpaired)
    lower = [{path.stem.lower() for path in paths} for paths in (image_paths, mask_paths)]
    assert [pair.image.stem.lower() for pair in pairs] == sorted(lower[0] & lower[1])
    for pair in pairs:
        assert pair.identifier == pair.image.stem and pair.image.stem.lower() == pair.mask.stem.lower()
    told = [problem.path for problem in problems]
    used = [path for pair in pairs for path in (pair.image, pair.mask)]
    unspoken = [path for path in mask_paths if spare and path.stem.lower() not in lower[0] and path not in told]
    assert sorted(told + used + unspoken) == sorted(image_paths + mask_paths), "each file is used, or is told once"
    for kind, left in (("images without a mask", lower[0] - lower[1]), ("masks without an image", lower[1] - lower[0])):
        listed = [problem for problem in problems if problem.kind == kind]
        assert len(listed) == (0 if spare and kind.startswith("masks") else len(left))
        assert all(problem.harmless == (len(left) <= unpaired) for problem in listed)


def test_files_are_listed_by_name_and_suffix(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.png", "C.Png", "d.tiff", ".e.png", "png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path, (".png",))] == ["C.Png", "a.png", "b.PNG"]


def test_links_that_lead_nowhere_or_to_themselves_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for name, target in {"link": "a.png", "loop": "loop.png", "one": "two.png", "two": "one.png", "gone": "b"}.items():
        (tmp_path / f"{name}.png").symlink_to(target)
    assert [path.name for path in list_files(tmp_path, (".png",))] == ["a.png", "link.png"]


@pytest.mark.parametrize(("of_images", "of_masks"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_letters_stored_in_either_way_are_the_same(of_images: str, of_masks: str) -> None:
    names = ["é", "Ärzte", "ấ", "각"]
    images = [Path("i") / f"{unicodedata.normalize(of_images, name)}.png" for name in names]
    masks = [Path("m") / f"{unicodedata.normalize(of_masks, name.upper())}.png" for name in names]
    pairs, problems = pair_files(images, masks)
    assert not problems and {pair.image for pair in pairs} == set(images)
    assert {pair.identifier for pair in pairs} == set(names)
    assert all(names.index(pair.identifier) == images.index(pair.image) == masks.index(pair.mask) for pair in pairs)


def listed(base: Path, text: str | bytes) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """What a list with that text gives: identifiers and paths below ``base``, and problems."""
    (base / "test.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    pairs, problems = Listing(("test.csv",)).read(base, Tree())
    assert all(problem.path == base / "test.csv" for problem in problems)
    below = [(name, *(path.relative_to(base).as_posix() for path in paths)) for name, *paths in pairs]
    return below, [(problem.kind, problem.detail) for problem in problems]


PLAIN = ([("a", "i/a.jpg", "m/a.png"), ("b", "i/b.jpg", "m/b.png")], [])


@pytest.mark.parametrize(
    "text",
    [
        "image,label\ni/a.jpg,m/a.png\ni/b.jpg,m/b.png\n",
        "image,label\ni/a.jpg,m/a.png\ni/b.jpg,m/b.png",
        "image,label\r\ni/a.jpg,m/a.png\r\ni/b.jpg,m/b.png\r\n",
        "image,label\ri/a.jpg,m/a.png\ri/b.jpg,m/b.png\r",
        "\ufeffimage,label\ni/a.jpg,m/a.png\ni/b.jpg,m/b.png\n",
        '\ufeff"image","label"\r\n"i/a.jpg","m/a.png"\r\n"i/b.jpg","m/b.png"\r\n',
        "image,label\ni\\a.jpg,m\\a.png\ni\\b.jpg,m\\b.png\n",
        ",image,label\n0,i/a.jpg,m/a.png\n1,i/b.jpg,m/b.png\n",
        "label,more,image\nm/a.png,x,i/a.jpg\nm/b.png,y,i/b.jpg\n",
        "image,label\n\ni/a.jpg,m/a.png,spare\n./i/b.jpg,m//b.png\n\n",
    ],
)
def test_lists_as_programs_write_them(text: str, tmp_path: Path) -> None:
    assert listed(tmp_path, text) == PLAIN


def test_a_list_names_files_with_commas_quotes_and_other_letters(tmp_path: Path) -> None:
    found, problems = listed(tmp_path, 'image,label\n"i/a, b.jpg","m/a, b.png"\ni/漢 é.jpg,"m/""q"".png"\n')
    assert found == [("a, b", "i/a, b.jpg", "m/a, b.png"), ("漢 é", "i/漢 é.jpg", 'm/"q".png')] and not problems


@pytest.mark.parametrize(
    "row",
    [
        "/etc/a.jpg,m/a.png",
        "i/a.jpg,/etc/a.png",
        "../a.jpg,m/a.png",
        "i/a.jpg,m/../../a.png",
        "i\\..\\..\\a.jpg,m/a.png",
        "\\\\host\\share\\a.jpg,m/a.png",
    ],
)
def test_a_list_stays_in_its_folder(row: str, tmp_path: Path) -> None:
    found, problems = listed(tmp_path, f"image,label\n{row}\ni/b.jpg,m/b.png\n")
    assert found == PLAIN[0][1:]
    assert [kind for kind, _ in problems] == ["list entries that leave their folder"]


@pytest.mark.parametrize("row", [".,m/a.png", "i/a.jpg,", "i/a.jpg", ",m/a.png", "i/a.jpg;m/a.png"])
def test_a_row_names_two_files(row: str, tmp_path: Path) -> None:
    found, problems = listed(tmp_path, f"image,label\n{row}\ni/b.jpg,m/b.png\n")
    assert found == PLAIN[0][1:]
    image, _, label = row.partition(",")
    assert problems == [("list entries without an image or a mask", f"{image!r}, {label!r}")]


def test_an_image_counts_once_in_a_list(tmp_path: Path) -> None:
    found, problems = listed(tmp_path, "image,label\ni/a.jpg,m/a.png\ni/a.jpg,m/b.png\n./i/a.jpg,m/a.png\n")
    assert found == PLAIN[0][:1]
    assert problems == [("images listed twice", "i/a.jpg"), ("images listed twice", "./i/a.jpg")]


def test_folders_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    found, problems = listed(tmp_path, "image,label\nx/a.b.jpg,m/1.png\ny/a.b.jpg,m/2.png\nz/c.jpg,m/3.png\n")
    assert [name for name, *_ in found] == ["x/a.b", "y/a.b", "z/c"] and not problems


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", "none"), ("image;label\na;b\n", "image;label"), ("id,mask\n1,2\n", "id, mask")],
)
def test_a_table_with_other_columns_is_no_list(text: str, columns: str, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(text)
    listing = Listing(("test.csv",))
    assert listing.read(tmp_path, Tree()) is None and listing.there(tmp_path, Tree()) == []
    expected = [f"test.csv with the columns image and label (its columns are {columns})"]
    assert listing.lacks(tmp_path, Tree()) == expected
    (tmp_path / "testing.csv").write_text("image,label\ni/a.jpg,m/a.png\n")
    assert len(Listing(("test.csv", "testing.csv")).read(tmp_path, Tree())[0]) == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("image,label\na,b\n".encode("utf-16"), "no text in UTF-8: save it again as 'CSV UTF-8'"),
        ("image,label\na,b\n".encode("utf-16-le"), "no text in UTF-8: save it again as 'CSV UTF-8'"),
        ("image,label\nträger.png,b\n".encode("latin-1"), "no text in UTF-8: save it again as 'CSV UTF-8'"),
        (b"image,label\na\0.png,b\n", "no text in UTF-8: save it again as 'CSV UTF-8'"),
        (b'image,label\n"a,b\nc,d\n', "line 3: unexpected end of data; mend its quotation marks"),
        (b'image,label\n"' + b"x" * 140_000, "line 2: field larger than field limit"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "Latin-1", "NUL", "open quote", "open quote before much"],
)
def test_a_list_that_cannot_be_read_is_told(content: bytes, why: str, tmp_path: Path) -> None:
    found, [(kind, detail)] = listed(tmp_path, content)
    assert found == [] and kind == "lists that cannot be read"
    assert why in detail and "or move it away if it is not this dataset's" in detail


def test_a_list_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (tmp_path / "test.csv").touch()
    pairs, [problem] = Listing(("test.csv",)).read(tmp_path, Tree())
    assert not pairs and problem.detail.startswith("Permission denied; allow it: chmod u+r")


def plant(base: Path, *paths: str) -> None:
    for path in paths:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).touch()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_list_finds_files_whose_names_are_stored_otherwise(form: str, tmp_path: Path) -> None:
    stored = [unicodedata.normalize(form, path) for path in ("Images/TRAIN/é1.JPG", "MASKS/é1.png")]
    plant(tmp_path, *stored)
    for other in ("NFC", "NFD"):
        found, problems = listed(
            tmp_path, unicodedata.normalize(other, "image,label\nimages/train/é1.jpg,masks/É1.PNG\n")
        )
        assert found == [("é1", *stored)] and not problems


def test_a_list_takes_the_exact_name_before_others(tmp_path: Path) -> None:
    plant(tmp_path, "i/A.jpg", "i/a.jpg", "m/A.png", "m/a.png", "I/A.jpg")
    found, problems = listed(tmp_path, "image,label\ni/a.jpg,m/a.png\ni/A.jpg,m/A.png\nI/A.jpg,M/A.png\n")
    assert found == [("i/a", "i/a.jpg", "m/a.png"), ("i/A", "i/A.jpg", "m/A.png"), ("I/A", "I/A.jpg", "m/A.png")]
    assert not problems


def test_an_image_listed_in_two_cases_counts_once(tmp_path: Path) -> None:
    plant(tmp_path, "i/a.jpg", "m/a.png")
    found, problems = listed(tmp_path, "image,label\ni/a.jpg,m/a.png\nI/A.JPG,m/a.png\n")
    assert found == PLAIN[0][:1] and problems == [("images listed twice", "I/A.JPG")]


def test_a_list_without_rows_is_an_empty_split(tmp_path: Path) -> None:
    assert listed(tmp_path, "image,label\n") == ([], [])
