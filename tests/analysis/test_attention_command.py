"""``python -m analysis.attention`` and ``analysis.fourier`` from the command line to files, on generated images."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import attention, fourier
from analysis.drawing.figure import read_cards
from analysis.inside import survey
from analysis.inside.encoders import About
from analysis.inside.images import Drawn
from analysis.inside.session import Seen, Session, lines
from methods.sam import mae
from methods.sam.checkpoints import CheckpointError

SMALL = ["--backbone", "tiny", "--image-size", "160", "--datasets", "shapes"]


@pytest.fixture
def go(tmp_path, capsys):
    """Runs a command and returns its code, its cards by their first two words, and what it said."""

    def run(command, *words):
        code = command.main([*words, "--device", "cpu", "--out", str(tmp_path / "figures")])
        cards, skipped = read_cards(tmp_path / "figures")
        assert not skipped
        told = capsys.readouterr()
        return code, {"-".join(card.name.split("-")[:2]): card for card in cards}, told.out + told.err

    return run


def test_figures_of_attention(go, tmp_path):
    code, cards, told = go(attention, *SMALL, "--random", "vit", "--images", "3", "--seed", "2")
    assert code == 0 and told.count("wrote ") == 2
    heads, layers = cards["attention-heads"], cards["attention-layers"]
    assert heads.kind == layers.kind == "attention"
    assert (heads.about["paper_figure"], layers.about["paper_figure"]) == ("5", "7 left")
    assert heads.command.split() == [
        "python", "-m", "analysis.attention", "--backbone", "tiny", "--random", "vit", "--image-size", "160",
        "--datasets", "shapes", "--images", "3", "--seed", "2",
    ]  # fmt: skip
    for said in (
        "SAM tiny at 160 px (tiny.safetensors", "8 of 12 layers in windows of 8 x 8",
        "random ViT tiny at 160 px (random", "n = 3 test images (shapes 3)", "in fp32 on", "padding of windows",
        "tokens without a place",
    ):  # fmt: skip
        assert said in heads.caption
    assert set(heads.about) >= {"device", "commit", "dirty", "precision", "encoders", "images", "images_of"}

    data = pd.read_csv(tmp_path / "figures" / f"{heads.name}.csv")
    assert len(data) == 2 * 12 * 3
    own, plain = (data[data["encoder"] == name] for name in ("SAM tiny", "random ViT tiny"))
    np.testing.assert_allclose(data["pixels"], 160 * data["share"])
    assert set(own[own["window"] > 0]["layer"]) == {1, 2, 4, 5, 7, 8, 10, 11}
    windowed = own[own["window"] > 0]
    assert (windowed["share"] < windowed["farthest_share"]).all()
    assert (windowed["weight_on_padding"] > 0).all() and not own["weight_on_loose_tokens"].any()
    np.testing.assert_allclose(plain["share"], plain["even_share"], rtol=0.02)
    means = pd.read_csv(tmp_path / "figures" / f"{layers.name}.csv")
    expected = data.groupby(["encoder", "layer"], sort=False)["share"].mean().to_numpy()
    np.testing.assert_allclose(means["share"], expected)
    assert (means["share_low"] <= means["share"]).all() and (means["share"] <= means["share_high"]).all()
    images = pd.read_csv(tmp_path / "figures" / heads.about["images"])
    assert len(images) == 3 and images["digest"].str.len().eq(64).all()


def test_figures_of_frequencies(go, tmp_path):
    code, cards, _ = go(fourier, *SMALL, "--random", "sam", "--images", "2")
    assert code == 0
    mean, layers = cards["fourier-mean"], cards["fourier-layers"]
    assert mean.about["paper_figure"] == "7 right"
    data = pd.read_csv(tmp_path / "figures" / f"{layers.name}.csv")
    assert len(data) == 2 * 12 * 6
    assert (data[data["frequency"] == 0]["log_amplitude"] == 0).all()
    averaged = pd.read_csv(tmp_path / "figures" / f"{mean.name}.csv")
    expected = data.groupby(["encoder", "frequency"], sort=False)["log_amplitude"].mean().to_numpy()
    np.testing.assert_allclose(averaged["log_amplitude"], expected, atol=1e-12)
    assert list(averaged["frequency"][:6]) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_the_same_command_gives_the_same_numbers(go, tmp_path):
    files = []
    for _ in range(2):
        _, cards, _ = go(fourier, *SMALL, "--images", "2")
        files.append((tmp_path / "figures" / f"{cards['fourier-mean'].name}.csv").read_bytes())
    assert files[0] == files[1]
    assert len(cards) == 2


def test_weights_that_are_not_here_are_told_and_the_rest_is_shown(go, monkeypatch):
    def missing(*given):
        raise CheckpointError("cannot download: no network.\n  Get the file by hand.")

    monkeypatch.setattr(survey.encoders, "sam", missing)
    monkeypatch.setattr(mae, "mae_file", missing)
    monkeypatch.setattr(survey, "SIZE", "tiny")
    code, cards, told = go(fourier, "--image-size", "64", "--datasets", "shapes", "--images", "1")
    assert code == 0
    assert "analysis.fourier: left out: SAM tiny: cannot download" in told and "left out: MAE tiny" in told
    assert cards["fourier-mean"].caption.startswith("NOT SHOWN, for want of weights: SAM tiny, MAE tiny. ")
    assert list(cards["fourier-mean"].about["encoders"]) == ["random ViT tiny"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "tiny", "--checkpoint", "./gone.pth"], "there is no file"),
        (["--backbone", "tiny", "--image-size", "100"], "no multiple of the patch size 16; try 96"),
        (["--mae", "gone.pth"], "that is no file"),
        (["--cell", "none-here"], "Next: python -m bench.run"),
        (["--backbone", "tiny", "--images", "0"], "--images 0: a number of images is needed"),
        (["--backbone", "tiny", "--datasets", "shape"], "Did you mean 'shapes'?"),
        (["--backbone", "tiny", "--device", "cuda:99"], "Next: --device cpu"),
        (["--backbone", "tiny", "--device", "gpu"], "Next: --device cpu"),
    ],
)
def test_nothing_to_show_is_one_line_and_exit_code_2(words, message, tmp_path, capsys):
    given = ["--device", "cpu", "--datasets", "shapes", "--images", "1", "--results", str(tmp_path), *words]
    assert fourier.main(given) == 2
    told = capsys.readouterr().err
    assert message in told
    assert all(line.startswith("analysis.fourier: ") for line in told.splitlines())
    assert not list(tmp_path.iterdir())


def test_cells_without_adapters_or_results_name_the_command(folder, capsys):
    published, running = folder.add(method="lora"), folder.add(method="vpt", state="running")
    words = ["--datasets", "shapes", "--images", "1", "--device", "cpu", "--results", str(folder.path)]
    assert attention.main([*words, "--cell", published.name, "--cell", running.name]) == 2
    told = capsys.readouterr().err
    assert "holds no adapter.json (a published copy leaves it out)" in told
    assert f"python -m bench.cell {published.name} --again" in told
    assert f"{running.name}: it is running" in told


def test_encoders_of_one_method_share_a_colour_and_differ_in_the_line():
    def seen(name, look):
        return Seen(About(name, name, look, 64, "none", "random"), np.zeros(1))

    looks = lines([seen("a", "lora"), seen("b", "lora"), seen("c", "conv_lora"), seen("d", "sam")])
    assert looks["a"]["color"] == looks["b"]["color"] != looks["c"]["color"]
    assert looks["a"]["linestyle"] != looks["b"]["linestyle"]
    assert looks["c"]["linestyle"] == looks["d"]["linestyle"] == "-"


def test_a_card_begins_with_its_warnings_and_names_depend_on_what_is_seen():
    def session(size):
        about = About("LoRA", "isic2017-lora-s0", "lora", size, "adapter.safetensors", "1" * 64, "isic2017-lora-s0",
                      ("RANDOM BACKBONE.",), 4, (0,))  # fmt: skip
        return Session((Seen(about, np.zeros((1, 1, 1, 3))),), (), Drawn((), ()), "fp32", "cpu", "python")

    cards = [session(size).card("attention", "heads", title="t", paper="5", sentences=["What."]) for size in (64, 96)]
    assert cards[0].caption.startswith(
        "RANDOM BACKBONE. What. Encoders: LoRA at 64 px (adapter.safetensors 111111111111"
    )
    assert cards[0].cells == ("isic2017-lora-s0",)
    assert cards[0].name != cards[1].name
    assert json.dumps(cards[0].about)
