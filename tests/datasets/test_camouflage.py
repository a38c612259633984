"""Camouflaged objects in every layout they are found in, and the files of COD10K that show none."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.metrics import metrics_of
from bench.regime import resolve
from datasets import DatasetBroken, DatasetMissing, Split, evidence, load
from datasets.pairing import Pair

SIZE = (24, 18)  # width, height
COD_TRAIN = [f"COD10K-CAM-1-Aquatic-{number}-Crab-{number}" for number in range(10, 22)]
CAMO_TRAIN = [f"camourflage_{number:05d}" for number in range(1, 9)]
TESTS = {
    "chameleon": ("CHAMELEON", ["animal-1", "animal-10"]),
    "camo": ("CAMO", ["camourflage_00012", "camourflage_00101"]),
    "cod10k": ("COD10K", ["COD10K-CAM-2-Terrestrial-23-Cat-1506", "COD10K-CAM-3-Flying-53-Bird-3"]),
    "nc4k": ("NC4K", ["1", "10", "2"]),
}
NON_CAMOUFLAGED = ["COD10K-NonCAM-3-Flying-1515", "COD10K-NonCAM-5-Background-5-Vegetation-4854"]
HELD_OUT = ("camourflage_00008", "COD10K-CAM-1-Aquatic-10-Crab-10")


def animal(stem: str) -> np.ndarray:
    """The true mask of the image called ``stem``: (H, W) of 0 and 1, empty for images without camouflage."""
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    if "NonCAM" not in stem:
        mask[3 : 7 + sum(stem.encode()) % 9, 4:19] = 1
    return mask


def plant(images: Path, masks: Path, stems: Iterable[str]) -> None:
    """An image and a mask for each of ``stems`` in two folders, as JPEG and PNG."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        rows, columns = np.indices(SIZE[::-1])
        shade = np.stack([9 * columns, 9 * rows, columns + rows + sum(stem.encode()) % 99], axis=-1)
        Image.fromarray(shade.astype(np.uint8)).save(images / f"{stem}.jpg")
        Image.fromarray(255 * animal(stem)).save(masks / f"{stem}.png")


def plant_repack(
    base: Path,
    *,
    train: str = "TrainValDataset",
    test: str = "TestDataset",
    images: str = "Imgs",
    masks: str = "GT",
    tests: Iterable[str] = tuple(TESTS),
    foreign: Sequence[str] = (),
) -> Path:
    """SINet-V2's re-pack; ``foreign``: images that were copied into every folder of COD10K's images."""
    plant(base / train / images, base / train / masks, [*COD_TRAIN, *CAMO_TRAIN, *foreign])
    for name in tests:
        folder, stems = TESTS[name]
        also = foreign if name == "cod10k" else ()
        plant(base / test / folder / images, base / test / folder / masks, [*stems, *also])
    return base


def plant_originals(base: Path, *, cod10k: Callable[[str], tuple[str, str]] | None = None) -> Path:
    """The original archives; ``cod10k``: from a split to its folders of images and masks."""
    cod10k = cod10k or (lambda split: (f"COD10K-v3/{split}/Image", f"COD10K-v3/{split}/GT_Object"))
    for split, stems in (("Train", COD_TRAIN), ("Test", TESTS["cod10k"][1])):
        images, masks = cod10k(split)
        plant(base / images, base / masks, [*stems, *NON_CAMOUFLAGED])
        shutil.copytree(base / masks, (base / masks).with_name("GT_Edge"))
        (base / images).with_name(f"CAM_Instance_{split}.txt").write_text("1\n")
    camo = base / "CAMO-V.1.0-CVIU2019"
    plant(camo / "Images/Train", camo / "GT", CAMO_TRAIN)
    plant(camo / "Images/Test", camo / "GT", TESTS["camo"][1])
    plant(base / "CHAMELEON/Imgs", base / "CHAMELEON/GT", TESTS["chameleon"][1])
    plant(base / "NC4K/Imgs", base / "NC4K/GT", TESTS["nc4k"][1])
    return base


def plant_authors(base: Path, *, index: bool = False, extra: Iterable[tuple[str, str]] = ()) -> Path:
    """The authors' zip, which tests CAMO alone; ``extra``: rows added to all of its lists."""
    plant_repack(base, tests=("camo",))
    train = [(f"TrainValDataset/Imgs/{stem}.jpg", f"TrainValDataset/GT/{stem}.png") for stem in COD_TRAIN + CAMO_TRAIN]
    test = [(f"TestDataset/CAMO/Imgs/{stem}.jpg", f"TestDataset/CAMO/GT/{stem}.png") for stem in TESTS["camo"][1]]
    for name, rows in {"train": train[3:], "val": train[:3], "test_CAMO": test}.items():
        with (base / f"{name}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow([*([""] if index else []), "image", "label"])
            for number, row in enumerate([*rows, *extra]):
                table.writerow([*([number] if index else []), *row])
    return base


def in_order(splits: Mapping[str, Split]) -> bool:
    return list(splits) == ["train", "validation", "chameleon", "camo", "cod10k", "nc4k"]


def assert_whole(splits: Mapping[str, Split]) -> None:
    """Every camouflaged image in its place and no other."""
    assert in_order(splits)
    assert splits["validation"].identifiers == HELD_OUT
    assert len(splits["train"]) == 18
    assert set(splits["train"].identifiers) == {*COD_TRAIN, *CAMO_TRAIN} - set(HELD_OUT)
    for name, (_, stems) in TESTS.items():
        assert list(splits[name].identifiers) == stems
    for split in splits.values():
        for sample in split:
            assert sample.image.shape == (*SIZE[::-1], 3) and sample.mask.any()
            np.testing.assert_array_equal(sample.mask, animal(sample.identifier))


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"images": "Image"},
        {"images": "IMGS", "masks": "gt", "train": "trainvaldataset", "test": "TESTDATASET"},
        {"train": "TrainDataset"},
        {"train": "COD-TrainDataset", "test": "COD-TestDataset"},
        {"train": "COD-TrainDataset/COD-TrainDataset", "test": "COD-TestDataset/COD-TestDataset"},
        {"train": "TrainValDataset/TrainValDataset", "images": "Imgs/Imgs"},
    ],
    ids=["released", "SINet", "other case", "train", "archive names", "doubly nested", "nested twice"],
)
@pytest.mark.parametrize("place", ["camouflage", "camo_sem_seg", "."])
def test_sinet_repack(place: str, names: dict, tmp_path: Path) -> None:
    plant_repack(tmp_path / "data" / place, **names)
    assert_whole(load("camouflage").open(tmp_path / "data"))


@pytest.mark.parametrize("train", ["TrainValDataset", "COD-TrainDataset"])
def test_polyps_unpacked_beside_it_are_no_part_of_it(train: str, tmp_path: Path) -> None:
    plant_repack(tmp_path, train=train)
    for folder in ("TrainDataset/image", "TestDataset/Kvasir/images"):
        plant(tmp_path / folder, (tmp_path / folder).with_name("masks"), ["cju1a"])
    assert_whole(load("camouflage").open(tmp_path))


@pytest.mark.parametrize("there", [("camo",), ("chameleon", "nc4k"), ("chameleon", "camo", "cod10k")])
def test_missing_test_sets_are_left_out(there: tuple[str, ...], tmp_path: Path) -> None:
    splits = load("camouflage").open(plant_repack(tmp_path, tests=there))
    assert tuple(splits) == ("train", "validation", *there)
    assert splits["validation"].identifiers == HELD_OUT


def test_training_alone_is_not_the_dataset(tmp_path: Path) -> None:
    plant_repack(tmp_path, tests=())
    with pytest.raises(DatasetMissing, match="each of the test sets camo, chameleon, cod10k, nc4k"):
        load("camouflage").open(tmp_path)


def test_missing_dataset_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as raised:
        load("camouflage").open(tmp_path)
    for expected in (
        f"{tmp_path / 'camouflage'} (no such folder)",
        "SINet-V2's re-pack: TrainValDataset/Imgs/ or ",
        "the original archives: CAMO-V.1.0-CVIU2019/Images/Train/ or ",
        "COD10K-v3/Train/GT_Object/ or ",
        "in a folder named camouflage or camo_sem_seg): train.csv, val.csv, test_CAMO.csv; where there, the test sets ",
        "Get it: python -m datasets fetch camouflage, or: SINet-V2's re-pack has all four test sets",
        "1M8-Ivd33KslvyehLK9_IUBGJ_Kf52bWG",
    ):
        assert expected in str(raised.value)
    assert "\n" not in load("camouflage").steps


COD10K_FOLDERS = {
    "v3": lambda split: (f"COD10K-v3/{split}/Image", f"COD10K-v3/{split}/GT_Object"),
    "v2": lambda split: (f"COD10K-v2/{split}/Image", f"COD10K-v2/{split}/GT_Object"),
    "plain": lambda split: (f"COD10K/{split}/Image", f"COD10K/{split}/GT_Object"),
    "lower": lambda split: (f"cod10k-v3/{split.lower()}/image", f"cod10k-v3/{split.lower()}/gt_object"),
    "nested": lambda split: (f"COD10K-v3/COD10K-v3/{split}/Image", f"COD10K-v3/COD10K-v3/{split}/GT_Object"),
    "older": lambda split: (
        f"COD10K-{split.lower()}/COD10K-{split[:2].upper()}-Image",
        f"COD10K-{split.lower()}/GT_Object",
    ),
    "older, plain": lambda split: (f"COD10K-{split.lower()}/Imgs", f"COD10K-{split.lower()}/GT"),
}


@pytest.mark.parametrize("cod10k", COD10K_FOLDERS)
def test_original_archives(cod10k: str, tmp_path: Path) -> None:
    assert_whole(load("camouflage").open(plant_originals(tmp_path, cod10k=COD10K_FOLDERS[cod10k])))


def test_originals_and_repack_hold_the_same(tmp_path: Path) -> None:
    originals = load("camouflage").open(plant_originals(tmp_path / "originals"))
    repack = load("camouflage").open(plant_repack(tmp_path / "repack"))
    assert evidence(originals) == evidence(repack)


@pytest.mark.parametrize("archive", ["COD10K-v3", "CAMO-V.1.0-CVIU2019"])
def test_both_training_archives_are_needed(archive: str, tmp_path: Path) -> None:
    plant_originals(tmp_path)
    (tmp_path / archive).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetMissing, match=f"{tmp_path.name} .lacks {archive}/"):
        load("camouflage").open(tmp_path)


def test_camos_masks_lie_in_one_folder_for_both_splits(tmp_path: Path) -> None:
    """Masks of the other split, or of no image at all, are no problem; an image without a mask is one."""
    plant_originals(tmp_path)
    masks = tmp_path / "CAMO-V.1.0-CVIU2019/GT"
    Image.fromarray(255 * animal("x")).save(masks / "camourflage_09999.png")
    assert_whole(load("camouflage").open(tmp_path))
    (masks / "camourflage_00012.png").unlink()
    (masks / "camourflage_00003.png").unlink()
    with pytest.raises(DatasetBroken) as raised:
        load("camouflage").open(tmp_path)
    assert (
        "images without a mask (2):\n"
        "  CAMO-V.1.0-CVIU2019/Images/Train/camourflage_00003.jpg\n"
        "  CAMO-V.1.0-CVIU2019/Images/Test/camourflage_00012.jpg\n"
    ) in str(raised.value)


@pytest.mark.parametrize("layout", ["re-pack", "originals", "lists", "lists with paths"])
def test_images_without_camouflage_never_slip_in(layout: str, tmp_path: Path) -> None:
    base = tmp_path / "camouflage"
    if layout == "re-pack":
        plant_repack(base, foreign=NON_CAMOUFLAGED)
    elif layout == "originals":
        plant_originals(base)
    else:
        folder = "TrainValDataset"
        rows = [(f"{folder}/Imgs/{stem}.jpg", f"{folder}/GT/{stem}.png") for stem in NON_CAMOUFLAGED]
        plant_authors(base, extra=rows)
        plant_repack(base, foreign=NON_CAMOUFLAGED)
    if layout == "lists with paths":  # two files of one stem make the identifiers paths
        plant(base / "more", base / "more", [COD_TRAIN[5]])
        with (base / "train.csv").open("a") as stream:
            stream.write(f"more/{COD_TRAIN[5]}.jpg,more/{COD_TRAIN[5]}.png\n")
    assert len(list(base.rglob(f"{NON_CAMOUFLAGED[0]}.jpg"))) == 2
    splits = load("camouflage").open(tmp_path)
    assert in_order(splits)
    for split in splits.values():
        assert not [key for key in split.identifiers if "noncam" in key.lower()]
        assert all(sample.mask.any() for sample in split)


def test_images_without_camouflage_need_no_masks(tmp_path: Path) -> None:
    plant_originals(tmp_path)
    for path in tmp_path.glob("COD10K-v3/*/GT_Object/COD10K-NonCAM-*"):
        path.unlink()
    assert_whole(load("camouflage").open(tmp_path))


@pytest.mark.parametrize(
    "place", ["camouflage", "camo_sem_seg", "camouflage/camo_sem_seg", "CAMO_SEM_SEG/camo_sem_seg"]
)
@pytest.mark.parametrize("index", [False, True])
def test_lists_of_the_authors(place: str, index: bool, tmp_path: Path) -> None:
    plant_authors(tmp_path / place, index=index)
    splits = load("camouflage").open(tmp_path)
    assert list(splits) == ["train", "validation", "camo"]
    assert list(splits["validation"].identifiers) == COD_TRAIN[:3]
    assert list(splits["train"].identifiers) == COD_TRAIN[3:] + CAMO_TRAIN
    assert list(splits["camo"].identifiers) == TESTS["camo"][1]
    for split in splits.values():
        for sample in split:
            np.testing.assert_array_equal(sample.mask, animal(sample.identifier))


def test_lists_win_and_the_repack_adds_the_further_test_sets(tmp_path: Path) -> None:
    plant_authors(tmp_path / "camouflage/camo_sem_seg")
    plant_repack(tmp_path / "camouflage")
    splits = load("camouflage").open(tmp_path)
    assert in_order(splits)
    assert list(splits["validation"].identifiers) == COD_TRAIN[:3] != list(HELD_OUT)


def test_two_zips_of_the_authors_in_one_folder_are_neither_dataset(tmp_path: Path) -> None:
    plant_authors(tmp_path / "all")
    for name in ("Kvasir", "CVC-ClinicDB"):
        shutil.copy(tmp_path / "all/val.csv", tmp_path / f"all/test_{name}.csv")
    shutil.rmtree(tmp_path / "all/TrainValDataset")
    for name in ("camouflage", "polyps"):
        with pytest.raises(DatasetMissing, match=f"all .lacks the name {name}, without which"):
            load(name).find(tmp_path / "all")


def test_lists_come_from_one_folder(tmp_path: Path) -> None:
    plant_authors(tmp_path / "camouflage")
    (tmp_path / "camouflage/camo_sem_seg").mkdir()
    (tmp_path / "camouflage/test_CAMO.csv").rename(tmp_path / "camouflage/camo_sem_seg/test_CAMO.csv")
    assert load("camouflage").find(tmp_path).layout.name == "SINet-V2's re-pack"


def test_masks_of_camos_training_are_no_half_of_its_test_set(tmp_path: Path) -> None:
    plant_originals(tmp_path)
    shutil.rmtree(tmp_path / "CAMO-V.1.0-CVIU2019/Images/Test")
    found = load("camouflage").find(tmp_path)
    assert "camo" not in found.splits and not found.problems


@pytest.mark.parametrize("entry", ["../outside.jpg", "/outside.jpg", "a\\..\\..\\outside.jpg"])
def test_lists_stay_in_their_folder(entry: str, tmp_path: Path) -> None:
    plant_authors(tmp_path / "camouflage", extra=[(entry, "TrainValDataset/GT/camourflage_00001.png")])
    with pytest.raises(DatasetBroken, match=r"list entries that leave their folder \(3\):\n  train.csv: ") as raised:
        load("camouflage").open(tmp_path)
    assert repr(entry) in str(raised.value)


def test_the_repacks_division_is_that_of_the_originals(tmp_path: Path) -> None:
    """The validation images follow from names alone, so both layouts hold out the same tenth of 4040."""
    dataset = load("camouflage")
    names = [f"COD10K-CAM-{number}" for number in range(3040)] + [f"camourflage_{number:05d}" for number in range(1000)]
    parts = {"train": [Pair(name, tmp_path, tmp_path) for name in names], "camo": []}
    for layout in dataset.layouts[1:]:
        splits = layout.arrange(parts, dataset.split_seed)
        again = layout.arrange({"train": parts["train"][::-1], "camo": []}, dataset.split_seed)
        assert {name: len(splits[name]) for name in ("train", "validation")} == {"train": 3636, "validation": 404}
        assert {*splits["train"], *splits["validation"]} == set(parts["train"])
        assert set(again["validation"]) == set(splits["validation"])
        assert [pair.identifier for pair in splits["validation"]][:2] == ["COD10K-CAM-10", "COD10K-CAM-14"]
        assert [pair.identifier for pair in splits["validation"]][-2:] == ["camourflage_00975", "camourflage_00997"]


def test_masks_in_the_encodings_they_are_found_in(tmp_path: Path) -> None:
    """RGB, RGBA, palette and one-bit masks, and edges smoothed by scaling, mean the same."""
    plant_repack(tmp_path)
    masks = tmp_path / "TrainValDataset/GT"
    for stem, mode in zip(CAMO_TRAIN, ("RGB", "RGBA", "P", "1"), strict=False):
        Image.fromarray(255 * animal(stem)).convert(mode).save(masks / f"{stem}.png")
    smooth = 255.0 * animal(CAMO_TRAIN[4])
    smooth[:, 1:-1] = (smooth[:, :-2] + 2 * smooth[:, 1:-1] + smooth[:, 2:]) / 4
    stored = np.where(animal(CAMO_TRAIN[4]) == 1, np.maximum(smooth, 128), np.minimum(smooth, 127)).astype(np.uint8)
    Image.fromarray(stored).save(masks / f"{CAMO_TRAIN[4]}.png")
    assert len(np.unique(stored)) > 2
    assert_whole(load("camouflage").open(tmp_path))


def test_problems_and_leftovers(tmp_path: Path) -> None:
    plant_repack(tmp_path)
    train = tmp_path / "TrainValDataset"
    for name in (".DS_Store", "Thumbs.db", "._camourflage_00001.jpg", "camourflage_00001.txt"):
        (train / "Imgs" / name).write_bytes(b"x")
    plant(train / "Edge", train / "Instance", CAMO_TRAIN)
    assert_whole(load("camouflage").open(tmp_path))
    shutil.copy(train / "Imgs/camourflage_00001.jpg", train / "Imgs/camourflage_00001.jpeg")
    Image.fromarray(255 * animal(CAMO_TRAIN[1])[1:]).save(train / "GT/camourflage_00002.png")
    (tmp_path / "TestDataset/NC4K/Imgs/10.jpg").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(DatasetBroken) as raised:
        load("camouflage").open(tmp_path)
    for expected in (
        "problems with its files (3)",
        "second files of one name (1):\n  TrainValDataset/Imgs/camourflage_00001.jpg: beside camourflage_00001.jpeg\n",
        "masks of another size than their image (1):\n"
        "  TrainValDataset/GT/camourflage_00002.png: 24x17, its image 24x18\n",
        "corrupt images (1):\n  TestDataset/NC4K/Imgs/10.jpg: is no picture\n",
    ):
        assert expected in str(raised.value)


def test_names_that_the_rest_of_the_project_relies_on() -> None:
    dataset = load("camouflage")
    assert dataset.test_sets == ("chameleon", "camo", "cod10k", "nc4k")
    assert set(dataset.metrics) <= metrics_of(1).keys() and dataset.num_classes == 1
    regime, _ = resolve(dataset.regime, {})
    assert (regime.epochs, regime.validation_metric, regime.loss) == (20, "s_measure", "structure")
    assert dataset.published.keys() == {"train", "validation", *dataset.test_sets}
    assert dataset.paper.keys() == dataset.published.keys() - {"nc4k"}  # which the paper does not test
    assert dataset.paper["train"] + dataset.paper["validation"] == 3040 + 1000
