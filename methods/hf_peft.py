"""The bridge to Hugging Face ``peft``: its tuners in SAM's encoder, as methods named ``peft:<tuner>``.

A tuner's parameters are the fields of peft's own configuration, declared here with defaults of ours, so that a cell's
identity depends on no installed version. Not declared are fields that would break a promise of the harness: dropouts
draw from a running generator, ``bias`` is what composing with ``bitfit`` does. Layers are replaced in place and nothing
is renamed above them: the harness goes on seeing SAM. peft imports transformers, which takes seconds; that happens when
a model is built, and names, parameters and counts are known without the package. What is offered: ``docs/peft.md``.
"""

from __future__ import annotations

import abc
import copy
import importlib
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from methods.base import Context, Model, SamMethod
from methods.compose import SlotTaken
from methods.sam.encoder import ImageEncoder
from methods.sam.model import SamSegmenter
from methods.sam.sizes import size_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

INSTALL = "pip install 'sam-peft-bench[peft]'"
LAYERS = {
    "qkv": ("attn.qkv", 1, 3),
    "proj": ("attn.proj", 1, 1),
    "lin1": ("mlp.lin1", 1, 4),
    "lin2": ("mlp.lin2", 4, 1),
}
"""The linear layers of a block: where each is, and how many times the encoder's width go in and out."""

LayerName = Literal["qkv", "proj", "lin1", "lin2"]
# One choice is one value, however it is written: it enters the cell's identity.
LayerNames = Annotated[
    tuple[LayerName, ...], Field(min_length=1), AfterValidator(lambda given: tuple(n for n in LAYERS if n in given))
]
Indices = Annotated[
    tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(lambda given: tuple(sorted(set(given))))
]


class PeftUnusable(ValueError):
    """peft is not installed or cannot be imported; the message says what to do."""


def check_installed() -> None:
    """Raise :class:`PeftUnusable` where peft is not installed; imports nothing."""
    if util.find_spec("peft") is None:
        raise PeftUnusable(f"Hugging Face peft is not installed: {INSTALL}")


def load_peft() -> ModuleType:
    """The package ``peft``, imported by the first who asks.

    Raises:
        PeftUnusable: it is not there, or its import fails.
    """
    check_installed()
    try:
        return importlib.import_module("peft")
    except (ImportError, AttributeError, RuntimeError) as error:
        raise PeftUnusable(
            f"Hugging Face peft is installed, but `import peft` fails: {error}. Versions that fit: {INSTALL}. "
            "`datasets` is this project's package here, not Hugging Face's; see docs/peft.md"
        ) from error


def inject(encoder: ImageEncoder, configs: Mapping[str, PeftConfig]) -> PeftModel:
    """Put peft's layers into ``encoder`` in place; what else is trained in it stays trained.

    Args:
        encoder: its linear layers are replaced.
        configs: the adapters by name, "default" first.

    Returns:
        peft's own view of the encoder, which nobody needs to keep.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
    (first, config), *others = configs.items()
    view = load_peft().get_peft_model(encoder, config, adapter_name=first)
    for name, config in others:
        view.add_adapter(name, config)
    for parameter, flag in trained:
        parameter.requires_grad_(flag)
    del encoder.peft_config  # or the next tuner would take this one's for an earlier adapter of its own
    return view


class PeftMethod(SamMethod):
    """A tuner of peft with its configuration.

    Class attributes:
        config_class: the class of its configuration in ``peft``.
        fixed: fields of the configuration that the method's name stands for.
        drawn: names of frozen tensors that peft draws or computes from the weights: adapter files hold them too.
    """

    evidence: ClassVar[str] = "Hugging Face peft"
    starts_as_sam: ClassVar[bool] = True
    starred: ClassVar[bool] = False
    config_class: ClassVar[str]
    fixed: ClassVar[dict[str, Any]] = {}
    drawn: ClassVar[tuple[str, ...]] = ()
    target_modules: LayerNames = ("qkv",)
    layers_to_transform: Indices | None = None

    @model_validator(mode="after")
    def _check_installed(self) -> Self:
        check_installed()
        return self

    def options(self, width: int) -> dict[str, Any]:
        """The fields of peft's configuration for an encoder of this width, ``target_modules`` apart."""
        return self.model_dump(exclude={"target_modules", "layers_to_transform"}) | self.fixed

    def config(self, encoder: ImageEncoder, **instead: Any) -> PeftConfig:
        """peft's configuration of this method, with some fields put ``instead`` of its own."""
        options = {"target_modules": self.places(self.target_modules), **self.options(encoder.pos_embed.shape[-1])}
        return getattr(load_peft(), self.config_class)(**options | instead)

    def places(self, layers: Sequence[str]) -> list[str]:
        """How peft finds these layers: by the end of their path, or by the whole path where blocks were chosen."""
        ends = [LAYERS[name][0] for name in layers]
        if self.layers_to_transform is None:
            return ends
        return [f"blocks.{block}.{end}" for block in self.layers_to_transform for end in ends]

    def paths(self, encoder: ImageEncoder) -> list[str]:
        """The layers it adapts.

        Raises:
            ValueError: the encoder has no block of a given index.
        """
        depth = len(encoder.blocks)
        chosen = range(depth) if self.layers_to_transform is None else self.layers_to_transform
        if chosen[-1] >= depth:
            raise ValueError(
                f"{self.name!r}: layers_to_transform has block {chosen[-1]}, but the blocks are 0 to {depth - 1}"
            )
        return [f"blocks.{block}.{LAYERS[name][0]}" for block in chosen for name in self.target_modules]

    def adapt(self, sam: SamSegmenter, context: Context) -> None:
        """See the base class.

        Raises:
            PeftUnusable: peft is not there.
            SlotTaken: another method has replaced a layer that this one wants.
        """
        encoder = sam.image_encoder
        for path in self.paths(encoder):
            kind = type(encoder.get_submodule(path))
            if kind is not nn.Linear:
                raise SlotTaken(
                    f"{self.name!r} wants the slot image_encoder.{path}, in which another method has put a "
                    f"{kind.__module__}.{kind.__qualname__}. What can be combined fills different slots"
                )
        self.insert(encoder)
        found = [name for name, _ in (*sam.named_parameters(), *sam.named_buffers())]
        sam.kept |= {name for name in found if set(self.drawn).intersection(name.split("."))}

    def insert(self, encoder: ImageEncoder) -> None:
        """Replace the layers."""
        inject(encoder, {"default": self.config(encoder)})

    def added_parameters(self, context: Context) -> int:
        size = size_of(context.backbone)
        blocks = size.depth if self.layers_to_transform is None else len(self.layers_to_transform)
        return blocks * sum(
            self.in_layer(name, size.width * LAYERS[name][1], size.width * LAYERS[name][2])
            for name in self.target_modules
        )

    @abc.abstractmethod
    def in_layer(self, name: str, inputs: int, outputs: int) -> int:
        """Parameters trained in one layer."""

    def caveats(self, context: Context) -> tuple[str, ...]:
        return (f"computed by the layers of Hugging Face peft {metadata.version('peft')}",)

    def export_extras(self, model: Model, folder: Path) -> list[Path]:
        """Write peft's own files into ``folder/peft-<tuner>``; the base class says when.

        ``PeftModel.from_pretrained(image_encoder, that folder)`` loads them, for an image encoder of ours or of
        segment_anything with the weights of the same checkpoint.
        """
        place = folder / self.name.replace(":", "-")
        place.mkdir(exist_ok=True)
        return write_peft(self, model.image_encoder, place)

    def exported(self, encoder: ImageEncoder) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Configuration and values of the adapter that plain peft loads."""
        return self.config(encoder), encoder.state_dict()


def write_peft(method: PeftMethod, encoder: ImageEncoder, folder: Path) -> list[Path]:
    """Write what ``method`` has trained in ``encoder`` in peft's format.

    Args:
        method: the method that adapted it.
        encoder: the adapted encoder; it stays as it is.
        folder: an existing folder.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config, values = method.exported(encoder)
    view = plain_view(encoder, config)
    missing, _ = view.get_base_model().load_state_dict(values, strict=False)
    unknown = [name for name in missing if "default" in name.split(".")]
    if unknown:
        raise ValueError(f"{method.name!r} cannot be written for plain peft: no value for {unknown[0]}")
    state = get_peft_model_state_dict(view, save_embedding_layers=False)
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    # Layers may share a tensor, which peft writes once for each and safetensors refuses to.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, files[0])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return files


def plain_view(encoder: ImageEncoder, config: PeftConfig) -> PeftModel:
    """peft's view of a copy of ``encoder`` that has no layers of peft but these; its weights are shared, not copied."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in encoder.parameters()}
    bare = copy.deepcopy(encoder, shared)
    for path, module in list(bare.named_modules()):
        if isinstance(module, BaseTunerLayer):
            bare.set_submodule(path, module.get_base_layer())
    return inject(bare, {"default": config})
