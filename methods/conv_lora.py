"""Conv-LoRA (Zhong et al. 2024, arXiv:2401.17868): LoRA with a mixture of multi-scale convolutions inside.

Between LoRA's two matrices a router sends each map of rank-r features to one convolution that works at
its own scale. Defaults follow AutoGluon's release, from which the printed numbers come:
y = base(x) + (alpha / r) B (z + E_chosen(z)), z = A x, with the expert chosen per attention window.
``variant="paper"`` follows the equations instead: no scaling, no residual z, no GELU, no floor under the
noise, no factor of 0.01 in the balance loss, one expert an image. Added parameters on vit_h: 514,560.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, register
from methods.blockwise import BlockwiseMethod
from methods.conv_experts import ScaledConvolutions
from methods.fused_experts import FusedConvolutions
from methods.lora import LoRALinear
from methods.randomness import normal
from methods.routing import Decision, choose, statistics
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of

NOISE_FLOOR = 1e-2  # added to the noise's deviation in the release
BALANCE_SCALE = 1e-2  # the factor inside the released balance loss, beside the paper's weight
OPTIONS = {
    "routing": ("moe", "sum"),
    "gate": ("window", "image"),
    "implementation": ("fused", "explicit"),
    "variant": ("released", "paper"),
}


class ConvLoRALinear(LoRALinear):
    """A linear layer on feature maps with a Conv-LoRA update.

    Usable alone on any vision transformer: input (..., H, W, C), where the first axis counts images and
    every further axis before H counts maps of that image (attention windows); (H, W, C) is one image. A
    sequence of tokens (B, N, C) has to be given its grid back first: ``x.unflatten(1, (H, W))``. Parameters: ``lora_A``
    (r, in), ``lora_B`` (out, r), ``gate`` and ``noise`` (r, E), ``experts.weight`` (E, r, r, 3, 3) and
    ``experts.bias`` (E, r). Where nothing is chosen (one expert, or ``routing="sum"``) there is no gate.

    After a call ``balance_loss`` is the load-balancing loss per image, (B,), unweighted, or None outside
    training, and ``expert_counts`` how many maps went to each expert, (B, E), or None without a gate; for many layers
    at once :func:`methods.routing.statistics` of what they leave as ``decision``.

    Args:
        base: the layer to adapt.
        rank: channels r between A and B.
        num_experts: E, with scales 1..E unless ``scales`` is given.
        alpha: numerator of the update's scaling.
        top_k: experts a map; more than one are summed with their gate weights.
        routing: "moe" routes, "sum" adds all experts up (the paper's multi-scale variant).
        scales: the experts' scales; their number replaces ``num_experts``.
        gate: choose an expert per "window" (release) or per "image" (the paper's notation); per image the mean is over
            all windows, the zeros of their padding included, as in the release within a window.
        implementation: "explicit" resizes and convolves; "fused" gives the same numbers without resizing.
        variant: "released" or "paper", see the module's text.
        grid: (height, width) of the maps it will see, for which "fused" keeps its tables ready; other sizes work too.
        maps: how many of them an image has, which lets a model draw the noise of all layers at once.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int = 3,
        num_experts: int = 8,
        alpha: float = 32.0,
        top_k: int = 1,
        routing: str = "moe",
        scales: tuple[int, ...] | None = None,
        gate: str = "window",
        implementation: str = "fused",
        variant: str = "released",
        grid: tuple[int, int] | None = None,
        maps: int | None = None,
    ) -> None:
        super().__init__(base, rank=rank, alpha=alpha)
        scales = tuple(range(1, num_experts + 1)) if scales is None else tuple(scales)
        if not scales or min(scales) < 1:
            raise ValueError(f"scales = {scales}: one positive integer for each expert")
        if not 1 <= top_k <= len(scales):
            raise ValueError(f"top_k = {top_k} of {len(scales)} experts; allowed: 1..{len(scales)}")
        given = {"routing": routing, "gate": gate, "implementation": implementation, "variant": variant}
        for option, value in given.items():
            if value not in OPTIONS[option]:
                raise ValueError(f"{option} = {value!r} is unknown; allowed: {', '.join(OPTIONS[option])}")
        self.released = variant == "released"
        self.scaling = self.scaling if self.released else 1.0
        self.balance_scale = BALANCE_SCALE if self.released else 1.0
        self.top_k, self.gate_per_image = top_k, gate == "image"
        if implementation == "fused":
            self.experts = FusedConvolutions(rank, scales, gelu=self.released, grid=grid)
        else:
            self.experts = ScaledConvolutions(rank, scales, gelu=self.released)
        self.routed = routing == "moe" and len(scales) > 1
        if self.routed:
            self.gate = nn.Parameter(torch.zeros(rank, len(scales)))
            self.noise = nn.Parameter(torch.zeros(rank, len(scales)))
        decisions = 1 if self.gate_per_image else maps
        self.noise_shape = (decisions, len(scales)) if self.routed and decisions else None
        self.random_keys: Tensor | None = None
        self.noise_drawn: Tensor | None = None
        self.salt = 0
        self.decision: Decision | None = None

    @property
    def balance_loss(self) -> Tensor | None:
        return None if self.decision is None else statistics([self.decision])[0]

    @property
    def expert_counts(self) -> Tensor | None:
        return None if self.decision is None else statistics([self.decision])[1][:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, W, in) -> (..., H, W, out); tokens off the grid go through :meth:`forward_tokens`.

        Those have no neighbours to convolve, so their update is plain LoRA's, in both variants (our choice: neither
        the paper nor the release has such tokens).

        Raises:
            ValueError: ``x`` has no grid, or ``random_keys`` are not one for each image.
        """
        if x.dim() < 3:
            raise ValueError(f"ConvLoRALinear takes maps (..., H, W, C), not {tuple(x.shape)}")
        height, width = x.shape[-3:-1]
        low = F.linear(x, self.lora_A)
        maps = low.reshape(-1, height, width, low.shape[-1])
        mixed = self._mix(maps, len(x) if x.dim() > 3 else 1)
        return self._updated(self.base(x), mixed + maps if self.released else mixed)

    def _mix(self, maps: Tensor, images: int) -> Tensor:
        """The experts' answer to the maps of some images, (n, H, W, r), same shape."""
        first = maps.permute(0, 3, 1, 2)
        if not self.routed:
            return self.experts.summed(first).permute(0, 2, 3, 1)
        return self.experts.routed(first, *self._choose(maps, images)).permute(0, 2, 3, 1)

    def _choose(self, maps: Tensor, images: int) -> tuple[Tensor, Tensor | None]:
        """Experts and weights for maps (n, H, W, r), each (n, k); leaves the decision on the layer."""
        if torch.is_autocast_enabled(maps.device.type):
            with torch.autocast(maps.device.type, enabled=False):
                return self._choose(maps, images)
        # Routing decisions hang on small differences: never in half precision.
        precise = torch.promote_types(maps.dtype, torch.float32)
        decisions = images if self.gate_per_image else len(maps)
        pooled = maps.to(precise).reshape(images, decisions // images, -1, maps.shape[-1]).mean(2)
        clean, deviation, noise = pooled @ self.gate.to(precise), None, None
        if self.training:
            deviation = F.softplus(pooled @ self.noise.to(precise)) + (NOISE_FLOOR if self.released else 0.0)
            noise = self._draw(clean)
        self.decision = Decision(clean, deviation, noise, self.top_k, self.balance_scale)
        of_maps = (part if part is None else part.flatten(0, 1) for part in choose(self.decision))
        if decisions == len(maps):
            return tuple(of_maps)
        return tuple(part if part is None else part.repeat_interleave(len(maps) // images, 0) for part in of_maps)

    def _draw(self, like: Tensor) -> Tensor:
        if self.noise_drawn is not None and self.noise_drawn.shape == like.shape:
            return self.noise_drawn
        if self.random_keys is None:
            return torch.randn_like(like)
        if len(self.random_keys) != len(like):
            raise ValueError(f"{len(self.random_keys)} random keys for {len(like)} images: one key an image")
        return normal(self.random_keys.to(like.device), like.shape[1:], self.salt)


@register("conv_lora")
class ConvLoRA(BlockwiseMethod):
    """Conv-LoRA on the fused qkv projection of every block.

    ``balance_weight`` None is the paper's: 1.0 for binary, 2.0 for multi-class segmentation.
    ``gate`` None is the variant's own: per window as released, per image as in the paper's text.
    ``implementation`` changes speed alone.
    """

    title: ClassVar[str] = "Conv-LoRA"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 4.02
    starts_as_sam: ClassVar[bool] = True
    rank: PositiveInt = 3
    num_experts: int = Field(8, ge=1, le=64)
    alpha: PositiveFloat = 32.0
    top_k: PositiveInt = 1
    routing: Literal["moe", "sum"] = "moe"
    scales: tuple[PositiveInt, ...] | None = None
    gate: Literal["window", "image"] | None = None
    variant: Literal["released", "paper"] = "released"
    implementation: Literal["fused", "explicit"] = "fused"
    balance_weight: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.scales == ():
            raise ValueError("scales = [] leaves no expert; leave it out for scales 1 to num_experts")
        experts = len(self.scales) if self.scales else self.num_experts
        if self.top_k > experts:
            raise ValueError(f"top_k = {self.top_k} is more than the {experts} experts")
        return self

    def added_parameters(self, context: Context) -> int:
        width, r = size_of(context.backbone).width, self.rank
        experts = len(self.scales) if self.scales else self.num_experts
        gate = 2 * r * experts if self.routing == "moe" and experts > 1 else 0
        return self.num_blocks(context) * (4 * width * r + experts * (9 * r**2 + r) + gate)

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        gate = self.gate or ("window" if self.variant == "released" else "image")
        side = size_of(context.backbone).grid(context.image_size)
        for index, block in enumerate(self.blocks(sam, context)):
            block.attn.qkv = ConvLoRALinear(
                block.attn.qkv,
                rank=self.rank,
                num_experts=self.num_experts,
                alpha=self.alpha,
                top_k=self.top_k,
                routing=self.routing,
                scales=self.scales,
                gate=gate,
                variant=self.variant,
                implementation=self.implementation,
                grid=block.attn.grid,
                maps=math.prod(-(-side // own) for own in block.attn.grid),
            )
            block.attn.qkv.salt = index
        default = 1.0 if context.num_classes == 1 else 2.0
        sam.aux_weights["balance"] = default if self.balance_weight is None else self.balance_weight
