"""Average ranks against scipy and against the example of Demšar (2006)."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from analysis.compare import write
from analysis.comparison.ranking import critical_difference, friedman, rank
from analysis.comparison.render import ranking_markdown
from analysis.comparison.terminal import show_ranking
from analysis.results import read_results

# Table 6 of Demšar: AUC of C4.5 with four settings on 14 datasets, and what he concludes from it.
DEMSAR = np.array([
    (0.763, 0.768, 0.771, 0.798), (0.599, 0.591, 0.590, 0.569), (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657), (0.882, 0.888, 0.886, 0.898), (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685), (0.583, 0.583, 0.563, 0.625), (0.775, 0.838, 0.866, 0.875),
    (1.000, 1.000, 1.000, 1.000), (0.940, 0.962, 0.965, 0.962), (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.9751, 0.975), (0.957, 0.978, 0.946, 0.970),
])  # fmt: skip


def test_example_of_demsar() -> None:
    ranks = stats.rankdata(-DEMSAR, axis=1)
    assert ranks.mean(0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=0.001)
    assert friedman(ranks.tolist()) == pytest.approx(stats.friedmanchisquare(*DEMSAR.T).pvalue)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(("methods", "quantile"), [(3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_values_of_his_table_5(methods: int, quantile: float) -> None:
    assert critical_difference(methods, 6) == pytest.approx(quantile * np.sqrt(methods * (methods + 1) / 36), abs=0.001)


def test_nothing_differs_anywhere() -> None:
    assert friedman([[2.0, 2.0, 2.0]] * 4) == 1.0


def add(folder: Any, dataset: str, means: dict[str, float], metric: str = "iou") -> None:
    for method, mean in means.items():
        for seed, shift in enumerate((-0.01, 0.01)):
            folder.add(method=method, dataset=dataset, seed=seed, scores={metric: mean + shift})


def test_ranks_over_datasets(folder: Any, tmp_path: Path) -> None:
    add(folder, "isic2017", {"lora": 0.7, "conv_lora": 0.8, "vpt": 0.6})
    add(folder, "leaf", {"lora": 0.5, "conv_lora": 0.5, "vpt": 0.4})
    add(folder, "sbu", {"lora": 0.2, "conv_lora": 0.1, "vpt": 0.3, "bitfit": 0.1}, metric="ber_image")
    (found,) = rank(read_results(folder.path))
    assert found.ranks == {"conv_lora": (1, 1.5, 1), "lora": (2, 1.5, 2), "vpt": (3, 3, 3)}
    assert [found.average(row) for row in found.ranks] == pytest.approx([3.5 / 3, 5.5 / 3, 3])
    assert found.places == ("isic2017/test: IoU", "leaf/test: IoU", "sbu/test: BER")
    columns = list(zip(*[(-0.8, -0.7, -0.6), (-0.5, -0.5, -0.4), (0.1, 0.2, 0.3)], strict=True))
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*columns).pvalue)
    assert found.critical_difference == pytest.approx(critical_difference(3, 3))
    assert "Left out: bitfit, without scores on isic2017/test, leaf/test." in found.notes
    assert any("test is weak" in note for note in found.notes)
    assert len(found.cells) == 18 and found.methods["lora"] == "lora"
    show_ranking(found, Console(file=(shown := StringIO()), width=80))
    assert all(f"{found.average(row):.2f}" in shown.getvalue() for row in found.ranks)
    write([], [found], tmp_path)
    assert (tmp_path / f"{found.name}.md").read_text(encoding="utf-8") == ranking_markdown(found)
    assert len((tmp_path / f"{found.name}.csv").read_text(encoding="utf-8").splitlines()) == 1 + 9


def test_too_little_for_a_test_or_for_a_ranking(folder: Any) -> None:
    add(folder, "isic2017", {"lora": 0.7, "vpt": 0.6, "bitfit": 0.1})
    assert rank(read_results(folder.path)) == []
    add(folder, "leaf", {"lora": 0.5, "vpt": 0.6})
    (found,) = rank(read_results(folder.path))
    assert found.friedman_p is None and found.critical_difference is None
    assert found.average("lora") == found.average("vpt") == 1.5


def test_settings_are_ranked_apart_and_test_sets_of_one_dataset_are_named(folder: Any) -> None:
    for method, score in (("lora", 0.7), ("vpt", 0.6), ("bitfit", 0.5)):
        folder.add(method=method, dataset="polyps", scores={"iou": score}, test_sets=("kvasir", "etis"))
        folder.add(method=method, dataset="polyps", scores={"iou": score}, test_sets=("etis",), backbone="vit_b")
        folder.add(method=method, dataset="leaf", scores={"iou": 1 - score}, backbone="vit_b")
    found = rank(read_results(folder.path))
    assert sorted(len(ranking.places) for ranking in found) == [2, 2]
    assert len({ranking.setting for ranking in found}) == len({ranking.name for ranking in found}) == 2
    same = [any("same trainings" in note for note in ranking.notes) for ranking in found]
    assert sorted(same) == [False, True]
