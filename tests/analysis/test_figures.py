"""The figures that results alone give: what is drawn against numbers by hand, and what is said where it cannot be."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import figures
from analysis.drawing import differences, learning, pareto, ranks, runs
from analysis.drawing.figure import Figure, read_cards, write
from analysis.results import read_results

TEXT = "{http://www.w3.org/2000/svg}text"


def enter(cell: Path, **training: Any) -> Path:
    """Puts parts of ``training``, and with dots in their names of other parts, into a cell's result."""
    result = json.loads((cell / "result.json").read_text())
    for key, value in training.items():
        part, _, name = key.rpartition("__")
        result[part or "training"][name] = value
    (cell / "result.json").write_text(json.dumps(result))
    return cell


def tell_epochs(cell: Path, values: Sequence[float | None], *, best: int = 1, losses: Sequence[float] = ()) -> None:
    lines = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": losses[epoch - 1] if losses else 1 / epoch,
            "validation": {"iou": v},
        }
        for epoch, v in enumerate(values, 1)
    ]
    (cell / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    enter(cell, best_epoch=best)


def tell_images(cell: Path, values: dict[str, float], metric: str = "iou") -> None:
    frame = pd.DataFrame(
        {"test_set": "test", "image": list(values), "protocol": "paper", metric: list(values.values())}
    )
    frame.assign(tp=1, fp=1, fn=1, tn=1).to_parquet(cell / "per_image.parquet")


def drawn(module: Any, path: Path, **options: Any) -> tuple[list[Figure], list[str]]:
    told: list[str] = []
    made = module.figures(read_results(path), path, protocol="paper", tell=told.append, **options)
    return made, told


def test_a_dot_for_every_run_and_the_mean_with_its_error(folder, tmp_path) -> None:
    for seed, score in enumerate((0.70, 0.72, 0.77)):
        folder.add(method="lora", seed=seed, scores={"iou": score, "dice": 0.8})
    folder.add(method="conv_lora", scores={"iou": 0.76})
    folder.add(method="lst", state="failed")
    ((figure,), told) = drawn(runs, folder.path)
    data = figure.data.set_index(["row", "mark"])
    assert told == [] and data.loc[("lora", "run"), "value"].tolist() == pytest.approx([70, 72, 77])
    mean = data.loc[("lora", "mean")]
    assert mean["value"] == pytest.approx(73) and mean["standard_error"] == pytest.approx(math.sqrt(13 / 3))
    assert math.isnan(data.loc[("conv_lora", "mean"), "standard_error"])
    assert figure.card.name == "runs-isic2017-vit_h-1024-bf16-test-iou" and len(figure.card.cells) == 4
    for words in ("vit_h", "1024 px", "protocol paper", "1 to 3 runs a method", "seeds 0, 1, 2", "n = 600 test images"):
        assert words in figure.card.caption
    svg = write(figure, tmp_path)[0]
    texts = {"".join(text.itertext()) for text in ElementTree.parse(svg).getroot().iter(TEXT)}
    assert {"lora", "conv_lora"} <= texts and "lst" not in texts


@pytest.mark.parametrize("module", [runs, pareto, differences, learning])
def test_the_picture_itself_says_which_method_began_at_random_weights(module, folder, tmp_path) -> None:
    for method in ("lora", "transfuse"):
        cell = folder.add(method=method, scores={"iou": 0.7}, random_backbone=method == "transfuse")
        enter(cell, images_per_second=4.0, peak_memory_bytes=2**30, micro_batch=4)
        tell_images(cell, {"a": 0.6, "b": 0.8} if method == "lora" else {"a": 0.5, "b": 0.9})
        tell_epochs(cell, [0.5, 0.6])
    made, told = drawn(module, folder.path)
    assert made and not told
    svg = write(made[0], tmp_path)[0]
    text = " ".join("".join(text.itertext()) for text in ElementTree.parse(svg).getroot().iter(TEXT))
    assert "RANDOM BACKBONE: transfuse" in text


def test_warnings_come_first(folder) -> None:
    for method in ("lora", "conv_lora"):
        folder.add(method=method, checkpoint="none", train_images=10)
    ((figure,), _) = drawn(runs, folder.path)
    assert figure.card.caption.startswith("RANDOM BACKBONE") and "PARTIAL DATA" in figure.card.caption


def test_costs_are_those_of_one_machine_and_the_front_is_marked(folder) -> None:
    def add(method: str, score: float, trainable: int, *, seed: int = 0, speed: float = 10, **more: Any) -> None:
        cell = folder.add(method=method, seed=seed, scores={"iou": score})
        enter(cell, images_per_second=speed, peak_memory_bytes=2**30, parameters__trainable=trainable, **more)

    add("lora", 0.7, 1_000_000, speed=20)
    add("lora", 0.8, 3_000_000, seed=1, speed=40)
    add("lora", 0.9, 2_000_000, seed=2, speed=1000, environment__device="a faster one")
    add("conv_lora", 0.85, 4_000_000)
    add("vpt", 0.6, 5_000_000, speed=5)
    add("sam_zero_shot", 0.1, 0, speed=0)
    ((figure,), _) = drawn(pareto, folder.path)
    data = figure.data.set_index("row")
    assert data.loc["lora", ["score", "parameters", "time", "memory"]].tolist() == pytest.approx([80, 2, 37.5, 1])
    assert math.isnan(data.loc["sam_zero_shot", "time"])
    assert data.index[data["parameters_front"]].tolist() == ["conv_lora", "lora", "sam_zero_shot"]
    assert data.index[data["time_front"]].tolist() == ["conv_lora", "lora"]
    assert figure.card.about["device"] == "abacus, 1 thread"
    assert "left out of both: 1." in figure.card.caption and "may have shared" in figure.card.caption


def test_of_a_metric_that_is_better_low_the_front_is_low(folder) -> None:
    for method, score, trainable in (("lora", 0.1, 1), ("vpt", 0.2, 2), ("ssf", 0.05, 3)):
        enter(folder.add(method=method, scores={"mae": score}), parameters__trainable=trainable * 10**6)
    ((figure,), _) = drawn(pareto, folder.path)
    assert figure.data["row"].tolist() == ["ssf", "lora", "vpt"], "from the best"
    assert figure.data["parameters_front"].tolist() == [True, True, False]


def test_curves_end_in_a_mean_where_every_seed_was_trained(folder, tmp_path) -> None:
    tell_epochs(folder.add(method="lora", seed=0), [0.2, None, 0.6, 0.7], best=3)
    tell_epochs(folder.add(method="lora", seed=1), [0.4, 0.5, 0.8], best=3)
    (folder.add(method="sam_zero_shot") / "history.jsonl").write_text("")
    ((figure,), told) = drawn(learning, folder.path)
    mean = figure.data[figure.data["mark"] == "mean"]
    assert told == [] and mean["epoch"].tolist() == [1, 2, 3]
    assert mean["validation"].tolist() == pytest.approx([30, math.nan, 70], nan_ok=True)
    assert mean["loss"].tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    best = figure.data[figure.data["mark"] == "best"]
    assert best[["seed", "step", "validation"]].to_numpy().tolist() == [[0, 30, 60.0], [1, 30, 80.0]]
    assert "without a finite validation score: 1" in figure.card.caption and len(figure.card.cells) == 2
    write(figure, tmp_path, formats=["svg"])


@pytest.mark.parametrize("values", [[None, None], [0.5], [0.3, 0.4, 0.5]])
@pytest.mark.parametrize("methods", [1, 8])
def test_curves_can_be_drawn_of_little(folder, tmp_path, values: list, methods: int) -> None:
    for place in range(methods):
        tell_epochs(folder.add(method=f"mine_{place}"), values, losses=[0.0] * len(values))
    ((figure,), _) = drawn(learning, folder.path)
    assert write(figure, tmp_path, formats=["svg"])


def test_damaged_and_missing_curves_are_told_with_the_command(folder) -> None:
    missing, damaged, whole = (folder.add(seed=seed) for seed in range(3))
    (damaged / "history.jsonl").write_text('{"epoch": 1}\n{"epo')
    tell_epochs(whole, [0.5])
    ((figure,), told) = drawn(learning, folder.path)
    assert figure.card.cells == (whole.name,)
    assert len(told) == 2 and f"--again --results {folder.path}" in told[0] and missing.name in told[0]
    assert "1 of 3 cells lack history.jsonl" in told[0] and "line 2 of history.jsonl" in told[1]


def test_images_differ_by_their_means_over_common_seeds(folder, tmp_path) -> None:
    values = {
        ("lora", 0): (0.5, 0.9, 0.4), ("lora", 1): (0.7, 0.9, 0.8), ("lora", 2): (1.0, 1.0, 1.0),
        ("vpt", 0): (0.7, 0.6, 0.6), ("vpt", 1): (0.7, 0.6, 0.6), ("ssf", 0): (0.1, 0.1, 0.1),
    }  # fmt: skip
    for (method, seed), own in values.items():
        cell = folder.add(method=method, seed=seed, scores={"iou": sum(own) / 3})
        tell_images(cell, dict(zip("cab", own, strict=True)))
    ((figure,), told) = drawn(differences, folder.path)
    assert told == [] and figure.data.columns.tolist() == ["image", "lora", "vpt", "difference"]
    assert figure.data["image"].tolist() == ["c", "b", "a"]
    assert figure.data["difference"].tolist() == pytest.approx([-10, 0, 30])
    assert "Furthest ahead (dots): lora on a, b, c; vpt on c, b, a" in figure.card.caption
    assert len(figure.card.cells) == 4 and "ssf" not in figure.card.caption
    ((other,), _) = drawn(differences, folder.path, pair=("ssf", "vpt"))
    assert (
        other.data["difference"].tolist() == pytest.approx([-60, -50, -50]) and "--pair ssf vpt" in other.card.command
    )
    assert write(other, tmp_path, formats=["svg"])


def test_without_files_of_images_nothing_differs(folder) -> None:
    for method in ("lora", "vpt"):
        folder.add(method=method)
    made, told = drawn(differences, folder.path)
    assert made == [] and "2 of 2 cells" in told[0] and "python -m bench.cell" in told[0]


def test_two_that_share_no_seed_are_told(folder) -> None:
    for seed, method in enumerate(("lora", "vpt")):
        tell_images(folder.add(method=method, seed=seed, scores={"iou": 0.5}), {"a": 0.5})
    made, told = drawn(differences, folder.path)
    assert made == [] and len(told) == 1 and "share no seed" in told[0]


def test_of_a_metric_that_is_better_low_the_first_is_ahead_last(folder) -> None:
    for method, values in {"lora": (0.1, 0.2, 0.3), "vpt": (0.4, 0.1, 0.2)}.items():
        tell_images(
            folder.add(method=method, scores={"mae": sum(values) / 3}), dict(zip("abc", values, strict=True)), "mae"
        )
    ((figure,), _) = drawn(differences, folder.path)
    assert figure.data["image"].tolist() == ["b", "c", "a"]
    assert "lora is better on 1, worse on 2, equal on 0" in figure.card.caption


@pytest.mark.parametrize(("spread", "bars"), [(0.1, 3), (0.0, 1)])
def test_ranks_and_what_is_not_told_apart(folder, tmp_path, spread: float, bars: int) -> None:
    """The critical difference of five methods on six test sets is 2.49 (Demšar, table 5a)."""
    methods = ("lora", "vpt", "ssf", "lst", "bitfit")
    for place, method in enumerate(methods):
        test_sets = tuple(f"t{number}" for number in range(6))
        cell = folder.add(method=method, test_sets=test_sets, scores={"iou": 0.9 - spread * place})
        if not spread:
            scores = {t: {"paper": {"iou": 0.5 + 0.01 * ((place + at) % 5)}} for at, t in enumerate(test_sets)}
            enter(cell, **{f"scores__{test_set}": own for test_set, own in scores.items()})
    ((figure,), _) = drawn(ranks, folder.path)
    marks = figure.data["mark"].value_counts()
    assert marks["rank"] == 5 and marks["not told apart"] == bars and marks["critical difference"] == 1
    if spread:
        assert figure.data[figure.data["mark"] == "rank"][["row", "low"]].to_numpy().tolist() == [
            [method, place] for place, method in enumerate(methods, 1)
        ]
    else:
        assert "does not reject" in figure.card.caption
    assert "n = 6" in figure.card.caption and write(figure, tmp_path, formats=["svg"])


def test_the_command_writes_each_kind_that_can_be_drawn_twice_the_same(folder, tmp_path, capsys) -> None:
    for method in ("lora", "conv_lora"):
        for seed in range(2):
            tell_epochs(folder.add(method=method, seed=seed, scores={"iou": 0.5 + seed / 10}), [0.2, 0.3])
    for place in ("one", "two"):
        assert figures.main(["--results", str(folder.path), "--out", str(tmp_path / place)]) == 0
    captured = capsys.readouterr()
    cards, skipped = read_cards(tmp_path / "one")
    assert [card.kind for card in cards] == ["learning", "pareto", "runs"] and skipped == []
    assert captured.out.count(f"wrote {tmp_path / 'one' / cards[0].name}.{{svg,pdf,png,csv,json}}\n") == 1
    for kind in ("differences", "ranks", "experts"):
        assert f"not drawn: {kind}" in captured.err
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 15 and files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert all(
        card.command == f"python -m analysis.figures --kind {card.kind} --results {folder.path}" for card in cards
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "runs"], "no two methods"),
        (["--kind", "experts"], "no method below"),
        (["--protocol", "literature"], "nothing to draw"),
        (["--pair", "conv_lora", "lorra"], "unknown row 'lorra'. Known: conv_lora"),
        (["--pair", "conv_lora", "conv_lora"], "does not differ from itself"),
    ],
)
def test_nothing_to_draw_is_told_in_a_line(folder, tmp_path, capsys, arguments: list[str], said: str) -> None:
    folder.add()
    out = tmp_path / "figures"
    assert figures.main(["--results", str(folder.path), "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not out.exists()


def test_no_results_and_unknown_kinds(tmp_path, capsys) -> None:
    assert figures.main(["--results", str(tmp_path)]) == 2
    assert "Next: python -m bench.run" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        figures.main(["--kind", "pie"])
    assert "runs" in capsys.readouterr().err


def test_figures_beside_their_results_need_no_further_name(folder) -> None:
    for method in ("lora", "conv_lora"):
        folder.add(method=method)
    written = figures.write_figures(read_results(folder.path), folder.path / "figures", formats=["svg"])
    assert {path.name.split("-")[0] for path in written} == {"runs", "pareto"}
    assert {path.suffix for path in written} == {".svg", ".csv", ".json"}
