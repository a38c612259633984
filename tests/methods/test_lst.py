"""LST: the side network against segment_anything's modules, its weights from timm, and no graph in the backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from methods import Context, Model, create
from methods.compose import ParameterError
from methods.lst import AUGREG, FILE, side_size, start_from_timm
from methods.sam.checkpoints import CheckpointError
from methods.sam.encoder import ImageEncoder
from methods.sam.sizes import SIZES, Size

FOUR_TAPS = Size(width=64, depth=8, heads=4, global_blocks=(1, 3, 5, 7), window=3, decoder_width=32, native=64)


@pytest.fixture(scope="module")
def vit_tiny() -> nn.Module:
    """timm's ViT-Tiny at its own 224 pixels, with random weights."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)


def build(backbone: str, image_size: int = 64, seed: int = 0, **parameters: object) -> Model:
    parameters = {"side_weights": "random", **parameters}
    context = Context(backbone=backbone, checkpoint="none", image_size=image_size, seed=seed)
    return create("lst", parameters).build(context)


def pixels(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", ["vit_h", "vit_l", "vit_b"])
def test_beside_a_published_backbone_stands_a_vit_tiny(backbone: str) -> None:
    expected = Size(width=192, depth=12, heads=3, global_blocks=(2, 5, 8, 11))
    assert side_size(SIZES[backbone]) == expected


def test_the_side_shrinks_with_the_backbone() -> None:
    size = side_size(SIZES["tiny"])
    assert (size.width, size.depth, size.heads, size.global_blocks, size.window) == (48, 12, 3, (2, 5, 8, 11), 8)


@pytest.mark.parametrize(("width", "heads"), [(768, 3), (192, 3), (64, 2), (28, 1)])
def test_the_sides_heads_divide_its_width(width: int, heads: int) -> None:
    size = side_size(Size(width=width, depth=6, heads=4, global_blocks=(2, 5)))
    assert (size.heads, size.width % size.heads, size.depth, size.global_blocks) == (heads, 0, 6, (2, 5))


def test_count() -> None:
    with torch.device("meta"):
        model = create("lst", {"side_weights": "augreg"}).build(Context(backbone="vit_h", checkpoint="none"))
    assert model.count() == {"trainable": 11_494_464, "total": 640_670_416 + 7_988_928}
    assert sum(p.numel() for p in model.side.encoder.parameters()) == 7_005_120


@torch.no_grad()
def test_equals_segment_anything_with_taps_added_by_hand(
    monkeypatch: pytest.MonkeyPatch, segment_anything: Callable, roughen: Callable
) -> None:
    monkeypatch.setitem(SIZES, "four_taps", FOUR_TAPS)
    model = roughen(build("four_taps")).double()
    images = (pixels(64) * 50 + 120).double()
    normalised = (images - model.pixel_mean) / model.pixel_std

    backbone = segment_anything(FOUR_TAPS, 64).image_encoder.double()
    backbone.load_state_dict(model.image_encoder.state_dict())
    side = segment_anything(side_size(FOUR_TAPS), 64).image_encoder.double()
    side.load_state_dict(model.side.encoder.state_dict())
    outputs: list[Tensor] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    features = backbone(normalised)
    for index, (of_side, of_backbone) in enumerate([(1, 1), (3, 3), (5, 5), (7, 7)]):
        addition = model.side.fusions[index](outputs[of_backbone])
        side.blocks[of_side].register_forward_pre_hook(lambda _, x, addition=addition: (x[0] + addition,))
    expected = features + side(normalised)
    assert torch.allclose(model.encode(images).features, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    assert (expected - features).abs().max() > 0.1 * features.abs().max()


def test_the_backbone_runs_without_a_graph(mini: str, batch: Callable, roughen: Callable) -> None:
    model = roughen(build(mini))
    assert not model.backbone_needs_grad and not model.encoder_constant
    graphs: dict[str, bool] = {}
    for name, block in [*model.image_encoder.named_modules(), ("side", model.side)]:
        block.register_forward_hook(
            lambda _, __, output, name=name: graphs.update(
                {name: any(t.requires_grad for t in output if isinstance(t, Tensor))}
            )
        )
    embedding = model.encode(batch()[0])
    assert embedding.features.requires_grad and embedding.taps == ()
    assert graphs.pop("side") and "blocks.2.mlp.lin2" in graphs
    assert not any(graphs.values())

    embedding.features.square().mean().backward()
    assert all(p.grad is None for p in model.image_encoder.parameters())
    assert all(p.grad is not None for p in model.side.parameters())


def test_at_the_first_step_only_the_last_normalisation_learns(mini: str, batch: Callable) -> None:
    model = build(mini)
    model.encode(batch()[0]).features.square().sum().backward()
    reached = {name for name, p in model.side.named_parameters() if p.grad.any()}
    assert reached == {"encoder.neck.3.weight", "encoder.neck.3.bias"}


def map_by_hand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {"fc1": "lin1", "fc2": "lin2"}
    mapped = {}
    for block in range(12):
        for layer in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            *lead, last = layer.split(".")
            for kind in ("weight", "bias"):
                target = ".".join(["blocks", str(block), *lead, renamed.get(last, last), kind])
                mapped[target] = state[f"blocks.{block}.{layer}.{kind}"]
    return mapped | {f"patch_embed.proj.{kind}": state[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")}


@pytest.mark.parametrize("side", [64, 224, 512])
def test_timms_weights_find_their_places(vit_tiny: nn.Module, side: int, bicubic: Callable) -> None:
    encoder = ImageEncoder(side_size(SIZES["vit_b"]), side)
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, 7.0)
    start_from_timm(encoder, vit_tiny.state_dict(), AUGREG)
    state = encoder.state_dict()
    for name, value in map_by_hand(vit_tiny.state_dict()).items():
        assert torch.equal(state.pop(name), value), name
    matrix = torch.from_numpy(bicubic(14, side // 16)).float()
    table = vit_tiny.pos_embed[0, 1:].view(14, 14, 192)
    expected = torch.einsum("ia,jb,abc->ijc", matrix, matrix, table)
    assert torch.allclose(state.pop("pos_embed")[0], expected, atol=1e-6)
    for name, value in state.items():
        assert name.startswith("neck.") or "rel_pos" in name
        assert (value == (0.0 if "rel_pos" in name else 7.0)).all(), name


@torch.no_grad()
def test_blocks_from_timm_answer_as_timms_do(roughen: Callable) -> None:
    torch.manual_seed(0)
    theirs = roughen(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)).eval()
    ours = ImageEncoder(side_size(SIZES["vit_b"]), 64)
    start_from_timm(ours, theirs.state_dict(), AUGREG)
    images = pixels(64)
    tokens = ours.patch_embed(images) + ours.pos_embed
    positioned = theirs.patch_embed(images) + theirs.pos_embed[:, 1:]
    assert torch.allclose(tokens.flatten(1, 2), positioned, atol=1e-5)
    for index in (2, 5, 8, 11):  # the blocks over the whole map, as all of timm's are
        expected = theirs.blocks[index](positioned)
        assert torch.allclose(ours.blocks[index](tokens)[0].flatten(1, 2), expected, atol=1e-4)


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vit_tiny: nn.Module) -> None:
    """timm's weights in the cache."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    save_file(vit_tiny.state_dict(), tmp_path / "checkpoints" / FILE)


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cached")
def test_a_file_of_timms_weights_starts_the_side(vit_tiny: nn.Module) -> None:
    state = vit_tiny.state_dict()
    random, loaded = build("vit_b"), build("vit_b", side_weights="augreg")
    for name, value in map_by_hand(state).items():
        assert torch.equal(loaded.side.encoder.state_dict()[name], value), name
    # What no file knows is drawn alike.
    for name, value in random.side.fusions.state_dict().items():
        assert torch.equal(loaded.side.fusions.state_dict()[name], value)
    assert all(p.requires_grad for p in loaded.side.parameters())
    assert loaded.count() == random.count()


@pytest.mark.usefixtures("no_cache")
def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str) -> dict[str, Tensor]:
        assert name == "timm/vit_tiny_patch16_224.augreg_in21k"
        raise ConnectionError("unreachable")

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", no_network)
    with pytest.raises(CheckpointError, match=r"augreg_in21k(?s:.)*save it as(?s:.)*side_weights = \"random\""):
        build("vit_b", side_weights="augreg")


@pytest.mark.usefixtures("no_cache")
def test_the_download_is_asked_for_once_and_used(monkeypatch: pytest.MonkeyPatch, vit_tiny: nn.Module) -> None:
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", lambda _: vit_tiny.state_dict())
    model = build("vit_b", side_weights="augreg")
    assert torch.equal(model.side.encoder.blocks[3].attn.qkv.weight, vit_tiny.blocks[3].attn.qkv.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("pos_embed"), r"pos_embed is missing there and \(1, 4, 4, 192\) here"),
        (lambda state: state.pop("blocks.5.mlp.fc1.bias"), r"blocks.5.mlp.lin1.bias is missing there and \(768,\)"),
        (
            lambda state: state.update({"blocks.12.norm1.bias": torch.zeros(192)}),
            "blocks.12.norm1.bias .* missing here",
        ),
    ],
)
def test_other_weights_are_refused(vit_tiny: nn.Module, change: Callable, message: str) -> None:
    state = dict(vit_tiny.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=f"(?s)own.pth does not fit.*{message}.*random"):
        start_from_timm(ImageEncoder(side_size(SIZES["vit_b"]), 64), state, "own.pth")


@pytest.mark.usefixtures("cached")
def test_a_narrow_side_takes_no_vit_tiny() -> None:
    with pytest.raises(CheckpointError, match=r"fits beside vit_b, vit_l and vit_h.*random"):
        build("tiny", side_weights="augreg")


def test_parameters_that_make_no_sense() -> None:
    with pytest.raises(ParameterError, match="side_weights = 'imagenet'"):
        create("lst", {"side_weights": "imagenet"})


def test_random_side_weights_are_said_wherever_they_are() -> None:
    """The default starts from ViT-Tiny where the side is as wide, whatever can be downloaded today."""
    wide, narrow = (Context(backbone=name, checkpoint="none", image_size=64) for name in ("vit_b", "tiny"))
    assert not create("lst").caveats(wide)
    assert "random weights" in create("lst").caveats(narrow)[0]
    assert create("lst", {"side_weights": "random"}).caveats(wide) == create("lora+lst").caveats(narrow)
