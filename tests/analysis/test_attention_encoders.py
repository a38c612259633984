"""Encoders that figures are made of: their weights, MAE's files, trained cells, and what is said of those not there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch

from analysis.inside import encoders
from analysis.inside.attention_distance import distances
from bench.download import DownloadError
from methods import delta
from methods.base import Context
from methods.compose import create
from methods.sam import mae
from methods.sam.checkpoints import CheckpointError
from methods.sam.sizes import SIZES


def test_plain_transformers_are_as_wide_and_deep_as_sams():
    assert list(mae.IN_TIMM) == list(SIZES)
    for name, size in SIZES.items():
        with torch.device("meta"):
            vit = timm.create_model(mae.IN_TIMM[name], num_classes=0)
        assert (vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads) == (size.width, size.depth, size.heads)
        assert vit.num_prefix_tokens == 1
    assert mae.PUBLISHED == ("vit_h", "vit_l", "vit_b")


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory):
    """An MAE as wide as tiny, as a pre-training run leaves it, decoder included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = timm.create_model(mae.IN_TIMM["tiny"], num_classes=0).state_dict()
        state["pos_embed"] = torch.randn_like(state["pos_embed"])
    extra = {"mask_token": torch.ones(1, 1, 512), "decoder_embed.weight": torch.ones(2, 2)}
    path = tmp_path_factory.mktemp("mae") / "mae.pth"
    torch.save({"model": {**state, **extra}}, path)
    return path


def test_mae_has_the_weights_of_its_file_and_positions_of_the_image_size(mae_file):
    encoder, stored = encoders.mae("tiny", str(mae_file), 96), torch.load(mae_file)["model"]
    state = encoder.model.state_dict()
    assert torch.equal(state["blocks.3.attn.qkv.weight"], stored["blocks.3.attn.qkv.weight"])
    assert state["pos_embed"].shape == (1, 37, 192)
    assert torch.equal(state["pos_embed"][:, 0], stored["pos_embed"][:, 0])
    assert encoder.about.checkpoint == "mae.pth" and len(encoder.about.digest) == 64
    assert (encoder.about.grid, encoder.about.windows) == (6, (0,) * 12)
    native = encoders.mae("tiny", str(mae_file))
    assert native.about.image_size == 224
    assert torch.equal(native.model.state_dict()["pos_embed"], stored["pos_embed"])


def test_random_weights_are_always_the_same_ones():
    torch.manual_seed(1)
    first = encoders.plain_random("tiny", 64).model.state_dict()
    torch.manual_seed(2)
    second = encoders.plain_random("tiny", 64).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unusable_mae_weights_are_refused(mae_file, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="that is no file"):
        mae.mae_vit("tiny", str(tmp_path / "gone.pth"))
    (tmp_path / "mae.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="ends in none of"):
        mae.mae_vit("tiny", str(tmp_path / "mae.bin"))
    with pytest.raises(CheckpointError, match=r"is no MAE of width 768 and 12 blocks: \d+ tensors differ"):
        mae.mae_vit("vit_b", str(mae_file))
    with pytest.raises(CheckpointError, match="no MAE was published for tiny; there is one for vit_h, vit_l, vit_b"):
        mae.mae_file("tiny", "auto")
    with pytest.raises(ValueError, match="image_size 100 is no multiple of the patch size 16; try 96"):
        mae.random_vit("tiny", 100)

    def offline(url, target):
        raise DownloadError("no network")

    monkeypatch.setattr(mae, "download", offline)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"(?s)no network.*mae_pretrain_vit_large\.pth.*put it into"):
        mae.mae_file("vit_l", "auto")
    there = tmp_path / "checkpoints" / "mae_pretrain_vit_large.pth"
    there.parent.mkdir()
    there.write_bytes(b"x")
    assert mae.mae_file("vit_l", "auto") == there


def test_sams_are_named_by_their_weights():
    own, drawn = encoders.sam("tiny"), encoders.sam("tiny", "none", 64)
    assert (own.about.name, own.about.look, own.about.image_size) == ("SAM tiny", "sam", 256)
    assert (drawn.about.name, drawn.about.look, drawn.about.digest) == ("random SAM tiny", "random", "random")
    assert own.about.effective_windows == [8, 8, 0] * 4
    assert drawn.about.windows == (8, 8, 0) * 4 and drawn.about.effective_windows == [0] * 12
    assert drawn.about.real(0).sum() == 16 and drawn.about.real(2) is None and own.about.real(0) is None


@pytest.fixture
def cell(tmp_path):
    """A cell's folder with trained parameters that differ from the initial ones."""

    def make(method):
        folder = tmp_path / method
        folder.mkdir()
        context = Context(backbone="tiny", image_size=64)
        model = create(method, {}).build(context)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
        card = {
            "method": {"name": method, "parameters": {}},
            "context": {"backbone": "tiny", "checkpoint": "auto", "image_size": 64},
            "backbone_digest": encoders.sam("tiny").about.digest,
        }
        delta.save(model, folder, card)
        return folder

    torch.manual_seed(0)
    return make


def test_a_cells_encoder_has_its_trained_parameters(cell):
    folder = cell("lora")
    encoder = encoders.of_cell(folder, name="LoRA", method="lora", warnings=("PARTIAL DATA.",))
    about, frozen = encoder.about, encoders.sam("tiny", "auto", 64)
    assert (about.cell, about.look, about.image_size, about.warnings) == ("lora", "lora", 64, ("PARTIAL DATA.",))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert not np.allclose(distances(encoder, image)[..., 0], distances(frozen, image)[..., 0])


def test_what_is_shown_of_a_side_network_is_said(cell):
    encoder = encoders.of_cell(cell("lst"), name="LST", method="lst")
    assert encoder.about.warnings == ("LST: this is the encoder that its side network reads, not that network.",)


def test_cells_that_cannot_be_opened(cell, tmp_path):
    folder = cell("bitfit")
    card = json.loads((folder / delta.CARD).read_text())
    (folder / delta.CARD).write_text(json.dumps({**card, "backbone_digest": "0" * 64}))
    with pytest.raises(delta.AdapterError, match=r"was trained on tiny \(auto, digest 000000000000\)"):
        encoders.of_cell(folder, name="BitFit", method="bitfit")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        encoders.of_cell(folder, name="BitFit", method="bitfit")
