"""Images and features of a linear probe: folders, crops, backbones, and what is stored of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from bench.machine import Machine
from bench.probing import backbones, store
from bench.probing.images import IMAGENET_COUNTS, DataError, centre, hold_out, open_folder, random_crop, read_batches
from bench.registry import UnknownName
from methods.base import Context
from methods.sam import mae
from methods.sam.build import build_parts
from methods.sam.checkpoints import CheckpointError

MACHINE = Machine("cpu", "fp32", 4)


def fill(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Noise of different sizes and shapes, in class folders."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shape = (40 + 3 * number, 30 + 7 * (number % 5), 3)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "birds" / "train", {"crow": 7, "wren": 4})
    fill(tmp_path / "birds" / "val", {"crow": 2, "wren": 3}, seed=1)
    return tmp_path / "birds"


def tiny(size: int = 32, weights: str = "none") -> backbones.Backbone:
    return backbones.load("sam_tiny", weights, image_size=size, pool="mean", machine=MACHINE)


def test_a_folder_is_listed_in_order_with_its_own_name(root):
    folder = open_folder(root)
    assert folder.name == "birds"
    assert folder.classes == ("crow", "wren")
    assert folder.val.names == ("crow/0.png", "crow/1.png", "wren/0.png", "wren/1.png", "wren/2.png")
    assert folder.val.labels.tolist() == [0, 0, 1, 1, 1]


def test_only_the_whole_of_imagenet_is_called_imagenet(root, monkeypatch):
    folder = open_folder(root)
    monkeypatch.setitem(IMAGENET_COUNTS, "train", 11)
    monkeypatch.setitem(IMAGENET_COUNTS, "val", 5)
    assert folder.name == "birds"
    names = timm.data.ImageNetInfo("imagenet-1k").label_names()
    whole = type(folder)(folder.train, folder.val, tuple(sorted(names)))
    assert whole.name == "imagenet_1k"
    monkeypatch.setitem(IMAGENET_COUNTS, "train", 12)
    part = type(folder)(folder.train, folder.val, tuple(names))
    assert part.name == "birds"


def test_digest_is_of_names_and_sizes_fingerprint_also_of_times(root):
    before = open_folder(root).train
    again = open_folder(root).train
    assert (again.digest, again.fingerprint) == (before.digest, before.fingerprint)
    path = root / "train/crow/3.png"
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, (1, 1))
    touched = open_folder(root).train
    assert touched.digest == before.digest
    assert touched.fingerprint != before.fingerprint
    path.write_bytes(content + b"x")
    assert open_folder(root).train.digest != before.digest


def test_folders_that_cannot_be_probed_are_refused_with_what_is_wanted(root, tmp_path):
    with pytest.raises(DataError, match="--data: there is no folder"):
        open_folder(tmp_path / "nowhere")
    (root / "val" / "owl").mkdir()
    with pytest.raises(DataError, match="no image in owl"):
        open_folder(root)
    (root / "val" / "owl").rename(root / "train" / "emu")
    (root / "train/crow/0.png").rename(root / "train/emu/0.png")
    with pytest.raises(DataError, match=r"train has 3 classes and val 2, and they differ: emu only in train"):
        open_folder(root)
    flat = tmp_path / "flat"
    fill(flat / "train", {"a": 2, "b": 2})
    (flat / "val").mkdir()
    with pytest.raises(DataError, match=r"val holds no class folders.*have to be sorted"):
        open_folder(flat)
    (flat / "val").rmdir()
    with pytest.raises(DataError, match=r"no folder .*val\. A probe reads"):
        open_folder(flat)
    fill(tmp_path / "one" / "train", {"a": 2})
    fill(tmp_path / "one" / "val", {"a": 2})
    with pytest.raises(DataError, match="two or more"):
        open_folder(tmp_path / "one")


def test_held_out_images_are_a_share_of_each_class_and_always_the_same(root):
    images = open_folder(root).train
    training, held = hold_out(images, 0.3)
    assert sorted(training + held) == list(range(11))
    assert [images.labels[held].tolist().count(label) for label in (0, 1)] == [2, 1]
    assert (training, held) == hold_out(images, 0.3)
    assert [len(part) for part in hold_out(images, 0.001)] == [9, 2]
    with pytest.raises(DataError, match="train/crow has 7 images"):
        hold_out(images, 0.99)


def test_the_centre_is_that_of_the_usual_transform(root):
    images = open_folder(root).train
    usual = transforms.Compose(
        [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )
    with Image.open(root / "train" / images.names[5]) as file:
        expected = np.asarray(usual(file.convert("RGB")))
    assert np.array_equal(images.read(5, centre(224)).permute(1, 2, 0).numpy(), expected)


def test_random_crops_are_functions_of_seed_epoch_and_index_whatever_reads_them(root):
    images = open_folder(root).train
    order = [3, 9, 0, 7, 5]
    alone, many = (
        torch.cat(list(read_batches(images, order, batch, random_crop(24, 0, 6), workers=workers)))
        for batch, workers in ((5, 1), (2, 4))
    )
    assert torch.equal(alone, many)
    other_epoch = images.read(3, random_crop(24, 0, 7))
    other_seed = images.read(3, random_crop(24, 1, 6))
    assert not torch.equal(alone[0], other_epoch)
    assert not torch.equal(alone[0], other_seed)


def test_random_crops_are_8_to_100_percent_of_the_image_and_mirrored_half_of_the_time():
    across, down = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([across, down, 0 * across], -1).astype(np.uint8))
    shares, mirrored = [], 0
    for index in range(200):
        square = np.asarray(random_crop(50, 0, 0)(image, index)).astype(int)
        width, height = np.ptp(square[25, :, 0]), np.ptp(square[:, 25, 1])
        shares.append(width * height / (200 * 100))
        mirrored += square[25, 0, 0] > square[25, -1, 0]
    assert 0.06 < min(shares) < 0.15
    assert 0.6 < max(shares) <= 1
    assert 70 < mirrored < 130


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_broken_image_is_named(root, content):
    path = root / "val/wren/1.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(DataError, match=r"val/wren/1\.png cannot be read .*same command again"):
        list(read_batches(open_folder(root).val, range(5), 2, centre(16), workers=2))


def test_sam_features_are_the_average_of_the_last_block_before_the_neck():
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = tiny(64, "auto")(images)
    encoder = build_parts(Context(backbone="tiny", image_size=64))["image_encoder"].eval()
    kept = []
    encoder.blocks[-1].register_forward_hook(lambda module, given, made: kept.append(made[0]))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        encoder((images / 255 - mean) / deviation)
    assert kept[0].shape == (3, 4, 4, 192)
    torch.testing.assert_close(found, kept[0].flatten(1, 2).mean(1), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory) -> Path:
    """A ViT-B with random weights in the layout of a pre-training run of MAE, decoder included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = timm.create_model(mae.IN_TIMM["vit_b"], num_classes=0).state_dict()
        state["pos_embed"] = torch.randn_like(state["pos_embed"])
    extra = {"mask_token": torch.ones(1, 1, 512), "decoder_embed.weight": torch.ones(2, 2)}
    path = tmp_path_factory.mktemp("mae") / "mae.pth"
    torch.save({"model": {**state, **extra}}, path)
    return path


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_mae_features_come_from_the_weights_of_the_file(mae_file, pool):
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    backbone = backbones.load("mae_vit_b", str(mae_file), image_size=224, pool=pool, machine=MACHINE)
    vit = timm.create_model("vit_base_patch16_224", num_classes=0)
    state = torch.load(mae_file)["model"]
    vit.load_state_dict(
        {key: value for key, value in state.items() if key not in ("mask_token", "decoder_embed.weight")}
    )
    kept = []
    vit.blocks[-1].register_forward_hook(lambda module, given, made: kept.append(made))
    normalised = transforms.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)(images / 255)
    with torch.no_grad():
        token = vit.eval()(normalised)
    expected = token if pool == "token" else kept[0][:, 1:].mean(1)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    assert not backbone.random
    assert backbone.checkpoint == "mae.pth"
    assert len(backbone.digest) == 64


def test_the_position_table_of_mae_follows_the_image_size(mae_file):
    backbone = backbones.load("mae_vit_b", str(mae_file), image_size=32, pool="mean", machine=MACHINE)
    table, stored = backbone.model.vit.pos_embed, torch.load(mae_file)["model"]["pos_embed"]
    assert table.shape == (1, 5, 768)
    assert torch.equal(table[:, 0], stored[:, 0])
    assert backbone(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 768)


def test_unusable_weights_and_settings_are_refused(mae_file, tmp_path, monkeypatch):
    def load(name, weights="none", *, image_size=32, pool="mean"):
        return backbones.load(name, weights, image_size=image_size, pool=pool, machine=MACHINE)

    with pytest.raises(UnknownName, match="Did you mean 'sam_vit_b'"):
        load("vit_b")
    with pytest.raises(ValueError, match="no class token"):
        load("sam_tiny", pool="token")
    for name in ("sam_tiny", "mae_vit_b"):
        with pytest.raises(ValueError, match="multiple of the patch size"):
            load(name, image_size=100)
    with pytest.raises(CheckpointError, match="is no file"):
        load("mae_vit_b", str(tmp_path / "gone.pth"))
    (tmp_path / "mae.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="ends in none of"):
        load("mae_vit_b", str(tmp_path / "mae.bin"))
    with pytest.raises(CheckpointError, match="there is no file"):
        load("sam_tiny", str(tmp_path / "gone.pth"))
    with pytest.raises(CheckpointError, match=r"is no MAE of width 768 .* tensors differ"):
        load("mae_vit_b", str(_saved(tmp_path, nn.Linear(2, 2))))

    def offline(url, target, **given):
        raise mae.DownloadError("no network")

    monkeypatch.setattr(mae, "download", offline)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"(?s)no network.*mae_pretrain_vit_base\.pth.*put it into"):
        load("mae_vit_b", "auto")


def _saved(folder: Path, model: nn.Module) -> Path:
    torch.save(model.state_dict(), folder / "other.pth")
    return folder / "other.pth"


def test_stored_features_are_those_computed_and_are_not_computed_again(root, monkeypatch):
    images, backbone = open_folder(root).train, tiny()
    first = store.features_of(images, backbone, workers=1)
    squares = torch.stack([images.read(index, centre(32)) for index in range(11)])
    assert torch.equal(first, torch.cat([backbone(batch) for batch in squares.split(4)]))
    monkeypatch.setattr(store, "read_batches", lambda *given, **options: pytest.fail("computed again"))
    assert torch.equal(store.features_of(images, tiny(), workers=3), first)


def test_whatever_changes_features_begins_another_file(root):
    images = open_folder(root).train
    same, sized, other = (store.file_of(images, each) for each in (tiny(), tiny(48), tiny(32, "auto")))
    fewer = store.file_of(images.subset(range(10)), tiny())
    shuffled = store.file_of(images.subset([*range(1, 11), 0]), tiny())
    assert len({same, sized, other, fewer, shuffled}) == 5
    assert store.file_of(images, tiny()) == same


@pytest.mark.parametrize("left", [0, 5, 9])
def test_a_stopped_run_is_continued_at_its_last_whole_batch(root, left, monkeypatch):
    images, backbone = open_folder(root).train, tiny()
    whole = store.features_of(images, backbone, workers=1).clone()
    path, row = store.file_of(images, backbone), 4 * 192
    path.rename(path.with_suffix(".part"))
    with path.with_suffix(".part").open("r+b") as file:
        file.truncate(left * row + 100)
    read, orders = store.read_batches, []
    monkeypatch.setattr(
        store, "read_batches", lambda images, order, *given, **options: (
            orders.append(order), read(images, order, *given, **options)
        )[1],
    )  # fmt: skip
    assert torch.equal(store.features_of(images, backbone, workers=1), whole)
    assert orders == [range(left // 4 * 4, 11)]
    assert not path.with_suffix(".part").exists()


def test_what_was_computed_before_a_broken_image_stays(root):
    path = root / "train/wren/3.png"
    content = path.read_bytes()
    path.write_bytes(b"broken")
    images, backbone = open_folder(root).train, tiny()
    with pytest.raises(DataError, match="wren/3"):
        store.features_of(images, backbone, workers=1)
    assert store.file_of(images, backbone).with_suffix(".part").stat().st_size == 8 * 4 * 192
    path.write_bytes(content)
    assert store.features_of(open_folder(root).train, backbone, workers=1).shape == (11, 192)


def test_a_file_of_the_wrong_length_is_made_anew(root):
    images, backbone = open_folder(root).val, tiny()
    first = store.features_of(images, backbone, workers=1).clone()
    path = store.file_of(images, backbone)
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(store.features_of(images, backbone, workers=1), first)
