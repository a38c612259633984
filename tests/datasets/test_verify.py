"""What verify finds out about a copy, on miniature copies that have one flaw each."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from datasets import DatasetBroken, duplicates, evidence, load
from datasets.duplicates import NEAR, changes, near, same
from datasets.encoding import Encoding, indexed, threshold, valued
from datasets.files import FileDataset
from datasets.inspection import Inspected, fingerprint, inspect_image
from datasets.layout import Layout
from datasets.parts import Folders
from datasets.verdict import LEAK, judge
from datasets.verify import verify
from datasets.verify_text import ranges

SIZE = (96, 72)  # width, height
COUNTS = {"train": 4, "validation": 2, "test": 3, "extra": 2}


class Mini(FileDataset):
    """Two folders a split; the test set extra may be missing."""

    title = "Mini"
    test_sets = ("test", "extra")
    split_seed = 1
    metrics = ("iou",)
    layouts = (
        Layout(
            "folders",
            {split: (Folders((f"{split}/images",), (f"{split}/masks",)),) for split in COUNTS},
            optional=frozenset({"extra"}),
        ),
    )
    published = COUNTS
    steps = "nowhere"


Mini.name = "mini"


def scene(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture that resembles none of another number."""
    cells = np.random.default_rng(number).integers(40, 200, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def outline(number: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    mask[: 6 * (number % 10 + 1), :48] = value
    return mask


def plant(base: Path, mask: Callable[[int], np.ndarray] = outline, counts: dict[str, int] = COUNTS) -> Path:
    """A sound copy: train has the images 0 to 3, validation 10 and 11, test 20 to 22, extra 30 and 31."""
    for place, (split, count) in enumerate(counts.items()):
        for folder in ("images", "masks"):
            (base / split / folder).mkdir(parents=True)
        for number in range(10 * place, 10 * place + count):
            scene(number).save(base / split / "images" / f"{number}.png")
            Image.fromarray(mask(number)).save(base / split / "masks" / f"{number}.png")
    return base


def kind(**attributes) -> FileDataset:
    return type("Other", (Mini,), {"__module__": __name__, **attributes})()


def test_a_whole_copy(tmp_path: Path) -> None:
    report = verify(Mini(), plant(tmp_path / "data"))
    assert report["whole"] and report["errors"] == report["warnings"] == []
    assert report["splits"] == report["usable"] == {"train": 4, "val": 2, "test": 3, "extra": 2}
    assert report["published"] == report["paper"] == report["splits"]
    assert (report["base"], report["layout"]) == (str(tmp_path / "data"), "folders")
    for empty in ("missing", "more", "left_out", "blank", "all_foreground", "leaked"):
        assert report[empty] == {}
    for empty in ("problems", "leftovers", "duplicates", "near_duplicates"):
        assert report[empty] == []
    assert report["masks"] == {"modes": {"L": 11}, "levels": [0, 255], "rule": "foreground is above 127"}
    opened = evidence(Mini().open(tmp_path / "data"))["data"]
    assert report["digests"] == {"val" if name == "validation" else name: value for name, value in opened.items()}
    assert json.loads(json.dumps(report)) == report


def test_sizes_and_shares(tmp_path: Path) -> None:
    plant(tmp_path)
    for name, size in (("0", (30, 20)), ("1", (200, 100))):
        scene(0, size).save(tmp_path / "train" / "images" / f"{name}.png")
        Image.new("L", size, 255).save(tmp_path / "train" / "masks" / f"{name}.png")
    report = verify(Mini(), tmp_path)
    assert report["images"]["train"] == {
        "sizes": {"smallest": [30, 20], "median": [96, 72], "largest": [200, 100]},
        "modes": {"RGB": 4},
    }
    # 18 and 24 of 72 rows, half as wide as the image.
    assert report["foreground"]["train"] == {"min": 0.125, "median": round((1 / 6 + 1) / 2, 6), "max": 1.0}
    assert report["all_foreground"] == {"train": ["0", "1"]}
    assert report["whole"] and report["warnings"] == ["masks of foreground alone: 2 train"]


@pytest.mark.parametrize(
    ("published", "paper", "missing", "more", "errors", "warnings"),
    [
        (COUNTS | {"train": 6}, {}, {"train": 2}, {}, ["missing pairs: 2 of 6 train"], []),
        (COUNTS | {"train": 6}, COUNTS | {"train": 5}, {"train": 2}, {}, ["missing pairs: 2 of 6 train"], []),
        (
            COUNTS | {"train": 6, "test": 5},
            COUNTS | {"train": 4, "test": 4},
            {"train": 2, "test": 2},
            {},
            ["missing pairs: 2 of 5 test"],
            ["missing pairs that the paper has not counted either: 2 of 6 train"],
        ),
        (COUNTS | {"test": 1}, {}, {}, {"test": 2}, [], ["more pairs than published: 2 test"]),
        ({}, {}, {}, {}, [], []),
    ],
)
def test_counts(published, paper, missing, more, errors, warnings, tmp_path: Path) -> None:
    report = verify(kind(published=published, paper=paper), plant(tmp_path))
    assert (report["missing"], report["more"]) == (missing, more)
    assert (report["errors"], report["warnings"]) == (errors, warnings)
    assert report["whole"] is not bool(errors)


def test_a_missing_test_set_counts_as_empty(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "extra")
    report = verify(Mini(), tmp_path)
    assert report["splits"]["extra"] == 0 and report["errors"] == ["missing pairs: 2 of 2 extra"]
    without = {split: count for split, count in COUNTS.items() if split != "extra"}
    assert verify(kind(paper=without), tmp_path)["whole"]


def write_lists(base: Path, rows: dict[str, str]) -> FileDataset:
    for split, lines in rows.items():
        (base / f"{split}.csv").write_text(f"image,label\n{lines}")
    return load("folder", of=base.name, lists="{split}.csv")


def test_nothing_is_not_whole(tmp_path: Path) -> None:
    dataset = write_lists(tmp_path, {"train": "", "val": "", "test": ""})
    report = verify(dataset, tmp_path)
    assert not report["whole"]
    assert report["errors"] == [
        "no pair at all is in train, val, test: its folder or list is empty, or too few can be drawn"
    ]
    with pytest.raises(DatasetBroken) as raised:
        dataset.open(tmp_path)
    assert "(0)" not in str(raised.value) and "fetch these files again" not in str(raised.value)
    assert "There is no pair for train, validation, test among the 0 found" in str(raised.value)


def test_what_cannot_be_opened_is_not_whole(tmp_path: Path) -> None:
    for folder, picture in (("images", scene(0)), ("masks", Image.fromarray(outline(0)))):
        (tmp_path / folder).mkdir()
        picture.save(tmp_path / folder / "only.png")
    dataset = load("folder", of=tmp_path.name)
    (error,) = verify(dataset, tmp_path)["errors"]
    assert error.startswith("no pair at all is in train")
    with pytest.raises(DatasetBroken, match=r"There is no pair for train.* among the 1 found: .* too few are there"):
        dataset.open(tmp_path)


def test_an_image_as_its_own_mask(tmp_path: Path) -> None:
    plant(tmp_path)
    picture = "train/images/0.png"
    rows = {split: f"{split}/images/{n}.png,{split}/masks/{n}.png\n" for split, n in (("train", 1), ("test", 20))}
    rows["val"] = "validation/images/10.png,validation/masks/10.png\n"
    dataset = write_lists(tmp_path, rows | {"train": f"{picture},{picture}\n{rows['train']}"})
    (problem,) = verify(dataset, tmp_path)["problems"]
    assert problem == {"kind": "masks that are the image itself", "files": [{"path": picture, "detail": ""}]}
    with pytest.raises(DatasetBroken, match=r"masks that are the image itself \(1\):\n  train/images/0\.png"):
        dataset.open(tmp_path)


def test_a_mask_as_another_pairs_image(tmp_path: Path) -> None:
    """Each file is remembered for what it is read as."""
    plant(tmp_path)
    rows = {
        "val": "validation/images/10.png,validation/masks/10.png\n",
        "test": "test/images/20.png,test/masks/20.png\n",
    }
    rows["train"] = "train/images/0.png,train/masks/0.png\ntrain/masks/0.png,train/masks/1.png\n"
    dataset = write_lists(tmp_path, rows)
    first, second = (dataset.open(tmp_path)["train"] for _ in range(2))
    assert [first.labels(index) for index in range(2)] == [second.labels(index) for index in range(2)] == [{0, 1}] * 2
    assert verify(dataset, tmp_path)["usable"]["train"] == 2


@pytest.mark.parametrize("noise", [2, 1])
def test_a_blank_mask_with_noise_is_told_what_to_do(noise: int, tmp_path: Path) -> None:
    plant(tmp_path)
    Image.fromarray(np.minimum(np.arange(SIZE[0] * SIZE[1]) % 3, noise).reshape(SIZE[::-1]).astype(np.uint8)).save(
        tmp_path / "train" / "masks" / "1.png"
    )
    (problem,) = verify(Mini(), tmp_path)["problems"]
    assert problem["kind"] == "masks whose foreground would be lost"
    assert ("store it as zeros" in problem["files"][0]["detail"]) is (noise == 2)


def truncate(base: Path) -> None:
    path = base / "train" / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:200])


def unpair(base: Path) -> None:
    (base / "test" / "masks" / "20.png").unlink()


def shrink(base: Path) -> None:
    Image.fromarray(outline(1)[:-1]).save(base / "train" / "masks" / "1.png")


def darken(base: Path) -> None:
    Image.fromarray(outline(1, 1)).save(base / "train" / "masks" / "1.png")


@pytest.mark.parametrize(
    ("flaw", "words", "path", "usable"),
    [
        (truncate, "corrupt images", "train/images/1.png", 10),
        (unpair, "images without a mask", "test/images/20.png", 10),
        (shrink, "masks of another size than their image", "train/masks/1.png", 10),
        (darken, "masks whose foreground would be lost", "train/masks/1.png", 10),
    ],
)
def test_files_that_cannot_be_used(flaw, words: str, path: str, usable: int, tmp_path: Path) -> None:
    flaw(plant(tmp_path))
    report = verify(Mini(), tmp_path)
    assert [(found["kind"], [file["path"] for file in found["files"]]) for found in report["problems"]] == [
        (words, [path])
    ]
    assert f"files that cannot be used: {words} (1)" in report["errors"] and not report["whole"]
    assert sum(report["usable"].values()) == usable


def test_an_unknown_colour(tmp_path: Path) -> None:
    plant(tmp_path, lambda number: outline(number, 90 if number == 2 else 85))
    report = verify(kind(encoding=valued({0: 0, 85: 1})), tmp_path)
    (problem,) = report["problems"]
    assert problem["kind"] == "masks with values of no class"
    assert problem["files"][0]["path"] == "train/masks/2.png" and "90" in problem["files"][0]["detail"]


def test_masks_of_0_and_1_are_read_and_dark_ones_caught(tmp_path: Path) -> None:
    report = verify(Mini(), plant(tmp_path / "ones", lambda number: outline(number, 1)))
    assert report["whole"] and report["masks"]["levels"] == [0, 1] and "above 0" in report["masks"]["rule"]
    assert report["foreground"]["train"]["min"] > 0

    report = verify(Mini(), plant(tmp_path / "dark", lambda number: outline(number, 38)))
    assert [len(problem["files"]) for problem in report["problems"]] == [11]
    assert "no usable pair is left in train, val, test, extra" in report["errors"]


def test_blank_masks(tmp_path: Path) -> None:
    report = verify(Mini(), plant(tmp_path, lambda number: outline(number, 0 if number in (1, 20) else 255)))
    assert report["blank"] == {"train": ["1"], "test": ["20"]}
    assert report["whole"] and report["warnings"] == ["blank masks: 1 train, 1 test"]


def test_several_classes(tmp_path: Path) -> None:
    def mask(number: int) -> np.ndarray:
        mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
        mask[:, :48] = {0: 2, 20: 0}.get(number, 1)
        mask[:36, 48:] = 255
        return np.ones_like(mask) if number == 21 else mask

    three = kind(classes=("sky", "tree", "car"), encoding=indexed(3))
    report = verify(three, plant(tmp_path, mask))
    # A quarter of the pixels counts nowhere; of the others two thirds are tree or car.
    assert report["classes"]["train"] == {
        "sky": {"images": 4, "pixels": round(1 / 3, 6)},
        "tree": {"images": 3, "pixels": 0.5},
        "car": {"images": 1, "pixels": round(1 / 6, 6)},
    }
    assert report["foreground"]["train"] == {"min": 0.666667, "median": 0.666667, "max": 0.666667}
    assert report["blank"] == {"test": ["20"]} and report["all_foreground"] == {}
    assert report["masks"]["levels"] == [0, 1, 2, 255]


def test_left_out_by_parameters(tmp_path: Path) -> None:
    def excludes(self: Mini, image: Inspected, mask: Inspected) -> str:
        return "too much" if mask.levels[-1][1] > 18 * 48 else ""

    report = verify(kind(excludes=excludes), plant(tmp_path))
    assert report["left_out"] == {"train": 1} and report["usable"]["train"] == 3 and report["splits"]["train"] == 4
    assert report["whole"] and report["warnings"] == ["left out by the dataset's own parameters: 1 train"]


def test_the_same_file_in_training_and_test(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.copy(tmp_path / "train" / "images" / "3.png", tmp_path / "test" / "images" / "21.png")
    shutil.copy(tmp_path / "validation" / "images" / "10.png", tmp_path / "extra" / "images" / "30.png")
    report = verify(Mini(), tmp_path)
    assert report["duplicates"] == [[["train", "3"], ["test", "21"]], [["val", "10"], ["extra", "30"]]]
    assert report["leaked"] == {"test": 1, "extra": 1} and report["near_duplicates"] == []
    assert report["errors"] == [
        "1 of 3 images of test are files for training or validation too",
        "1 of 2 images of extra are files for training or validation too",
    ]
    few = judge(report | {"usable": report["usable"] | {"test": round(1 / LEAK), "extra": round(1 / LEAK)}})
    assert few["whole"] and few["warnings"][0].startswith("1 of 100 images of test are files")


def test_the_same_file_on_one_side(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.copy(tmp_path / "train" / "images" / "3.png", tmp_path / "train" / "images" / "1.png")
    shutil.copy(tmp_path / "test" / "images" / "20.png", tmp_path / "extra" / "images" / "31.png")
    report = verify(Mini(), tmp_path)
    assert len(report["duplicates"]) == 2 and report["leaked"] == {}
    assert report["whole"] and report["warnings"] == ["images that are there more than once on the same side: 2"]


def test_the_same_file_in_training_and_validation(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.copy(tmp_path / "train" / "images" / "0.png", tmp_path / "validation" / "images" / "11.png")
    report = verify(Mini(), tmp_path)
    assert report["leaked"] == {"val": 1} and report["warnings"] == []
    assert report["errors"] == ["1 of 2 images of val are files for training too"] and not report["whole"]
    few = judge(report | {"usable": report["usable"] | {"val": round(1 / LEAK)}})
    assert few["whole"] and few["warnings"] == ["1 of 100 images of val are files for training too"]


def reencoded(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=quality)
    return Image.open(stream)


FORMS = {
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "duller": lambda picture: ImageEnhance.Contrast(picture).enhance(0.6),
    "grey": lambda picture: picture.convert("L"),
    "JPEG": lambda picture: reencoded(picture, 60),
    "poor JPEG": lambda picture: reencoded(picture, 15),
    "half": lambda picture: picture.resize((48, 36), Image.Resampling.BILINEAR),
    "large": lambda picture: picture.resize((300, 220), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_form_of_a_training_image(form: str, tmp_path: Path) -> None:
    plant(tmp_path)
    copy = FORMS[form](scene(2))
    copy.save(tmp_path / "test" / "images" / "21.png")
    Image.new("L", copy.size, 255).save(tmp_path / "test" / "masks" / "21.png")
    report = verify(Mini(), tmp_path)
    (found,) = report["near_duplicates"]
    assert (found["image"], found["nearest"], found["alike"]) == (["test", "21"], ["train", "2"], 1)
    assert NEAR <= found["similarity"] <= 1 and report["duplicates"] == []
    assert report["whole"] and report["warnings"][0].startswith("1 of 3 images of test closely resemble")


def test_the_nearest_image_is_named_and_the_others_counted(tmp_path: Path) -> None:
    plant(tmp_path)
    for place, quality in (("train/images/0", 10), ("validation/images/11", 95), ("train/images/3", 20)):
        reencoded(scene(22), quality).save(tmp_path / f"{place}.png")
    (found,) = verify(Mini(), tmp_path)["near_duplicates"]
    assert (found["image"], found["nearest"], found["alike"]) == (["test", "22"], ["val", "11"], 3)


def framed(number: int) -> np.ndarray:
    """Different pictures of little contrast, with the same black frame over a third of them."""
    rows, columns = np.indices((16, 16))
    cells = np.asarray(scene(number, (16, 16)).convert("L")).astype(float) / 5 + 90
    cells[(abs(rows - 7.5) + abs(columns - 7.5) > 11) | (abs(columns - 7.5) > 6)] = 2
    return cells.astype(np.uint8)


def test_a_common_frame_makes_no_duplicates() -> None:
    vectors = changes([framed(number).tobytes().hex() for number in range(60)])
    similarity = vectors @ vectors.T
    assert similarity[np.triu_indices(60, 1)].max() < NEAR - 0.1
    plain = np.stack([framed(number).ravel() for number in range(60)])
    assert np.median(np.corrcoef(plain)) > NEAR  # what plain correlation makes of them


def test_uniform_images_are_counted_and_not_compared(tmp_path: Path) -> None:
    plant(tmp_path)
    for name, level in (("train/images/0", 200), ("train/images/1", 201), ("test/images/20", 200)):
        picture = np.full((SIZE[1], SIZE[0], 3), level, dtype=np.uint8)
        picture[: SIZE[1] // 8] += 5  # the only thing in it, and the same in all three
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    report = verify(Mini(), tmp_path)
    assert report["uniform"] == 3 and report["near_duplicates"] == []
    assert report["warnings"] == ["images that show too little to be compared: 3"]


@given(st.integers(0, 2**32), st.floats(0.6, 1.4), st.integers(-20, 20))
def test_brightness_and_contrast_change_no_similarity(seed: int, gain: float, shift: int) -> None:
    cells = np.random.default_rng(seed).integers(60, 140, (16, 16))
    changed = np.rint(gain * cells + shift).astype(np.uint8)
    first, second = changes([cells.astype(np.uint8).tobytes().hex(), changed.tobytes().hex()])
    assert first @ second > 0.99


def test_near_agrees_with_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    images, others = (rng.normal(size=(count, 3)) for count in (23, 17))
    images, others = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (images, others))
    expected = []
    for index, image in enumerate(images):
        found = [float(image @ other) for other in others]
        if max(found) >= NEAR:
            expected.append((index, found.index(max(found)), max(found), sum(value >= NEAR for value in found)))
    expected.sort(key=lambda pair: -pair[2])
    for rows in (1, 5, 1024):
        monkeypatch.setattr(duplicates, "_ROWS", rows)
        found = near(images, others)
        assert [pair[:2] + pair[3:] for pair in found] == [pair[:2] + pair[3:] for pair in expected]
        np.testing.assert_allclose([pair.similarity for pair in found], [pair[2] for pair in expected])
    assert len(expected) > 5
    assert near(images, others[:0]) == near(images[:0], others) == []


def test_same() -> None:
    assert same(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]


@pytest.mark.parametrize("size", [(96, 72), (900, 700)])
def test_the_inspection_takes_the_fingerprint(size: tuple[int, int], tmp_path: Path) -> None:
    """Of a JPEG it decodes as little as it can, which must leave enough for a thumbnail."""
    scene(1, size).save(tmp_path / "a.png")
    assert inspect_image(tmp_path / "a.png").fingerprint == fingerprint(scene(1, size))
    scene(1, size).save(tmp_path / "a.jpg", quality=95)
    first, second = changes([inspect_image(tmp_path / "a.jpg").fingerprint, fingerprint(scene(1, size))])
    assert first @ second > 0.97


def test_generated_images() -> None:
    report = verify(load("shapes", train_images=6, validation_images=2, test_images=3))
    assert report["splits"] == report["usable"] == {"train": 6, "val": 2, "test": 3}
    assert report["base"] is None and report["layout"] == "generated"
    assert report["parameters"] == {"train_images": 6, "validation_images": 2, "test_images": 3}
    assert report["whole"] and 0 < report["foreground"]["train"]["median"] < 1


def test_ranges() -> None:
    assert ranges([]) == "" and ranges([7]) == "7" and ranges([0, 1, 2, 5, 254, 255]) == "0-2, 5, 254-255"


@pytest.mark.parametrize("encoding", [threshold(), valued({0: 0, 255: 1})])
def test_masks_of_noise(encoding: Encoding, tmp_path: Path) -> None:
    """Noise near both ends is read by a threshold, and an error where only two values have a class."""

    def noisy(number: int) -> np.ndarray:
        return np.where(outline(number) > 0, 250 + number % 5, number % 8).astype(np.uint8)

    report = verify(kind(encoding=encoding), plant(tmp_path, noisy))
    assert report["whole"] is encoding.binary


def test_neighbouring_frames_of_real_camvid(test_data: Path) -> None:
    frames = sorted((test_data / "camvid_val_101" / "CamVid" / "val").glob("*.png"))
    vectors = changes([inspect_image(frame).fingerprint for frame in frames])
    similarity = vectors @ vectors.T
    assert (np.diag(similarity, 1) >= NEAR).mean() > 0.9
    assert (np.triu(similarity, 20) >= NEAR).sum() == 0


def test_copies_of_real_images_are_found(test_data: Path) -> None:
    paths = [
        *sorted((test_data / "isic2017_512" / "ISIC-2017_Test_v2_Data").glob("*.jpg"))[::12],
        *sorted((test_data / "kvasir_seg_5" / "Kvasir-SEG" / "images").glob("*.jpg")),
        *sorted((test_data / "sbu_shadow_2" / "SBU-Test" / "ShadowImages").glob("*.jpg")),
    ]
    originals = [inspect_image(path).fingerprint for path in paths]
    for form in FORMS.values():
        copies = []
        for path in paths:
            with Image.open(path) as picture:
                copies.append(fingerprint(form(picture.convert("RGB"))))
        found = near(changes(copies), changes(originals))
        assert len(found) > 0.9 * len(paths) and all(pair.index == pair.nearest for pair in found)
