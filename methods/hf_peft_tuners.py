"""Hugging Face peft's tuners beside LoRA that fit the linear layers of SAM.

Where a tuner's size can be chosen it trains about as much as rank 3 of LoRA by default, 12 C parameters a block of
width C; where smallness is its point it keeps its authors' size. Scalings are peft's.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from methods.base import Context, register
from methods.hf_peft import LAYERS, LayerNames, PeftMethod
from methods.sam.sizes import size_of


@register("peft:ia3")
class IA3(PeftMethod):
    """(IA)^3 (Liu et al. 2022, arXiv:2205.05638): a factor for each output, in ``feedforward_modules`` for each input.

    The authors' places are keys, values and the inside of the MLP; SAM's fused projection has queries too.
    """

    title: ClassVar[str] = "(IA)^3"
    config_class: ClassVar[str] = "IA3Config"
    target_modules: LayerNames = ("qkv", "lin2")
    feedforward_modules: LayerNames = ("lin2",)

    @model_validator(mode="after")
    def _check_feedforward(self) -> Self:
        unknown = set(self.feedforward_modules) - set(self.target_modules)
        if unknown:
            raise ValueError(f"feedforward_modules has {sorted(unknown)}, which target_modules lacks")
        return self

    def options(self, width: int) -> dict[str, Any]:
        return {"feedforward_modules": self.places(self.feedforward_modules)}

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return inputs if name in self.feedforward_modules else outputs


class Scaled(PeftMethod):
    """A tuner of rank ``r`` whose update is scaled by ``alpha / r``; ``alpha`` None is ``r``, as in peft's defaults."""

    r: PositiveInt
    alpha: PositiveFloat | None = None

    def options(self, width: int) -> dict[str, Any]:
        return super().options(width) | {"alpha": self.alpha or self.r}


@register("peft:loha")
class LoHa(Scaled):
    """LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098): the elementwise product of two low-rank updates."""

    title: ClassVar[str] = "LoHa"
    config_class: ClassVar[str] = "LoHaConfig"
    r: PositiveInt = 2

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return 2 * self.r * (inputs + outputs)


@register("peft:lokr")
class LoKr(Scaled):
    """LoKr (Yeh et al. 2024, arXiv:2309.14859): a Kronecker product; the larger factor is low-rank where that is less.

    ``decompose_factor`` is the side of the smaller one and has to divide the width.
    """

    title: ClassVar[str] = "LoKr"
    config_class: ClassVar[str] = "LoKrConfig"
    r: PositiveInt = 24
    decompose_factor: PositiveInt = 8

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        small, (rows, columns) = self.decompose_factor, (side // self.decompose_factor for side in (outputs, inputs))
        full = 2 * self.r >= max(rows, columns)
        return small**2 + (rows * columns if full else self.r * (rows + columns))


@register("peft:glora")
class GLoRA(PeftMethod):
    """GLoRA (Chavan et al. 2023, arXiv:2306.07967): low-rank factors on and updates of weights and biases."""

    title: ClassVar[str] = "GLoRA"
    config_class: ClassVar[str] = "GloraConfig"
    r: PositiveInt = 1

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return 2 * self.r * (inputs + outputs) + self.r * (inputs + 1) + 2


@register("peft:hira")
class HiRA(PeftMethod):
    """HiRA (Huang et al. 2025, openreview TwJrTz9cRS): a low-rank update times the weights, element by element."""

    title: ClassVar[str] = "HiRA"
    config_class: ClassVar[str] = "HiraConfig"
    r: PositiveInt = 3

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.r * (inputs + outputs)


@register("peft:delora")
class DeLoRA(PeftMethod):
    """DeLoRA (Bini et al. 2025, arXiv:2503.18225): a low-rank update whose strength is a parameter of its own."""

    title: ClassVar[str] = "DeLoRA"
    config_class: ClassVar[str] = "DeloraConfig"
    drawn: ClassVar[tuple[str, ...]] = ("delora_w_norm",)
    r: PositiveInt = 3
    delora_lambda: PositiveFloat = 15.0

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.r * (inputs + outputs) + 1


@register("peft:miss")
class MiSS(PeftMethod):
    """MiSS (Kang and Yin 2024, arXiv:2409.15371): one matrix, by which all shards of the input are multiplied."""

    title: ClassVar[str] = "MiSS"
    config_class: ClassVar[str] = "MissConfig"
    r: PositiveInt = 4

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.r * outputs


@register("peft:hra")
class HRA(PeftMethod):
    """HRA (Yuan et al. 2024, arXiv:2405.17484): the input goes through ``r`` trained reflections, an even number."""

    title: ClassVar[str] = "HRA"
    config_class: ClassVar[str] = "HRAConfig"
    starts_as_sam: ClassVar[bool] = False  # but for rounding: each pair of reflections undoes itself
    r: PositiveInt = 12
    apply_GS: bool = False

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.r * inputs


@register("peft:vera")
class VeRA(PeftMethod):
    """VeRA (Kopiczko et al. 2024, arXiv:2310.11454): two frozen random matrices for all layers, trained factors."""

    title: ClassVar[str] = "VeRA"
    config_class: ClassVar[str] = "VeraConfig"
    drawn: ClassVar[tuple[str, ...]] = ("vera_A", "vera_B")
    r: PositiveInt = 256
    d_initial: PositiveFloat = 0.1
    projection_prng_key: NonNegativeInt = 0

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.r + outputs


@register("peft:randlora")
class RandLoRA(PeftMethod):
    """RandLoRA (Albert et al. 2025, arXiv:2502.00987): frozen random bases of rank ``r`` that together have full rank.

    peft's rank 32 trains three times as much as LoRA; rank 128 keeps its ``randlora_alpha / r``.
    """

    title: ClassVar[str] = "RandLoRA"
    config_class: ClassVar[str] = "RandLoraConfig"
    drawn: ClassVar[tuple[str, ...]] = ("randlora_A", "randlora_B")
    r: PositiveInt = 128
    randlora_alpha: PositiveFloat = 2560.0
    projection_prng_key: NonNegativeInt = 0

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        side = min(inputs, outputs)
        return math.ceil(side / self.r) * (self.r + side)


@register("peft:vblora")
class VBLoRA(PeftMethod):
    """VB-LoRA (Li et al. 2024, arXiv:2405.15179): low-rank matrices put together from vectors that all layers share.

    ``vector_length`` None is a quarter of the encoder's width, which divides the sides of all its layers.
    """

    title: ClassVar[str] = "VB-LoRA"
    config_class: ClassVar[str] = "VBLoRAConfig"
    starts_as_sam: ClassVar[bool] = False
    r: PositiveInt = 4
    num_vectors: PositiveInt = 256
    vector_length: PositiveInt | None = None
    topk: PositiveInt = 2
    init_vector_bank_bound: PositiveFloat = 0.02
    init_logits_std: PositiveFloat = 0.1

    def options(self, width: int) -> dict[str, Any]:
        return super().options(width) | {"vector_length": self.vector_length or width // 4}

    def added_parameters(self, context: Context) -> int:
        width = size_of(context.backbone).width
        return super().added_parameters(context) + self.num_vectors * (self.vector_length or width // 4)

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        length = self.vector_length or inputs // LAYERS[name][1] // 4
        return self.r * self.num_vectors * (inputs + outputs) // length


@register("peft:fourierft")
class FourierFT(PeftMethod):
    """FourierFT (Gao et al. 2024, arXiv:2405.03003): ``n_frequency`` trained coefficients of the update's spectrum."""

    title: ClassVar[str] = "FourierFT"
    config_class: ClassVar[str] = "FourierFTConfig"
    starts_as_sam: ClassVar[bool] = False
    n_frequency: PositiveInt = 1000
    scaling: PositiveFloat = 150.0
    random_loc_seed: NonNegativeInt = 777

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.n_frequency


@register("peft:c3a")
class C3A(PeftMethod):
    """C3A (Chen et al. 2025, arXiv:2407.19342): an update made of circulant blocks.

    ``block_size`` None is a quarter of the encoder's width.
    """

    title: ClassVar[str] = "C3A"
    config_class: ClassVar[str] = "C3AConfig"
    starts_as_sam: ClassVar[bool] = False
    block_size: PositiveInt | None = None
    init_weights: Literal["gaussian", "kaiming_uniform", "xavier_uniform"] = "xavier_uniform"

    def options(self, width: int) -> dict[str, Any]:
        return super().options(width) | {"block_size": self.block_size or width // 4}

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return inputs * outputs // (self.block_size or inputs // LAYERS[name][1] // 4)


@register("peft:road")
class RoAd(PeftMethod):
    """RoAd (Liao and Monz 2024, arXiv:2409.00119): pairs of outputs are rotated and scaled.

    Pairs lie half a group apart; peft's groups of 64 do not divide all widths, 32 do.
    """

    title: ClassVar[str] = "RoAd"
    config_class: ClassVar[str] = "RoadConfig"
    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: PositiveInt = 32

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return int(self.variant[-1]) * outputs
