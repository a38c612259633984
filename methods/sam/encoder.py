"""SAM's image encoder (Kirillov et al. 2023; a ViTDet backbone) with named slots for methods.

Modules and parameters carry segment_anything's names, so official checkpoints load unchanged. A method
changes the encoder only by filling slots of a block:

* ``attn.qkv``: replace the projection, keeping the old one inside;
* ``extra_kv``: a module that returns (n, C) tokens, which join every window's keys and values;
* ``before_block``: applied to the block's input (B, H, W, C);
* ``after_attention``, ``after_mlp``: applied to the branch's output before it joins the residual;
* ``beside_attention``, ``beside_mlp``: modules that get the branch's input before and after its normalisation, two maps
  (B, H, W, C), and return what joins the residual too;

and of the encoder as a whole:

* ``block_prompts``: a module that takes the images and their patch embeddings (B, H, W, C), without positions, and
  yields for each block what is added to its input, (B, H, W, C) or a number;
* ``taps``: indices of blocks whose outputs are handed out, for networks beside the encoder.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.image_encoder import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Embedding, Execution
from methods.routing import Decision, statistics
from methods.sam.attention import Attention
from methods.sam.execution import run
from methods.sam.sizes import Size


def partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, window, window, C); the right and lower border is padded with zeros."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    x = x.reshape(batch, x.shape[1] // window, window, x.shape[2] // window, window, channels)
    return x.transpose(2, 3).flatten(1, 2)


def unpartition(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`partition`, padding cut off."""
    batch, _, window, _, channels = windows.shape
    rows, columns = -(-height // window), -(-width // window)
    x = windows.unflatten(1, (rows, columns)).transpose(2, 3)
    return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


class Block(nn.Module):
    """A transformer block over the token map; ``window`` 0 attends over the whole map.

    Attributes:
        execution: how it is run; :func:`set_execution` sets it.
    """

    def __init__(self, width: int, heads: int, *, window: int, grid: int) -> None:
        super().__init__()
        self.window = window
        self.execution = Execution()
        side = window or grid
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, (side, side), windowed=bool(window))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=width, mlp_dim=4 * width)
        self.extra_kv: nn.Module | None = None
        self.before_block: nn.Module = nn.Identity()
        self.after_attention: nn.Module = nn.Identity()
        self.after_mlp: nn.Module = nn.Identity()
        self.beside_attention: nn.Module | None = None
        self.beside_mlp: nn.Module | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, list[Decision]]:
        """(B, H, W, C) -> the same shape, and how the routed layer decided, if there is one.

        Decisions are returned rather than left on the layer so that a checkpointed block, run again in the backward
        pass, hands out values with a graph.
        """
        return run(self, x, self.execution)

    def transform(self, x: Tensor) -> tuple[Tensor, list[Decision]]:
        """What :meth:`forward` returns, computed here and now."""
        x = self.before_block(x)
        height, width = x.shape[1:3]
        extra = None if self.extra_kv is None else self.norm1(self.extra_kv())
        tokens = self.norm1(x)
        if self.window:
            attended = unpartition(self.attn(partition(tokens, self.window), extra), height, width)
        else:
            attended = self.attn(tokens, extra)
        x = _joined(x, tokens, self.after_attention(attended), self.beside_attention)
        tokens = self.norm2(x)
        x = _joined(x, tokens, self.after_mlp(self.mlp(tokens)), self.beside_mlp)
        decisions = [getattr(layer, "decision", None) for layer in self.attn.qkv.modules()]
        return x, [decision for decision in decisions if decision is not None]


def _joined(x: Tensor, tokens: Tensor, branch: Tensor, beside: nn.Module | None) -> Tensor:
    """The residual sum of a branch and of what works beside it on ``x`` and its normalised ``tokens``."""
    return x + (branch if beside is None else branch + beside(x, tokens))


def set_execution(model: nn.Module, execution: Execution) -> None:
    """Have all blocks of a model run so, those of networks beside its encoder too."""
    for block in model.modules():
        if isinstance(block, Block):
            block.execution = execution
            block.attn.variant = execution.attention


class ImageEncoder(nn.Module):
    """Images (B, 3, S, S), normalised, to an embedding (B, decoder width, S / patch, S / patch)."""

    def __init__(self, size: Size, image_size: int) -> None:
        super().__init__()
        grid = size.grid(image_size)
        patch = (size.patch, size.patch)
        self.patch_embed = PatchEmbed(kernel_size=patch, stride=patch, embed_dim=size.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, size.width))
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, window=0 if i in size.global_blocks else size.window, grid=grid)
            for i in range(size.depth)
        )
        out = size.decoder_width
        self.neck = nn.Sequential(
            nn.Conv2d(size.width, out, kernel_size=1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out),
        )
        self.block_prompts: nn.Module | None = None
        self.taps: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> Embedding:
        patches = self.patch_embed(images)
        prompts = None if self.block_prompts is None else iter(self.block_prompts(images, patches))
        x = patches + self.pos_embed
        decisions, tapped = [], []
        for index, block in enumerate(self.blocks):
            x, decided = block(x if prompts is None else x + next(prompts))
            decisions += decided
            tapped += [x] if index in self.taps else []
        balance, counts = statistics(decisions) if decisions else (None, None)
        losses = {} if balance is None else {"balance": balance}
        return Embedding(self.neck(x.permute(0, 3, 1, 2)), losses, counts, tuple(tapped))
