"""The systems that were built for a task stand in their rows of the paper's tables, ours beside the printed numbers."""

from __future__ import annotations

import pytest

from analysis import paper
from analysis.exceptions import SYSTEMS
from analysis.results import read_results
from analysis.tables import make_tables

LINES = paper.read_paper()
ROWS = sorted({(line.table, line.our_method) for line in LINES.itertuples() if line.our_method in SYSTEMS}, key=str)


@pytest.mark.parametrize(("table", "system"), ROWS)
def test_every_number_the_paper_prints_of_a_system_has_ours_beside_it(folder, table: str, system: str) -> None:
    """But for the IoUs of single classes, whose columns test_tables_several_classes.py has."""
    lines = LINES[(LINES["table"] == table) & (LINES["our_method"] == system)]
    for dataset, own in lines.groupby("our_dataset"):
        test_sets = tuple(dict.fromkeys(own["test_set"]))
        scores = {metric: 0.5 for metric in own["our_metric"] if ":" not in metric}
        folder.add(method=system, dataset=dataset, seed=0, scores=scores, test_sets=test_sets)
    (made,) = make_tables(read_results(folder.path), wanted=[table])
    beside = {
        (column.data, column.test_set, column.metric): entry
        for (row, column), entry in made.entries.items()
        if entry.paper and row in set(lines["method"])
    }
    for line in lines[~lines["our_metric"].str.contains(":")].itertuples():
        entry = beside[line.our_dataset, line.test_set, line.our_metric]
        assert entry.paper.value == line.value
        assert entry.ours.mean == pytest.approx(0.5 * float(line.scale)) and entry.ours.n == 1
        assert not entry.rank and not entry.not_run
