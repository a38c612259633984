"""What belongs to binary masks and what to several classes is told apart, of the cells that are asked for alone."""

from __future__ import annotations

import pytest

from bench import fit
from bench.fit import Misfit
from bench.matrix import expand, read, select
from bench.run import main

TOP = 'name = "mine"\nbackbone = "tiny"\nimage_size = 64\n'


@pytest.fixture
def cells(tmp_path):
    """The cells of one block."""

    def of_block(datasets: str, methods: str = '["lora"]', regime: str = "{}"):
        path = tmp_path / "mine.toml"
        path.write_text(f"{TOP}[[cells]]\ndatasets = {datasets}\nmethods = {methods}\nregime = {regime}\n")
        return expand(read(str(path)), precision="fp32")

    return of_block


LORA = '["lora"]'
MISFITS = {
    "loss of binary masks": ("trans10k_v2", LORA, 'loss = "structure"', ["12 classes", "'structure'", fit.SEVERAL]),
    "loss of several classes": ("shapes", LORA, 'loss = "set_prediction"', ["binary masks", "'set_prediction'"]),
    "metric of binary masks": ("camvid", LORA, 'validation_metric = "dice"', ["11 classes", "'dice'", "miou_all"]),
    "metric of several classes": ("shapes", LORA, 'validation_metric = "mber"', ["binary masks", "'mber'", "dice"]),
    "values of every class": ("camvid", LORA, 'validation_metric = "iou"', ["'iou'", "miou_all"]),
    "metric of a whole set": ("shapes", LORA, 'validation_metric = "ber_pooled"', ["'ber_pooled'", "per image"]),
    "unknown metric": ("shapes", LORA, 'validation_metric = "iuo"', ["'iuo'", "'iou'"]),
    "method of binary masks": ("camvid", '["sam_zero_shot"]', "", ["'camvid'", "'sam_zero_shot'", "--only"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_belong_together_is_refused(cells, name):
    dataset, methods, regime, words = MISFITS[name]
    with pytest.raises(Misfit) as error:
        fit.check(item.cell for item in cells(f'["{dataset}"]', methods, f"{{{regime}}}"))
    for word in words:
        assert word in str(error.value)


def test_only_the_cells_that_are_asked_for_have_to_fit(cells):
    mixed = cells('["shapes", "trans10k_v1"]', '["lora", "sam_zero_shot"]')
    with pytest.raises(Misfit, match="'sam_zero_shot' is for binary masks only"):
        fit.check(item.cell for item in mixed)
    for chosen in ({"dataset": ["shapes"]}, {"method": ["lora"]}):
        fit.check(item.cell for item in select(mixed, chosen))


def test_every_method_means_those_that_fit(cells):
    found = cells('["shapes", "camvid"]', '["*"]')
    fit.check(item.cell for item in found)
    names: dict[str, set[str]] = {"shapes": set(), "camvid": set()}
    for item in found:
        names[item.cell.spec["dataset"]["name"]].add(item.cell.spec["method"]["name"])
    assert names["shapes"] - names["camvid"] == {"sam_zero_shot"} and len(names["camvid"]) > 9


def test_a_selection_of_a_large_matrix_takes_options_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path))
    words = ["--matrix", "full", "--dry-run", "--skip-missing", "--devices", "cpu", "--results", str(tmp_path / "r")]
    assert main([*words, "--only", "dataset=polyps", "--set", "loss=structure_weighted"]) == 0
    assert main([*words, "--set", "loss=structure_weighted"]) == 2
    assert "'trans10k_v1' has 3 classes, and the loss" in capsys.readouterr().err


def test_options_of_set_prediction_are_no_part_of_binary_cells(cells):
    option = "{mask_tokens = 20, points = 100, loss_weights = [1.0, 2.0, 3.0]}"
    ids = [[item.cell.id for item in cells('["shapes", "camvid"]', regime=regime)] for regime in ("{}", option)]
    assert ids[0][0] == ids[1][0] and ids[0][1] != ids[1][1]
