"""SSF (Lian et al. 2022, arXiv:2210.08823): every layer's output is scaled and shifted, channel by channel.

As in the authors' ViT: after the patch embedding and, in every block, after norm1, qkv, proj, norm2, lin1 and lin2.
The paper's count needs more than these: 4.41 M with them, 4.42 M printed. The authors edit the MLP class, which
SAM's mask decoder shares, so the best explanation is that its two MLPs were scaled and shifted too (inferred).
Those layers are trained anyway; without (``decoder_mlp = False``) the model expresses the same.
Added parameters on vit_h: 903,680 in the encoder, 9,216 in the decoder; ``neck`` adds 2,048.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.sam.encoder import Block
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of

INITIAL_DEVIATION = 0.02

Site = tuple[nn.Module, str, int]  # a module, its layer's name, the channels of the layer's output


class ScaleShift(nn.Module):
    """A layer's output, scaled and shifted: y = base(x) * scale + shift.

    Args:
        base: the layer before it; its ``in_features``, if any, are taken over.
        channels: channels of its output.
        axis: where they lie, counted from the end: -1 for tokens, -3 for maps (B, C, H, W).
        init: "official" draws scale from N(1, 0.02) and shift from N(0, 0.02), as the authors do; "identity" leaves
            ``base``'s output unchanged at first.
    """

    def __init__(self, base: nn.Module, channels: int, *, axis: int = -1, init: str = "official") -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = getattr(base, "in_features", None), channels
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self._shape = (channels, *[1] * (-1 - axis))
        if init == "official":
            nn.init.normal_(self.scale, mean=1.0, std=INITIAL_DEVIATION)
            nn.init.normal_(self.shift, std=INITIAL_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to(self.base(x))

    def forward_tokens(self, x: Tensor) -> Tensor:
        """The same for tokens without a place on the grid (n, C)."""
        return self._apply_to(getattr(self.base, "forward_tokens", self.base)(x))

    def fold(self) -> nn.Module:
        """The base with scale and shift in its weight and bias, see :mod:`methods.merge`.

        Raises:
            ValueError: it has no bias that could hold the shift.
        """
        layer = next(part for part in self.base.modules() if hasattr(part, "weight"))
        if layer.bias is None:
            raise ValueError(f"{type(layer).__name__} has no bias, so that SSF's shift after it has no place in SAM")
        layer.weight.mul_(self.scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.mul_(self.scale).add_(self.shift)
        return self.base

    def _apply_to(self, y: Tensor) -> Tensor:
        # In half precision a scale near one would lose its first steps; only the result is rounded.
        return (y * self.scale.view(self._shape) + self.shift.view(self._shape)).to(y.dtype)


@register("ssf")
class SSF(BlockwiseMethod):
    """Scales and shifts after every layer; with the official ``init`` it does not start as the frozen SAM.

    ``decoder_mlp`` includes the MLPs of the mask decoder, ``neck`` the encoder's neck, which has no counterpart in
    the authors' models. ``last_k`` takes away sites of the encoder only.
    """

    title: ClassVar[str] = "SSF"
    evidence: ClassVar[str] = "inferred"
    paper_trainable_m: ClassVar[float | None] = 4.42
    decoder_mlp: bool = True
    neck: bool = False
    init: Literal["official", "identity"] = "official"

    def added_parameters(self, context: Context) -> int:
        """In the encoder; the decoder's share, 4 * (2,048 + 256) at its full width, counts with the decoder."""
        size = size_of(context.backbone)
        patches = 1 if self.last_k is None else 0
        blocks = 2 * (11 * self.num_blocks(context) + patches) * size.width
        return blocks + (8 * size.decoder_width if self.neck else 0)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        width = sam.image_encoder.pos_embed.shape[-1]
        sites: list[Site] = [(sam.image_encoder, "patch_embed", width)] if self.last_k is None else []
        sites += _block_sites(self.blocks(sam, context), width)
        sites += _decoder_sites(sam) if self.decoder_mlp else ()
        for owner, name, channels in sites:
            setattr(owner, name, ScaleShift(getattr(owner, name), channels, init=self.init))
        if self.neck:
            neck, channels = sam.image_encoder.neck, sam.image_encoder.neck[0].out_channels
            for index, layer in enumerate(neck):
                neck[index] = ScaleShift(layer, channels, axis=-3, init=self.init)


def _block_sites(blocks: Iterable[Block], width: int) -> Iterator[Site]:
    for block in blocks:
        yield block, "norm1", width
        yield block.attn, "qkv", 3 * width
        yield block.attn, "proj", width
        yield block, "norm2", width
        yield block.mlp, "lin1", 4 * width
        yield block.mlp, "lin2", width


def _decoder_sites(sam: SamSegmenter) -> Iterator[Site]:
    for layer in sam.mask_decoder.transformer.layers:
        yield layer.mlp, "lin1", layer.mlp.lin1.out_features
        yield layer.mlp, "lin2", layer.mlp.lin2.out_features
