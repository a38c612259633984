"""Every number of the paper has a cell, a measurement or a command of ours that answers it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

import datasets
import methods
from analysis import paper
from analysis.exceptions import NOT_RUN
from bench import cell as cells
from bench import matrix, probe
from bench.matrix import Block, Entered, Matrix
from bench.metrics import metrics_of
from bench.probing.backbones import BACKBONES
from bench.store import Results
from bench.timing import cells as timing
from bench.timing.surroundings import device_model
from methods.complete import CompleteMethod

TABLES = range(16)
ANSWERS = {"cells": 800, "speed": 19, "probe": 2}  # 821 in all
SEEDS = {13: 2}  # all others: 3


def row(entered: Entered) -> SimpleNamespace:
    """A planned cell as analysis will see it when it is done, by which it finds the cells of a line."""
    spec, resolved = entered.cell.spec, entered.cell.resolved()
    dataset = spec.get("dataset", {})
    return SimpleNamespace(
        seed=spec.get("seed"),
        method=spec["method"]["name"],
        parameters=spec["method"].get("parameters", {}),
        resolved_parameters=resolved["method"]["parameters"],
        dataset=dataset.get("name", ""),
        dataset_parameters=dataset.get("parameters", {}),
        shots=str(dataset.get("shots") or ""),
        old_method=False,
        old_dataset=False,
    )


@pytest.fixture(scope="module")
def trained() -> dict[str, list[SimpleNamespace]]:
    """The cells of each matrix that train, by its name."""
    names = ["full", *(f"table{number}" for number in TABLES if number not in (0, 14))]
    return {name: list(map(row, matrix.expand(matrix.read(name), precision="bf16"))) for name in names}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[SimpleNamespace]]:
    """The cells of each matrix that measure speed."""
    conditions = {"precision": "bf16", "device": "a card"}
    return {
        name: list(map(row, timing.expand(matrix.read(name), **conditions))) for name in ("full", "table3", "table14")
    }


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> set[str]:
    """What a measurement of speed holds, found by making one."""
    block = Block(kind="speed", methods=["lora"])
    small = Matrix(name="one", backbone="tiny", checkpoint="none", image_size=64, cells=[block])
    (entered,) = timing.expand(small, precision="fp32", device=device_model("cpu", 1))
    results = Results(tmp_path_factory.mktemp("speed"))
    folder = results.cell(entered.cell.id)
    folder.create(entered.cell, {})
    words = ["--results", str(results.path), "--threads", "1", "--repeats", "1", "--seconds", "0.001"]
    assert cells.main([folder.id, *words]) == 0
    return set(folder.result()["speed"])


class Answers:
    """What answers a line of the paper."""

    def __init__(self, trained: dict, measured: dict, figures: set[str]) -> None:
        self.trained, self.measured, self.figures = trained, measured, figures

    def to(self, line: Any) -> str:
        """One of :data:`ANSWERS`, or what is missing."""
        if line.our_method == "probe":
            return self._by_probe(line)
        matrices = ("full", f"table{line.table}")
        if line.our_metric.startswith("speed:"):
            if line.our_metric.removeprefix("speed:") not in self.figures:
                return "no measurement holds it"
            line = line._replace(our_dataset="")  # speed depends on none
            found = [paper.cells_of(line, self.measured.get(name, [])) for name in matrices]
            return "speed" if [len(one) for one in found] == [1, 1] else "no measurement"
        if missing := self._unscored(line):
            return missing
        wanted = SEEDS.get(int(line.table), 3)
        seeds = [{cell.seed for cell in paper.cells_of(line, self.trained.get(name, []))} for name in matrices]
        return "cells" if min(map(len, seeds)) >= wanted else f"seeds {seeds} in {matrices}"

    def _by_probe(self, line: Any) -> str:
        backbone = paper.parameters(line.our_parameters)["backbone"]
        answered = backbone in BACKBONES and (line.our_dataset, line.our_metric) == ("imagenet_1k", "top1")
        return "probe" if answered and probe.parse(["--backbone", backbone, "--data", "."]) else "no backbone"

    def _unscored(self, line: Any) -> str:
        """Why a result does not hold the line's metric of its test set; empty if it does."""
        dataset = datasets.load(line.our_dataset)
        metric, _, class_name = line.our_metric.partition(":")
        known = metrics_of(dataset.num_classes).get(metric)
        if known is None or (known.aggregate == "classes") != bool(class_name):
            return f"no metric {line.our_metric}"
        if class_name and class_name not in dataset.classes:
            return f"no class {class_name}"
        return "" if line.test_set in dataset.test_sets else f"no test set {line.test_set}"


@pytest.fixture(scope="module")
def answers(trained, measured, figures) -> Answers:
    return Answers(trained, measured, figures)


@pytest.mark.parametrize("number", TABLES)
def test_every_number_of_a_table_is_answered(number: int, answers: Answers) -> None:
    lines = list(paper.lines_of(number).itertuples())
    unanswered = {
        f"{line.method} on {line.dataset}, {line.metric}": answer
        for line in lines
        if (answer := answers.to(line)) not in ANSWERS
    }
    assert lines and not unanswered


def test_all_821_numbers_are_answered_in_one_of_three_ways(answers: Answers) -> None:
    lines = list(paper.read_paper().itertuples())
    assert len({(line.table, line.method, line.dataset, line.metric) for line in lines}) == len(lines)
    assert Counter(map(answers.to, lines)) == ANSWERS and sum(ANSWERS.values()) == len(lines) == 821


def test_the_systems_built_for_a_task_are_the_complete_networks() -> None:
    known = {name for name in methods.registry.names() if issubclass(methods.registry[name], CompleteMethod)}
    assert known == NOT_RUN.keys() <= set(paper.read_paper()["our_method"])
    assert all(reason and not reason.endswith(".") for reason in NOT_RUN.values()), "it stands after a comma"


@pytest.mark.parametrize(
    "change",
    [
        {"our_method": "segformer"},
        {"our_parameters": "rank=7"},
        {"our_dataset": "camvid"},
        {"shots": "3"},
        {"test_set": "easy"},
        {"our_metric": "s_measure"},
        {"our_metric": "iou:mirror"},
        {"our_metric": "iou"},
        {"our_metric": "speed:watts"},
        {"our_metric": "speed:train_it_per_s"},
        {"our_method": "probe", "our_parameters": "backbone=resnet50"},
    ],
)  # fmt: skip
def test_a_number_that_nothing_answers_is_found(change: dict[str, str], answers: Answers) -> None:
    line = next(paper.lines_of(11).itertuples())
    assert answers.to(line) == "cells"
    assert answers.to(line._replace(**change)) not in ANSWERS
