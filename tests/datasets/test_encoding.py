"""Pixels become classes as a reading of one pixel at a time says, in every mode Pillow has for masks."""

from __future__ import annotations

import io
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import load, registry
from datasets.base import IGNORE
from datasets.encoding import (
    UNKNOWN,
    Encoding,
    Palette,
    UnknownColour,
    brightest_channel,
    channel_mean,
    grey,
    histogram,
    index,
    indexed,
    marked,
    threshold,
    valued,
)
from datasets.files import FileDataset

COLOURS = ((0, 0, 0), (120, 120, 70), (235, 255, 7), (0, 0, 1))
STORED = ("1", "L", "P")  # modes that hold numbers and not colours
BYTES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
NUMBERS = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
ENDS = [0, 1, 2, 126, 127, 128, 254, 255]

sides = st.tuples(st.integers(1, 5), st.integers(1, 5))
byte = st.sampled_from(ENDS) | st.integers(0, 255)
colour = st.sampled_from([*COLOURS, (128, 0, 0), (255, 0, 0), (255, 255, 255)]) | st.tuples(byte, byte, byte)


def listed(draw: st.DrawFn, element: st.SearchStrategy, count: int) -> list:
    return draw(st.lists(element, min_size=count, max_size=count))


@st.composite
def pictures(
    draw: st.DrawFn, modes: tuple[str, ...] = ("1", "P", *BYTES, *NUMBERS), colours: st.SearchStrategy = colour
) -> Image.Image:
    """Small masks; palettes of any length, with colours that occur twice and some transparent."""
    mode, (width, height) = draw(st.sampled_from(modes)), draw(sides)
    if mode in NUMBERS:
        numbers = st.sampled_from(ENDS) | st.integers(0, 255)
        grid = np.array(listed(draw, numbers, width * height), dtype=NUMBERS[mode])
        return Image.fromarray(grid.reshape(height, width))
    if mode == "P":
        palette = draw(st.lists(colours, min_size=1, max_size=256))
        picture = Image.new("P", (width, height))
        picture.putpalette([channel for entry in palette for channel in entry])
        picture.putdata(listed(draw, st.integers(0, len(palette) - 1), width * height))
        if draw(st.booleans()):
            picture.info["transparency"] = draw(st.integers(0, len(palette) - 1))
        return picture
    picture = Image.new(mode, (width, height))
    if mode == "1":
        picture.putdata(listed(draw, st.sampled_from([0, 255]), width * height))
    elif mode in ("RGB", "RGBA"):
        alpha = (byte,) * (mode == "RGBA")
        pixel = st.tuples(colours, *alpha).map(lambda one: (*one[0], *one[1:]))
        picture.putdata(listed(draw, pixel, width * height))
    else:
        pixel = byte if mode == "L" else st.tuples(*[byte] * BYTES[mode])
        picture.putdata(listed(draw, pixel, width * height))
    return picture


def each_pixel(picture: Image.Image, read) -> list[list]:
    return [[read(picture, (x, y)) for x in range(picture.width)] for y in range(picture.height)]


def colour_of(picture: Image.Image, place: tuple[int, int]) -> tuple[float, float, float]:
    """Red, green and blue of one pixel, by the definition of its mode."""
    value = picture.getpixel(place)
    if picture.mode == "P":
        return tuple(picture.getpalette("RGB")[3 * value : 3 * value + 3])
    if picture.mode == "CMYK":
        *inks, black = value
        return tuple((255 - ink) * (255 - black) / 255 for ink in inks)
    if picture.mode in ("RGB", "RGBA"):
        return value[:3]
    level = value[0] if picture.mode == "LA" else value
    return (min(max(math.floor(level), 0), 255),) * 3


def grey_of(picture: Image.Image, place: tuple[int, int]) -> float:
    """Luma by ITU-R 601."""
    red, green, blue = colour_of(picture, place)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def number_of(picture: Image.Image, place: tuple[int, int]) -> int:
    value = picture.getpixel(place)
    return int(value > 0) if picture.mode == "1" else value


def assert_consistent(encoding: Encoding, picture: Image.Image, expected: list[list[int]]) -> None:
    """``expected`` has :data:`UNKNOWN` where there is no class."""
    levels = histogram(encoding.levels(picture))
    assert sum(pixels for _, pixels in levels) == picture.width * picture.height
    assert encoding.count(levels) == Counter(label for row in expected for label in row)
    unknown = sum(row.count(UNKNOWN) for row in expected)
    if unknown:
        for refuse in (lambda: encoding.check(levels), lambda: encoding.decode(picture)):
            with pytest.raises(UnknownColour, match=f"^{unknown} pixels have a value of no class: "):
                refuse()
        return
    encoding.check(levels)
    decoded = encoding.decode(picture)
    assert decoded.dtype == np.uint8 and decoded.shape == (picture.height, picture.width)
    assert decoded.tolist() == expected


@settings(deadline=None)
@given(pictures())
def test_grey_is_luma(picture: Image.Image) -> None:
    found = grey(picture)
    assert found.dtype == np.uint8
    # Pillow rounds once or, from cyan, magenta, yellow and black, twice.
    error = np.abs(found - np.array(each_pixel(picture, grey_of)))
    assert error.max() <= (2 if picture.mode == "CMYK" else 0.51)


@settings(deadline=None)
@given(pictures(), st.sampled_from([0, 1, 100, 127, 128, 254]))
def test_threshold(picture: Image.Image, above: int) -> None:
    encoding = threshold(above)
    luma = np.array(each_pixel(picture, grey_of))
    blur = 2 if picture.mode == "CMYK" else 0.51
    decoded = encoding.decode(picture)
    assert decoded[luma > above + 0.5 + blur].all() and not decoded[luma < above + 0.5 - blur].any()
    assert_consistent(encoding, picture, (encoding.levels(picture) > above).astype(int).tolist())


@settings(deadline=None)
@given(pictures(("1", "L", "LA", "P", "RGB", "RGBA", *NUMBERS)))
def test_marked(picture: Image.Image) -> None:
    brightest = each_pixel(picture, lambda picture, place: max(colour_of(picture, place)))
    assert brightest_channel(picture).tolist() == brightest
    assert_consistent(marked(), picture, [[int(level > 0) for level in row] for row in brightest])


@settings(deadline=None)
@given(pictures(), st.integers(1, 255), st.sampled_from([(), (IGNORE,), (11,), (3, 254)]))
def test_indices(picture: Image.Image, classes: int, ignore: tuple[int, ...]) -> None:
    encoding = indexed(classes, ignore=ignore)
    if picture.mode not in STORED:
        with pytest.raises(UnknownColour, match=f"its mode is {picture.mode}"):
            encoding.decode(picture)
        return

    def label(picture: Image.Image, place: tuple[int, int]) -> int:
        value = number_of(picture, place)
        return IGNORE if value in ignore else value if value < classes else UNKNOWN

    assert_consistent(encoding, picture, each_pixel(picture, label))


@settings(deadline=None)
@given(pictures() | pictures(("RGB", "RGBA"), st.sampled_from(COLOURS)), st.permutations(COLOURS))
def test_a_coloured_copy_of_indices(picture: Image.Image, colours: list[tuple[int, int, int]]) -> None:
    encoding = indexed(len(colours), ignore=(), colours=colours)
    if picture.mode in ("1", "L"):
        np.testing.assert_array_equal(encoding.levels(picture), index(picture))
    elif picture.mode in ("RGB", "RGBA"):
        seen = each_pixel(picture, colour_of)
        odd = [colour for row in seen for colour in row if colour not in colours]
        if odd:
            with pytest.raises(UnknownColour) as raised:
                encoding.decode(picture)
            first = tuple(map(int, odd[0]))
            assert str(raised.value) == f"{len(odd)} pixels have colours of no class, the first is {first}"
        else:
            assert_consistent(encoding, picture, [[colours.index(colour) for colour in row] for row in seen])


def paletted(stored: list[list[int]], *palette: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(np.array(stored, dtype=np.uint8)).convert("P")
    picture.putpalette([channel for entry in palette for channel in entry])
    return picture


@settings(deadline=None)
@given(st.permutations(COLOURS), st.integers(1, 4), st.data())
def test_a_palette_of_class_colours_may_have_any_order(order: list, count: int, data: st.DataObject) -> None:
    """What programs that make files smaller leave of a coloured copy."""
    stored = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9))
    padding = data.draw(st.lists(st.just((0, 0, 0)), max_size=3))
    picture = paletted([stored], *order[:count], *padding)
    expected = [COLOURS.index(order[entry]) for entry in stored]
    assert indexed(4, ignore=(), colours=COLOURS).decode(picture).tolist() == [expected]


def test_a_copy_made_smaller_is_read_like_the_coloured_one() -> None:
    labels = np.array([[0, 2, 2], [3, 0, 1]])
    coloured = Image.fromarray(np.array(COLOURS, dtype=np.uint8)[labels])
    encoding = indexed(4, ignore=(), colours=COLOURS)
    for colours in (4, 256):
        assert encoding.decode(coloured.quantize(colours)).tolist() == labels.tolist()


GREYS = ((0, 0, 0), (1, 2, 3), (40, 40, 40), (60, 60, 60))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (paletted([[0, 1]], (0, 0, 0), (40, 40, 40)), [[0, 2]]),
        (paletted([[0, 1]], (0, 0, 0), (20, 20, 20), (40, 40, 40), (60, 60, 60)), [[0, 1]]),
        (paletted([[0, 2, 3]], (0, 0, 0), (20, 20, 20), (40, 40, 40), (60, 60, 60)), [[0, 2, 3]]),
        (paletted([[0, 1, 3]], (0, 0, 0), (40, 40, 40), (80, 80, 80), (120, 120, 120)), [[0, 1, 3]]),
        (paletted([[0, 1, 2]], (0, 0, 0), (128, 0, 0), (0, 128, 0)), [[0, 1, 2]]),
        (paletted([[1, 1]], (9, 9, 9), (9, 9, 9)), [[1, 1]]),
        (paletted([[0, 3]], (40, 40, 40), (5, 5, 6), (5, 5, 7), (1, 2, 3)), [[2, 1]]),
    ],
    ids=["greys of classes", "grey ramp", "grey ramp in step", "grey ramp hit by chance", "VOC", "one grey", "spare"],
)
def test_palettes_of_classes_and_others(picture: Image.Image, expected: list) -> None:
    assert indexed(4, ignore=(), colours=GREYS).decode(picture).tolist() == expected


@pytest.mark.parametrize(
    "picture",
    [
        paletted([[0, 1, 2]], (0, 0, 0), (40, 40, 40), (128, 0, 0)),
        paletted([[0, 1, 2]], (0, 0, 0), (1, 2, 3), (0, 0, 0)),
    ],
    ids=["a colour of no class", "a colour twice"],
)
def test_a_palette_that_may_mean_either_is_refused(picture: Image.Image) -> None:
    with pytest.raises(UnknownColour, match=r"its palette has the colour of class \d at \d, .*grey picture"):
        indexed(4, ignore=(), colours=GREYS).decode(picture)


@pytest.mark.parametrize("encoding", [threshold(), marked(), valued({0: 0}, levels=channel_mean)])
@pytest.mark.parametrize("mode", NUMBERS)
def test_deep_grey_above_255_is_refused(mode: str, encoding: Encoding) -> None:
    deep = Image.fromarray(np.array([[0, 300]], dtype=NUMBERS[mode]))
    with pytest.raises(UnknownColour, match=r"its values reach 300(\.0)?: convert it to 8 bits"):
        encoding.decode(deep)


@settings(deadline=None)
@given(
    pictures(("1", "L", "LA", "P", "RGB", "RGBA"))
    | pictures(("P", "RGB", "RGBA"), st.sampled_from([(0, 0, 0), (255, 0, 0), (255, 255, 255), (0, 0, 255)]))
)
def test_the_mean_of_the_channels(picture: Image.Image) -> None:
    encoding = valued({0: 0, 85: 1, 255: 2}, levels=channel_mean)
    sums = each_pixel(picture, lambda picture, place: sum(colour_of(picture, place)))
    uneven = sum(total % 3 > 0 for row in sums for total in row)
    if uneven:
        with pytest.raises(UnknownColour, match=f"^{uneven} pixels have colours of no class"):
            encoding.decode(picture)
    else:
        classes = {0: 0, 255: 1, 765: 2}
        assert_consistent(encoding, picture, [[classes.get(total, UNKNOWN) for total in row] for row in sums])


@settings(deadline=None)
@given(
    pictures(("1", "L")),
    st.dictionaries(st.sampled_from(ENDS) | st.integers(0, 255), st.integers(0, 4) | st.just(IGNORE), min_size=1),
)
def test_values(picture: Image.Image, values: dict[int, int]) -> None:
    expected = each_pixel(picture, lambda picture, place: values.get(picture.getpixel(place), UNKNOWN))
    assert_consistent(valued(values), picture, expected)


@given(st.integers(0, 254))
def test_the_threshold_itself_is_background(above: int) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert threshold(above).decode(ramp)[0].tolist() == [int(level > above) for level in range(256)]


@settings(deadline=None)
@given(pictures(), st.sampled_from([marked(), *map(threshold, (0, 1, 127, 254))]))
def test_a_mask_passes_if_it_is_black_or_keeps_foreground(picture: Image.Image, encoding: Encoding) -> None:
    levels = encoding.levels(picture)
    black, kept = not levels.any(), encoding.decode(picture).any()
    assert encoding.erases(histogram(levels)) == (not black and not kept)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F"])
def test_a_black_mask_is_blank_in_every_mode(mode: str) -> None:
    picture = Image.new(mode, (4, 3))
    for encoding in (threshold(), threshold(0), marked()):
        assert not encoding.erases(histogram(encoding.levels(picture)))
        assert not encoding.decode(picture).any()


@pytest.mark.parametrize(
    ("picture", "encoding"),
    [
        (Image.new("L", (4, 3), 1), threshold()),
        (Image.new("I;16", (4, 3), 1), threshold()),
        (Image.new("RGB", (4, 3), (128, 0, 0)), threshold()),
        (Image.new("RGBA", (4, 3), (128, 0, 0, 255)), threshold()),
        (Image.new("CMYK", (4, 3), (0, 0, 0, 255 - 100)), threshold()),
    ],
)
def test_foreground_below_the_threshold_does_not_pass(picture: Image.Image, encoding: Encoding) -> None:
    assert encoding.erases(histogram(encoding.levels(picture)))


def test_masks_of_classes_may_hold_background_alone() -> None:
    for encoding in (indexed(3), valued({0: 0, 128: 1}), valued({7: 0, 128: 1})):
        assert not encoding.erases([(0, 12)]) and not encoding.erases([(7, 12)])


@given(st.sets(st.integers(0, 255), max_size=4), st.sampled_from([0, 127, 254]))
def test_only_a_copy_of_0_and_1_is_read_in_another_way(levels: set[int], above: int) -> None:
    encoding = threshold(above)
    fitted = encoding.fitted(levels)
    if levels == {0, 1}:
        assert fitted.decode(Image.fromarray(np.array([[0, 1]], dtype=np.uint8))).tolist() == [[0, 1]]
    else:
        assert fitted is encoding
    assert fitted.key == encoding.key, "what was read from the files is the same"


@pytest.mark.parametrize("encoding", [indexed(2), valued({0: 0, 128: 1}), indexed(2, colours=COLOURS)])
def test_classes_are_never_fitted(encoding: Encoding) -> None:
    assert encoding.fitted({0, 1}) is encoding


def test_an_unknown_value_is_named_with_the_rule() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(2, axis=0))
    with pytest.raises(UnknownColour) as raised:
        indexed(11, ignore=(11,)).decode(ramp)
    assert str(raised.value) == (
        "488 pixels have a value of no class: 12, 13, 14, 15, 16, 17, 18, 19, ... (classes are 0 to 10, ignored is 11)"
    )


def test_histogram_leaves_out_what_does_not_occur() -> None:
    assert histogram(np.array([[255, 0], [255, 7]], dtype=np.uint8)) == ((0, 1), (7, 1), (255, 2))
    assert histogram(np.zeros((0, 4), dtype=np.uint8)) == ()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_files_keep_indices(mode: str) -> None:
    stored = np.array([[0, 1, 2], [10, 11, 255]], dtype=np.uint8)
    picture = Image.fromarray(stored)
    if mode == "P":
        picture = picture.convert("P")
        picture.putpalette([255] * 768)  # one colour for all of them
    stream = io.BytesIO()
    picture.save(stream, format="PNG", transparency=11)
    with Image.open(stream) as opened:
        assert indexed(11, ignore=(11, 255)).decode(opened).tolist() == [[0, 1, 2], [10, IGNORE, IGNORE]]


def encodings() -> dict[str, Encoding]:
    """Those of all datasets that are there, and of each kind."""
    kinds = {name: registry[name] for name in registry.names()}
    declared = {name: kind.encoding for name, kind in kinds.items() if issubclass(kind, FileDataset)}
    folders = {
        "own, binary": load("folder", of="a", threshold=40).encoding,
        "own, classes": load("folder", of="a", class_names=("a", "b"), values={0: 0, 9: 1}, ignore=3).encoding,
    }
    return {name: one for name, one in declared.items() if isinstance(one, Encoding)} | folders


@pytest.mark.parametrize("name", encodings())
def test_an_encoding_travels(name: str) -> None:
    encoding = encodings()[name]
    picture = Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).convert("L")
    used = encoding.decode(picture)
    copy = pickle.loads(pickle.dumps(encoding))
    assert copy == encoding and hash(copy) == hash(encoding) and copy.key == encoding.key
    np.testing.assert_array_equal(copy.decode(picture), used)


def test_what_was_read_is_shared_by_those_alone_that_read_alike() -> None:
    keys = {
        threshold(): "grey",
        threshold(3): "grey",
        valued({0: 0}): "grey",
        marked(): "brightest_channel",
        indexed(2): "index",
        valued({0: 0}, levels=channel_mean): "channel_mean",
    }
    assert {encoding: encoding.key for encoding in keys} == keys
    palettes = {Palette(COLOURS).__name__, Palette(COLOURS[::-1]).__name__, Palette(COLOURS[:2]).__name__}
    assert len(palettes) == 3
