"""Which mask is whose: by the names in two folders, or by a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.layout import Listing
from datasets.pairing import list_files, pair_files

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


def listed(base: Path, text: str | bytes) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """What a list with that text gives: identifiers and paths below ``base``, and problems."""
    (base / "test.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    pairs, problems = Listing(("test.csv",)).read(base)
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
        ".,m/a.png",
        "i/a.jpg,",
        "i/a.jpg",
        ",m/a.png",
    ],
)
def test_a_list_stays_in_its_folder(row: str, tmp_path: Path) -> None:
    found, problems = listed(tmp_path, f"image,label\n{row}\ni/b.jpg,m/b.png\n")
    assert found == PLAIN[0][1:]
    assert [kind for kind, _ in problems] == ["list entries that leave their folder"]


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
def test_a_list_without_the_columns_is_told(text: str, columns: str, tmp_path: Path) -> None:
    assert listed(tmp_path, text) == ([], [("lists without the columns image and label", f"its columns are {columns}")])


def test_a_list_without_rows_is_an_empty_split(tmp_path: Path) -> None:
    assert listed(tmp_path, "image,label\n") == ([], [])
