"""Hugging Face peft's LoRA and its relatives that share its configuration, ``peft.LoraConfig``.

Rank 3 and alpha 32 are those of this project's ``lora``, so that ``peft:lora`` is the same method and the others differ
from it in what their names say alone. Those that start from a decomposition of the weights follow their authors in a
scaling of 1, alpha = r.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from methods.base import register
from methods.hf_peft import PeftMethod, inject
from methods.sam.encoder import ImageEncoder

INITIAL = "initial"  # the adapter that takes the initial update away again


class LowRank(PeftMethod):
    """A low-rank update of linear layers."""

    config_class: ClassVar[str] = "LoraConfig"
    r: PositiveInt = 3
    lora_alpha: PositiveFloat = 32.0

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return self.r * (inputs + outputs)


@register("peft:lora")
class PeftLoRA(LowRank):
    """LoRA (Hu et al. 2022, arXiv:2106.09685): this project's ``lora``, up to rounding and initial values."""

    title: ClassVar[str] = "LoRA (peft)"
    init_lora_weights: Literal[True, "gaussian"] = True


@register("peft:rslora")
class RsLoRA(LowRank):
    """rsLoRA (Kalajdzievski 2023, arXiv:2312.03732): the update is scaled by alpha / sqrt(r), not by alpha / r."""

    title: ClassVar[str] = "rsLoRA"
    fixed: ClassVar[dict[str, Any]] = {"use_rslora": True}


@register("peft:dora")
class DoRA(LowRank):
    """DoRA (Liu et al. 2024, arXiv:2402.09353): LoRA for each row's direction, a factor for its length."""

    title: ClassVar[str] = "DoRA"
    fixed: ClassVar[dict[str, Any]] = {"use_dora": True}
    use_rslora: bool = False

    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        return super().in_layer(name, inputs, outputs) + outputs


class Decomposed(LowRank):
    """LoRA whose first update s B0 A0 is a part of the weights W, which peft takes away from them: W - s B0 A0 + s B A.

    Here W stays as the checkpoint has it, and a second, frozen adapter holds A0 and -B0. The sum is the same, but a
    trained adapter then consists of what its file holds: decomposing W again elsewhere would not give the same bits,
    and a randomised decomposition (``pissa_niter_16``) not even nearly the same update under another version of torch.
    For plain peft the two adapters are written as one of rank 2 r.

    ``lora_alpha`` None is ``r``.
    """

    starts_as_sam: ClassVar[bool] = False  # but for rounding
    drawn: ClassVar[tuple[str, ...]] = (INITIAL,)
    lora_alpha: PositiveFloat | None = None

    def options(self, width: int) -> dict[str, Any]:
        return super().options(width) | {"lora_alpha": self.lora_alpha or self.r}

    def insert(self, encoder: ImageEncoder) -> None:
        paths = self.paths(encoder)
        weights = {path: encoder.get_submodule(path).weight.detach().clone() for path in paths}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)  # a part of the weights is no matter of the cell's seed
            inject(encoder, {"default": self.config(encoder), INITIAL: self.config(encoder, init_lora_weights=True)})
            for path in paths:
                layer = encoder.get_submodule(path)
                layer.set_adapter(["default", INITIAL])
                layer.get_base_layer().weight.data = weights[path]
                for factors, sign in ((layer.lora_A, 1), (layer.lora_B, -1)):
                    factors[INITIAL].weight.copy_(sign * factors["default"].weight)
                    factors[INITIAL].requires_grad_(False)

    def exported(self, encoder: ImageEncoder) -> tuple[Any, dict[str, Tensor]]:
        """Both adapters in one, of twice the rank and alpha."""
        options = self.options(encoder.pos_embed.shape[-1])
        twice = {"r": 2 * self.r, "lora_alpha": 2 * options["lora_alpha"], "init_lora_weights": True}
        values = encoder.state_dict()
        for name in [name for name in values if f".{INITIAL}." in name]:
            own = name.replace(INITIAL, "default")
            values[own] = torch.cat([values[own], values.pop(name)], dim=0 if ".lora_A." in name else 1)
        return self.config(encoder, **twice), values


@register("peft:pissa")
class PiSSA(Decomposed):
    """PiSSA (Meng et al. 2024, arXiv:2404.02948): starts from the weights' principal singular vectors and values.

    ``pissa_niter_16`` finds them by 16 steps of subspace iteration, as the authors do; "pissa" by a complete
    decomposition, which takes minutes on vit_h whenever a model is built.
    """

    title: ClassVar[str] = "PiSSA"
    init_lora_weights: str = Field("pissa_niter_16", pattern=r"^pissa(_niter_[1-9]\d*)?$")


@register("peft:olora")
class OLoRA(Decomposed):
    """OLoRA (Büyükakyüz 2024, arXiv:2406.01775): starts from a QR decomposition of the weights."""

    title: ClassVar[str] = "OLoRA"
    fixed: ClassVar[dict[str, Any]] = {"init_lora_weights": "olora"}
