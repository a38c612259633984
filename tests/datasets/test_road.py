"""Massachusetts roads in every layout they are found in, and the tiles that are white in part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.metrics import metrics_of
from bench.regime import resolve
from datasets import DatasetBroken, DatasetMissing, evidence, load

ORIGINAL = {
    "train": ("train/sat", "train/map"),
    "validation": ("valid/sat", "valid/map"),
    "test": ("test/sat", "test/map"),
}
KAGGLE = {"train": ("train", "train_labels"), "validation": ("val", "val_labels"), "test": ("test", "test_labels")}
TILES = {
    "train": ("10078660_15", "10078675_15", "10528735_15"),
    "validation": ("10228690_15",),
    "test": ("10378780_15", "10828720_15"),
}

Tiles = Mapping[str, tuple[str, ...]]


def roads(tile: str) -> np.ndarray:
    """(40, 40) of 0 and 1, another one for each tile."""
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[sum(map(ord, tile)) % 40, :] = 1
    mask[:, len(tile)] = 1
    return mask


def plant(
    base: Path,
    folders: Mapping[str, tuple[str, str]],
    *,
    suffixes: tuple[str, str] = ("tiff", "tif"),
    mode: str = "L",
    white_rows: int = 0,
    tiles: Tiles = TILES,
) -> Path:
    """A miniature of the dataset in ``base``; of each image the first ``white_rows`` of 40 hold no data."""
    for split, (images, labels) in folders.items():
        for folder in (images, labels):
            (base / folder).mkdir(parents=True)
        for tile in tiles[split]:
            image = np.full((40, 40, 3), 90, dtype=np.uint8)
            image[:white_rows] = 255
            Image.fromarray(image).save(base / images / f"{tile}.{suffixes[0]}")
            Image.fromarray(roads(tile) * 255).convert(mode).save(base / labels / f"{tile}.{suffixes[1]}")
    return base


def within(folder: str, folders: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    return {split: (f"{folder}/{images}", f"{folder}/{labels}") for split, (images, labels) in folders.items()}


def assert_whole(root: Path, tiles: Tiles = TILES) -> None:
    splits = load("road").open(root)
    assert {name: split.identifiers for name, split in splits.items()} == tiles
    for split in splits.values():
        for sample in map(split.__getitem__, range(len(split))):
            assert sample.image.shape == (40, 40, 3)
            np.testing.assert_array_equal(sample.mask, roads(sample.identifier))


@pytest.mark.parametrize("place", [".", "road", "mass_roads", "road/mass_roads", "mass_roads/mass_roads", "MASS_ROADS"])
def test_the_original_folders_wherever_they_are(place: str, tmp_path: Path) -> None:
    plant(tmp_path / place, ORIGINAL)
    assert_whole(tmp_path)


@pytest.mark.parametrize("place", [".", "road", "massachusetts-roads-dataset", "road/massachusetts-roads-dataset"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("suffixes", [("tiff", "tif"), ("png", "png")])
def test_kaggles_copy(suffixes: tuple[str, str], mode: str, place: str, tmp_path: Path) -> None:
    base = plant(tmp_path / place, within(suffixes[0], KAGGLE), suffixes=suffixes, mode=mode)
    (base / "metadata.csv").write_text("tile_id,tiff_image_path\n")
    (base / "label_class_dict.csv").write_text("name,r,g,b\nroad,255,255,255\n")
    assert_whole(tmp_path)


def test_of_kaggles_two_formats_the_original_one_is_read(tmp_path: Path) -> None:
    plant(tmp_path, within("png", KAGGLE), suffixes=("png", "png"))
    plant(tmp_path, within("tiff", KAGGLE))
    assert load("road").find(tmp_path).layout.name.endswith("tiff")
    assert_whole(tmp_path)


def test_insaffs_copy_draws_a_validation_set_and_passes_over_images_without_a_label(tmp_path: Path) -> None:
    tiles = {"train": tuple(f"img-{number}" for number in range(1, 81)), "test": ("img-1", "img-2")}
    folders = {"train": ("training/input", "training/output"), "test": ("testing/input", "testing/output")}
    base = plant(tmp_path / "road_segmentation_ideal", folders, suffixes=("png", "png"), tiles=tiles)
    for number in range(200, 260):
        Image.new("RGB", (40, 40)).save(base / "training/input" / f"img-{number}.png")
    splits = load("road").open(tmp_path)
    assert splits["validation"].identifiers == ("img-54",)
    assert set(splits["train"].identifiers) == set(tiles["train"]) - {"img-54"}
    assert splits["test"].identifiers == tiles["test"]
    found = load("road").find(tmp_path)
    assert found.layout.note and len(found.leftovers) == 60

    (base / "testing/output/img-2.png").unlink()
    with pytest.raises(DatasetBroken, match=r"images without a mask \(1\)"):
        load("road").open(tmp_path)


@pytest.mark.parametrize(
    "place", ["road", "road_segmentation", "road_segmentation/road_segmentation", "road/road_segmentation"]
)
def test_lists_of_the_authors_win(place: str, tmp_path: Path) -> None:
    base = plant(tmp_path / place, ORIGINAL)
    lists = {"train": TILES["train"][1:], "validation": TILES["train"][:1], "test": TILES["test"][:1]}
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        folder = "test" if split == "test" else "train"
        rows = [f"{folder}/sat/{tile}.tiff,{folder}/map/{tile}.tif" for tile in lists[split]]
        (base / f"{name}.csv").write_text("\n".join(["image,label", *rows]))
    assert_whole(tmp_path, lists)


def test_leftovers_are_an_error(tmp_path: Path) -> None:
    plant(tmp_path, ORIGINAL)
    (tmp_path / "train/map/10078675_15.tif").unlink()
    (tmp_path / "valid/map/10078675_15.tif").write_bytes(b"")
    with pytest.raises(DatasetBroken) as raised:
        load("road").open(tmp_path)
    assert "images without a mask (1):\n  train/sat/10078675_15.tiff\n" in str(raised.value)
    assert "masks without an image (1):\n  valid/map/10078675_15.tif\n" in str(raised.value)


def test_without_its_validation_tiles_it_is_missing(tmp_path: Path) -> None:
    plant(tmp_path, {split: ORIGINAL[split] for split in ("train", "test")})
    with pytest.raises(DatasetMissing, match=r"\(lacks valid/sat/, valid/map/\)"):
        load("road").open(tmp_path)


@pytest.mark.parametrize(("rows", "kept"), [(0, True), (8, True), (10, True), (11, False), (40, False)])
def test_max_white_leaves_out_tiles_of_training_and_validation_only(rows: int, kept: bool, tmp_path: Path) -> None:
    plant(tmp_path, ORIGINAL, white_rows=rows)
    for split in ("train", "validation"):
        images, labels = ORIGINAL[split]
        Image.new("RGB", (40, 40), "green").save(tmp_path / images / "plain.tiff")
        Image.new("L", (40, 40)).save(tmp_path / labels / "plain.tif")
    splits = load("road", max_white=0.25).open(tmp_path)
    for split in ("train", "validation"):
        assert splits[split].identifiers == ((*TILES[split], "plain") if kept else ("plain",))
    assert splits["test"].identifiers == TILES["test"]
    left_out = load("road", max_white=0.25).look(tmp_path).left_out
    assert [len(left_out[split]) for split in ("train", "validation", "test")] == ([0, 0, 0] if kept else [3, 1, 0])
    if not kept:
        assert set(left_out["train"].values()) == {f"{rows / 40:.1%} of it is white"}


def test_all_white_tiles_are_kept_by_default(tmp_path: Path) -> None:
    assert_whole(plant(tmp_path, ORIGINAL, white_rows=40))


def test_a_limit_that_leaves_nothing_is_named(tmp_path: Path) -> None:
    plant(tmp_path, ORIGINAL, white_rows=1)
    with pytest.raises(DatasetBroken, match=r"left in train, validation: .*other values than max_white=0\.01"):
        load("road", max_white=0.01).open(tmp_path, allow_broken=True)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, 25, "much"])
def test_wrong_limits_are_named(wrong: object) -> None:
    with pytest.raises(ValueError, match="parameter 'max_white' cannot be"):
        load("road", max_white=wrong)


def test_the_papers_recipe_and_counts() -> None:
    road = load("road")
    regime, _ = resolve(road.regime, {})
    assert (regime.epochs, regime.lr, regime.loss, regime.validation_metric) == (20, 3e-4, "structure", "iou")
    assert road.metrics[0] == "iou" and set(road.metrics) <= set(metrics_of(1))
    assert dict(road.published) == {"train": 1108, "validation": 14, "test": 49}
    assert dict(road.paper) == {"train": 1107, "validation": 13, "test": 48}


def test_real_tiles(test_data: Path) -> None:
    splits = load("road").open(test_data / "massachusetts_roads_3")
    assert {name: split.identifiers for name, split in splits.items()} == {
        "train": ("10078660_15",),
        "validation": ("10228690_13_1",),
        "test": ("10378780_15",),
    }
    for split in splits.values():
        sample = split[0]
        assert sample.image.shape == (1024, 1024, 3) and sample.image.std() > 5
        assert set(np.unique(sample.mask)) == {0, 1} and 0.01 < sample.mask.mean() < 0.05


def test_the_real_white_tile_is_left_out(test_data: Path, tmp_path: Path) -> None:
    real = test_data / "massachusetts_roads_3"
    assert (load("road").open(real)["train"].image(0) == 255).all(axis=-1).mean() == pytest.approx(0.3213, abs=1e-4)
    for split in ("train", "valid", "test"):
        for kind in ("sat", "map"):
            (tmp_path / split / kind).mkdir(parents=True)
            for path in (real / split / kind).iterdir():
                (tmp_path / split / kind / path.name).symlink_to(path.resolve())
    (tmp_path / "train/sat/other.png").symlink_to((real / "valid/sat/10228690_13_1.png").resolve())
    (tmp_path / "train/map/other.png").symlink_to((real / "valid/map/10228690_13_1.png").resolve())
    assert load("road", max_white=0.33).open(tmp_path)["train"].identifiers == ("10078660_15", "other")
    fewer = load("road", max_white=0.25).open(tmp_path)
    assert fewer["train"].identifiers == ("other",)
    assert evidence(fewer)["images"] == {"train": 1, "validation": 1, "test": 1}


def test_real_labels_at_their_original_size(test_data: Path, tmp_path: Path) -> None:
    real = test_data / "massachusetts_roads_3"
    for split in ("train", "valid", "test"):
        for kind in ("sat", "map"):
            (tmp_path / split / kind).mkdir(parents=True)
        for path in (real / split / "map_original_tif").iterdir():
            (tmp_path / split / "map" / path.name).symlink_to(path.resolve())
            with Image.open(real / split / "sat" / f"{path.stem}.png") as image:
                image.resize((1500, 1500)).save(tmp_path / split / "sat" / f"{path.stem}.tiff")
    mask = load("road").open(tmp_path)["test"].mask(0)
    with Image.open(real / "test/map_original_tif/10378780_15.tif") as label:
        np.testing.assert_array_equal(mask, np.asarray(label) == 255)
