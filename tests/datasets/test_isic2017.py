"""ISIC 2017 in every layout it is found in, and what its loader says about files it cannot use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import DatasetBroken, DatasetMissing, evidence, load

PUBLISHED = {
    "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
    "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
}
COPY = {
    "train": ("train/ISIC-2017_Train", "train/ISIC-2017_Training_Part1_GroundTruth"),
    "validation": ("val/ISIC-2017_Val", "val/ISIC-2017_Validation_Part1_GroundTruth"),
    "test": ("test/ISIC-2017_Test", "test/ISIC-2017_Test_v2_Part1_GroundTruth"),
}
NUMBERS = {"train": range(0, 4), "validation": range(10, 12), "test": range(20, 23)}
SIZE = (64, 48)  # width, height


def picture(number: int) -> np.ndarray:
    rows, columns = np.indices((SIZE[1], SIZE[0]))
    return np.stack([2 * columns, 2 * rows, columns + rows + number], axis=-1).astype(np.uint8)


def outline(number: int) -> np.ndarray:
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    mask[5 : 20 + number, 8:40] = 255
    return mask


def plant(
    base: Path,
    folders: dict = PUBLISHED,
    *,
    image: str = "ISIC_{:07d}.jpg",
    mask: str = "ISIC_{:07d}_segmentation.png",
) -> Path:
    """A miniature of the dataset in ``base``."""
    for split, (images, masks) in folders.items():
        for folder in (images, masks):
            (base / folder).mkdir(parents=True)
        for number in NUMBERS[split]:
            Image.fromarray(picture(number)).save(base / images / image.format(number), format="JPEG", quality=95)
            Image.fromarray(outline(number)).save(base / masks / mask.format(number))
    return base


def list_splits(base: Path, folders: dict, numbers: dict = NUMBERS) -> Path:
    """The lists of the paper's authors, which name files as a copy by splits holds them."""
    of_number = {number: folders[split] for split in NUMBERS for number in NUMBERS[split]}
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = [
            f"{of_number[number][0]}/ISIC_{number:07d}.jpg,{of_number[number][1]}/ISIC_{number:07d}_segmentation.png"
            for number in numbers[split]
        ]
        (base / f"{name}.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    return base


def doubly_nested(folders: dict) -> dict:
    return {split: tuple(f"{path}/{path.split('/')[-1]}" for path in pair) for split, pair in folders.items()}


def in_case(folders: dict, change) -> dict:
    return {split: tuple(change(path) for path in pair) for split, pair in folders.items()}


LAYOUTS = {
    "published": PUBLISHED,
    "copy by splits": COPY,
    "nested": doubly_nested(PUBLISHED),
    "copy by splits nested": doubly_nested(COPY),
    "lower": in_case(PUBLISHED, str.lower),
    "upper": in_case(COPY, str.upper),
}


def assert_whole(splits: dict) -> None:
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "validation": 2, "test": 3}
    for name, split in splits.items():
        assert [key.upper() for key in split.identifiers] == [f"ISIC_{number:07d}" for number in NUMBERS[name]]
        for index, number in enumerate(NUMBERS[name]):
            sample = split[index]
            assert sample.image.dtype == sample.mask.dtype == np.uint8
            assert sample.image.shape == (SIZE[1], SIZE[0], 3)
            assert sample.identifier == split.identifiers[index]
            np.testing.assert_array_equal(sample.mask, outline(number) // 255)
            assert abs(sample.image.astype(float) - picture(number)).max() < 8  # as JPEG leaves them


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(layout: str, tmp_path: Path) -> None:
    assert_whole(load("isic2017").open(plant(tmp_path / "data", LAYOUTS[layout])))


@pytest.mark.parametrize("place", ["isic2017", "isic2017/isic2017"])
def test_lists_of_the_authors(place: str, tmp_path: Path) -> None:
    list_splits(plant(tmp_path / place, COPY), COPY)
    assert load("isic2017").find(tmp_path).layout.name == "lists of the paper's authors"
    assert_whole(load("isic2017").open(tmp_path))


def test_a_link_names_the_dataset_as_a_folder_does(tmp_path: Path) -> None:
    list_splits(plant(tmp_path / "disk" / "copy", COPY), COPY)
    (tmp_path / "isic2017").symlink_to(tmp_path / "disk" / "copy")
    assert_whole(load("isic2017").open(tmp_path))
    assert load("isic2017").find(tmp_path / "isic2017").layout.name == "lists of the paper's authors"


def test_lists_win_over_folders(tmp_path: Path) -> None:
    plant(tmp_path / "isic2017", COPY)
    list_splits(tmp_path / "isic2017", COPY, {"train": [3, 10, 0], "validation": [21], "test": [2, 11]})
    splits = load("isic2017").open(tmp_path)
    assert {name: split.identifiers for name, split in splits.items()} == {
        "train": ("ISIC_0000003", "ISIC_0000010", "ISIC_0000000"),
        "validation": ("ISIC_0000021",),
        "test": ("ISIC_0000002", "ISIC_0000011"),
    }
    np.testing.assert_array_equal(splits["train"].mask(1), outline(10) // 255)


def test_listed_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    list_splits(plant(tmp_path / "isic2017", COPY), COPY)
    (tmp_path / "isic2017" / COPY["test"][1] / "ISIC_0000021_segmentation.png").unlink()
    with pytest.raises(DatasetBroken, match="test/ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000021_segmentation.png"):
        load("isic2017").open(tmp_path)


@pytest.mark.parametrize("place", ["isic2017", "ISIC2017", "ISIC-2017", "isic2017/isic2017", "."])
def test_root_is_the_dataset_or_holds_it(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "data" / place)
    assert_whole(load("isic2017").open(tmp_path / "data"))
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "data"))
    assert_whole(load("isic2017").open())
    monkeypatch.chdir(tmp_path / "data")
    assert_whole(load("isic2017").open(Path(".")))


def test_argument_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "elsewhere"))
    assert_whole(load("isic2017").open(plant(tmp_path / "data")))


@pytest.mark.parametrize(
    "names",
    [
        {"mask": "ISIC_{:07d}_Segmentation.png"},
        {"mask": "isic_{:07d}_SEGMENTATION.PNG"},
        {"image": "ISIC_{:07d}.JPG"},
        {"image": "isic_{:07d}.jpeg"},
    ],
)
def test_file_names_match_in_any_case(names: dict, tmp_path: Path) -> None:
    assert_whole(load("isic2017").open(plant(tmp_path, **names)))


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    plant(tmp_path)
    images, masks = (tmp_path / folder for folder in PUBLISHED["train"])
    Image.fromarray(picture(0)).save(images / "ISIC_0000000_superpixels.png")
    (images / "ISIC-2017_Training_Data_metadata.csv").write_text("image_id,age\n")
    for folder in (images, masks):
        for name in (".DS_Store", "._ISIC_0000001.jpg", "._ISIC_0000001_segmentation.png", "Thumbs.db"):
            (folder / name).write_bytes(b"x")
        (folder / ".ipynb_checkpoints").mkdir()
    assert_whole(load("isic2017").open(tmp_path))


def test_mask_threshold_is_above_127(tmp_path: Path) -> None:
    plant(tmp_path)
    grey = np.resize(np.array([0, 1, 126, 127, 128, 254, 255], dtype=np.uint8), (SIZE[1], SIZE[0]))
    Image.fromarray(grey).save(tmp_path / PUBLISHED["train"][1] / "ISIC_0000000_segmentation.png")
    mask = load("isic2017").open(tmp_path)["train"].mask(0)
    np.testing.assert_array_equal(mask, grey > 127)


def damage(base: Path) -> None:
    """One file of each kind of problem in the training and test folders."""
    images, masks = (base / folder for folder in PUBLISHED["train"])
    body = (images / "ISIC_0000000.jpg").read_bytes()
    (images / "ISIC_0000000.jpg").write_bytes(body[: len(body) // 2])
    body = (masks / "ISIC_0000001_segmentation.png").read_bytes()
    (masks / "ISIC_0000001_segmentation.png").write_bytes(body[:60] + bytes([body[60] ^ 255]) + body[61:])
    (masks / "ISIC_0000002_segmentation.png").unlink()
    images, masks = (base / folder for folder in PUBLISHED["test"])
    Image.fromarray(outline(20)[:, :-1]).save(masks / "ISIC_0000020_segmentation.png")
    Image.fromarray(outline(0)).save(masks / "ISIC_0000099_segmentation.png")
    Image.fromarray(outline(21) // 255).save(masks / "ISIC_0000021_segmentation.png")
    (images / "ISIC_0000022.jpeg").write_bytes((images / "ISIC_0000022.jpg").read_bytes())


def test_all_problems_stand_in_one_report(tmp_path: Path) -> None:
    damage(plant(tmp_path))
    with pytest.raises(DatasetBroken) as raised:
        load("isic2017").open(tmp_path)
    report = str(raised.value)
    for expected in (
        "problems with its files (7)",
        "corrupt images (1):\n  ISIC-2017_Training_Data/ISIC_0000000.jpg: ",
        "corrupt masks (1):\n  ISIC-2017_Training_Part1_GroundTruth/ISIC_0000001_segmentation.png: ",
        "images without a mask (1):\n  ISIC-2017_Training_Data/ISIC_0000002.jpg\n",
        "masks of another size than their image (1):\n"
        "  ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000020_segmentation.png: 63x48, its image 64x48",
        "masks without an image (1):\n  ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000099_segmentation.png\n",
        "masks whose foreground would be lost (1):\n"
        "  ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000021_segmentation.png: largest value 1; "
        "foreground is above 127\n",
        "second files of one name (1):\n  ISIC-2017_Test_v2_Data/ISIC_0000022.jpg: beside ISIC_0000022.jpeg",
        "--allow-broken",
    ):
        assert expected in report


def test_the_rest_is_used_when_allowed(tmp_path: Path) -> None:
    damage(plant(tmp_path))
    with pytest.warns(UserWarning, match=r"corrupt images \(1\)"):
        splits = load("isic2017").open(tmp_path, allow_broken=True)
    assert splits["train"].identifiers == ("ISIC_0000003",)
    assert splits["validation"].identifiers == ("ISIC_0000010", "ISIC_0000011")
    assert splits["test"].identifiers == ("ISIC_0000022",)
    np.testing.assert_array_equal(splits["train"].mask(0), outline(3) // 255)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    plant(tmp_path)
    for number in range(100, 130):
        Image.fromarray(picture(0)).save(tmp_path / PUBLISHED["train"][0] / f"ISIC_{number:07d}.jpg")
    with pytest.raises(DatasetBroken) as raised:
        load("isic2017").open(tmp_path)
    report = str(raised.value)
    assert "images without a mask (30):" in report and "and 10 more" in report
    assert len(report.splitlines()) == 24


def test_a_split_without_any_pair_is_refused_even_when_allowed(tmp_path: Path) -> None:
    plant(tmp_path)
    masks = tmp_path / PUBLISHED["validation"][1]
    for path in [*masks.iterdir()]:
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(DatasetBroken, match="No usable pair is left in validation"):
        load("isic2017").open(tmp_path, allow_broken=True)
    for path in masks.iterdir():
        path.unlink()
    with pytest.raises(DatasetMissing, match=rf"lacks {PUBLISHED['validation'][1]}/\*\.png"):
        load("isic2017").open(tmp_path)


def test_missing_dataset_says_where_what_and_how(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as raised:
        load("isic2017").open(tmp_path)
    message = str(raised.value)
    for expected in (
        f"{tmp_path / 'isic2017'} (no such folder)",
        f"{tmp_path} (holds nothing of it)",
        "the challenge's archives: ISIC-2017_Training_Data/, ISIC-2017_Training_Part1_GroundTruth/, ",
        "python -m datasets fetch isic2017",
        "challenge.isic-archive.com",
        "--data-root",
        "BENCH_DATA_ROOT",
    ):
        assert expected in message
    assert isinstance(raised.value, FileNotFoundError)


def test_only_what_is_missing_is_named(tmp_path: Path) -> None:
    plant(tmp_path)
    (tmp_path / PUBLISHED["test"][0]).rename(tmp_path / "ISIC-2017_Test_Data")
    with pytest.raises(DatasetMissing, match=r"\(lacks ISIC-2017_Test_v2_Data/\)"):
        load("isic2017").open(tmp_path)


def test_the_layout_that_is_there_in_part_is_named(tmp_path: Path) -> None:
    plant(tmp_path, {"train": PUBLISHED["train"]})
    with pytest.raises(DatasetMissing, match=r"\(lacks ISIC-2017_Validation_Data/, .*Test_v2_Data/ and 1 more\)"):
        load("isic2017").open(tmp_path)


def test_without_any_root_the_options_are_named() -> None:
    with pytest.raises(DatasetMissing, match="No data folder was named"):
        load("isic2017").open()


def test_empty_image_folder_is_a_missing_dataset(tmp_path: Path) -> None:
    plant(tmp_path)
    for path in (tmp_path / PUBLISHED["train"][0]).iterdir():
        path.unlink()
    with pytest.raises(DatasetMissing, match=r"\(lacks ISIC-2017_Training_Data/\*\.jpg \*\.jpeg\)"):
        load("isic2017").open(tmp_path)


def test_evidence_follows_content_and_not_place(tmp_path: Path) -> None:
    here = evidence(load("isic2017").open(plant(tmp_path / "a")))
    there = evidence(load("isic2017").open(plant(tmp_path / "b", COPY)))
    assert here == there
    assert here["images"] == {"train": 4, "validation": 2, "test": 3}

    Image.fromarray(outline(9)).save(tmp_path / "a" / PUBLISHED["train"][1] / "ISIC_0000000_segmentation.png")
    changed = evidence(load("isic2017").open(tmp_path / "a"))
    assert changed["data"]["train"] != here["data"]["train"] and changed["data"]["test"] == here["data"]["test"]


def test_evidence_follows_the_split(tmp_path: Path) -> None:
    splits = load("isic2017").open(plant(tmp_path))
    swapped = evidence(splits | {"validation": splits["test"], "test": splits["validation"]})
    data = evidence(splits)["data"]
    assert swapped["data"] == data | {"validation": data["test"], "test": data["validation"]} != data


def test_the_real_sample(test_data: Path) -> None:
    splits = load("isic2017").open(test_data / "isic2017_512")
    assert {name: len(split) for name, split in splits.items()} == {"train": 1800, "validation": 121, "test": 529}
    for split in splits.values():
        sample = split[len(split) // 2]
        assert sample.image.shape == (512, 512, 3) and sample.image.std() > 5
        assert sample.mask.shape == (512, 512) and set(np.unique(sample.mask)) == {0, 1}
    assert splits["train"].identifiers[:3] == ("ISIC_0000000", "ISIC_0000001", "ISIC_0000003")
