"""Build a SAM of any size at any input size, with official, own or random weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context
from methods.randomness import key
from methods.sam.checkpoints import resolve
from methods.sam.decoder import ReducedMaskDecoder
from methods.sam.encoder import ImageEncoder
from methods.sam.model import SamSegmenter
from methods.sam.sizes import Size, size_of

# A random backbone stands in for a pre-trained one, so it is the same for every seed of a cell.
RANDOM_BACKBONE_SEED = 0
CLASS_HEAD = 1  # gives the class head draws of its own: what methods add starts from the seed itself


def parts(size: Size, image_size: int) -> nn.ModuleDict:
    """SAM's three parts under segment_anything's names, with the complete four-token decoder."""
    width, grid = size.decoder_width, size.grid(image_size)
    return nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(size, image_size),
            "prompt_encoder": PromptEncoder(
                embed_dim=width,
                image_embedding_size=(grid, grid),
                input_image_size=(image_size, image_size),
                mask_in_chans=16,
            ),
            "mask_decoder": MaskDecoder(
                transformer_dim=width,
                transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=8 * width, num_heads=8),
                iou_head_hidden_dim=width,
            ),
        }
    )


def native_shapes(backbone: str) -> dict[str, torch.Size]:
    """Names and shapes of a checkpoint of this size."""
    size = size_of(backbone)
    with torch.device("meta"):
        return {name: value.shape for name, value in parts(size, size.native).state_dict().items()}


def resize_position_tables(state: Mapping[str, Tensor], size: Size, image_size: int) -> dict[str, Tensor]:
    """Interpolate a checkpoint's position tables to another input size.

    The absolute table is resized bicubically; the relative tables of global blocks linearly, as
    segment_anything does at run time. Windows keep their size, hence also their tables.
    """
    grid, resized = size.grid(image_size), dict(state)
    if image_size == size.native:
        return resized
    table = state["image_encoder.pos_embed"].permute(0, 3, 1, 2).float()
    table = F.interpolate(table, (grid, grid), mode="bicubic", align_corners=False)
    resized["image_encoder.pos_embed"] = table.permute(0, 2, 3, 1).contiguous()
    for block in size.global_blocks:
        for axis in "hw":
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            table = F.interpolate(state[name].float().t()[None], 2 * grid - 1, mode="linear")
            resized[name] = table[0].t().contiguous()
    return resized


def random_parts(size: Size, image_size: int, seed: int = RANDOM_BACKBONE_SEED) -> nn.ModuleDict:
    """A SAM with random weights, always the same ones for a seed; its positions are random too, not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = parts(size, image_size)
        for name, table in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                nn.init.trunc_normal_(table, std=0.02)
    return sam


def build_parts(context: Context, *, random_seed: int = RANDOM_BACKBONE_SEED) -> nn.ModuleDict:
    """SAM's parts with the context's weights at its image size, with the complete decoder.

    Args:
        context: backbone, checkpoint and size.
        random_seed: draws the weights where the checkpoint is "none".

    Raises:
        bench.registry.UnknownName: no such backbone or checkpoint.
        methods.sam.checkpoints.CheckpointError: the file is not the checkpoint of this backbone.
        ValueError: an image size that the patches do not divide.
    """
    size = size_of(context.backbone)
    checkpoint = resolve(context.backbone, context.checkpoint)
    if checkpoint.random:
        return random_parts(size, context.image_size, random_seed)
    state = checkpoint.load(native_shapes(context.backbone))
    with torch.device("meta"):
        sam = parts(size, context.image_size)
    sam.load_state_dict(resize_position_tables(state, size, context.image_size), assign=True)
    return sam


def build_segmenter(context: Context, *, random_seed: int = RANDOM_BACKBONE_SEED) -> SamSegmenter:
    """A frozen SAM with a trainable reduced decoder, on the CPU (or under ``torch.device("meta")``).

    For several classes the decoder has ``context.mask_tokens`` mask tokens and a class head, whose initial values
    derive from ``context.seed``. Takes and raises what :func:`build_parts` does.
    """
    sam = build_parts(context, random_seed=random_seed)
    tokens = context.mask_tokens if context.num_classes > 1 else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(context.seed, CLASS_HEAD))
        decoder = ReducedMaskDecoder(sam["mask_decoder"], tokens, context.num_classes)
    return SamSegmenter(
        sam["image_encoder"],
        sam["prompt_encoder"],
        decoder,
        image_size=context.image_size,
        num_classes=context.num_classes,
    )
