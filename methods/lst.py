"""Ladder Side-Tuning (Sung et al. 2022, arXiv:2206.06522): a small network beside the backbone is trained.

The paper says that the side network is a ViT-Tiny fused "at the global attention layers of SAM"; its count leaves
few structures, of which this one is the most natural (inferred). The side network is an image encoder like SAM's,
of ViT-Tiny's dimensions, with its own patch embedding, positions and neck. The outputs of the backbone's global
blocks are brought to its width and each is added to its tokens before its own global block of the same rank, so
that this block is the first to attend over both. The decoder gets the sum of both necks' outputs; the last
normalisation of the side's neck starts with weight zero, so that the first output is exactly the frozen SAM's.

No gradient needs the backbone, which runs without a graph: that is what LST saves. Trained parameters beside the
decoder on vit_h at 1024 pixels: 7,005,120 of the side network and 983,808 of the four fusions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, Embedding, SamMethod, register
from methods.sam.checkpoints import CheckpointError, cache_folder
from methods.sam.encoder import ImageEncoder
from methods.sam.model import SamSegmenter
from methods.sam.sizes import Size, size_of
from methods.sam.weights import read_weights

AUGREG = "timm/vit_tiny_patch16_224.augreg_in21k"
FILE = "vit_tiny_patch16_224.augreg_in21k.safetensors"
VIT_TINY_WIDTH = 192
RANDOM_INSTEAD = 'Set side_weights = "random" to train the side network from scratch.'


def side_size(backbone: Size) -> Size:
    """ViT-Tiny's dimensions, but at most a quarter of the backbone's width and no more blocks than it has.

    The side has as many global blocks as the backbone, evenly spread; window and patch are the backbone's.
    """
    width, depth, fusions = (
        min(VIT_TINY_WIDTH, backbone.width // 4),
        min(12, backbone.depth),
        len(backbone.global_blocks),
    )
    return replace(
        backbone,
        width=width,
        depth=depth,
        heads=max(heads for heads in (1, 2, 3) if width % heads == 0),
        global_blocks=tuple(depth * rank // fusions - 1 for rank in range(1, fusions + 1)),
    )


class SideNetwork(nn.Module):
    """The network beside the backbone; fills ``sam.side``.

    Args:
        backbone: the backbone's dimensions; its global blocks must be among the encoder's ``taps``.
        image_size: side of the square input in pixels.
    """

    def __init__(self, backbone: Size, image_size: int) -> None:
        super().__init__()
        size = side_size(backbone)
        self.global_blocks = size.global_blocks
        self.encoder = ImageEncoder(size, image_size)
        self.fusions = nn.ModuleList(nn.Linear(backbone.width, size.width) for _ in size.global_blocks)
        nn.init.trunc_normal_(self.encoder.pos_embed, std=0.02)
        nn.init.zeros_(self.encoder.neck[-1].weight)

    def forward(self, images: Tensor, embedding: Embedding) -> Tensor:
        """What the decoder gets, (B, C, h, w), from normalised images (B, 3, S, S) and the backbone's embedding."""
        taps = zip(self.global_blocks, self.fusions, embedding.taps, strict=True)
        additions = {index: fuse(tap) for index, fuse, tap in taps}
        x = self.encoder.patch_embed(images) + self.encoder.pos_embed
        for index, block in enumerate(self.encoder.blocks):
            x, _ = block(x + additions[index] if index in additions else x)
        return embedding.features + self.encoder.neck(x.permute(0, 3, 1, 2))


@register("lst")
class LST(SamMethod):
    """A trained side network of ViT-Tiny's size that reads the frozen backbone's global blocks.

    ``side_weights`` "auto", the default, is "augreg" beside vit_b, vit_l and vit_h and "random" beside narrower
    backbones, whose side is narrower than any pre-trained one. "augreg" starts its patch embedding, positions and
    blocks from timm's ViT-Tiny, pre-trained on ImageNet-21k and Apache-2.0, downloaded into the cache or found there as
    :data:`FILE`. That one saw images normalised to -1..1; here it gets SAM's normalisation and adapts.
    """

    title: ClassVar[str] = "LST"
    evidence: ClassVar[str] = "inferred"
    paper_trainable_m: ClassVar[float | None] = 11.49
    starts_as_sam: ClassVar[bool] = True
    side_weights: Literal["auto", "augreg", "random"] = "auto"

    def caveats(self, context: Context) -> tuple[str, ...]:
        return () if self._pretrained(context) else ("its side network starts from random weights",)

    def _pretrained(self, context: Context) -> bool:
        """Whether the side starts from ViT-Tiny: a matter of settings, never of what can be downloaded today."""
        if self.side_weights == "auto":
            return side_size(size_of(context.backbone)).width == VIT_TINY_WIDTH
        return self.side_weights == "augreg"

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        side = side_size(size)
        fusions = len(size.global_blocks) * (size.width + 1) * side.width
        return side.encoder_parameters(context.image_size) + fusions

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        """See the base class.

        Raises:
            CheckpointError: the side's pre-trained weights cannot be had or do not fit.
        """
        size = size_of(context.backbone)
        sam.image_encoder.taps = size.global_blocks
        sam.side = SideNetwork(size, context.image_size)
        if self._pretrained(context) and not sam.side.encoder.pos_embed.is_meta:  # counting needs no values
            start_from_timm(sam.side.encoder, augreg_weights(), AUGREG)


def augreg_weights() -> dict[str, Tensor]:
    """The state dict of timm's pre-trained ViT-Tiny from the cache, or downloaded into Hugging Face's.

    Raises:
        CheckpointError: it is not there and cannot be downloaded.
    """
    file = cache_folder() / "checkpoints" / FILE
    if file.is_file():
        return read_weights(file, None)
    from timm.models import load_state_dict_from_hf

    try:
        return load_state_dict_from_hf(AUGREG)
    except Exception as error:  # the client's failures have no common type
        raise CheckpointError(
            f"cannot download {AUGREG} for the side network ({type(error).__name__}).\n"
            f"  Get the file by hand, https://huggingface.co/{AUGREG}/resolve/main/model.safetensors,\n"
            f"  and save it as {file}. {RANDOM_INSTEAD}"
        ) from error


def start_from_timm(encoder: ImageEncoder, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a timm vision transformer into an image encoder.

    Its positions are resized to the encoder's grid, its class token and final norm have no counterpart. The
    encoder's relative positions become zero, which is neutral; its neck stays as it is.

    Args:
        encoder: changed in place.
        weights: the state dict of a ``VisionTransformer`` with a class token.
        source: where they come from, for messages.

    Raises:
        CheckpointError: other dimensions.
    """
    mapped = {
        name.replace("mlp.fc", "mlp.lin"): value
        for name, value in weights.items()
        if name.startswith(("patch_embed.", "blocks."))
    }
    if "pos_embed" in weights:
        mapped["pos_embed"] = _resize_positions(weights["pos_embed"][:, 1:], encoder.pos_embed.shape[1])
    own = {name: p for name, p in encoder.named_parameters() if not name.startswith("neck.")}
    relative = {name for name in own if "rel_pos" in name}
    expected = {name: tuple(p.shape) for name, p in own.items() if name not in relative}
    found = {name: tuple(value.shape) for name, value in mapped.items()}
    if found != expected:
        first = next(name for name in sorted(expected | found) if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"{source} does not fit this side network: {first} is {found.get(first, 'missing')} there and "
            f"{expected.get(first, 'missing')} here. ViT-Tiny fits beside vit_b, vit_l and vit_h. {RANDOM_INSTEAD}"
        )
    for name in relative:
        nn.init.zeros_(own[name])
    encoder.load_state_dict(mapped, strict=False)


def _resize_positions(table: Tensor, grid: int) -> Tensor:
    """(1, n * n, C) -> (1, grid, grid, C), bicubic."""
    side = math.isqrt(table.shape[1])
    maps = table.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.interpolate(maps, (grid, grid), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
