"""Cells that measure speed: identity, matrices and command lines, what is measured anew."""

from __future__ import annotations

import pytest

from bench import matrix as matrices
from bench import speed
from bench.devices import DeviceError
from bench.matrix import MatrixError
from bench.regime import Regime
from bench.spec import SpeedCell, cell_of
from bench.store import Results
from bench.timing import cells

TOP = 'name = "mine"\nbackbone = "tiny"\ncheckpoint = "none"\nimage_size = 64\n'


def expand(text_or_matrix, **options):
    options = {"precision": "fp32", "device": "a device"} | options
    return cells.expand(text_or_matrix, **options)


@pytest.fixture
def read(tmp_path):
    """The matrix of a block's text."""

    def of_text(block, top=TOP):
        path = tmp_path / "mine.toml"
        path.write_text(f'{top}[[cells]]\nkind = "speed"\n{block}')
        return matrices.read(str(path))

    return of_text


def one(read, block='methods = ["lora"]', **options):
    (entered,) = expand(read(block), **options)
    return entered


def test_a_measurement_is_known_by_all_that_changes_speed(read):
    spec = {
        "kind": "speed",
        "method": {"name": "lora", "version": 1},
        "backbone": "tiny",
        "checkpoint": "none",
        "image_size": 64,
        "precision": "fp32",
        "device": "a device",
        "machine": {"micro_batch": 1},
    }
    cell = one(read).cell
    assert cell.spec == spec
    assert cell.id == "speed-lora-b1-144d3d97", "a changed identity loses every measurement"
    found = {cell.id}
    found.add(one(read, 'methods = [{ name = "lora", rank = 6 }]').cell.id)
    found.add(one(read, 'methods = ["lora"]\nmachine = { micro_batch = 4 }').cell.id)
    found.add(one(read, 'methods = ["lora"]\nimage_size = 128').cell.id)
    found.add(one(read, precision="bf16").cell.id)
    found.add(one(read, device="another").cell.id)
    found.add(one(read, clock="processor").cell.id)
    assert len(found) == 7


def test_a_recorded_measurement_comes_back(read):
    cell = one(read, 'methods = [{ name = "conv_lora", routing = "sum" }]\nmachine = { micro_batch = 3 }').cell
    back = cell_of(cell.spec)
    assert isinstance(back, SpeedCell) and back.id == cell.id
    assert back.method().routing == "sum"
    assert back.context().image_size == 64 and back.context().num_classes == 1
    resolved = back.resolved()
    assert resolved["method"]["parameters"]["rank"] == 3 and resolved["regime"]["lr"] == Regime().lr


@pytest.mark.parametrize(("micro_batch", "batch"), [(1, 4), (2, 4), (3, 6), (4, 4), (8, 8)])
def test_a_batch_is_the_released_one_in_whole_micro_batches(read, micro_batch, batch):
    cell = one(read, f'methods = ["lora"]\nmachine = {{ micro_batch = {micro_batch} }}').cell
    assert cell.regime().batch_size == batch


def test_lists_are_axes(read):
    found = expand(read('methods = ["lora", "ssf"]\nmachine = { micro_batch = [1, 4] }\nimage_size = [64, 128]'))
    assert len(found) == len({entered.cell.id for entered in found}) == 8


@pytest.mark.parametrize("name", ["speed", "speed_gpu", "table3", "table14"])
def test_the_bundled_matrices_hold_the_papers_rows_and_the_reference(name):
    found = expand(matrices.read(name))
    assert {entered.cell.spec["checkpoint"] for entered in found} == {"none"}
    assert cells.is_reference(found[0])
    described = {
        (entered.cell.spec["method"]["name"], str(entered.cell.spec["method"].get("parameters", "")))
        for entered in found
    }
    table14 = {(name, "") for name in ("lora", "conv_lora", "bitfit", "adapter", "vpt")}
    table3 = {("lora", ""), ("conv_lora", ""), ("conv_lora", "{'routing': 'sum'}")}
    both = table14 | table3 | {("conv_lora", "{'implementation': 'explicit'}")}
    assert described == {"table14": table14, "table3": table3}.get(name, both)


BAD_BLOCKS = {
    "datasets": ('methods = ["lora"]\ndatasets = ["shapes"]', ["'speed'", "datasets"]),
    "seeds and a regime": ('methods = ["lora"]\nseeds = [0]\nregime = { epochs = 1 }', ["regime, seeds"]),
    "unknown machine key": ('methods = ["lora"]\nmachine = { microbatch = 1 }', ["'microbatch'", "micro_batch"]),
    "no micro-batch": ('methods = ["lora"]\nmachine = { micro_batch = 0 }', ["micro_batch = 0"]),
    "unknown attention": ('methods = ["lora"]\nmachine = { attention = "flash" }', ["'flash'", "folded"]),
    "compile is no word": ('methods = ["lora"]\nmachine = { compile = "yes" }', ["'yes'", "False, True"]),
    "unknown method": ('methods = ["lroa"]', ["'lroa'", "'lora'"]),
    "unknown parameter": ('methods = [{ name = "lora", rnk = 3 }]', ["'rnk'"]),
    "unknown backbone": ('methods = ["lora"]\nbackbone = "vit_g"', ["'vit_g'"]),
    "nothing": ("methods = []", ["no cells"]),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a_bad_block_is_refused(read, name):
    text, expected = BAD_BLOCKS[name]
    with pytest.raises(MatrixError) as error:
        expand(read(text))
    assert all(part in str(error.value) for part in ("mine", *expected)), error.value


def test_each_kind_has_its_command(read):
    with pytest.raises(MatrixError, match=r"python -m bench\.speed --matrix mine"):
        matrices.expand(read('methods = ["lora"]'), precision="fp32")
    with pytest.raises(MatrixError, match=r"python -m bench\.run --matrix smoke"):
        expand(matrices.read("smoke"))


def test_a_machine_is_no_matter_of_training(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'{TOP}[[cells]]\nmethods = ["lora"]\ndatasets = ["shapes"]\nmachine = {{ micro_batch = 4 }}\n')
    with pytest.raises(MatrixError, match="'accuracy' take no machine"):
        matrices.read(str(path))
    path.write_text(f'{TOP}[[cells]]\nmethods = ["lora"]\n')
    with pytest.raises(MatrixError, match="'datasets' is missing"):
        matrices.read(str(path))


def test_the_command_line_takes_the_place_of_what_a_matrix_says(read):
    given = cells.read_methods("ssf,conv_lora:implementation=explicit:rank=6")
    matrix = cells.changed(
        read('methods = ["lora"]\nimage_size = 128\nmachine = { micro_batch = 1 }'),
        {"image_size": 256},
        given,
        {"micro_batch": [2, 4]},
    )
    found = [entered.cell.spec for entered in expand(matrix)]
    assert {spec["image_size"] for spec in found} == {256}
    assert [spec["machine"]["micro_batch"] for spec in found] == [2, 2, 4, 4]
    assert found[1]["method"]["parameters"] == {"implementation": "explicit", "rank": 6}


def test_how_a_model_is_executed_is_an_axis_and_defaults_are_no_part_of_a_measurement(read):
    plain = one(read).cell
    axes = 'machine = { attention = ["auto", "bias"], checkpointing = ["none", "selective"], compile = [false, true] }'
    found = [entered.cell for entered in expand(read(f'methods = ["lora"]\n{axes}'))]
    assert len({cell.id for cell in found}) == 8 and found[0].id == plain.id
    assert found[0].spec["machine"] == {"micro_batch": 1}
    everything = {"micro_batch": 1, "attention": "bias", "checkpointing": "selective", "compile": True}
    assert found[-1].spec["machine"] == everything
    given = cells.read_machine(["attention=auto,bias", "checkpointing=none,selective", "compile=false,true"])
    matrix = cells.changed(read('methods = ["lora"]'), {}, [], given)
    assert [entered.cell.id for entered in expand(matrix)] == [cell.id for cell in found]


@pytest.mark.parametrize("word", ["attention", "attention="])
def test_a_machine_value_that_is_missing_is_refused(word):
    with pytest.raises(MatrixError, match="--machine.*KEY=VALUE,.*attention=folded,bias"):
        cells.read_machine([word])


def test_a_parameter_without_a_value_is_refused():
    with pytest.raises(MatrixError, match="conv_lora:explicit.*METHOD:KEY=VALUE"):
        cells.read_methods("lora,conv_lora:explicit")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:999", "tpu:0", "cpu:2", "0"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(DeviceError, match=device.removeprefix("cuda:")):
        speed.place(device, None)


def test_threads_are_those_asked_for():
    slot = speed.place("cpu", 3)
    assert slot.threads == 3 and slot.environment["OMP_NUM_THREADS"] == "3"
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_the_reference_is_repeated_where_others_were_measured_beside_it(read):
    known = expand(read('methods = ["lora", "ssf", { name = "lora", rank = 6 }]\nmachine = { micro_batch = [1, 4] }'))
    (first, _, sixth), (second, other, _) = known[:3], known[3:]
    assert cells.references(known, known) == [first, second]
    assert cells.references([other], known) == [second]
    assert cells.references([sixth], known) == [first]
    assert cells.references([first, second], known) == []


def test_what_is_done_with_the_same_code_is_not_measured_again(read, tmp_path, monkeypatch):
    entered, results = one(read), Results(tmp_path)
    assert cells.reason_to_measure(entered, results) == "new"
    folder = results.cell(entered.cell.id)
    evidence = cells.evidence.of_speed(entered.cell, "random")
    folder.create(entered.cell, evidence)
    folder.set_state("oom", reason="too large")
    assert cells.reason_to_measure(entered, results) == "was oom"
    folder.set_state("done")
    assert cells.reason_to_measure(entered, results) == ""
    monkeypatch.setattr(cells.evidence.metadata, "version", lambda package: "99")
    assert cells.reason_to_measure(entered, results) == "differs in torch"
