"""Pictures of feature maps, against closed forms and numpy's singular values."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.inside.features import components, distances
from analysis.results import NoResults


def maps(channels: int = 6, images: int = 2, *, side: int = 5, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    scales = np.linspace(3, 0.1, channels)[:, None, None]
    return {
        row: {f"{n}": (scales * random.normal(size=(channels, side, side))).astype(np.float32) for n in range(images)}
        for row in ("lora", "conv_lora")
    }


def test_distances_of_a_map_that_stands_out_once():
    features = np.zeros((4, 3, 3))
    features[:, 1, 1] = 9
    found = distances(features)
    assert found[1, 1] == pytest.approx(2 * 8) and found[0, 0] == pytest.approx(2 * 1)
    np.testing.assert_allclose(distances(features + np.arange(4).reshape(4, 1, 1)), found)


def test_components_are_those_of_all_centred_maps():
    made = maps()
    vectors = {row: [one.reshape(6, -1).T.astype(float) for one in own.values()] for row, own in made.items()}
    centred = np.concatenate([np.concatenate(own) - np.concatenate(own).mean(0) for own in vectors.values()])
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    _, _, axes = np.linalg.svd(centred)
    found = components(made)
    assert found.share == pytest.approx(values[:3].sum() / values.sum())
    for channel in range(3):
        projected = centred @ axes[channel]
        low, high = np.percentile(projected, (1, 99))
        wanted = 255 * ((projected - low) / (high - low)).clip(0, 1)
        shown = np.concatenate([one[..., channel].ravel() for own in found.pictures.values() for one in own.values()])
        assert min(np.abs(shown - wanted).max(), np.abs(shown - (255 - wanted)).max()) < 1  # a sign is free


def test_one_colour_means_the_same_with_both_methods():
    made = maps(images=1)
    made["conv_lora"] = {"0": made["lora"]["0"][:, ::-1].copy()}
    found = components(made).pictures
    np.testing.assert_array_equal(found["conv_lora"]["0"], found["lora"]["0"][::-1])


def test_what_all_places_of_a_method_have_in_common_shows_nothing():
    made = maps()
    shifted = {**made, "conv_lora": {image: one + 7 for image, one in made["conv_lora"].items()}}
    first, second = components(made), components(shifted)
    for row, own in first.pictures.items():
        for image, picture in own.items():
            np.testing.assert_allclose(second.pictures[row][image], picture, atol=1)


def test_the_same_maps_give_the_same_picture_whatever_their_sign():
    made = maps()
    turned = {row: {image: -one for image, one in own.items()} for row, own in made.items()}
    first, second = components(made).pictures, components(turned).pictures
    for row, own in first.items():
        for image, picture in own.items():
            np.testing.assert_array_equal(components(made).pictures[row][image], picture)
            np.testing.assert_allclose(255 - second[row][image].astype(int), picture, atol=1)


def test_maps_without_any_variation_are_grey():
    made = {row: {"a": np.full((6, 2, 3), 4.0)} for row in ("lora", "conv_lora")}
    found = components(made)
    assert found.share == 0 and all((own["a"] == 128).all() for own in found.pictures.values())


def test_other_numbers_of_channels_share_no_components():
    made = {**maps(channels=6), "unet": maps(channels=4)["lora"]}
    with pytest.raises(NoResults, match="lora 6, conv_lora 6, unet 4"):
        components(made)


def test_maps_of_other_forms_can_be_compared():
    made = {"lora": maps(side=5)["lora"], "conv_lora": maps(side=3)["lora"]}
    assert components(made).pictures["conv_lora"]["0"].shape == (3, 3, 3)
