"""``--set methods=...``: one's own methods in the place of a matrix's, and nothing else of it changed."""

from __future__ import annotations

import pytest

from bench import counts, matrix


def chosen(methods: object, name: str = "isic_small", **more: object) -> list[dict]:
    """The specifications of a matrix's cells with other methods."""
    changed = matrix.override(matrix.read(name), {"methods": methods, **more})
    return [item.cell.spec for item in matrix.expand(changed, precision="fp32")]


def test_all_but_the_method_is_as_in_the_matrix():
    ours = [item.cell.spec for item in matrix.expand(matrix.read("isic_small"), precision="fp32")]
    found = chosen("norm,lora")
    assert [spec["method"]["name"] for spec in found] == ["norm", "lora"] * 3
    assert [spec for spec in found if spec["method"]["name"] == "lora"] == [
        spec for spec in ours if spec["method"]["name"] == "lora"
    ]
    assert {key: value for key, value in found[0].items() if key != "method"} == {
        key: value for key, value in ours[0].items() if key != "method"
    }


def test_parameters_are_written_as_in_a_matrix():
    found = chosen([{"name": "lora", "rank": [4, 6]}, "norm"], seeds=0)
    assert [spec["method"].get("parameters") for spec in found] == [{"rank": 4}, {"rank": 6}, None]


def test_each_block_keeps_its_datasets_and_regime_and_measurements_of_speed_are_left_out():
    whole = matrix.read("table3")
    assert {block.kind for block in whole.cells} == {"accuracy", "speed"}
    changed = matrix.override(whole, {"methods": "norm"})
    assert {block.kind for block in changed.cells} == {"accuracy"}
    kept = [(block.datasets, block.seeds) for block in whole.cells if block.kind == "accuracy"]
    assert [(block.datasets, block.seeds) for block in changed.cells] == kept


def test_a_table_is_counted_with_its_own_methods():
    spec = chosen("decoder_only", "table1")
    ids = {item.cell.id: "planned" for item in matrix.expand(matrix.read("table1"), precision="fp32")}
    lines = counts.by_table(ids, {"methods": "norm"}, precision="fp32", device="")
    assert f"table 1: {len(ids)} of {len(ids)} cells ({len(ids)} planned)" in list(lines)
    assert len(spec) < len(ids)


@pytest.mark.parametrize("given", [3, [3], [{"rank": 4}]])
def test_what_names_no_method_is_refused(given):
    with pytest.raises(matrix.MatrixError, match="--set: "):
        chosen(given)


def test_a_method_that_the_matrix_does_not_have_is_pointed_to_it():
    entered = matrix.expand(matrix.read("isic_small"), precision="fp32")
    with pytest.raises(matrix.MatrixError, match=r"In place of its methods: --set methods=norm$"):
        matrix.select(entered, {"method": ["norm"]})
