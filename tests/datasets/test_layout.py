"""Where a dataset's files are found: in any case and depth, by links, and beside other datasets."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from datasets import DatasetMissing, load, registry
from datasets.files import FileDataset
from datasets.layout import Found, Layout, locate
from datasets.pairing import Problem
from datasets.parts import Folders, Listing
from datasets.tree import Tree

# Of each published layout the folders of images and of masks with one pair of names in them, as they were unpacked.
PUBLISHED: dict[str, list[list[tuple[str, str]]]] = {
    "polyps": [
        [
            ("TrainDataset/image/{}.png", "TrainDataset/mask/{}.png"),
            ("TestDataset/CVC-300/images/{}.png", "TestDataset/CVC-300/masks/{}.png"),
            ("TestDataset/Kvasir/images/{}.png", "TestDataset/Kvasir/masks/{}.png"),
        ],
        [
            ("Kvasir-SEG/images/{}.jpg", "Kvasir-SEG/masks/{}.jpg"),
            ("CVC-ClinicDB/Original/{}.tif", "CVC-ClinicDB/Ground Truth/{}.tif"),
            ("ETIS-LaribPolypDB/ETIS-LaribPolypDB/{}.tif", "ETIS-LaribPolypDB/Ground Truth/p{}.tif"),
        ],
    ],
    "isic2017": [
        [
            (f"ISIC-2017_{split}_Data/{{}}.jpg", f"ISIC-2017_{split}_Part1_GroundTruth/{{}}_segmentation.png")
            for split in ("Training", "Validation", "Test_v2")
        ],
        [
            (f"{short}/ISIC-2017_{name}/{{}}.jpg", f"{short}/ISIC-2017_{split}_Part1_GroundTruth/{{}}_segmentation.png")
            for short, name, split in (
                ("train", "Train", "Training"),
                ("val", "Val", "Validation"),
                ("test", "Test", "Test_v2"),
            )
        ],
    ],
    "camouflage": [
        [
            (f"{place}/Imgs/{{}}.jpg", f"{place}/GT/{{}}.png")
            for place in ("TrainValDataset", "TestDataset/CHAMELEON", "TestDataset/CAMO", "TestDataset/COD10K")
        ],
        [
            ("TrainDataset/Image/{}.jpg", "TrainDataset/GT/{}.png"),
            ("TestDataset/COD10K/Image/{}.jpg", "TestDataset/COD10K/GT/{}.png"),
        ],
        [
            ("COD10K-v3/Train/Image/COD10K-{}.jpg", "COD10K-v3/Train/GT_Object/COD10K-{}.png"),
            ("COD10K-v3/Test/Image/COD10K-{}.jpg", "COD10K-v3/Test/GT_Object/COD10K-{}.png"),
            ("CAMO-V.1.0-CVIU2019/Images/Train/camourflage_0{}.jpg", "CAMO-V.1.0-CVIU2019/GT/camourflage_0{}.png"),
            ("CAMO-V.1.0-CVIU2019/Images/Test/camourflage_1{}.jpg", "CAMO-V.1.0-CVIU2019/GT/camourflage_1{}.png"),
            ("CHAMELEON/Imgs/{}.jpg", "CHAMELEON/GT/{}.png"),
        ],
    ],
    "sbu": [
        [
            (f"{place}/ShadowImages/{{}}.jpg", f"{place}/ShadowMasks/{{}}.png")
            for place in ("SBUTrain4KRecoveredSmall", "SBU-Test")
        ]
    ],
    "leaf": [
        [(f"orig_data/{split}_images/{{}}.jpg", f"orig_data/{split}_masks/{{}}.png") for split in ("train", "valid")],
    ],
    "road": [
        [(f"{split}/sat/{{}}.tiff", f"{split}/map/{{}}.tif") for split in ("train", "valid", "test")],
        [(f"tiff/{split}/{{}}.tiff", f"tiff/{split}_labels/{{}}.tif") for split in ("train", "val", "test")],
        [(f"png/{split}/{{}}.png", f"png/{split}_labels/{{}}.png") for split in ("train", "val", "test")],
        [(f"{split}/input/img-{{}}.png", f"{split}/output/img-{{}}.png") for split in ("training", "testing")],
    ],
    "trans10k_v1": [
        [
            (f"{place}/images/{{}}.jpg", f"{place}/masks/{{}}_mask.png")
            for place in ("train", "validation/easy", "validation/hard", "test/easy", "test/hard")
        ]
    ],
    "trans10k_v2": [
        [(f"{split}/images/{{}}.jpg", f"{split}/masks_12/{{}}_mask.png") for split in ("train", "validation", "test")]
    ],
    "camvid": [[(f"{split}/{{}}.png", f"{split}annot/{{}}.png") for split in ("train", "val", "test")]],
}
OWN_LISTS = {
    "polyps": ("polyp", ("train", "val", "test_Kvasir", "test_CVC-ClinicDB")),
    "camouflage": ("camo_sem_seg", ("train", "val", "test_CAMO")),
    "isic2017": ("isic2017", ("train", "val", "test")),
    "sbu": ("SBU-shadow", ("train", "val", "test")),
    "leaf": ("leaf_disease_segmentation", ("train", "val", "test")),
    "road": ("road_segmentation", ("train", "val", "test")),
}
LAYOUTS = [(name, number) for name, layouts in PUBLISHED.items() for number in range(len(layouts))]
COUNT = 12  # pairs in each folder, so that something is drawn from them


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def plant(base: Path, folders: Sequence[tuple[str, str]], names: Sequence[str] = ()) -> set[tuple[Path, Path]]:
    """Empty files, as nothing here opens them; returns the images with their masks."""
    names = names or [f"n{number}" for number in range(COUNT)]
    return {
        (touch(base / image.format(name)), touch(base / mask.format(name))) for image, mask in folders for name in names
    }


def plant_lists(base: Path, lists: Sequence[str]) -> set[tuple[Path, Path]]:
    """The authors' zip of a dataset with these lists."""
    planted = set()
    for name in lists:
        folders = [(f"files/{name}/images/{{}}.jpg", f"files/{name}/masks/{{}}.png")]
        pairs = sorted(plant(base, folders))
        rows = [",".join(path.relative_to(base).as_posix() for path in pair) for pair in pairs]
        (base / f"{name}.csv").write_text("\n".join(["image,label", *rows, ""]))
        planted |= set(pairs)
    return planted


def paired(found: Found) -> set[tuple[Path, Path]]:
    return {(pair.image, pair.mask) for pairs in found.splits.values() for pair in pairs}


def whoever_finds(root: Path) -> set[str]:
    found = set()
    for name in PUBLISHED:
        try:
            load(name).find(root)
        except DatasetMissing:
            continue
        found.add(name)
    return found


def test_the_table_has_every_dataset_with_published_layouts() -> None:
    kinds = {name: registry[name] for name in registry.names()}
    assert {name for name, kind in kinds.items() if issubclass(kind, FileDataset)} == {*PUBLISHED, "folder"}
    for name, kind in kinds.items():
        if name in PUBLISHED:
            named = [layout for layout in kind.layouts if "authors" not in layout.name]
            assert len(PUBLISHED[name]) >= len(named), name


@pytest.mark.parametrize(("name", "number"), LAYOUTS)
def test_a_layout_belongs_to_one_dataset_alone(name: str, number: int, tmp_path: Path) -> None:
    planted = plant(tmp_path, PUBLISHED[name][number])
    assert whoever_finds(tmp_path) == {name}
    found = load(name).find(tmp_path)
    assert paired(found) == planted and found.base == tmp_path and not found.problems


@pytest.mark.parametrize("number", range(4))
def test_all_datasets_side_by_side_in_one_folder(number: int, tmp_path: Path) -> None:
    planted = {name: plant(tmp_path, layouts[number % len(layouts)]) for name, layouts in PUBLISHED.items()}
    for name, expected in planted.items():
        found = load(name).find(tmp_path)
        assert paired(found) == expected, name
        assert not found.problems


def test_all_zips_of_the_authors_side_by_side(tmp_path: Path) -> None:
    planted = {name: plant_lists(tmp_path / folder, lists) for name, (folder, lists) in OWN_LISTS.items()}
    for name, expected in planted.items():
        found = load(name).find(tmp_path)
        assert paired(found) == expected, name
        assert found.base.name == OWN_LISTS[name][0]
    assert whoever_finds(tmp_path) == {*OWN_LISTS}


@pytest.mark.parametrize("name", OWN_LISTS)
def test_lists_in_a_folder_without_a_name_are_no_other_datasets(name: str, tmp_path: Path) -> None:
    plant_lists(tmp_path, OWN_LISTS[name][1])
    assert whoever_finds(tmp_path) <= {name}


@pytest.mark.parametrize(("name", "number"), LAYOUTS)
@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase])
def test_folders_match_in_any_case(name: str, number: int, change: Callable, tmp_path: Path) -> None:
    folders = [tuple(map(change, pair)) for pair in PUBLISHED[name][number]]
    planted = plant(tmp_path / change(name), folders)
    found = load(name).find(tmp_path)
    assert paired(found) == planted and not found.problems


@pytest.mark.parametrize(("name", "number"), LAYOUTS)
def test_every_folder_may_lie_in_one_of_its_own_name(name: str, number: int, tmp_path: Path) -> None:
    # An archive's extra level is that of its uppermost folder or of its last ones.
    def last(path: str) -> str:
        *folders, file = path.split("/")
        return "/".join([*folders, folders[-1], file])

    for change, place in ((lambda path: f"{path.split('/')[0]}/{path}", "first"), (last, "last")):
        planted = plant(tmp_path / place / name / name, [tuple(map(change, pair)) for pair in PUBLISHED[name][number]])
        found = load(name).find(tmp_path / place)
        assert paired(found) == planted and not found.problems


IN_TWO = Layout("two folders", {"test": (Folders(("images",), ("masks",)),)})
IN_LISTS = Layout("lists", {name: (Listing((f"{name}.csv",)),) for name in ("train", "test")})


def look(root: Path, layout: Layout = IN_TWO) -> Found:
    return locate("toys", root, (layout,), split_seed=1, source="a shop", aliases=("Playthings",))


@pytest.mark.parametrize("place", [".", "toys", "TOYS", "playthings", "toys/toys", "toys/Playthings", "toys/TOYS"])
def test_the_root_is_the_dataset_or_holds_it(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    planted = plant(root / place, [("images/{}.png", "masks/{}.png")])
    assert paired(look(root)) == planted
    monkeypatch.setenv("BENCH_DATA_ROOT", str(root))
    assert paired(look(None)) == planted


def test_the_datasets_own_folder_goes_before_the_root(tmp_path: Path) -> None:
    plant(tmp_path, [("images/{}.png", "masks/{}.png")])
    planted = plant(tmp_path / "toys", [("images/{}.png", "masks/{}.png")])
    assert paired(look(tmp_path)) == planted


def test_a_half_copy_gives_way_to_a_whole_one(tmp_path: Path) -> None:
    touch(tmp_path / "toys" / "images" / "a.png")
    planted = plant(tmp_path / "Playthings", [("images/{}.png", "masks/{}.png")])
    assert paired(look(tmp_path)) == planted


def test_links_are_followed(tmp_path: Path) -> None:
    plant(tmp_path / "disk" / "copy", [("images/{}.png", "masks/{}.png")])
    root = tmp_path / "data"
    root.mkdir()
    (root / "toys").symlink_to(tmp_path / "disk" / "copy")
    assert len(paired(look(root))) == COUNT

    own = tmp_path / "own"
    own.mkdir()
    for folder in ("images", "masks"):
        (own / folder).symlink_to(tmp_path / "disk" / "copy" / folder)
    (tmp_path / "disk" / "copy" / "images" / "dangling.png").symlink_to("nowhere")
    found = look(own)
    assert len(paired(found)) == COUNT and not found.problems


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_any_writing(form: str, tmp_path: Path) -> None:
    names = [
        unicodedata.normalize(form, name)
        for name in ("é", "Ärzte im Garten", "漢字", "a.b.c", "a b", "-", "ﬁ", "[1]", "%s")
    ]
    root = tmp_path / unicodedata.normalize(form, "Möbel & [Co]")
    planted = plant(root / "toys", [("images/{}.JPeG", "masks/{}.PNG")], names)
    found = look(root)
    assert paired(found) == planted and not found.problems
    assert {pair.identifier for pair in found.splits["test"]} == {unicodedata.normalize("NFC", name) for name in names}


def test_a_name_with_dots_is_no_shorter_one(tmp_path: Path) -> None:
    plant(tmp_path, [("images/{}.png", "masks/{}.png")], ["a.b", "a.c", "a", "a.png"])
    found = look(tmp_path)
    assert [pair.identifier for pair in found.splits["test"]] == ["a", "a.b", "a.c", "a.png"]
    assert not found.problems


def test_equal_stems_are_told(tmp_path: Path) -> None:
    plant(tmp_path, [("images/{}.png", "masks/{}.png")], ["a", "b"])
    touch(tmp_path / "images" / "A.JPG")
    touch(tmp_path / "masks" / "b.tif")
    found = look(tmp_path)
    assert len(found.splits["test"]) == 2
    assert found.problems == [
        Problem("second files of one name", tmp_path / "images" / "a.png", "beside A.JPG"),
        Problem("second files of one name", tmp_path / "masks" / "b.tif", "beside b.png"),
    ]


def test_what_is_no_picture_by_its_name_is_passed_over(tmp_path: Path) -> None:
    planted = plant(tmp_path, [("images/{}.png", "masks/{}.png")])
    for name in (".hidden.png", "._n0.png", "Thumbs.db", "notes.txt", "png", "n1.png.part", "n2.pngx"):
        touch(tmp_path / "images" / name)
    (tmp_path / "masks" / "n77.png").mkdir()
    (tmp_path / "masks" / "deeper").mkdir()
    touch(tmp_path / "masks" / "deeper" / "n78.png")
    found = look(tmp_path)
    assert paired(found) == planted and not found.problems


@pytest.mark.parametrize(
    ("spoil", "lacking"),
    [
        (lambda base: shutil.rmtree(base / "masks"), "lacks masks/"),
        (lambda base: (shutil.rmtree(base / "masks"), (base / "masks").touch()), "lacks masks/"),
        (lambda base: [path.unlink() for path in (base / "images").iterdir()], "lacks images/*.jpg"),
        (
            lambda base: [path.rename(path.with_suffix(".txt")) for path in (base / "images").iterdir()],
            "lacks images/*",
        ),
        (lambda base: shutil.rmtree(base), "no such folder"),
        (lambda base: (shutil.rmtree(base), base.touch()), "no such folder"),
        (lambda base: (shutil.rmtree(base), base.mkdir()), "holds nothing of it"),
    ],
)
def test_a_missing_part_is_named(spoil: Callable, lacking: str, tmp_path: Path) -> None:
    base = tmp_path / "toys"
    plant(base, [("images/{}.png", "masks/{}.png")])
    spoil(base)
    with pytest.raises(DatasetMissing) as raised:
        look(tmp_path)
    message = str(raised.value)
    assert f"{base} ({lacking}" in message
    for told in (
        "two folders: images/, masks/",
        "Get it: a shop",
        "--data-root DIR or BENCH_DATA_ROOT=DIR",
        "DIR/toys",
    ):
        assert told in message


@pytest.mark.parametrize("root", ["nowhere", "file", "file/below"])
def test_a_root_that_is_none(root: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetMissing, match="no such folder"):
        look(tmp_path / root)


def test_images_whose_masks_are_all_elsewhere_are_told_one_by_one(tmp_path: Path) -> None:
    touch(tmp_path / "images" / "a.png")
    touch(tmp_path / "masks" / "b.png")
    found = look(tmp_path)
    assert found.splits == {"test": []}
    assert found.problems == [
        Problem("images without a mask", tmp_path / "images" / "a.png"),
        Problem("masks without an image", tmp_path / "masks" / "b.png"),
    ]


def test_the_first_whole_layout_wins_and_optional_test_sets_may_lack(tmp_path: Path) -> None:
    parts = {name: (Folders((f"{name}/images",), (f"{name}/masks",)),) for name in ("train", "easy", "hard")}
    layout = Layout("three", parts, optional=frozenset({"easy", "hard"}))
    plant(tmp_path, [("train/images/{}.png", "train/masks/{}.png")])
    with pytest.raises(DatasetMissing, match="lacks each of the test sets easy, hard"):
        look(tmp_path, layout)
    plant(tmp_path, [("hard/images/{}.png", "hard/masks/{}.png")])
    assert list(look(tmp_path, layout).splits) == ["train", "hard"]
    plant(tmp_path, [("images/{}.png", "masks/{}.png")])
    both = locate("toys", tmp_path, (IN_TWO, layout), split_seed=1, source="a shop")
    assert both.layout is IN_TWO


def test_what_joins_one_split_has_names_of_its_own(tmp_path: Path) -> None:
    folders = [Folders((f"{name}/images",), (f"{name}/masks",)) for name in ("a", "b")]
    plant(tmp_path, [(f"{name}/images/{{}}.png", f"{name}/masks/{{}}.png") for name in ("a", "b")], ["1", "2"])
    found = look(tmp_path, Layout("joined", {"test": tuple(folders)}))
    assert found.problems == [
        Problem("second files of one name", tmp_path / "b" / "images" / f"{name}.png", f"beside {name}.png in images")
        for name in ("1", "2")
    ]
    prefixed = Layout("joined", {"test": (folders[0], Folders(("b/images",), ("b/masks",), prefix="b-"))})
    found = look(tmp_path, prefixed)
    assert [pair.identifier for pair in found.splits["test"]] == ["1", "2", "b-1", "b-2"] and not found.problems


def test_the_exact_name_goes_before_another_case(tmp_path: Path) -> None:
    for name in ("DATA", "Data", "data"):
        (tmp_path / name).mkdir()
    tree = Tree()
    assert tree.folders(tmp_path, "Data") == [tmp_path / name for name in ("Data", "DATA", "data")]
    assert tree.folders(tmp_path, "dATA") == [tmp_path / name for name in ("DATA", "Data", "data")]
    assert tree.folders(tmp_path, "date") == tree.folders(tmp_path, "data/deeper") == []
    touch(tmp_path / "Data" / "LIST.csv")
    tree = Tree()
    assert tree.files(tmp_path, "Data/list.CSV") == [tmp_path / "Data" / "LIST.csv"]
    assert tree.folders(tmp_path, "Data/list.csv") == tree.files(tmp_path, "Data") == []


def close(monkeypatch: pytest.MonkeyPatch, *closed: Path) -> None:
    """Folders without permissions, for tests that run as root too."""
    listdir, scandir, isdir = os.listdir, os.scandir, os.path.isdir

    def opened(path: Path) -> Path:
        if path in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return path

    monkeypatch.setattr("datasets.tree.os.listdir", lambda path: listdir(opened(path)))
    monkeypatch.setattr("datasets.pairing.os.scandir", lambda path: scandir(opened(path)))
    monkeypatch.setattr("datasets.tree.os.path.isdir", lambda path: isdir(path) and not {*closed} & {*path.parents})


def test_a_closed_folder_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "TOYS", [("images/{}.png", "masks/{}.png")])
    closed = tmp_path / "TOYS" / "masks"
    close(monkeypatch, closed)
    with pytest.raises(DatasetMissing) as raised:
        look(tmp_path)
    assert f"Cannot be read: {closed} (Permission denied; allow it: chmod u+rx {closed})" in str(raised.value)
    close(monkeypatch, tmp_path)
    with pytest.raises(DatasetMissing, match=f"Cannot be read: {tmp_path} .Permission denied; allow it: chmod u.rx"):
        look(tmp_path)


def test_a_closed_folder_hides_no_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toys").mkdir()
    planted = plant(tmp_path / "Playthings", [("images/{}.png", "masks/{}.png")])
    close(monkeypatch, tmp_path / "toys")
    found = look(tmp_path)
    assert paired(found) == planted and not found.problems


def test_a_closed_folder_of_an_optional_part_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: (Folders((f"{name}/images",), (f"{name}/masks",)),) for name in ("train", "easy", "hard")}
    for name in parts:
        plant(tmp_path, [(f"{name}/images/{{}}.png", f"{name}/masks/{{}}.png")])
    close(monkeypatch, tmp_path / "hard")
    found = look(tmp_path, Layout("three", parts, optional=frozenset({"easy", "hard"})))
    assert list(found.splits) == ["train", "easy"]
    why = f"Permission denied; allow it: chmod u+rx {tmp_path / 'hard'}"
    assert found.problems == [Problem("folders that cannot be read", tmp_path / "hard", why)]


def test_a_folder_that_cannot_be_listed_may_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant(tmp_path / "data" / "toys", [("images/{}.png", "masks/{}.png")])
    isdir = os.path.isdir
    close(monkeypatch, tmp_path / "data", tmp_path / "data" / "toys")
    monkeypatch.setattr("datasets.tree.os.path.isdir", isdir)
    found = look(tmp_path / "data")
    assert paired(found) == planted and not found.problems


def test_half_an_optional_part_is_a_problem(tmp_path: Path) -> None:
    parts = {"train": (Folders(("images",), ("masks",)),)}
    parts["joined"] = (Folders(("a/images",), ("a/masks",)), Folders(("b/images",), ("b/masks",)))
    parts["test"] = (Listing(("test.csv",)),)
    layout = Layout("joined", parts, optional=frozenset({"joined"}))
    plant(tmp_path / "toys", [("images/{}.png", "masks/{}.png")])
    plant_lists(tmp_path / "toys", ["test"])
    assert not look(tmp_path, layout).problems
    plant(tmp_path / "toys", [("a/images/{}.png", "a/masks/{}.png")])
    (tmp_path / "toys" / "b" / "masks").mkdir(parents=True)
    found = look(tmp_path, layout)
    assert list(found.splits) == ["train", "test"]
    detail = "lacks b/images/, b/masks/*.jpg *.jpeg *.png *.bmp *.tif *.tiff *.gif"
    assert found.problems == [Problem("test sets that are there in part", tmp_path / "toys" / "a" / "images", detail)]


def test_links_in_a_loop_are_passed_over(tmp_path: Path) -> None:
    planted = plant(tmp_path / "copy", [("images/{}.png", "masks/{}.png")])
    (tmp_path / "copy" / "masks" / "loop.png").symlink_to("loop.png")
    (tmp_path / "copy" / "Images").symlink_to("Images")
    (tmp_path / "toys").symlink_to("toys")
    found = look(tmp_path / "copy")
    assert paired(found) == planted and not found.problems
    with pytest.raises(DatasetMissing):
        look(tmp_path)


def test_lists_alone_need_the_name_of_the_dataset(tmp_path: Path) -> None:
    for place in ("toys", "other"):
        plant_lists(tmp_path / place, ["train", "test"])
    assert len(look(tmp_path, IN_LISTS).splits["test"]) == COUNT
    assert look(tmp_path / "toys", IN_LISTS).base == tmp_path / "toys"
    with pytest.raises(DatasetMissing, match="the name toys, without which these files may be another dataset's"):
        look(tmp_path / "other", IN_LISTS)


def test_listed_files_that_are_not_there_are_pairs_until_they_are_opened(tmp_path: Path) -> None:
    plant_lists(tmp_path / "toys", ["train", "test"])
    shutil.rmtree(tmp_path / "toys" / "files")
    assert len(look(tmp_path, IN_LISTS).splits["test"]) == COUNT
