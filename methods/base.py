"""What a fine-tuning method is: the contracts between the plugins and the harness.

A plugin is one class whose fields are the method's parameters, with the paper's values as defaults.
:class:`SamMethod` puts its parts into a frozen SAM (``adapt``); a complete model overrides ``build``.
The harness sees :class:`Model` only and never asks which method it is.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from methods.predict import Picture
    from methods.sam.model import SamSegmenter


@dataclass(frozen=True)
class Context:
    """What a method is built for.

    Attributes:
        num_classes: 1 for binary masks, else the number of classes including the background.
        image_size: side of the square input in pixels, a multiple of the patch size.
        backbone: a size of SAM, a key of ``methods.sam.SIZES``.
        checkpoint: "auto" (the official one of this size), "none" (random weights), an official name, or a path.
        seed: fixes the initial values of the parts a method adds.
        mask_tokens: mask queries N of a model for several classes.
    """

    num_classes: int = 1
    image_size: int = 1024
    backbone: str = "vit_h"
    checkpoint: str = "auto"
    seed: int = 0
    mask_tokens: int = 10


@dataclass(frozen=True)
class Execution:
    """How a model computes what it computes: speed and memory, no number beyond rounding.

    Attributes:
        attention: a way to compute attention, see ``methods.sam.attention_variants``; "auto" is the fastest known.
        checkpointing: what the backward pass computes again instead of keeping it: "none"; "blocks", all inside encoder
            blocks; "selective", what is cheap, while large products and attention are kept.
        compile: compile encoder blocks, once for each shape of their input.

    Raises:
        ValueError: a value that is not among :data:`EXECUTIONS`.
    """

    attention: str = "auto"
    checkpointing: str = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, allowed in EXECUTIONS.items():
            value = getattr(self, name)
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise ValueError(f"{name} = {value!r}; allowed: {', '.join(map(str, allowed))}")


EXECUTIONS: dict[str, tuple[str, ...] | tuple[bool, ...]] = {
    "attention": ("auto", "folded", "folded_unpadded", "bias", "explicit", "tiled", "flex"),
    "checkpointing": ("none", "blocks", "selective"),
    "compile": (False, True),
}
"""What an :class:`Execution` may say, the default first."""


class Embedding(NamedTuple):
    """What an encoder hands to its decoder.

    Attributes:
        features: (B, C, h, w).
        aux_losses: unweighted auxiliary losses by name, each (B,).
        expert_counts: (B, layers, experts), how often each expert was chosen; None without a router.
        taps: outputs (B, h, w, width) of the blocks a method asked for.
    """

    features: Tensor
    aux_losses: dict[str, Tensor]
    expert_counts: Tensor | None = None
    taps: tuple[Tensor, ...] = ()


@dataclass
class Output:
    """A model's answer to a batch of B images.

    Attributes:
        masks: logits at the input's size, (B, 1, H, W); with mask queries (B, N, H, W).
        classes: class logits of the mask queries, (B, N, K + 1), the last one being "no object"; None for binary masks.
        aux_losses: unweighted auxiliary losses by name, each (B,).
        expert_counts: (B, layers, experts) or None.
    """

    masks: Tensor
    classes: Tensor | None = None
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    expert_counts: Tensor | None = None


TaskLoss = Callable[[Output, Tensor], Tensor]
"""(output, target) -> one value an image, (B,)."""


class Model(nn.Module, abc.ABC):
    """A trainable segmentation model; only parameters that require a gradient are trained and saved.

    Attributes:
        num_classes: as in :class:`Context`.
        aux_weights: weight of each auxiliary loss, by its name; an absent name weighs nothing.
        kept: names of frozen values that an adapter file holds too, as they are no function of the checkpoint alone;
            changed in place.
        image_size, precision: how :meth:`predict` computes: the side of the input in pixels, and "fp32" or "bf16".
        random_backbone: whether the pretrained weights it should start from are random ones; None where the backbone's
            checkpoint decides that.
    """

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.aux_weights: dict[str, float] = {}
        self.kept: set[str] = set()
        self.image_size: int | None = None
        self.precision = "fp32"
        self.random_backbone: bool | None = None

    @property
    def encoder_constant(self) -> bool:
        """Whether the embedding of an image never changes in training, so that it may be cached."""
        return False

    @property
    def backbone_needs_grad(self) -> bool:
        """Whether gradients flow through the backbone; where they do not it runs without a graph."""
        return True

    def set_execution(self, execution: Execution) -> None:
        """Compute so from now on; parameters, their names and their values stay.

        Raises:
            ValueError: the model knows one way only, and this is another.
        """
        if execution != Execution():
            raise ValueError(
                f"{type(self).__name__} cannot be executed by {execution}; "
                "leave --attention, --checkpointing and --compile out"
            )

    @abc.abstractmethod
    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        """Embed images, (B, 3, H, W) in 0..255; the model normalises them.

        Args:
            images: uint8 or float.
            keys: (B,) int64, one key an image from which everything random in this forward pass derives
                (see ``methods.randomness``), so that neither batching nor resuming changes a draw.
        """

    @abc.abstractmethod
    def decode(self, embedding: Embedding) -> Output:
        """Turn an embedding into mask logits at the input's size."""

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Output:
        """``decode(encode(images))``."""
        return self.decode(self.encode(images, keys))

    def answer(self, images: Tensor, masks: Tensor) -> Output:
        """The output for scoring. Only an oracle looks at the true masks (B, S, S)."""
        return self(images)

    def targets(self, masks: Tensor) -> Tensor:
        """What ``loss`` compares with, from class indices (B, H, W) uint8.

        Binary masks become (B, 1, H, W) floats in {0, 1}; indices of several classes, 255 where nothing counts, stay.
        """
        return masks if self.num_classes > 1 else (masks == 1).unsqueeze(1).float()

    def loss(self, output: Output, target: Tensor, task_loss: TaskLoss) -> Tensor:
        """Task loss plus weighted auxiliary losses, one value an image, (B,)."""
        loss = task_loss(output, target)
        for name, value in output.aux_losses.items():
            loss = loss + self.aux_weights.get(name, 0.0) * value
        return loss

    def probabilities(self, output: Output) -> Tensor:
        """Foreground probabilities (B, H, W); of several classes scores (B, K, H, W), the largest of which decides.

        Float32. Scores are sums over the mask queries, P(class) times P(pixel belongs to the mask), as in Mask2Former;
        "no object" takes part in the softmax only.
        """
        if self.num_classes == 1:
            return output.masks[:, 0].float().sigmoid()
        with torch.autocast(output.masks.device.type, enabled=False):  # which would round the sums to half precision
            classes = output.classes.float().softmax(-1)[..., :-1]
            return torch.einsum("bnk,bnhw->bkhw", classes, output.masks.float().sigmoid())

    def predict(self, picture: Picture | Sequence[Picture]) -> np.ndarray | list[np.ndarray]:
        """Class indices of a picture of any size at that size, (H, W) uint8; a list gives a list.

        Of binary masks 0 and 1. :mod:`methods.predict` says what a picture is, and gives probabilities too.
        """
        from methods.predict import masks

        return masks(self, picture)

    @property
    def batch_statistics(self) -> bool:
        """Whether an image's loss depends on the others in its forward pass; batches are then never cut in pieces."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """What an adapter file holds, by name: what is trained, running statistics, and what is ``kept``."""
        norms = [(path, module) for path, module in self.named_modules() if isinstance(module, _BatchNorm)]
        running = {f"{path}.{name}": buffer for path, norm in norms for name, buffer in norm.named_buffers()}
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return self.trainable() | running | {name: named[name] for name in sorted(self.kept)}

    def count(self) -> dict[str, int]:
        """Numbers of parameters: ``trainable`` and ``total``."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return {"trainable": sum(n for n, trained in sizes if trained), "total": sum(n for n, _ in sizes)}


class Method(BaseModel, abc.ABC):
    """A method with its parameters: an immutable, validated value that builds models.

    Class attributes:
        title: what tables call it.
        version: raised when a default changes.
        evidence: what its structure rests on: "released code", "official code", "forced by count", "inferred" ...
        paper_trainable_m: the paper's count of trainable parameters on vit_h, in millions.
        starts_as_sam: before the first step its masks are those of the frozen SAM, bit for bit.
        no_gradient: patterns of trained parameters' names that need not get a gradient.
        several_classes: it can be built for more than binary masks; see :meth:`refuse_unsupported`.
        starred: "*" in a matrix stands for it too; what is large, or one of many alike, is asked for by name.
        on_backbone: its model holds parts of the context's backbone that are not saved with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1
    evidence: ClassVar[str] = "not stated"
    paper_trainable_m: ClassVar[float | None] = None
    starts_as_sam: ClassVar[bool] = False
    # Softmax ignores what is added to the scores of all keys alike.
    no_gradient: ClassVar[tuple[str, ...]] = (r"mask_decoder\..*k_proj\.bias",)
    several_classes: ClassVar[bool] = True
    starred: ClassVar[bool] = True
    on_backbone: ClassVar[bool] = True

    def caveats(self, context: Context) -> tuple[str, ...]:
        """What has to be said wherever its numbers stand, each a clause without a full stop."""
        return ()

    def added_parameters(self, context: Context) -> int | None:
        """How many parameters it trains beside the mask decoder, by its own formula; None if it states none."""
        return None

    def idle_parameters(self, context: Context) -> int:
        """How many more the released model carries that no gradient ever reaches; they are left out here.

        A printed count may include them: what it trains and these together are what the release counts.
        """
        return 0

    def export_extras(self, model: Model, folder: Path) -> list[Path]:
        """Write what other programs read beside a trained model's adapter into ``folder``; the files written."""
        return []

    @abc.abstractmethod
    def build(self, context: Context) -> Model:
        """A model ready to train, on the CPU, with ``requires_grad`` set on exactly what it trains.

        Raises:
            ValueError: several classes, and the method is for binary masks only.
        """

    def refuse_unsupported(self, context: Context) -> None:
        """Raise what ``build`` owes to whoever asks a method of binary masks for several classes."""
        if context.num_classes > 1 and not self.several_classes:
            raise ValueError(
                f"method {self.name!r} is for binary masks (num_classes = 1), not for {context.num_classes} classes; "
                f"those that are: python -m methods --classes {context.num_classes}"
            )


class SamMethod(Method):
    """A method that changes a frozen SAM; the decoder stays trainable unless ``adapt`` says otherwise."""

    @abc.abstractmethod
    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        """Fill the slots of ``sam``'s blocks with this method's trainable parts."""

    def build(self, context: Context) -> Model:
        from methods.sam.build import build_segmenter

        self.refuse_unsupported(context)
        sam = build_segmenter(context)
        # What a method adds depends on the cell's seed, not on what building the backbone has drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.adapt(sam, context)
        return sam


registry: Registry[Method] = Registry(
    "method",
    contract=Method,
    package="methods",
    folder=Path(__file__).parent,
    entry_points="sam_peft_bench.methods",
)
register = registry.register
