"""From a matrix file to its cells: axes, overrides, filters, and messages that say what is wrong where."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import datasets
import methods
from bench import matrix
from bench.matrix import Entered, MatrixError, expand, override, read, select

TOP = 'name = "mine"\nbackbone = "tiny"\nimage_size = 64\n'
BINARY = ("polyps", "isic2017", "camouflage", "sbu", "leaf", "road")
STARRED = [name for name in methods.registry.names() if methods.registry[name].starred]
TABLES = dict(zip((f"table{number}" for number in range(5, 11)), BINARY, strict=True))
BLOCK = '[[cells]]\ndatasets = ["shapes"]\nmethods = ["lora"]\n'


@pytest.fixture
def write(tmp_path) -> Callable[[str], str]:
    """Writes a matrix file; returns its name."""

    def to_file(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return to_file


@pytest.fixture
def cells(write) -> Callable[[str], list[Entered]]:
    return lambda text: expand(read(write(text)), precision="fp32")


def block(*, methods: str = '["lora"]', datasets: str = '["shapes"]', more: str = "") -> str:
    return f"{TOP}[[cells]]\ndatasets = {datasets}\nmethods = {methods}\n{more}\n"


def parameters(entered: list[Entered], part: str = "method") -> list[dict]:
    return [item.cell.spec[part].get("parameters", {}) for item in entered]


def test_a_block_is_a_product(cells):
    found = cells(
        block(
            methods='["decoder_only", {name = "lora", rank = [3, 6]}]',
            datasets='[{name = "shapes", style = ["thin", "large"]}]',
            more="seeds = [0, 1]\nimage_size = [64, 128]",
        )
    )
    assert len(found) == len({item.cell.id for item in found}) == 3 * 2 * 2 * 2
    lora = [item for item in found if item.cell.spec["method"]["name"] == "lora"]
    assert sorted({str(found) for found in parameters(lora)}) == ["{'rank': 6}", "{}"]
    assert {item.cell.spec["image_size"] for item in found} == {64, 128}


def test_names_can_be_an_axis_that_shares_parameters(cells):
    found = cells(block(methods='[{name = ["lora", "conv_lora"], rank = 6}]'))
    assert [item.cell.spec["method"]["name"] for item in found] == ["lora", "conv_lora"]
    assert parameters(found) == [{"rank": 6}] * 2


def test_shots_are_no_parameter_of_the_dataset(cells):
    found = cells(block(datasets='[{name = "shapes", shots = [2, 4], train_images = 8}]'))
    assert [item.cell.spec["dataset"].get("shots") for item in found] == [2, 4]
    assert parameters(found, "dataset") == [{"train_images": 8}] * 2


@pytest.mark.parametrize(
    ("given", "scales"),
    [("[4]", [[4]]), ("[1, 2]", [[1, 2]]), ("[[1], [2]]", [[1], [2]]), ("[[1, 2], [3]]", [[1, 2], [3]])],
)
def test_a_parameter_that_takes_a_list_is_an_axis_as_a_list_of_lists(cells, given, scales):
    found = cells(block(methods=f'[{{name = "conv_lora", scales = {given}}}]'))
    assert parameters(found) == [{"scales": one} for one in scales]


def test_a_prefixed_parameter_that_takes_a_list_is_no_axis_either(cells):
    (found,) = cells(block(methods='[{name = "vpt+conv_lora", num_tokens = 6, "conv_lora.scales" = [1, 2]}]'))
    assert found.cell.spec["method"]["name"] == "conv_lora+vpt"
    assert found.cell.spec["method"]["parameters"] == {"scales": [1, 2], "vpt.num_tokens": 6}


def test_methods_that_do_not_combine_are_refused_before_anything_runs(cells):
    with pytest.raises(MatrixError, match="mine.*'conv_lora' and 'lora' both want the slot"):
        cells(block(methods='["lora+conv_lora"]'))


def test_a_composition_is_one_cell_however_it_is_written(cells):
    found = cells(
        block(methods='[{name = "conv_lora+vpt", "vpt.num_tokens" = 5}, {name = "vpt+conv_lora", num_tokens = 5}]')
    )
    assert [item.cell.spec["method"]["name"] for item in found] == ["conv_lora+vpt"]


def test_regime_values_are_axes_too(cells):
    found = cells(block(more="regime = {lr = [1e-4, 3e-4], epochs = 5, betas = [0.9, 0.95]}"))
    assert [item.cell.regime().lr for item in found] == [1e-4, 3e-4]
    assert {item.cell.regime().betas for item in found} == {(0.9, 0.95)}
    assert [
        item.cell.regime().betas[1] for item in cells(block(more="regime = {betas = [[0.9, 0.9], [0.9, 0.8]]}"))
    ] == [0.9, 0.8]


def test_a_regime_can_be_a_presets_name(cells):
    (found,) = cells(block(more='regime = "paper_text"'))
    assert found.cell.regime().optimizer == "adam"


def test_a_star_stands_for_every_plugin_but_those_asked_for_by_name(cells):
    assert {"lora", "scratch"} < set(STARRED) and not {"pranet", "peft:lora"} & set(STARRED)
    found = cells(block(methods='["*"]'))
    assert [item.cell.spec["method"]["name"] for item in found] == STARRED
    found = cells(block(datasets='["*"]'))
    needs_parameters = {"folder"}
    assert {item.cell.spec["dataset"]["name"] for item in found} == set(datasets.registry.names()) - needs_parameters


def test_a_block_wins_over_the_top(cells):
    found = cells(f"seeds = [7]\n{TOP}{BLOCK}{BLOCK}seeds = [1]\nimage_size = 128\n")
    assert [(item.cell.spec["seed"], item.cell.spec["image_size"]) for item in found] == [(7, 64), (1, 128)]


def test_a_cell_that_is_named_twice_is_there_once(cells):
    text = block(methods='["*", {name = "lora", rank = 3}]')
    ids = [item.cell.id for item in cells(f"seeds = [0, 0]\n{text}{BLOCK}{BLOCK}")]
    assert len(ids) == len(set(ids)) == len(STARRED)


def test_a_whole_table_with_one_seed_comes_first(cells):
    found = cells(
        f"seeds = [5, 0]\n{TOP}{BLOCK}" + '[[cells]]\ndatasets = ["shapes"]\nmethods = ["conv_lora", "decoder_only"]\n'
    )
    order = [(item.cell.spec["seed"], item.cell.spec["method"]["name"]) for item in found]
    assert order == [(seed, name) for seed in (5, 0) for name in ("lora", "conv_lora", "decoder_only")]


def test_auto_precision_is_decided_by_the_devices(write):
    text = block(more='precision = ["auto", "fp32"]')
    assert [item.cell.spec["precision"] for item in expand(read(write(text)), precision="bf16")] == ["bf16", "fp32"]
    assert [item.cell.spec["precision"] for item in expand(read(write(text)), precision="fp32")] == ["fp32"]


def test_a_checkpoints_place_is_no_part_of_a_cell(cells, tmp_path, monkeypatch):
    found = []
    for place in ("a", "b"):
        file = tmp_path / place / "mine.safetensors"
        file.parent.mkdir()
        file.touch()
        found += cells(block(more=f'checkpoint = "{file}"'))
    monkeypatch.chdir(tmp_path)
    found += cells(block(more='checkpoint = "a/mine.safetensors"'))
    assert len({item.cell.id for item in found}) == 1
    assert found[0].cell.spec["checkpoint"] == "mine.safetensors"
    places = [str(tmp_path / place / "mine.safetensors") for place in "aba"]
    assert [item.checkpoint for item in found] == places, "a cell's process may run in another folder"


@pytest.mark.parametrize(
    "name", [name for name in matrix.names() if any(block.kind == "accuracy" for block in read(name).cells)]
)
def test_every_matrix_of_the_project_expands(name):
    made = read(name)
    assert made.name == name
    found = expand(made, precision="fp32")
    assert found
    assert len({item.cell.id for item in found}) == len(found)
    for item in found:
        item.cell.resolved()


def test_the_matrices_that_were_promised():
    assert {"smoke", "isic_small", "table1", "full"} <= set(matrix.names())
    smoke = expand(read("smoke"), precision="fp32")
    assert [item.cell.spec["method"]["name"] for item in smoke] == STARRED
    assert {(item.cell.spec["backbone"], item.cell.spec["image_size"]) for item in smoke} == {("tiny", 128)}
    for name in {"table1", "full", "table2", "table3", "table4", "table11", "table12", "table15"} | TABLES.keys():
        found = expand(read(name), precision="bf16")
        assert {(item.cell.spec["backbone"], item.cell.spec["image_size"]) for item in found} == {("vit_h", 1024)}
        assert {item.cell.spec["seed"] for item in found} == {0, 1, 2}


def ids(name: str) -> set[str]:
    return {item.cell.id for item in expand(read(name), precision="bf16")}


def test_the_tables_share_their_cells():
    """Table 1 prints some columns of tables 5 to 10 beside each other, and training from scratch with them."""
    table1 = expand(read("table1"), precision="bf16")
    assert {item.cell.spec["dataset"]["name"] for item in table1} == set(BINARY)
    assert len(table1) == len(BINARY) * 11 * 3, "ten methods, and the system built for the task"
    for name, dataset in TABLES.items():
        same = {item.cell.id for item in table1 if item.cell.spec["dataset"]["name"] == dataset}
        assert ids(name) == {cell for cell in same if "-scratch-" not in cell}
    assert ids("table1") <= ids("full")
    binary = {cell for cell in ids("full") if not cell.startswith("trans10k_")}
    ablations = ids("table3") | ids("table4") | ids("table12") | ids("table13")
    assert len(binary) == len(BINARY) * (12 * 3 + 3) + len(ablations - ids("table1"))


def test_the_ablations_are_cells_beside_those_of_the_tables_of_methods():
    counts = {"table3": 2 * 3, "table4": 2 * 4 * 3, "table12": 3 * 3, "table13": 2 * 2 * 2}
    assert {name: len(ids(name)) for name in counts} == counts
    assert all(ids(name) <= ids("full") for name in counts)
    assert ids("table3") & ids("table6") == {cell for cell in ids("table6") if cell.startswith("isic2017-conv_lora-")}
    assert len(ids("table12") & ids("table5")) == 2 * 3
    assert not ids("table4") & ids("table1") and not ids("table13") & ids("table1")
    assert {item.cell.spec["seed"] for item in expand(read("table13"), precision="bf16")} == {0, 1}


def test_the_tables_of_several_classes_share_their_cells():
    """Rank 3 of table 11 is the LoRA of table 2, as it is the default; all are in the full matrix."""
    counts = {"table2": 2 * 4 * 3 + 3 * 3, "table11": 4 * 3, "table15": 5 * 2 * 3}
    assert {name: len(ids(name)) for name in counts} == counts
    shared = ids("table2") & ids("table11")
    assert len(shared) == 3 and all(cell.startswith("trans10k_v2-lora-s") for cell in shared)
    assert not ids("table15") & (ids("table2") | ids("table11")), "few shots make other cells"
    several = {cell for cell in ids("full") if cell.startswith("trans10k_")}
    assert ids("table2") | ids("table11") | ids("table15") <= several
    assert len(several) == 2 * 11 * 3 + 3 * 3 + 3 * 3 + 5 * 2 * 3
    few_shot = expand(read("table15"), precision="bf16")
    assert {str(item.cell.spec["regime"]) for item in few_shot} == {
        str(item.cell.spec["regime"]) for item in expand(read("table2"), precision="bf16")
    }, "the recipe of few shots is the dataset's, so that one setting holds both"
    assert {(item.cell.regime().epochs, item.cell.regime().patience) for item in few_shot} == {(100, 0)}


# Text of a file, and what the message must hold besides the file's name.
BAD_FILES = {
    "key at the top": (f"image_sise = 64\n{TOP}{BLOCK}", ["'image_sise'", "'image_size'", "backbone, checkpoint"]),
    "key in a block": (f"{TOP}{BLOCK}seed = [1]\n", ["'cells.0.seed'", "'seeds'", "datasets, methods, regime"]),
    "misnamed block": (TOP + BLOCK.replace("cells", "cell"), ["'cell'", "'cells'"]),
    "no cells": (TOP, ["'cells' is missing"]),
    "no methods": (TOP + '[[cells]]\ndatasets = ["shapes"]\n', ["'cells.0.methods' is missing"]),
    "second block": (f"{TOP}{BLOCK}{BLOCK}epochs = 2\n", ["'cells.1.epochs'"]),
    "text for a number": ('name = "mine"\nimage_size = "64"\n' + BLOCK, ["'image_size'", "'64'", "valid integer"]),
    "number for a list": (f"seeds = 3\n{TOP}{BLOCK}", ["'seeds'", "3", "valid list"]),
    "fraction for a whole number": (f"seeds = [0.5]\n{TOP}{BLOCK}", ["seeds", "0.5", "integer"]),
    "kind": (f'{TOP}{BLOCK}kind = "sped"\n', ["kind", "'sped'", "'accuracy'"]),
    "entry without a name": (
        TOP + '[[cells]]\ndatasets = ["shapes"]\nmethods = [{rank = 3}]\n',
        ["name", "is missing"],
    ),
    "no TOML": ("name = mine", ["TOML", "line 1"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_file_key_and_what_is_allowed(write, name):
    text, expected = BAD_FILES[name]
    with pytest.raises(MatrixError) as error:
        read(write(text))
    for part in ("mine.toml", *expected):
        assert part in str(error.value), f"{part} is not in: {error.value}"


# A block, and what the message must hold besides the matrix's name.
BAD_BLOCKS = {
    "method": (block(methods='["conv_lra"]'), ["method 'conv_lra'", "'conv_lora'", "decoder_only"]),
    "part of a composition": (block(methods='["lora+vptt"]'), ["'vptt'", "Known: "]),
    "dataset": (block(datasets='["shape"]'), ["dataset 'shape'", "'shapes'", "isic2017"]),
    "method parameter": (block(methods='[{name = "lora", rnk = 3}]'), ["'rnk'", "rank, alpha"]),
    "method value": (block(methods='[{name = "lora", rank = "3"}]'), ["rank", "'3'", "integer"]),
    "dataset parameter": (block(datasets='[{name = "shapes", sise = 64}]'), ["'sise'", "'size'"]),
    "dataset value": (block(datasets='[{name = "shapes", style = "big"}]'), ["style", "'big'", "'large'"]),
    "shots": (block(datasets='[{name = "shapes", shots = "5"}]'), ["shots", "'5'"]),
    "no shots": (block(datasets='[{name = "shapes", shots = 0}]'), ["shots", "0"]),
    "backbone": (block(more='backbone = "vit_g"'), ["'vit_g'", "vit_h"]),
    "checkpoint": (block(more='checkpoint = "atuo"'), ["'atuo'", "'auto'"]),
    "missing checkpoint": (block(more='checkpoint = "/no/such.pth"'), ["/no/such.pth"]),
    "image size": (block(more="image_size = 100"), ["100", "16", "96"]),
    "precision": (block(more='precision = "fp16"'), ["'fp16'", "auto, fp32, bf16"]),
    "regime key": (block(more="regime = {epoch = 3}"), ["'epoch'", "'epochs'", "max_steps"]),
    "regime value": (block(more="regime = {epochs = 0}"), ["epochs", "0", "greater than 0"]),
    "regime choice": (block(more='regime = {loss = "structur"}'), ["loss", "'structur'", "'structure'"]),
    "preset": (block(more='regime = "paper"'), ["'paper'", "'paper_text'"]),
    "seed": (block(more="seeds = [-1]"), ["seed", "-1"]),
    "weights of a loss": (block(more="regime = {loss_weights = [[1.0, 2.0]]}"), ["loss_weights"]),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a_bad_choice_is_refused_before_anything_runs(cells, name):
    text, expected = BAD_BLOCKS[name]
    with pytest.raises(MatrixError) as error:
        cells(text)
    for part in ("mine", *expected):
        assert part in str(error.value), f"{part} is not in: {error.value}"


def test_a_matrix_that_is_not_there(tmp_path):
    with pytest.raises(MatrixError, match=r"'smok'.*'smoke'.*isic_small.*\.toml"):
        read("smok")
    with pytest.raises(MatrixError, match=r"there is no matrix file /.*none\.toml"):
        read(str(tmp_path / "none.toml"))


def test_overrides_change_every_cell(write):
    given = read(
        write(f'{TOP}{BLOCK}image_size = 128\nregime = "paper_text"\n{BLOCK}seeds = [4]\nregime = {{lr = 1e-3}}\n')
    )
    changed = expand(
        override(given, {"image_size": 96, "seeds": 2, "epochs": 3, "betas": [0.8, 0.9]}), precision="fp32"
    )
    assert {(item.cell.spec["image_size"], item.cell.spec["seed"]) for item in changed} == {(96, 2)}
    assert [(item.cell.regime().epochs, item.cell.regime().preset, item.cell.regime().lr) for item in changed] == [
        (3, "paper_text", 1e-4),
        (3, "released", 1e-3),
    ]
    assert {item.cell.regime().betas for item in changed} == {(0.8, 0.9)}
    assert expand(override(given, {}), precision="fp32") == expand(given, precision="fp32")
    assert len(expand(override(given, {"seeds": [0, 1], "lr": [1e-3, 1e-4]}), precision="fp32")) == 8


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epoch": 3}, ["--set", "'epoch'", "'epochs'", "image_size"]),
        ({"image_size": "large"}, ["--set", "image_size", "'large'"]),
        ({"seeds": "0"}, ["--set", "seeds", "'0'"]),
    ],
)
def test_a_bad_override_is_refused(write, settings, expected):
    with pytest.raises(MatrixError) as error:
        override(read(write(TOP + BLOCK)), settings)
    for part in expected:
        assert part in str(error.value)


def test_filters_select_cells(cells):
    found = cells(f"seeds = [0, 1]\n{TOP}" + '[[cells]]\ndatasets = ["shapes", "isic2017"]\nmethods = ["*"]\n')

    def chosen(**filters: list[str]) -> set[tuple]:
        kept = select(found, filters)
        assert kept == [item for item in found if item in kept], "the order stays"
        return {(i.cell.spec["dataset"]["name"], i.cell.spec["method"]["name"], i.cell.spec["seed"]) for i in kept}

    assert len(chosen()) == len(found)
    assert chosen(method=["lora"], dataset=["shapes"]) == {("shapes", "lora", 0), ("shapes", "lora", 1)}
    assert chosen(method=["lora", "conv_lora"], seed=["1"], dataset=["isic2017"]) == {
        ("isic2017", "lora", 1),
        ("isic2017", "conv_lora", 1),
    }
    assert len(chosen(backbone=["tiny"], kind=["accuracy"])) == len(found)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"methods": ["lora"]}, ["'methods'", "'method'"]),
        ({"method": ["lorra"]}, ["'lorra'", "'lora'"]),
        ({"seed": ["3"]}, ["seed", "'3'", "0"]),
    ],
)
def test_a_filter_that_fits_nothing_is_refused(cells, filters, expected):
    with pytest.raises(MatrixError) as error:
        select(cells(TOP + BLOCK), filters)
    for part in expected:
        assert part in str(error.value)


def test_a_file_in_the_folder_is_a_matrix_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    (tmp_path / "own.toml").write_text(TOP + BLOCK)
    assert matrix.names() == ["own"]
    assert read("own").backbone == "tiny"
