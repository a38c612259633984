"""``python -m analysis.compare`` from planted files: what is compared, what is refused and what is said of it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.compare import main
from analysis.comparison.comparing import compare
from analysis.comparison.layout import Comparison
from analysis.comparison.places import places
from analysis.comparison.reading import read_per_image
from analysis.results import NoResults, read_results
from bench.metrics.classes import ClassScores, score_classes

IMAGES = [f"image {number:02d}" for number in range(40)]
Plant = Callable[..., Path]


@pytest.fixture
def plant(folder: Any) -> Plant:
    """Writes a cell whose ``per_image.parquet`` has ``values`` of one metric, and the mean as its score."""

    def write(method: str, seed: int, values: np.ndarray, *, metric: str = "iou", **more: Any) -> Path:
        names = more.pop("images", IMAGES)
        masks = more.pop("mask_pixels", 9)
        score = more.pop("score", float(np.mean(values)))
        cell = folder.add(method=method, seed=seed, scores={metric: score}, **more)
        frame = pd.DataFrame({"test_set": "test", "image": names, "protocol": "paper", metric: values})
        frame = frame.assign(tp=masks, fp=0, fn=0, tn=7).iloc[::-1]
        other = frame.assign(protocol="literature", **{metric: 0.0})
        pd.concat([other, frame]).to_parquet(cell / "per_image.parquet")
        return cell

    return write


def plant_methods(plant: Plant, effects: Mapping[str, float], *, seeds: int = 4, **more: Any) -> np.ndarray:
    """Methods that differ by ``effects`` and by noise of seeds and images; returns the images' difficulty."""
    generator = np.random.default_rng(7)
    images = generator.uniform(0.4, 0.6, len(IMAGES))
    for method, effect in effects.items():
        for seed in range(seeds):
            noise = generator.normal(0, 0.003) + generator.normal(0, 0.02, len(IMAGES))
            plant(method, seed, images + effect + noise, **more)
    return images


def only(folder: Any, **options: Any) -> Comparison:
    (found,) = compare(read_results(folder.path), folder.path, **{"rounds": 2000, **options})
    return found


def test_planted_effects_are_found_and_no_others(folder: Any, plant: Plant) -> None:
    plant_methods(plant, {"conv_lora": 0.1, "lora": 0.1, "vpt": 0.0, "bitfit": 0.2})
    found = only(folder, against="lora")
    verdicts = {difference.row: difference.better for difference in found.differences}
    assert verdicts == {"bitfit": "better", "conv_lora": "", "vpt": "worse"}  # from the best to the worst
    bitfit, _, vpt = found.differences
    assert bitfit.low < 10 < bitfit.high and vpt.low < -10 < vpt.high
    assert bitfit.effect > 2 and bitfit.seeds == (0, 1, 2, 3)
    assert bitfit.mean == pytest.approx(np.mean(bitfit.per_seed))
    assert found.reference == next(iter(found.values)) == "lora" and found.images == 40
    assert all(difference.p <= difference.p_holm for difference in found.differences)
    assert 0 < found.detectable < 10


def test_the_best_row_is_the_reference_by_default_and_that_is_said(folder: Any, plant: Plant) -> None:
    plant_methods(plant, {"lora": 0.0, "vpt": 0.1}, metric="mae")
    found = only(folder)
    assert (found.reference, found.direction) == ("lora", "lower")  # of an error the smaller
    assert found.differences[0].better == "worse" and found.differences[0].mean > 0
    assert any("which may be luck" in note for note in found.notes)
    assert not any("which may be luck" in note for note in only(folder, against="lora").notes)


def test_nothing_depends_on_what_else_is_compared(folder: Any, plant: Plant, tmp_path: Path) -> None:
    plant_methods(plant, {"lora": 0.0, "vpt": 0.01})
    before = only(folder, against="lora").differences[0]
    plant_methods(plant, {"bitfit": 0.02, "adapter": -0.02})
    after = {difference.row: difference for difference in only(folder, against="lora").differences}["vpt"]
    assert (before.low, before.high, before.p, before.effect) == (after.low, after.high, after.p, after.effect)
    assert after.p_holm >= before.p_holm == before.p
    for out in ("one", "two"):
        assert main(["--results", str(folder.path), "--out", str(tmp_path / out), "--rounds", "500"]) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two"))
    assert one == two and sorted(Path(name).suffix for name in one) == [".csv", ".md"]


def test_only_common_seeds_are_paired(folder: Any, plant: Plant) -> None:
    images = plant_methods(plant, {"lora": 0.0}, seeds=3)
    for seed in (1, 2, 5):
        plant("vpt", seed, images - 0.1)
    found = only(folder, against="lora")
    assert found.differences[0].seeds == (1, 2) and list(found.values["vpt"]) == [1, 2, 5]
    assert "Not paired: seed 5 of vpt, which lora lacks." in found.notes
    assert "Not paired: seed 0 of lora, which vpt lacks." in found.notes


def test_one_seed_says_loudly_what_it_does_not_say(folder: Any, plant: Plant) -> None:
    plant_methods(plant, {"lora": 0.1, "vpt": 0.0}, seeds=1)
    found = only(folder)
    assert found.detectable is None and found.differences[0].p < 0.01
    assert [line for line in found.warnings if line.startswith("ONE SEED: vpt")]


def test_pooled_metrics_are_compared_by_summed_counts(folder: Any) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, size=(12, 6, 6)).astype(np.uint8)
    scores = {}
    for method, wrong in (("lora", 0.1), ("vpt", 0.5)):
        for seed in range(3):
            scored = ClassScores("paper", 3)
            for name, mask in zip(IMAGES, truth, strict=False):
                flip = generator.random(mask.shape) < wrong
                scored.enter(
                    name, score_classes(np.where(flip, (mask + 1) % 3, mask).astype(np.uint8), mask, "paper", 3)
                )
            scores[method, seed] = scored.mean()["miou_all"]
            cell = folder.add(
                method=method, seed=seed, scores={"miou_all": scores[method, seed]}, classes=("a", "b", "c")
            )
            pd.DataFrame(scored.rows).assign(test_set="test").to_parquet(cell / "per_image.parquet")
    found = only(folder)
    difference = found.differences[0]
    by_seed = [100 * (scores["vpt", seed] - scores["lora", seed]) for seed in range(3)]
    assert difference.per_seed == pytest.approx(by_seed) and difference.effect is None
    assert difference.better == "worse" and difference.high < -20


def refusals(folder: Any) -> list[str]:
    return [line for line in only(folder).warnings if "COMPARED" in line]


def test_files_that_cannot_be_used_are_refused_by_name(folder: Any, plant: Plant) -> None:
    images = plant_methods(plant, {"lora": 0.0, "vpt": 0.0})
    bad = {
        "missing": plant("bitfit", 0, images),
        "cannot be read": plant("bitfit", 1, images),
        "says 0.900000": plant("bitfit", 2, images, score=0.9),
        "'extra' is not in both": plant("bitfit", 3, images, images=[*IMAGES[1:], "extra"]),
        "masks are not those": plant("adapter", 0, images, mask_pixels=8),
        "is there twice": plant("adapter", 1, images, images=[*IMAGES[1:], IMAGES[-1]]),
        "no image of test": plant("adapter", 2, images),
        "has not what iou": plant("adapter", 3, images),
    }
    (bad["missing"] / "per_image.parquet").unlink()
    (bad["cannot be read"] / "per_image.parquet").write_bytes(b"PAR1 and no more")
    for name, change in (
        ("no image of test", lambda frame: frame.assign(test_set="other")),
        ("has not what iou", lambda frame: frame.drop(columns="iou")),
    ):
        path = bad[name] / "per_image.parquet"
        change(pd.read_parquet(path)).to_parquet(path)
    found = refusals(folder)
    assert len(found) == len(bad)
    for reason, cell in bad.items():
        (line,) = [line for line in found if cell.name in line]
        assert reason in line and f"Next: python -m bench.cell {cell.name} --again --results" in line
    assert [difference.row for difference in only(folder, against="lora").differences] == ["vpt"]
    assert set(only(folder).values) == {"lora", "vpt", "bitfit", "adapter"}  # scores are shown all the same


def test_an_adapter_is_scored_again_instead_of_trained(folder: Any, plant: Plant) -> None:
    images = plant_methods(plant, {"lora": 0.0}, seeds=1)
    cell = plant("vpt", 0, images)
    (cell / "per_image.parquet").unlink()
    (cell / "adapter.safetensors").touch()
    nothing, missing = refusals(folder)
    assert nothing == "NOTHING COMPARED: only of lora files can be used"
    assert missing.endswith(f"Next: python -m bench.cell {cell.name} --evaluate --results {folder.path}")


def test_values_of_single_images_for_figures(folder: Any, plant: Plant) -> None:
    images = np.linspace(0, 1, len(IMAGES))
    for seed in (3, 1):
        plant("lora", seed, images + 0.01 * seed)
    (place,) = places(read_results(folder.path))
    data = read_per_image(folder.path, place)
    assert data.images == tuple(IMAGES) and data.seeds("lora") == (1, 3)
    assert data.values("lora") == pytest.approx(np.stack([images + 0.01, images + 0.03]))


def test_files_say_every_seed(folder: Any, plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_methods(plant, {"lora": 0.0, "vpt": 0.1}, seeds=3)
    assert main(["--results", str(folder.path), "--out", str(tmp_path), "--rounds", "200", "--against", "lora"]) == 0
    (path,) = tmp_path.glob("*.csv")
    lines = {line["row"]: line for line in csv.DictReader(path.open(encoding="utf-8"))}
    assert len(lines["vpt"]["scores"].split()) == 3 and lines["lora"]["difference"] == ""
    assert float(lines["vpt"]["low"]) < float(lines["vpt"]["difference"]) < float(lines["vpt"]["high"])
    shown, document = capsys.readouterr().out, path.with_suffix(".md").read_text(encoding="utf-8")
    for score in lines["vpt"]["scores"].split():
        assert f"{float(score):.2f}" in shown and f"{float(score):.2f}" in document


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "cats"], "unknown dataset 'cats'. Known: isic2017."),
        (["--metric", "beauty"], "unknown metric 'beauty'. Known: iou."),
        (["--metric", "e_measure_max"], "e_measure_max cannot be compared"),
        (["--against", "magic"], "unknown row 'magic'. Known: lora, vpt."),
        (["--protocol", "literature"], "under the protocol literature"),
    ],
)
def test_unknown_names_end_with_those_there_are(
    folder: Any, plant: Plant, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_methods(plant, {"lora": 0.0, "vpt": 0.1}, seeds=1)
    assert main(["--results", str(folder.path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("analysis.compare: ") and said in error and "Next: " in error


def test_one_method_has_nothing_to_be_compared_with(
    folder: Any, plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_methods(plant, {"lora": 0.0})
    assert main(["--results", str(folder.path)]) == 2
    assert "only lora has scores here, and it takes two methods. Next: python -m bench.run" in capsys.readouterr().err


def test_nan_scores_and_empty_folders(folder: Any, plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoResults, match="no cell has run yet"):
        only(folder)
    images = plant_methods(plant, {"lora": 0.0}, seeds=1)
    plant("vpt", 0, images * np.nan)
    assert main(["--results", str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert "no finite number in test/paper/iou" in error and "only lora has scores here" in error


def test_stale_cells_take_part_loudly(folder: Any, plant: Plant) -> None:
    images = plant_methods(plant, {"lora": 0.0}, seeds=2)
    plant("vpt", 0, images, stale=("source.method",))
    found = only(folder)
    assert [line for line in found.warnings if line.startswith("STALE, made before a change of source.method")]
    assert len(found.differences) == 1


@pytest.mark.parametrize("arguments", [["--rounds", "99"], ["--seed", "-1"], ["--rounds", "many"]])
def test_numbers_that_are_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
