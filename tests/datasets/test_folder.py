"""Anybody's own images: where they lie, how their masks are stored, what is drawn, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from datasets import DatasetBroken, DatasetMissing, load, registry
from datasets.base import IGNORE
from datasets.folder import stored
from datasets.pairing import Pair

NAMES = [f"scan{number:02d}" for number in range(20)]
# Of these names, by SHA-256 of "1 <name>": the first four are for testing, the next two for validation.
TEST, VALIDATION = ("scan03", "scan08", "scan14", "scan19"), ("scan00", "scan01")
TRAIN = tuple(name for name in NAMES if name not in TEST + VALIDATION)
SIZE = (12, 8)  # width, height
RUST = {"class_names": ("background", "leaf", "rust"), "values": {"0": 0, "128": 1, "255": 2}}


def labels(name: str, classes: int = 2) -> np.ndarray:
    """Class indices (H, W), others for every name."""
    return np.random.default_rng([*name.encode()]).integers(0, classes, SIZE[::-1], dtype=np.uint8)


def plant(
    base: Path,
    names=tuple(NAMES),
    *,
    images: str = "images",
    masks: str = "masks",
    mask_name: str = "{}.png",
    draw=lambda mask: Image.fromarray(mask * np.uint8(255)),
    classes: int = 2,
) -> Path:
    for folder in (images, masks):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZE, (len(name), 3, 4)).save(base / images / f"{name}.jpg")
        draw(labels(name, classes)).save(base / masks / mask_name.format(name))
    return base


def identifiers(splits: dict) -> dict[str, tuple[str, ...]]:
    return {name: split.identifiers for name, split in splits.items()}


def assert_masks(splits: dict, classes: int = 2) -> None:
    for split in splits.values():
        for index, name in enumerate(split.identifiers):
            np.testing.assert_array_equal(split.mask(index), labels(name, classes))


def blank(mask: np.ndarray) -> Image.Image:
    return Image.new("L", mask.shape[::-1])


def open_one(tmp_path: Path, picture: Image.Image, **parameters):
    """A folder of one pair in each split, the training mask being ``picture``: its training split."""
    for split in ("train", "val", "test"):
        plant(tmp_path / "own", [split], images=f"{split}/images", masks=f"{split}/masks", draw=blank)
    Image.new("RGB", picture.size).save(tmp_path / "own/train/images/train.jpg")
    picture.save(tmp_path / "own/train/masks/train.png")
    return load("folder", of="own", images="{split}/images", masks="{split}/masks", **parameters).open(tmp_path)[
        "train"
    ]


def test_one_pair_of_folders_is_split_by_name(tmp_path: Path) -> None:
    plant(tmp_path / "lungs")
    splits = load("folder", of="lungs").open(tmp_path)
    assert identifiers(splits) == {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    assert_masks(splits)


@pytest.mark.parametrize(
    "of, place, root",
    [
        ("lungs", "lungs", "."),
        ("lungs", "Lungs", "."),
        ("lungs", "lungs", "lungs"),
        ("lungs", "lungs/lungs", "."),
        ("hospital/lungs", "hospital/lungs", "."),
        ("hospital/lungs", "hospital/lungs", "hospital"),
        ("hospital/lungs", "hospital/lungs", "hospital/lungs"),
    ],
)
def test_the_root_holds_the_folder_or_is_it(of: str, place: str, root: str, tmp_path: Path) -> None:
    plant(tmp_path / "data" / place)
    assert identifiers(load("folder", of=of).open(tmp_path / "data" / root))["test"] == TEST


def test_a_folder_of_another_name_is_another_dataset(tmp_path: Path) -> None:
    plant(tmp_path / "livers")
    for root in (tmp_path, tmp_path / "livers"):
        with pytest.raises(DatasetMissing, match="the dataset 'lungs' was not found") as raised:
            load("folder", of="lungs").open(root)
    assert f"{tmp_path / 'livers'} (lacks the name lungs" in str(raised.value)
    assert "not split (in a folder named lungs): images/, masks/" in str(raised.value)
    assert "docs/datasets.md" in str(raised.value)


@given(
    count=st.integers(3, 60),
    test_share=st.floats(0.01, 0.5),
    validation_share=st.floats(0.01, 0.5),
)
def test_what_is_drawn_is_a_partition_of_the_asked_sizes(count: int, test_share: float, validation_share: float):
    pairs = [Pair(f"n{number}", Path("i"), Path("m")) for number in range(count)]
    dataset = load("folder", of="x", test_share=test_share, validation_share=validation_share)
    splits = dataset.layouts[0].arrange({"all": pairs}, dataset.split_seed)
    assert sorted(pair for split in splits.values() for pair in split) == sorted(pairs)
    assert len(splits["test"]) == max(1, round(test_share * count))
    rest = count - len(splits["test"])
    assert len(splits["validation"]) == max(1, round(validation_share * rest))
    again = dataset.layouts[0].arrange({"all": pairs[::-1]}, dataset.split_seed)
    assert {name: set(split) for name, split in again.items()} == {name: set(split) for name, split in splits.items()}


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, names in {"Training": NAMES[:4], "valid": NAMES[4:6], "test": NAMES[6:9]}.items():
        plant(tmp_path / "own", names, images=f"x/{split}_images", masks=f"x/{split}_masks")
    splits = load("folder", of="own", images="x/{split}_images", masks="x/{split}_masks").open(tmp_path)
    assert identifiers(splits) == {
        "train": tuple(NAMES[:4]),
        "validation": tuple(NAMES[4:6]),
        "test": tuple(NAMES[6:9]),
    }
    assert_masks(splits)


def test_validation_is_drawn_where_no_folder_is_set_apart(tmp_path: Path) -> None:
    for split, names in {"train": NAMES[:10], "test": NAMES[10:]}.items():
        plant(tmp_path / "own", names, images=f"{split}/i", masks=f"{split}/m")
    dataset = load("folder", of="own", images="{split}/i", masks="{split}/m", validation_share=0.2)
    assert identifiers(dataset.open(tmp_path)) == {
        "train": tuple(name for name in NAMES[:10] if name not in ("scan03", "scan08")),
        "validation": ("scan03", "scan08"),
        "test": tuple(NAMES[10:]),
    }
    (tmp_path / "own/test/i").rename(tmp_path / "own/test/j")
    with pytest.raises(DatasetMissing, match=r"own \(lacks test/i/ or testing/i/\)"):
        dataset.open(tmp_path)


def write_table(path: Path, names) -> None:
    rows = [f"pictures/{name}.jpg,truth/{name}_gt.png" for name in names]
    path.write_text("\n".join(["image,label", *rows]) + "\n")


def test_tables_of_splits(tmp_path: Path) -> None:
    plant(tmp_path / "own", images="pictures", masks="truth", mask_name="{}_gt.png")
    for split, names in {"train": NAMES[5:], "val": NAMES[:3], "test": NAMES[3:5]}.items():
        write_table(tmp_path / "own" / f"{split}.csv", names)
    splits = load("folder", of="own", lists="{split}.csv").open(tmp_path)
    assert identifiers(splits) == {
        "train": tuple(NAMES[5:]),
        "validation": tuple(NAMES[:3]),
        "test": tuple(NAMES[3:5]),
    }
    assert_masks(splits)


def test_one_table_is_split_by_name(tmp_path: Path) -> None:
    plant(tmp_path / "own", images="pictures", masks="truth", mask_name="{}_gt.png")
    write_table(tmp_path / "own" / "all.csv", NAMES)
    splits = load("folder", of="own", lists="all.csv").open(tmp_path)
    assert identifiers(splits) == {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    assert_masks(splits)


@pytest.mark.parametrize(
    ("table", "lacking"),
    [
        ("image,label\npictures/scan00.jpg,truth/scan00_gt.png\n", "lacks the name lungs, without which"),
        ("photo,label\na,b\n", "lacks all.csv with the columns image and label (its columns are photo, label)"),
        (None, "holds nothing of it"),
    ],
)
def test_a_table_that_is_not_believed_is_told(table: str | None, lacking: str, tmp_path: Path) -> None:
    own = tmp_path / ("other" if table and "image" in table else "lungs")
    own.mkdir()
    if table:
        (own / "all.csv").write_text(table)
    with pytest.raises(DatasetMissing) as raised:
        load("folder", of="lungs", lists="all.csv").find(own)
    assert f"{own} ({lacking}" in str(raised.value)


def test_letters_of_masks_may_be_stored_otherwise(tmp_path: Path) -> None:
    stems = [f"é{number}" for number in range(5)]
    plant(tmp_path / "own", stems, mask_name="{}_ä.png")
    for path in [*(tmp_path / "own/masks").iterdir()]:
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    splits = load("folder", of="own", mask_name="{}_Ä").open(tmp_path)
    assert sorted(sum(identifiers(splits).values(), ())) == stems
    assert_masks(splits)


def test_masks_are_called_after_their_image(tmp_path: Path) -> None:
    plant(tmp_path / "own", mask_name="GT-{}_Mask.png")
    for other in ("scan03_mask.png", "GT-scan03_edge.png", "GT-_mask.png"):
        Image.new("L", SIZE, 77).save(tmp_path / "own/masks" / other)
    splits = load("folder", of="own", mask_name="Gt-{}_MASK").open(tmp_path)
    assert identifiers(splits) == {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    assert_masks(splits)
    with pytest.raises(DatasetBroken, match=r"images without a mask \(20\)"):
        load("folder", of="own", mask_name="{}_label").open(tmp_path)


def test_binary_masks_have_a_threshold(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 37, 38], [126, 127, 128, 255]], dtype=np.uint8)
    assert open_one(tmp_path, Image.fromarray(levels)).mask(0).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert open_one(tmp_path, Image.fromarray(levels), threshold=37).mask(0).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]


def test_binary_masks_may_be_dark_colours_where_the_threshold_says_so(tmp_path: Path) -> None:
    red = Image.fromarray(np.array([[[0, 0, 0], [128, 0, 0]]], dtype=np.uint8))
    assert open_one(tmp_path, red, threshold=0).mask(0).tolist() == [[0, 1]]
    with pytest.raises(DatasetBroken, match=r"masks whose foreground would be lost \(1\):\n  train/masks/train.png"):
        open_one(tmp_path, red)


GREY = np.array([[0, 128, 255], [255, 128, 0]], dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "P"])
def test_values_of_every_kind_of_grey_file_become_classes(mode: str, tmp_path: Path) -> None:
    wide = mode == "I;16"
    picture = Image.fromarray(GREY.astype(np.uint16)) if wide else Image.fromarray(GREY).convert(mode)
    if mode == "P":
        picture.putpalette([value % 256 for value in range(40, 40 + 768)])
    if mode.endswith("A"):
        picture.putalpha(9)
    assert picture.mode == mode
    assert open_one(tmp_path, picture, **RUST).mask(0).tolist() == [[0, 1, 2], [2, 1, 0]]


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))), st.sampled_from(["L", "LA", "RGB", "RGBA", "I"])
)
def test_stored_numbers_are_those_of_every_pixel(levels: np.ndarray, mode: str) -> None:
    picture = Image.fromarray(levels).convert(mode)
    pixels = [[picture.getpixel((x, y)) for x in range(picture.width)] for y in range(picture.height)]
    first = [[pixel if isinstance(pixel, int) else pixel[0] for pixel in row] for row in pixels]
    assert stored(picture).tolist() == first == levels.tolist()


def test_indices_need_names_only_and_may_be_ignored(tmp_path: Path) -> None:
    names = ("background", "leaf", "rust")
    picture = Image.fromarray(np.array([[0, 1], [2, 255]], dtype=np.uint8))
    assert open_one(tmp_path, picture, class_names=names, ignore=255).mask(0).tolist() == [[0, 1], [2, IGNORE]]
    with pytest.raises(DatasetBroken, match=r"train/masks/train\.png: 1 pixels have a value of no class: 255"):
        open_one(tmp_path, picture, class_names=names)


def test_several_values_may_mean_one_class(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8))
    values = {"0": 0, "1": 1, "2": 1}
    mask = open_one(tmp_path, picture, class_names=("background", "leaf"), values=values, ignore=3).mask(0)
    assert mask.tolist() == [[0, 1], [1, IGNORE]]


@pytest.mark.parametrize(
    "picture, what",
    [
        (Image.new("L", SIZE, 129), "96 pixels have a value of no class: 129 (0 is class 0, 128 is class 1, 255 is"),
        (Image.new("RGB", SIZE, (128, 0, 0)), "it is coloured, where a class is an index or a grey value"),
        (Image.fromarray(np.full(SIZE[::-1], 300, np.uint16)), "its values, 300 to 300, are not all whole numbers"),
    ],
    ids=["unknown value", "colours", "16 bits"],
)
def test_masks_without_a_class_are_refused_by_file_and_value(picture: Image.Image, what: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetBroken) as raised:
        open_one(tmp_path, picture, **RUST)
    assert f"train/masks/train.png: {what}" in str(raised.value)


def test_the_parameters_decide_what_kind_of_dataset_it_is() -> None:
    binary, several = load("folder", of="lungs"), load("folder", of="hospital/leaves", **RUST)
    assert (binary.title, binary.num_classes, binary.classes) == ("lungs", 1, ())
    assert binary.metrics[0] == binary.regime["validation_metric"] == "iou"
    assert (several.title, several.num_classes, several.classes) == ("hospital/leaves", 3, RUST["class_names"])
    assert several.regime["validation_metric"] == "miou_all" in several.metrics
    assert hash(several) == hash(load("folder", of="hospital/leaves", **RUST))


def test_the_name_is_listed_and_needs_a_folder() -> None:
    assert "folder" in registry.names() and registry["folder"].test_sets == ("test",)
    with pytest.raises(ValueError, match=r"parameter 'of' cannot be ''.*such as 'lungs'.*--data-root.*masks='masks'"):
        load("folder")


@pytest.mark.parametrize(
    "of", ["/data/lungs", "../lungs", "a/../b", "./lungs", "lungs/", "C:/lungs", "a\\b", "~/lungs"]
)
def test_a_path_of_the_machine_is_no_parameter(of: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'of' cannot be {re.escape(repr(of))}.*--data-root"):
        load("folder", of=of)
    with pytest.raises(ValueError, match="parameter 'images' cannot be .*such as 'images' or '{split}/images'"):
        load("folder", of="own", images=of)


TWO = ("background", "leaf")


@pytest.mark.parametrize(
    "parameters, what",
    [
        ({"images": "{spilt}/images"}, "'images' cannot be '{spilt}/images'.*'{split}/images'"),
        ({"images": ""}, "'images' cannot be ''"),
        ({"images": "{split}/images"}, "'masks' cannot be 'masks'.*both of images"),
        ({"masks": "images"}, "'masks' cannot be 'images'.*lists"),
        ({"mask_name": "_mask"}, "'mask_name' cannot be '_mask'.*'{}_mask'"),
        ({"mask_name": "x/{}"}, "'mask_name' cannot be 'x/{}'"),
        ({"lists": "a.csv", "images": "scans"}, "'lists' cannot be 'a.csv'.*leave out images"),
        ({"lists": "/a.csv"}, "'lists' cannot be '/a.csv'.*'pairs.csv'"),
        ({"lists": "{split}.csv", "test_share": 0.5}, "'test_share' cannot be 0.5.*leave it out"),
        ({"test_share": 1.0}, "'test_share' cannot be 1.0.*less than 1"),
        ({"validation_share": 0}, "'validation_share' cannot be 0: .*greater than 0"),
        ({"threshold": 255}, "'threshold' cannot be 255.*254"),
        ({"class_names": ["leaf"]}, "'class_names' cannot be .*2 to 255 different"),
        ({"class_names": ["leaf", "leaf"]}, "'class_names' cannot be .*2 to 255 different"),
        ({"class_names": TWO, "threshold": 9}, "'class_names' cannot be .*leave out threshold"),
        ({"values": {"0": 0}}, "'values' cannot be {'0': 0}.*need names: class_names"),
        ({"class_names": TWO, "values": {"0": 0, "9": 2}}, "'values' cannot be .*0 .background., 1 .leaf."),
        ({"class_names": TWO, "values": {"0": 0}}, "'values' cannot be {'0': 0}.*0 .background., 1 .leaf."),
        ({"class_names": TWO, "values": {"0": 0, "256": 1}}, "'values' cannot be .*from 0 to 255"),
        ({"ignore": 255}, "'ignore' cannot be 255.*need class_names"),
        ({"class_names": TWO, "ignore": 1}, "'ignore' cannot be 1.*it is a class"),
        ({"class_names": TWO, "values": {"0": 0, "255": 1}, "ignore": 255}, "'ignore' cannot be 255.*it is a class"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_name_and_value(parameters: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        load("folder", of="own", **parameters)


def test_parameters_are_the_identity_of_a_cell() -> None:
    import methods
    from bench.spec import Cell, make_cell

    def cell(**parameters) -> Cell:
        settings = {"seed": 0, "backbone": "tiny", "checkpoint": "none", "image_size": 64, "precision": "fp32"}
        return make_cell(method=methods.create("lora"), dataset=load("folder", **parameters), **settings)

    several = [{"of": "a"}, {"of": "b"}, {"of": "x/a"}, {"of": "a", "threshold": 0}, {"of": "a", **RUST}]
    assert len({cell(**parameters).id for parameters in several}) == len(several)
    assert cell(of="a").spec["dataset"] == {"name": "folder", "version": 1, "parameters": {"of": "a"}}
    assert cell(of="a", images="images", threshold=127).id == cell(of="a").id
    read_back = Cell(json.loads(json.dumps(cell(of="a", **RUST).spec)))
    assert read_back.dataset() == load("folder", of="a", **RUST) and read_back.id == cell(of="a", **RUST).id
    assert read_back.regime().validation_metric == "miou_all" and read_back.context().num_classes == 3


def test_the_documented_examples_are_matrix_files() -> None:
    from bench.matrix import Matrix, expand

    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    examples = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    found = [expand(Matrix(**example), precision="fp32") for example in examples]
    assert len(found) >= 3 and all(found)
    assert {cell.cell.spec["dataset"]["name"] for cells in found for cell in cells} == {"folder"}
    assert len({cell.cell.id for cells in found for cell in cells}) == sum(map(len, found))


def test_the_real_wheat_leaves(test_data: Path) -> None:
    splits = load("folder", of="wheat_leaf_rust3", **RUST).open(test_data)
    assert {name: len(split) for name, split in splits.items()} == {"train": 72, "validation": 8, "test": 20}
    assert splits["test"].identifiers[:5] == ("0629-00", "0629-01", "0629-06", "0629-12", "0629-14")

    masks = test_data / "wheat_leaf_rust3" / "masks"
    pixels, kinds = np.zeros(3, dtype=np.int64), []
    for split in splits.values():
        for index, name in enumerate(split.identifiers):
            sample = split[index]
            with Image.open(masks / f"{name}.png") as picture:
                assert picture.mode == "RGBA"
                red = picture.getchannel("R").histogram()
            counts = np.bincount(sample.mask.ravel(), minlength=3)
            assert counts.tolist() == [red[0], red[128], red[255]] and counts.sum() == 240 * 240
            assert sample.image.shape == (240, 240, 3)
            pixels += counts
            kinds.append(int((counts > 0).sum()))
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {3: 95, 2: 4, 1: 1}
    np.testing.assert_allclose(pixels / pixels.sum(), [0.74, 0.18, 0.08], atol=0.006)
