"""Generated scenes: the same for the same key, with masks that are what can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from bench.pretraining.batch import Steps, make_batch
from bench.pretraining.score import HELD_OUT, RADIUS_SCENES, scenes
from datasets.painting import Draws
from datasets.scenes import LARGEST, OUTLINES, SMALLEST, Scene, paint_scene


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [paint_scene(64, 7, index) for index in range(60)]


def test_a_key_stands_for_one_scene():
    for first, second in zip(paint_scene(64, 1, 2), paint_scene(64, 1, 2), strict=True):
        np.testing.assert_array_equal(first, second)
    assert (paint_scene(64, 1, 2).image != paint_scene(64, 2, 1).image).mean() > 0.5


def test_shapes_and_numbers(some):
    for scene in some:
        assert scene.image.shape == (64, 64, 3)
        assert scene.image.dtype == np.uint8
        assert scene.instances.shape == (64, 64)
        assert scene.instances.max() < len(scene.wholes)
        assert (scene.wholes[scene.wholes] == scene.wholes).all(), "a part of a part"
        assert scene.wholes[0] == 0


def test_every_object_is_between_the_limits_and_every_pixel_has_one(some):
    for scene in some:
        wholes = set(scene.wholes[scene.objects()])
        covered = np.zeros_like(scene.instances)
        for number in wholes:
            mask = scene.mask(number)
            assert SMALLEST <= mask.mean() <= LARGEST
            covered += mask
        np.testing.assert_array_equal(covered, scene.instances > 0)


def test_parts_lie_inside_their_whole_and_are_not_specks(some):
    parts = [(scene, number) for scene in some for number in scene.objects() if scene.wholes[number] != number]
    assert len(parts) >= 5
    for scene, number in parts:
        part, whole = scene.mask(number), scene.mask(scene.wholes[number])
        assert part.mean() >= SMALLEST
        assert not (part & ~whole).any()


def test_sizes_range_from_small_to_large(some):
    areas = [scene.mask(number).mean() for scene in some for number in scene.objects()]
    assert min(areas) < 0.02
    assert max(areas) > 0.25
    counts = [len(scene.objects()) for scene in some]
    assert 1 in counts
    assert max(counts) >= 6


def test_an_object_looks_unlike_what_is_around_it(some):
    """Else nothing could be learnt: mean colours inside and just outside differ, for most objects clearly."""
    from scipy.ndimage import binary_dilation

    differences = []
    for scene in some:
        for number in scene.objects():
            mask = scene.mask(number)
            around = binary_dilation(mask, iterations=4) & ~mask
            inside, outside = (scene.image[where].mean(0) for where in (mask, around))
            differences.append(np.abs(inside - outside).max())
    assert np.median(differences) > 20


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_finite_and_enclose_something(name):
    for seed in range(20):
        x, y = OUTLINES[name](Draws(seed)).T
        area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
        assert np.isfinite(area)
        assert area > 0.05


def test_held_out_scenes_are_none_of_training():
    """Neither the same keys nor the same images, for the first scenes of each stream."""
    trained = {image.numpy().tobytes() for step in range(3) for image in make_batch(64, 4, 0, step).images}
    others = [target.image.transpose(2, 0, 1) for key in (HELD_OUT, RADIUS_SCENES) for target in scenes(key, 6, 64)]
    images = trained | {np.ascontiguousarray(image).tobytes() for image in others}
    assert len(images) == 3 * 4 + 2 * 6


def test_every_eighth_step_has_larger_images():
    steps = Steps(seed=0, batch=8, size=64)
    assert [tuple(steps[step].images.shape) for step in (6, 7)] == [(8, 3, 64, 64), (2, 3, 128, 128)]
