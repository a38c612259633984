"""Which experts were chosen: counts, who decides how often, entropy, and what is said where they are not known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from analysis.drawing import experts
from analysis.drawing.figure import Figure, write
from analysis.results import read_results

ROUTED = {"num_experts": 4, "top_k": 1, "routing": "moe", "scales": None}
IMAGES = 10
GLOBAL, WINDOWED = [4, 6, 0, 0], [90, 0, 0, 0]
"""Counts of a layer that decides once for an image, and of one with nine windows."""


def choose(
    cell: Path,
    layers: Sequence[Sequence[int]],
    *,
    test_sets: Sequence[str] = ("test",),
    routed: Mapping[str, object] = ROUTED,
) -> Path:
    """Gives a cell the parameters of a router and its counts, none of which is no file."""
    result = json.loads((cell / "result.json").read_text())
    result["resolved"]["method"]["parameters"] = dict(routed)
    result["training"]["validation_images"] = IMAGES
    (cell / "result.json").write_text(json.dumps(result))
    counted = [(name, layer, row) for name in test_sets for layer, row in enumerate(layers)]
    lines = [
        {"test_set": name, "layer": layer, "expert": expert, "count": count}
        for name, layer, row in counted
        for expert, count in enumerate(row)
    ]
    if lines:
        pd.DataFrame(lines).to_parquet(cell / "experts.parquet")
    return cell


def drawn(path: Path) -> tuple[dict[str, Figure], list[str]]:
    told: list[str] = []
    made = experts.figures(read_results(path), path, protocol="paper", tell=told.append)
    return {figure.card.name: figure for figure in made}, told


NAME = "vit_h-1024-bf16"


def test_totals_keep_windowed_and_global_layers_apart(folder, tmp_path) -> None:
    choose(folder.add(seed=0, images=IMAGES), [WINDOWED, GLOBAL])
    choose(folder.add(seed=1, images=IMAGES), [[0, 90, 0, 0], [10, 0, 0, 0]])
    made, _ = drawn(folder.path)
    totals = made[f"experts-conv_lora-{NAME}"]
    table = totals.data.set_index(["layers", "mark", "scale"])["count"].sort_index()
    assert table["all layers", "mean"].tolist() == [52, 48, 0, 0]
    assert table["per image", "mean"].tolist() == [7, 3, 0, 0]
    assert table["per window", "seed"].groupby("scale").agg(list).tolist() == [[90, 0], [0, 90], [0, 0], [0, 0]]
    caption = totals.card.caption
    assert "Layers 1 decide once for an image" in caption and "each of its 9 attention windows" in caption
    assert "Chosen by no layer for any image: scale 3, 4 (ISIC2017, seed 0); scale 3, 4 (ISIC2017, seed 1)" in caption
    assert totals.card.about["paper_figure"] == "8" and "2 runs, seeds 0, 1" in caption
    assert write(totals, tmp_path, formats=["svg"])


def test_layers_have_shares_and_entropy_and_dead_experts_are_counted(folder, tmp_path) -> None:
    choose(folder.add(seed=0, images=IMAGES), [WINDOWED, GLOBAL])
    choose(folder.add(seed=1, images=IMAGES), [[30, 30, 30, 0], [5, 5, 0, 0]])
    made, _ = drawn(folder.path)
    layers = made[f"experts-layers-conv_lora-isic2017-{NAME}-test"]
    data = layers.data
    mean = data[data["mark"] == "mean share"].pivot(index="layer", columns="scale", values="share")
    assert mean.to_numpy().ravel().tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6, 0, 0.45, 0.55, 0, 0])
    entropy = data[data["mark"] == "entropy"].set_index(["seed", "layer"])
    assert entropy["entropy"].tolist() == pytest.approx([0, 0.970951, 1.584963, 1], abs=1e-6)
    assert entropy.loc[(1, 1), "relative"] == pytest.approx(0.5)
    assert "Of 8 experts in all layers never chosen: 5 (seed 0), 3 (seed 1)." in layers.card.caption
    assert write(layers, tmp_path, formats=["svg"])


def test_where_an_image_is_one_window_no_layers_are_told_apart(folder) -> None:
    choose(folder.add(images=IMAGES), [GLOBAL, GLOBAL])
    made, _ = drawn(folder.path)
    totals = made[f"experts-conv_lora-{NAME}"]
    assert set(totals.data["layers"]) == {"per image"} and "Every layer decides once" in totals.card.caption


def test_experts_taken_together_count_as_one_decision_and_are_named_by_their_scales(folder, tmp_path) -> None:
    cell = folder.add(method="adapter+conv_lora", images=IMAGES, parameters={"conv_lora.scales": [2, 8]})
    choose(cell, [[10, 10], [5, 15]], routed={"conv_lora.scales": [2, 8], "conv_lora.top_k": 2})
    made, told = drawn(folder.path)
    totals = next(figure for name, figure in made.items() if name.startswith("experts-adapter+conv_lora-"))
    assert set(totals.data["scale"]) == {2, 8} and set(totals.data["layers"]) == {"per image"}
    assert all(write(figure, tmp_path, formats=["svg"]) for figure in made.values())
    assert len(told) == 1 and "history.jsonl" in told[0]


def test_many_test_sets_are_cut_into_figures_of_four_panels(folder, tmp_path) -> None:
    names = ("kvasir", "cvc_612", "cvc_colondb", "etis", "cvc_t")
    choose(folder.add(dataset="polyps", test_sets=names, images=IMAGES), [WINDOWED, GLOBAL], test_sets=names)
    choose(folder.add(dataset="isic2017", images=IMAGES), [GLOBAL, GLOBAL])
    made, _ = drawn(folder.path)
    parts = [made[f"experts-conv_lora-{NAME}-{number}"] for number in (1, 2)]
    assert [part.data["dataset"].nunique() for part in parts] == [4, 2]
    assert parts[0].data.columns.tolist() == ["dataset", "layers", "mark", "seed", "scale", "count"]
    assert sum(name.startswith("experts-layers") for name in made) == 6 and write(parts[0], tmp_path, formats=["svg"])


def test_change_over_training_is_the_mean_over_layers(folder, tmp_path) -> None:
    epochs = [[[90, 0, 0, 0], [45, 45, 0, 0], [10, 0, 0, 0]], [[0, 0, 90, 0], [0, 0, 45, 45], [5, 5, 0, 0]]]
    for seed, known in enumerate((epochs, epochs[:1], [])):
        cell = choose(folder.add(seed=seed, images=IMAGES), [WINDOWED, WINDOWED, GLOBAL])
        lines = [
            {"epoch": epoch, "step": 5 * epoch, "loss": 1.0, "validation": {"iou": 0.5}, "experts": counts}
            for epoch, counts in enumerate(known, 1)
        ]
        lines.append({"epoch": 3, "step": 15, "loss": 1.0, "validation": {"iou": 0.5}})
        (cell / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made, told = drawn(folder.path)
    training = made[f"experts-training-conv_lora-isic2017-{NAME}"]
    windowed = training.data[(training.data["decides"] == "per window") & (training.data["seed"] == 0)]
    shares = windowed[windowed["mark"] == "share"].groupby("step")["share"].agg(list)
    assert shares.tolist() == [[0.75, 0.25, 0, 0], [0, 0, 0.75, 0.25]]
    assert windowed[windowed["mark"] == "entropy"]["entropy"].tolist() == [0.5, 0.5]
    assert set(training.data["seed"]) == {0, 1} and "2 runs, seeds 0, 1" in training.card.caption
    assert len(told) == 1 and "1 of 3 cells" in told[0] and "--again" in told[0]
    assert write(training, tmp_path, formats=["svg"])


def test_many_seeds_are_all_in_the_entropy(folder, tmp_path) -> None:
    for seed in range(6):
        choose(folder.add(seed=seed, images=IMAGES), [[*GLOBAL[:2], 0, 0]] * 20)
    made, _ = drawn(folder.path)
    layers = made[f"experts-layers-conv_lora-isic2017-{NAME}-test"]
    assert (layers.data["mark"] == "entropy").sum() == 6 * 20 and "the first 4 seeds" in layers.card.caption
    assert write(layers, tmp_path, formats=["svg"])


@pytest.mark.parametrize(
    ("layers", "parameters", "said"),
    [
        ([[1, 0, 0, 0]], {}, "layer 0 made 1 choices"),
        ([GLOBAL, [0, 0, 0, 0]], {}, "layer 1 made 0 choices"),
        ([[5, 5]], {}, "for 4 experts"),
        ([[5, 5]], {"scales": [3, 3]}, "two of one scale"),
    ],
)
def test_counts_that_do_not_fit_are_told(folder, layers: list[list[int]], parameters: dict, said: str) -> None:
    choose(folder.add(images=IMAGES), layers, routed=ROUTED | parameters)
    made, told = drawn(folder.path)
    assert made == {} and said in told[0] and "python -m bench.cell" in told[0]


def test_a_published_copy_lacks_experts_and_a_method_without_a_router_does_not(folder) -> None:
    choose(folder.add(images=IMAGES), [])
    folder.add(method="lora")
    choose(folder.add(method="conv_lora", parameters={"routing": "sum"}), [], routed=ROUTED | {"routing": "sum"})
    whole = choose(folder.add(seed=1, images=IMAGES, parameters={"top_k": 1}), [])
    (whole / "per_image.parquet").write_bytes(b"scored, and no expert was chosen")
    made, told = drawn(folder.path)
    assert made == {} and len(told) == 2
    assert "1 of 1 cells lack experts.parquet, which published copies leave out" in told[0]
