"""SBU shadow in every layout it is found in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.metrics import metrics_of
from bench.regime import resolve
from datasets import DatasetBroken, DatasetMissing, load
from datasets.pairing import Problem

TRAIN, TEST = "SBUTrain4KRecoveredSmall", "SBU-Test"
TRAINING = tuple(f"lssd{number}" for number in range(1, 21))
HELD_OUT = ("lssd11", "lssd3")
TESTED = ("lssd577", "lssd60", "lssd9")


def shadow(name: str) -> np.ndarray:
    """(24, 32) of 0 and 1, another one for each name."""
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[3 : 8 + len(name), 4 : 6 + sum(map(ord, name)) % 20] = 1
    return mask


def plant_pair(folder: Path, name: str, *, white: int = 255, mode: str = "L") -> None:
    for kind in ("ShadowImages", "ShadowMasks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (90, len(name), 120)).save(folder / "ShadowImages" / f"{name}.jpg")
    Image.fromarray(shadow(name) * white).convert(mode).save(folder / "ShadowMasks" / f"{name}.png")


def plant(base: Path, *, train: str = TRAIN, test: str = TEST, **masks) -> Path:
    """A miniature of the dataset in ``base``."""
    for folder, names in ((train, TRAINING), (test, TESTED)):
        for name in names:
            plant_pair(base / folder, name, **masks)
    return base


def assert_whole(base: Path) -> None:
    splits = load("sbu").open(base)
    assert list(splits) == ["train", "validation", "test"]
    assert set(splits["train"].identifiers) == set(TRAINING) - set(HELD_OUT)
    assert splits["validation"].identifiers == HELD_OUT
    assert splits["test"].identifiers == TESTED
    for split in splits.values():
        for sample in map(split.__getitem__, range(len(split))):
            assert sample.image.shape == (24, 32, 3)
            np.testing.assert_array_equal(sample.mask, shadow(sample.identifier))


@pytest.mark.parametrize("place", [".", "sbu", "SBU", "SBU-shadow", "SBU-shadow/SBU-shadow", "sbu/SBU-shadow"])
def test_the_original_archive_wherever_it_is_unpacked(place: str, tmp_path: Path) -> None:
    plant(tmp_path / place)
    assert_whole(tmp_path)


def test_the_folders_in_another_case(tmp_path: Path) -> None:
    assert_whole(plant(tmp_path, train=TRAIN.lower(), test=TEST.upper()))


@pytest.mark.parametrize("masks", [{"mode": "RGB"}, {"white": 1}, {"white": 1, "mode": "RGB"}, {"mode": "1"}])
def test_masks_of_re_packs(masks: dict, tmp_path: Path) -> None:
    assert_whole(plant(tmp_path, **masks))


def test_one_dark_mask_among_others_is_no_re_pack(tmp_path: Path) -> None:
    plant(tmp_path)
    plant_pair(tmp_path / TEST, TESTED[0], white=1)
    with pytest.raises(DatasetBroken, match="foreground would be lost"):
        load("sbu").open(tmp_path)


def test_what_copies_add_is_passed_over(tmp_path: Path) -> None:
    plant(tmp_path)
    (tmp_path / "ImageSets").mkdir()
    for split in (TRAIN, TEST):
        (tmp_path / split / "SBU.txt").write_text("ShadowImages/lssd1.jpg ShadowMasks/lssd1.png\n")
        for extra in ("EdgeMap", "EdgeMapMat"):
            (tmp_path / split / extra).mkdir()
            Image.fromarray(shadow("lssd1") * 255).save(tmp_path / split / extra / "lssd1.png")
        (tmp_path / split / "ShadowImages" / "Thumbs.db").write_bytes(b"x")
        (tmp_path / split / "ShadowMasks" / "._lssd1.png").write_bytes(b"x")
    assert_whole(tmp_path)


def test_renamed_test_files_pair_by_their_new_names(tmp_path: Path) -> None:
    for name in TRAINING:
        plant_pair(tmp_path / TRAIN, name)
    for number in (1, 2, 10):
        plant_pair(tmp_path / TEST, str(number))
    test = load("sbu").open(tmp_path)["test"]
    assert test.identifiers == ("1", "10", "2")
    np.testing.assert_array_equal(test.mask(1), shadow("10"))


@pytest.mark.parametrize(("folder", "suffix"), [("ShadowImages", "jpg"), ("ShadowMasks", "png")])
def test_the_four_published_leftovers_are_no_error(folder: str, suffix: str, tmp_path: Path) -> None:
    plant(tmp_path)
    for number in range(4):
        name = f"alone{number}"
        plant_pair(tmp_path / "elsewhere", name)
        (tmp_path / "elsewhere" / folder / f"{name}.{suffix}").rename(tmp_path / TRAIN / folder / f"{name}.{suffix}")
    assert_whole(tmp_path)
    found = load("sbu").find(tmp_path)
    kind = "images without a mask" if suffix == "jpg" else "masks without an image"
    assert found.problems == []
    assert found.leftovers == [
        Problem(kind, tmp_path / TRAIN / folder / f"alone{number}.{suffix}", harmless=True) for number in range(4)
    ]


def test_more_leftovers_are_an_error(tmp_path: Path) -> None:
    plant(tmp_path)
    for name in TRAINING[:5]:
        (tmp_path / TRAIN / "ShadowMasks" / f"{name}.png").unlink()
    with pytest.raises(DatasetBroken, match=r"images without a mask \(5\)"):
        load("sbu").open(tmp_path)


def test_a_leftover_of_the_test_set_is_an_error(tmp_path: Path) -> None:
    plant(tmp_path)
    (tmp_path / TEST / "ShadowMasks" / "lssd9.png").unlink()
    with pytest.raises(DatasetBroken, match=r"images without a mask \(1\):\n  SBU-Test/ShadowImages/lssd9.jpg"):
        load("sbu").open(tmp_path)


@pytest.mark.parametrize("place", ["sbu", "SBU-shadow", "SBU-shadow/SBU-shadow", "sbu/SBU-shadow"])
def test_lists_of_the_authors_win(place: str, tmp_path: Path) -> None:
    base = plant(tmp_path / place)
    lists = {"train": ("lssd1", "lssd13"), "val": ("lssd2",), "test": ("lssd9", "lssd60")}
    for name, listed in lists.items():
        folder = TEST if name == "test" else TRAIN
        rows = [f"{folder}/ShadowImages/{stem}.jpg,{folder}/ShadowMasks/{stem}.png" for stem in listed]
        (base / f"{name}.csv").write_text("\n".join(["image,label", *rows]))
    splits = load("sbu").open(tmp_path)
    assert [split.identifiers for split in splits.values()] == list(lists.values())
    assert list(splits) == ["train", "validation", "test"]
    np.testing.assert_array_equal(splits["test"].mask(0), shadow("lssd9"))


def test_lists_elsewhere_may_be_another_datasets(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_text("image,label\na.jpg,a.png\n")
    with pytest.raises(DatasetMissing, match="lacks the name sbu"):
        load("sbu").open(tmp_path)


def test_tables_of_something_else_hide_no_archive(tmp_path: Path) -> None:
    base = plant(tmp_path / "sbu")
    for name in ("train", "val", "test"):
        (base / f"{name}.csv").write_text("filename,age\na,1\n")
    assert load("sbu").find(tmp_path).layout.name == "the original archive"


def test_a_list_that_cannot_be_read_hides_the_archive_and_is_told(tmp_path: Path) -> None:
    base = plant(tmp_path / "sbu")
    for name in ("train", "val", "test"):
        (base / f"{name}.csv").write_text("image,label\n", encoding="utf-16")
    for allow_broken in (False, True):
        with pytest.raises(
            DatasetBroken, match=r"lists that cannot be read \(3\):\n  train.csv: it is no text in UTF-8"
        ):
            load("sbu").open(tmp_path, allow_broken=allow_broken)


def test_the_test_set_alone_is_a_missing_dataset(tmp_path: Path) -> None:
    for name in TESTED:
        plant_pair(tmp_path / TEST, name)
    with pytest.raises(DatasetMissing, match=f"lacks {TRAIN}/ShadowImages/, {TRAIN}/ShadowMasks/\\)"):
        load("sbu").open(tmp_path)


def test_the_papers_recipe() -> None:
    sbu = load("sbu")
    regime, _ = resolve(sbu.regime, {})
    assert (regime.epochs, regime.lr, regime.loss) == (10, 1e-4, "balanced_bce")
    assert regime.validation_metric == sbu.metrics[0] == "ber_image"
    assert set(sbu.metrics) <= set(metrics_of(1))
    assert sum(sbu.published.values()) == 4085 + 638


def test_real_pairs(test_data: Path, tmp_path: Path) -> None:
    plant(tmp_path)
    for folder in ("ShadowImages", "ShadowMasks"):
        for path in (tmp_path / TEST / folder).iterdir():
            path.unlink()
        for path in (test_data / "sbu_shadow_2" / TEST / folder).iterdir():
            (tmp_path / TEST / folder / path.name).symlink_to(path.resolve())
    test = load("sbu").open(tmp_path)["test"]
    assert test.identifiers == ("lssd577", "lssd60")
    assert [test.image(index).shape for index in range(2)] == [(559, 559, 3), (397, 600, 3)]
    for index in range(2):
        mask = test.mask(index)
        assert mask.shape == test.image(index).shape[:2] and set(np.unique(mask)) == {0, 1}
        light = test.image(index).mean(axis=-1)
        assert light[mask == 1].mean() < light[mask == 0].mean()  # shadows are dark
