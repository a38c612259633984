"""Pre-training runs: resumed as if never stopped, exported as a checkpoint that loads, scored with clicks."""

from __future__ import annotations

import hashlib
import json
import signal

import numpy as np
import pytest
import torch

from bench import pretrain
from bench.pretraining.export import ExportError, export, weights, write_card
from bench.pretraining.loop import LOG, STATE, Budget, Recipe, Run, load_state
from bench.pretraining.score import RADII, Clicker, Target, best_radius, correction, disc_ious, score
from methods.base import Context
from methods.sam.build import build_segmenter

RECIPE = Recipe(image_size=64, batch=2, warmup=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of eight steps, four of them with prompts, the last at twice the size."""
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    Run(RECIPE, folder, Budget(steps=8, dense=0.5)).train()
    return folder


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_a_resumed_run_equals_one_that_was_not_stopped_bit_for_bit(folder, tmp_path):
    stopped = Run(RECIPE, tmp_path, Budget(steps=8, dense=0.5))
    stopped._learn, learn = (
        lambda *given: (stopped.stop() if stopped.step == 4 else None, learn(*given))[1],
        stopped._learn,
    )
    stopped.train()
    assert load_state(tmp_path)["step"] == 5
    resumed = Run(None, tmp_path, Budget(steps=8, dense=0.5), workers=1)
    resumed.train()
    first, second = load_state(folder), load_state(tmp_path)
    assert first["model"].keys() == second["model"].keys()
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    for number, slots in first["optimiser"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(value, second["optimiser"]["state"][number][name])
    assert [start["step"] for start in second["starts"]] == [0, 5]


def test_both_stages_are_trained(folder):
    start, end = Run(RECIPE, folder.parent / "none", Budget(steps=1)).model.state_dict(), load_state(folder)["model"]
    still = [name for name, value in start.items() if torch.equal(value, end[name])]
    # A mask's own network waits for its turn to be the best; the positional encoding's frequencies are no parameter.
    still = [name for name in still if not name.startswith("sam.mask_decoder.output_hypernetworks_mlps")]
    assert still == ["sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    (line,) = log(folder)
    assert {"foreground", "contour", "offset", "size", "colour", "mask", "iou", "norm"} < line.keys()
    assert line["step"] == 8
    assert line["spent"] == 1


def test_losses_fall(tmp_path):
    """The same few steps again and again: a model that learns knows them in the end."""
    run = Run(Recipe(image_size=64, batch=4, warmup=5, lr=2e-3), tmp_path, Budget(steps=1000, dense=0.0))
    from bench.pretraining.batch import Steps

    batch = Steps(seed=0, batch=4, size=64)[0]
    losses = []
    for run.step in range(15):
        run._set_rate(0.0)
        found = run._learn(batch, prompted=True)
        losses.append({name: value.item() for name, value in found.items()})
    for name in ("foreground", "contour", "offset", "colour", "mask"):
        assert losses[-1][name] < 0.9 * losses[0][name], name


def test_the_rate_rises_stays_and_falls_to_nothing(tmp_path):
    run = Run(Recipe(warmup=10, lr=1.0), tmp_path, Budget(steps=1000))
    rates = []
    for run.step in range(1000):
        rates.append(run._set_rate(run.budget.spent(run.step, 0.0)))
    assert rates[:2] == pytest.approx([0.1, 0.2])
    assert rates[9:601] == pytest.approx([1.0] * 592)
    assert rates[800] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0025)


def test_minutes_count_over_all_resumptions(tmp_path):
    assert Budget(minutes=2).spent(10, 30.0) == pytest.approx(0.25)
    Run(RECIPE, tmp_path, Budget(minutes=1e-9)).train()
    state = load_state(tmp_path)
    assert state["step"] == 1
    assert state["seconds"] > 0
    run = Run(None, tmp_path, Budget(minutes=1e-9))
    run.train()
    assert run.step == 1, "the budget was spent already"


def test_position_tables_and_vectors_are_not_decayed(tmp_path):
    run = Run(RECIPE, tmp_path, Budget(steps=1))
    decayed = {id(value) for value in run.optimiser.param_groups[0]["params"]}
    names = {name for name, value in run.model.named_parameters() if id(value) in decayed}
    assert "sam.image_encoder.blocks.0.mlp.lin1.weight" in names
    assert "sam.mask_decoder.output_upscaling.0.weight" in names
    spared = ("bias", "pos_embed", "rel_pos", "norm", "iou_token", "no_mask_embed")
    assert not [name for name in names if any(part in name for part in spared)]
    assert sum(len(group["params"]) for group in run.optimiser.param_groups) == len(list(run.model.parameters()))


def test_a_state_is_neither_overwritten_nor_invented(folder, tmp_path):
    with pytest.raises(FileExistsError, match="--resume"):
        Run(RECIPE, folder, Budget(steps=1))
    with pytest.raises(FileNotFoundError, match=r"python -m bench\.pretrain"):
        Run(None, tmp_path, Budget(steps=1))


def test_an_exported_checkpoint_is_the_run_in_half_precision(folder, tmp_path):
    made = export(folder, tmp_path / "own.safetensors")
    content = (tmp_path / "own.safetensors").read_bytes()
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert made["bytes"] == len(content) < 16_000_000
    assert made["steps"] == 8
    context = Context(backbone="tiny", checkpoint=str(tmp_path / "own.safetensors"), image_size=256)
    trained, loaded = load_state(folder)["model"], build_segmenter(context)
    for name, value in loaded.image_encoder.state_dict().items():
        assert torch.equal(value, trained[f"sam.image_encoder.{name}"].half().float()), name
    token = trained["sam.mask_decoder.mask_tokens.weight"][:1].half().float()
    assert torch.equal(loaded.mask_decoder.mask_tokens.weight, token)


def test_the_card_says_what_was_done(folder, tmp_path):
    made = export(folder, tmp_path / "own.safetensors")
    models = {name: {"chosen": 0.5, "best": 0.6, "refined": 0.7} for name in ("checkpoint", "random")}
    scenes = {
        "objects": 9,
        "models": models,
        "standard_error": models,
        "disc": {"scenes": 0.3},
        "disc_radius": {"scenes": 0.1},
    }
    write_card(tmp_path / "own.safetensors", made, {"image_size": 64, "scenes": {**scenes, "first_chosen": 0.123}})
    card = (tmp_path / "own.md").read_text()
    for fact in (made["sha256"], "8 of 2 images at 64 px", "| seed | 0 |", "50.0 ± 50.0 | 60.0 ± 60.0 | 70.0", "12.3"):
        assert fact in card
    assert json.loads((tmp_path / "own.json").read_text())["checkpoint"] == made


def test_a_state_that_is_not_finite_gives_no_checkpoint(folder, tmp_path):
    state = load_state(folder)
    state["model"]["sam.image_encoder.pos_embed"][0, 0, 0, 0] = 1e6
    with pytest.raises(ExportError, match="pos_embed"):
        weights(state)
    with pytest.raises(ExportError, match="safetensors"):
        export(folder, tmp_path / "own.pth")


def test_scores_have_a_checkpoint_a_random_model_and_a_disc(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.pretraining.score.SCENES_IN_TEST", 3)
    export(folder, tmp_path / "own.safetensors")
    result = score("tiny", str(tmp_path / "own.safetensors"), image_size=64, number=3)
    found = result["scenes"]
    assert found["first_chosen"] == pytest.approx(found["models"]["checkpoint"]["chosen"])
    assert found["objects"] > 2
    for answers in found["models"].values():
        assert 0 <= answers["chosen"] <= answers["best"] <= 1
    assert found["models"]["checkpoint"] != found["models"]["random"]
    assert 0 < found["disc"]["scenes"] < 1


def test_a_clicker_answers_every_mask_and_none(folder):
    clicker = Clicker("tiny", "none", 64)
    image, mask = np.zeros((64, 64, 3), dtype=np.uint8), np.zeros((64, 64), dtype=bool)
    mask[10:30, 20:50] = True
    assert len(clicker.scores(Target(image, [mask, ~mask]))) == 2
    assert clicker.scores(Target(image, [])) == []


def test_the_next_click_is_on_the_deeper_error():
    mask, answer = np.zeros((32, 32), dtype=bool), np.zeros((32, 32), dtype=bool)
    mask[0:11, 0:11] = True
    answer[20:25, 20:25] = True
    click, label = correction(answer, mask)
    assert (click.tolist(), label) == ([5, 5], 1.0)
    answer[20:, 17:] = True
    click, label = correction(answer | mask, mask)
    assert label == 0.0
    assert answer[int(click[1]), int(click[0])]
    click, label = correction(mask, mask)
    assert (click.tolist(), label) == ([5, 5], 1.0)


def test_the_disc_is_as_large_as_serves_best():
    ruler = np.arange(100) + 0.5
    disc = (ruler[None] - 50) ** 2 + (ruler[:, None] - 50) ** 2 <= 20**2
    target = Target(np.zeros((100, 100, 3), dtype=np.uint8), [disc])
    assert RADII[best_radius([target])] == pytest.approx(0.2, abs=0.011)
    assert disc_ious(disc).max() > 0.95
    assert disc_ious(disc)[RADII == 0.1] == pytest.approx(0.25, abs=0.02)
    assert disc_ious(disc)[RADII == 0.4] == pytest.approx(0.25, abs=0.02)


def test_the_command_trains_resumes_and_exports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert pretrain.main(["--steps", "1", "--batch", "1", *out]) == 0
    assert pretrain.main(["train", "--steps", "2", "--resume", *out]) == 0
    assert (
        pretrain.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "a.safetensors"), "--no-scores"]) == 0
    )
    card = (tmp_path / "a.md").read_text()
    assert "python -m bench.pretrain train --steps 2 --resume" in card
    assert "Not scored" in card
    assert load_state(tmp_path / "run")["recipe"]["batch"] == 1
    assert "step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "1", "--resume", "--out", "{folder}/none"], "no state"),
        (["export", "{folder}/none", "--out", "{folder}/a.safetensors"], "no state"),
        (["score", "{folder}/none.safetensors"], "there is no file"),
        (["score", "none", "--backbone", "huge"], "huge"),
    ],
)
def test_errors_say_what_is_wrong(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    assert pretrain.main([word.format(folder=tmp_path) for word in words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["--steps", "0"], ["--steps", "2", "--minutes", "1"], ["--steps", "1", "--dense", "2"]]
)
def test_the_command_refuses_lengths_that_mean_nothing(words, capsys):
    with pytest.raises(SystemExit):
        pretrain.main(words)
    assert "usage" in capsys.readouterr().err


def test_the_state_is_written_at_once(folder):
    assert [path.name for path in folder.iterdir() if path.name.startswith(STATE)] == [STATE]
