"""The polyp sets in every layout they are found in, and the traps of their files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.metrics import metrics_of
from bench.regime import resolve
from datasets import DatasetBroken, DatasetMissing, Split, evidence, load
from datasets.pairing import Pair
from datasets.verify import verify

SIZE = (24, 18)  # width, height
PRANET = {
    "kvasir": ("Kvasir", ["cju2aa", "cju2ab"]),
    "cvc_612": ("CVC-ClinicDB", ["12", "3"]),
    "cvc_colondb": ("CVC-ColonDB", ["1", "10", "2"]),
    "etis": ("ETIS-LaribPolypDB", ["7"]),
    "cvc_t": ("CVC-300", ["149", "208"]),
}
TRAIN = [f"cju1{letter}" for letter in "abcdefghij"] + [str(number) for number in range(101, 111)]
HELD_OUT = ("102", "108", "cju1e", "cju1j")


def polyp(stem: str) -> np.ndarray:
    """The true mask of the image called ``stem``: (H, W) of 0 and 1."""
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[4 : 8 + sum(stem.encode()) % 9, 5:20] = 1
    return mask


def plant(images: Path, masks: Path, stems: Iterable[str], *, suffix: str = ".png", mask_prefix: str = "") -> None:
    """An image and a mask for each of ``stems`` in two folders."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        rows, columns = np.indices(SIZE[::-1])
        shade = np.stack([9 * columns, 9 * rows, columns + rows + sum(stem.encode()) % 99], axis=-1)
        Image.fromarray(shade.astype(np.uint8)).save(images / f"{stem}{suffix}")
        Image.fromarray(255 * polyp(stem)).save(masks / f"{mask_prefix}{stem}{suffix}")


def plant_pranet(
    base: Path,
    *,
    folders: Sequence[str] = ("images", "masks"),
    train: Sequence[str] = ("image", "mask"),
    tests: Iterable[str] = tuple(PRANET),
    inner: bool = False,
) -> Path:
    """PraNet's re-pack; ``inner``: each archive in a folder of its own name."""
    training, testing = (base / name / (name if inner else "") for name in ("TrainDataset", "TestDataset"))
    plant(training / train[0], training / train[1], TRAIN)
    for name in tests:
        folder, stems = PRANET[name]
        plant(testing / folder / folders[0], testing / folder / folders[1], stems)
    return base


def plant_originals(base: Path, kvasir: Iterable[str] = (), clinic: Iterable[str] = ()) -> Path:
    """The five original archives."""
    plant(base / "Kvasir-SEG/images", base / "Kvasir-SEG/masks", [*TRAIN[:10], *kvasir], suffix=".jpg")
    (base / "Kvasir-SEG/kavsir_bboxes.json").write_text("{}")
    clinicdb = base / "CVC-ClinicDB"
    plant(clinicdb / "Original", clinicdb / "Ground Truth", [*TRAIN[10:], *clinic], suffix=".tif")
    plant(base / "CVC-ColonDB/images", base / "CVC-ColonDB/masks", PRANET["cvc_colondb"][1])
    etis = base / "ETIS-LaribPolypDB"
    plant(etis / "ETIS-LaribPolypDB", etis / "Ground Truth", ["7", "70"], suffix=".tif", mask_prefix="p")
    for half, frames in (("CVC-300", ["148", "149", "208", "209"]), ("CVC-612", ["150"])):
        scene = base / "CVC-EndoSceneStill" / half
        plant(scene / "bbdd", scene / "gtpolyp", frames, suffix=".bmp")
        for other in ("gtlumen", "gtspecular", "gtvoid"):
            (scene / other).mkdir()
            for frame in frames:
                Image.fromarray(255 - 255 * polyp(frame)).save(scene / other / f"{frame}.bmp")
    return base


def write_lists(base: Path, *, index: bool = False, backslashes: bool = False, **lists: Iterable[tuple]) -> Path:
    """The authors' lists, as pandas writes them with or without its index."""
    base.mkdir(parents=True, exist_ok=True)
    for name, rows in lists.items():
        with (base / f"{name.replace('CVC_', 'CVC-')}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow([*([""] if index else []), "image", "label"])
            for number, row in enumerate(rows):
                cells = [cell.replace("/", "\\") if backslashes else cell for cell in row]
                table.writerow([*([number] if index else []), *cells])
    return base


def listed(folder: str, stems: Iterable[str], images: str = "images", masks: str = "masks") -> list[tuple[str, str]]:
    return [(f"{folder}/{images}/{stem}.png", f"{folder}/{masks}/{stem}.png") for stem in stems]


def plant_authors(base: Path, **options: bool) -> Path:
    """The authors' zip: images in PraNet's folders, divided by lists; no list for three of the test sets."""
    plant_pranet(base, tests=("kvasir", "cvc_612"))
    train = listed("TrainDataset", TRAIN, "image", "mask")
    return write_lists(
        base,
        train=train[4:],
        val=train[:4],
        test_Kvasir=listed("TestDataset/Kvasir", PRANET["kvasir"][1]),
        test_CVC_ClinicDB=listed("TestDataset/CVC-ClinicDB", PRANET["cvc_612"][1]),
        **options,
    )


def sizes(splits: Mapping[str, Split]) -> dict[str, int]:
    return {name: len(split) for name, split in splits.items()}


def assert_read_right(splits: Mapping[str, Split]) -> None:
    for split in splits.values():
        for sample in split:
            assert sample.image.shape == (*SIZE[::-1], 3) and sample.image.dtype == np.uint8
            assert sample.mask.dtype == np.uint8
            np.testing.assert_array_equal(sample.mask, polyp(sample.identifier))


def assert_pranet(splits: Mapping[str, Split]) -> None:
    """Every image of :func:`plant_pranet` in its place."""
    assert list(splits) == ["train", "validation", "kvasir", "cvc_612", "cvc_colondb", "etis", "cvc_t"]
    assert splits["validation"].identifiers == HELD_OUT
    assert set(splits["train"].identifiers) == set(TRAIN) - set(HELD_OUT) and len(splits["train"]) == 16
    for name, (_, stems) in PRANET.items():
        assert list(splits[name].identifiers) == sorted(stems)
    assert_read_right(splits)


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"folders": ("image", "mask"), "train": ("images", "masks")},
        {"folders": ("IMAGES", "Masks"), "train": ("Image", "MASK")},
        {"inner": True},
    ],
    ids=["released", "other number", "other case", "doubly nested"],
)
def test_pranet_repack(names: dict, tmp_path: Path) -> None:
    assert_pranet(load("polyps").open(plant_pranet(tmp_path, **names)))


@pytest.mark.parametrize("place", ["polyps", "polyp", "Polyps", "polyps/polyps", "polyps/polyp", "."])
def test_folder_may_have_either_name(place: str, tmp_path: Path) -> None:
    plant_pranet(tmp_path / "data" / place)
    assert_pranet(load("polyps").open(tmp_path / "data"))


def test_archives_in_any_case(tmp_path: Path) -> None:
    plant_pranet(tmp_path)
    for path in sorted(tmp_path.glob("TestDataset/*")):
        path.rename(path.with_name(path.name.lower()))
    (tmp_path / "TestDataset").rename(tmp_path / "testdataset")
    (tmp_path / "TrainDataset").rename(tmp_path / "TRAINDATASET")
    assert_pranet(load("polyps").open(tmp_path))


def test_what_lies_beside_the_images_is_passed_over(tmp_path: Path) -> None:
    plant_pranet(tmp_path)
    for folder in (tmp_path / "TrainDataset/image", tmp_path / "TestDataset/Kvasir/masks"):
        for name in (".DS_Store", "._cju2aa.png", "Thumbs.db", "README.md"):
            (folder / name).write_bytes(b"x")
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "odd.png").mkdir()
    plant(tmp_path / "TrainDataset/edge", tmp_path / "TestDataset/Piccolo/images", ["1"])
    assert_pranet(load("polyps").open(tmp_path))


@pytest.mark.parametrize("there", [("kvasir",), ("etis", "cvc_t"), ("cvc_612", "cvc_colondb")])
def test_missing_test_sets_are_left_out(there: tuple[str, ...], tmp_path: Path) -> None:
    splits = load("polyps").open(plant_pranet(tmp_path, tests=there))
    assert tuple(splits) == ("train", "validation", *there)
    assert splits["validation"].identifiers == HELD_OUT


def test_training_alone_is_not_the_dataset(tmp_path: Path) -> None:
    plant_pranet(tmp_path, tests=())
    with pytest.raises(DatasetMissing, match="each of the test sets cvc_612, cvc_colondb, cvc_t, etis, kvasir"):
        load("polyps").open(tmp_path)


def test_missing_dataset_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as raised:
        load("polyps").open(tmp_path)
    message = str(raised.value)
    for expected in (
        f"{tmp_path / 'polyps'} (no such folder)",
        "PraNet's re-pack: TrainDataset/images/ or TrainDataset/image/, TrainDataset/masks/ or TrainDataset/mask/; "
        "where there, the test sets cvc_612, cvc_colondb, cvc_t, etis, kvasir",
        "(in a folder named polyps or polyp): train.csv, val.csv, test_Kvasir.csv, test_CVC-ClinicDB.csv; where there,",
        "the original archives: Kvasir-SEG/images/ or ",
        "Get it: python -m datasets fetch polyps, or: PraNet's re-pack has all five test sets",
        "1YiGHLw4iTvKdvbT6MgwO9zcCv8zJ_Bnb",
    ):
        assert expected in message
    assert "\n" not in load("polyps").steps


def test_whole_sets_under_the_names_of_test_sets_are_no_test_sets(tmp_path: Path) -> None:
    """Outside TestDataset, CVC-ClinicDB holds the training images too and CVC-300 is any of three sets."""
    plant_pranet(tmp_path, tests=("kvasir",))
    for folder in ("CVC-ClinicDB", "CVC-300", "Kvasir"):
        plant(tmp_path / folder / "images", tmp_path / folder / "masks", TRAIN)
    plant(tmp_path / "CVC-300/bbdd", tmp_path / "CVC-300/gtpolyp", ["149"])
    assert list(load("polyps").open(tmp_path)) == ["train", "validation", "kvasir"]


def test_original_archives(tmp_path: Path) -> None:
    dataset = load("polyps")
    splits = dataset.open(plant_originals(tmp_path))
    assert sizes(splits) == {
        "train": 14,
        "validation": 4,
        "kvasir": 1,
        "cvc_612": 1,
        "cvc_colondb": 3,
        "etis": 2,
        "cvc_t": 2,
    }
    assert list(splits) == ["train", "validation", *dataset.test_sets]
    assert splits["kvasir"].identifiers == ("cju1e",) and splits["cvc_612"].identifiers == ("102",)
    assert splits["validation"].identifiers == ("cju1a", "cju1j", "105", "108")
    drawn = [key for name in ("train", "validation", "kvasir", "cvc_612") for key in splits[name].identifiers]
    assert sorted(drawn) == sorted(TRAIN)
    assert splits["etis"].identifiers == ("7", "70")
    assert splits["cvc_t"].identifiers == ("149", "208")
    assert_read_right(splits)
    assert "not PraNet's choice" in dataset.find(tmp_path).layout.note


def test_division_has_pranets_counts(tmp_path: Path) -> None:
    """On whole archives, of which the names alone decide."""
    dataset = load("polyps")
    parts = {
        "kvasir": [Pair(f"cju{number:04d}", tmp_path, tmp_path) for number in range(1000)],
        "cvc_612": [Pair(str(number), tmp_path, tmp_path) for number in range(1, 613)],
    }
    splits = dataset.layouts[-1].arrange(parts, dataset.split_seed)
    assert {name: len(pairs) for name, pairs in splits.items()} == {
        name: dataset.published[name] for name in ("train", "validation", "kvasir", "cvc_612")
    }
    assert [pair.identifier for pair in splits["cvc_612"]][:5] == ["2", "8", "18", "34", "37"]
    assert [pair.identifier for pair in splits["validation"]][-3:] == ["570", "590", "591"]
    reversed_parts = {name: pairs[::-1] for name, pairs in reversed(parts.items())}
    again = dataset.layouts[-1].arrange(reversed_parts, dataset.split_seed)
    assert {name: set(pairs) for name, pairs in again.items()} == {name: set(pairs) for name, pairs in splits.items()}


@pytest.mark.parametrize("lacking", ["Kvasir-SEG", "CVC-ClinicDB"])
def test_both_training_archives_are_needed(lacking: str, tmp_path: Path) -> None:
    plant_originals(tmp_path)
    shutil.rmtree(tmp_path / lacking)
    with pytest.raises(DatasetMissing, match=rf"\(lacks {lacking}/"):
        load("polyps").open(tmp_path)


def test_further_archives_may_be_missing(tmp_path: Path) -> None:
    plant_originals(tmp_path)
    for folder in ("CVC-ColonDB", "ETIS-LaribPolypDB", "CVC-EndoSceneStill/CVC-300"):
        shutil.rmtree(tmp_path / folder)
    assert list(load("polyps").open(tmp_path)) == ["train", "validation", "kvasir", "cvc_612"]


@pytest.mark.parametrize(
    ("repack", "there", "lacking"),
    [
        (True, "TestDataset/CVC-300/images", "TestDataset/CVC-300/masks/ or TestDataset/CVC-300/mask/"),
        (True, "TestDataset/CVC-300/masks", "TestDataset/CVC-300/images/ or TestDataset/CVC-300/image/"),
        (False, "CVC-EndoSceneStill/CVC-300/bbdd", "CVC-EndoSceneStill/CVC-300/gtpolyp/"),
    ],
)
def test_half_a_test_set_is_told(repack: bool, there: str, lacking: str, tmp_path: Path) -> None:
    (plant_pranet if repack else plant_originals)(tmp_path)
    shutil.rmtree(tmp_path / lacking.split(" or ")[0])
    told = f"test sets that are there in part (1):\n  {there}: lacks {lacking}\n"
    with pytest.raises(DatasetBroken) as raised:
        load("polyps").open(tmp_path)
    assert told in str(raised.value) and "go on without them: --allow-broken" in str(raised.value)
    with pytest.warns(match="test sets that are there in part"):
        splits = load("polyps").open(tmp_path, allow_broken=True)
    assert list(splits) == ["train", "validation", "kvasir", "cvc_612", "cvc_colondb", "etis"]
    report = verify(load("polyps"), tmp_path)
    assert not report["whole"] and report["problems"] == [
        {"kind": "test sets that are there in part", "files": [{"path": there, "detail": f"lacks {lacking}"}]}
    ]


def test_half_a_test_set_alone_is_told(tmp_path: Path) -> None:
    plant_pranet(tmp_path, tests=("kvasir",))
    for path in (tmp_path / "TestDataset/Kvasir/masks").iterdir():
        path.unlink()
    with pytest.raises(DatasetMissing, match=r"lacks TestDataset/Kvasir/masks/\*\.jpg"):
        load("polyps").open(tmp_path)


@pytest.mark.parametrize("empty", ["TrainDataset/images", "TrainDataset/MASKS", "TrainDataset/image/image"])
def test_an_empty_folder_gives_way_to_a_full_one(empty: str, tmp_path: Path) -> None:
    plant_pranet(tmp_path)
    (tmp_path / empty).mkdir()
    assert_pranet(load("polyps").open(tmp_path))


@pytest.mark.parametrize("form", ["TIF", "PNG"])
def test_clinicdb_in_two_formats(form: str, tmp_path: Path) -> None:
    whole = evidence(load("polyps").open(plant_originals(tmp_path)))
    (tmp_path / "CVC-ClinicDB").rename(tmp_path / "moved")
    (tmp_path / "CVC-ClinicDB").mkdir()
    (tmp_path / "moved").rename(tmp_path / "CVC-ClinicDB" / form)
    assert evidence(load("polyps").open(tmp_path)) == whole


def test_original_archives_in_folders_of_their_names(tmp_path: Path) -> None:
    whole = evidence(load("polyps").open(plant_originals(tmp_path / "plain")))
    for archive in sorted((tmp_path / "plain").iterdir()):
        folder = archive.name.lower() if archive.name == "Kvasir-SEG" else archive.name
        (tmp_path / "deep" / folder).mkdir(parents=True)
        archive.rename(tmp_path / "deep" / folder / archive.name)
    assert evidence(load("polyps").open(tmp_path / "deep")) == whole


def test_pranets_division_goes_before_a_drawn_one(tmp_path: Path) -> None:
    plant_originals(plant_pranet(tmp_path))
    assert_pranet(load("polyps").open(tmp_path))


@pytest.mark.parametrize("place", ["polyps", "polyp", "polyps/polyp", "polyps/polyps", "anything/polyp"])
@pytest.mark.parametrize("options", [{}, {"index": True}, {"backslashes": True}], ids=["plain", "index", "backslashes"])
def test_lists_of_the_authors(place: str, options: dict, tmp_path: Path) -> None:
    plant_authors(tmp_path / place, **options)
    root = tmp_path / "anything" if place.startswith("anything") else tmp_path
    splits = load("polyps").open(root)
    assert list(splits) == ["train", "validation", "kvasir", "cvc_612"]
    assert list(splits["validation"].identifiers) == TRAIN[:4]
    assert list(splits["train"].identifiers) == TRAIN[4:]
    assert list(splits["cvc_612"].identifiers) == PRANET["cvc_612"][1]  # in the order of the list
    assert_read_right(splits)


def test_lists_win_and_pranet_adds_the_further_test_sets(tmp_path: Path) -> None:
    plant_authors(tmp_path / "polyps/polyp")
    plant_pranet(tmp_path / "polyps")
    dataset = load("polyps")
    splits = dataset.open(tmp_path)
    assert list(splits) == ["train", "validation", *dataset.test_sets]
    assert list(splits["validation"].identifiers) == TRAIN[:4] != list(HELD_OUT)
    assert_read_right(splits)


def test_lists_of_another_dataset_train_nothing(tmp_path: Path) -> None:
    plant_authors(tmp_path)
    half = plant_authors(tmp_path / "polyp")
    for name in ("train.csv", "val.csv"):
        (half / name).unlink()
    shutil.rmtree(half / "TrainDataset")
    shutil.rmtree(tmp_path / "TrainDataset")
    with pytest.raises(DatasetMissing, match=r"polyp .lacks train\.csv, val\.csv\)"):
        load("polyps").find(tmp_path)


def test_lists_in_another_case_than_the_files(tmp_path: Path) -> None:
    base = plant_authors(tmp_path / "polyps")
    expected = evidence(load("polyps").open(tmp_path))
    for path in (base / "TrainDataset/image", base / "TrainDataset", base / "TestDataset/Kvasir/masks"):
        path.rename(path.with_name(path.name.upper()))
    assert evidence(load("polyps").open(tmp_path)) == expected


@pytest.mark.parametrize("entry", ["../outside.png", "/etc/passwd", "a/../../outside.png", "..\\outside.png"])
def test_lists_stay_in_their_folder(entry: str, tmp_path: Path) -> None:
    base = plant_authors(tmp_path / "polyps")
    plant(tmp_path, tmp_path, ["outside"])
    rows = listed("TrainDataset", TRAIN, "image", "mask")
    write_lists(base, train=[*rows[4:], (entry, rows[0][1])])
    with pytest.raises(DatasetBroken, match=r"list entries that leave their folder \(1\):\n  train.csv: ") as raised:
        load("polyps").open(tmp_path)
    assert repr(entry) in str(raised.value)


def test_lists_naming_absent_files(tmp_path: Path) -> None:
    base = plant_authors(tmp_path / "polyps")
    (base / "TrainDataset/mask/cju1e.png").unlink()
    with pytest.raises(DatasetBroken, match=r"corrupt masks \(1\):\n  TrainDataset/mask/cju1e.png: cannot be read"):
        load("polyps").open(tmp_path)


def test_masks_in_the_encodings_they_are_found_in(tmp_path: Path) -> None:
    """Grey, RGB, RGBA, palette, one bit, and PraNet's noisy Kvasir mask all mean the same."""
    plant_pranet(tmp_path)
    masks = tmp_path / "TrainDataset/mask"
    for stem, mode in zip(TRAIN, ("RGB", "RGBA", "P", "1"), strict=False):
        Image.fromarray(255 * polyp(stem)).convert(mode).save(masks / f"{stem}.png")
    noise = np.random.default_rng(0).integers(0, 8, SIZE[::-1]).astype(np.uint8)
    noisy = np.where(polyp("cju1f") == 1, 255 - noise, noise).astype(np.uint8)
    Image.fromarray(noisy).save(masks / "cju1f.png")
    assert_pranet(load("polyps").open(tmp_path))


def test_jpeg_masks_are_thresholded(tmp_path: Path) -> None:
    splits = load("polyps").open(plant_originals(tmp_path))
    with Image.open(tmp_path / "Kvasir-SEG/masks/cju1e.jpg") as stored:
        values = np.unique(np.asarray(stored))
    assert len(values) > 2  # JPEG leaves more than black and white
    np.testing.assert_array_equal(splits["kvasir"].mask(0), polyp("cju1e"))


def test_problems_are_told_line_by_line(tmp_path: Path) -> None:
    plant_pranet(tmp_path)
    train, etis = tmp_path / "TrainDataset", tmp_path / "TestDataset/ETIS-LaribPolypDB"
    (train / "mask/cju1a.png").unlink()
    Image.fromarray(255 * polyp("cju1b")[:, :-1]).save(train / "mask/cju1b.png")
    shutil.copy(train / "image/cju1c.png", train / "image/CJU1C.PNG")
    Image.fromarray(polyp("101")).save(train / "mask/101.png")
    body = (etis / "images/7.png").read_bytes()
    (etis / "images/7.png").write_bytes(body[: len(body) // 2])
    with pytest.raises(DatasetBroken) as raised:
        load("polyps").open(tmp_path)
    for expected in (
        "problems with its files (5)",
        "images without a mask (1):\n  TrainDataset/image/cju1a.png\n",
        "masks of another size than their image (1):\n  TrainDataset/mask/cju1b.png: 23x18, its image 24x18\n",
        "second files of one name (1):\n  TrainDataset/image/cju1c.png: beside CJU1C.PNG\n",
        "masks whose foreground would be lost (1):\n  TrainDataset/mask/101.png: ",
        "corrupt images (1):\n  TestDataset/ETIS-LaribPolypDB/images/7.png: ",
    ):
        assert expected in str(raised.value)


def test_a_copy_of_zeros_and_ones_is_read(tmp_path: Path) -> None:
    plant_pranet(tmp_path)
    for path in tmp_path.glob("T*Dataset/**/mask*/*.png"):
        Image.fromarray(polyp(path.stem)).save(path)
    assert_pranet(load("polyps").open(tmp_path))


def test_names_that_the_rest_of_the_project_relies_on() -> None:
    dataset = load("polyps")
    assert dataset.test_sets == ("kvasir", "cvc_612", "cvc_colondb", "etis", "cvc_t")
    assert set(dataset.metrics) <= metrics_of(1).keys() and dataset.num_classes == 1
    regime, _ = resolve(dataset.regime, {})
    assert (regime.epochs, regime.validation_metric, regime.loss) == (30, "s_measure", "structure")
    assert dataset.published.keys() == {"train", "validation", *dataset.test_sets}
    assert dataset.published["train"] + dataset.published["validation"] == 900 + 550


def test_real_kvasir_masks(test_data: Path, tmp_path: Path) -> None:
    """Five pairs of the original Kvasir-SEG, whose masks are noisy JPEGs, among tiny ones."""
    plant_originals(tmp_path)
    shutil.copytree(test_data / "kvasir_seg_5/Kvasir-SEG", tmp_path / "Kvasir-SEG", dirs_exist_ok=True)
    splits = load("polyps").open(tmp_path)
    real = {path.stem for path in (test_data / "kvasir_seg_5/Kvasir-SEG/images").iterdir()}
    found = {
        sample.identifier: sample
        for name in ("train", "validation", "kvasir")
        for sample in splits[name]
        if sample.identifier in real
    }
    assert found.keys() == real and len(real) == 5
    for stem, sample in found.items():
        with Image.open(tmp_path / f"Kvasir-SEG/masks/{stem}.jpg") as stored:
            values = np.asarray(stored)
        assert values.shape == sample.image.shape and len(np.unique(values)) > 2
        assert min(sample.mask.shape) >= 500 and set(np.unique(sample.mask)) == {0, 1}
        np.testing.assert_array_equal(sample.mask, values[..., 0] > 127)
        assert 0.005 < sample.mask.mean() < 0.7 and sample.image.std() > 20
