"""Encoders to look into: SAM's, the one inside a trained cell, MAE's plain vision transformer, and random ones.

Two architectures, one view of both: the blocks in order, the windows they attend in, what an attention layer computes
its weights from, and a block's output as a map. Layers are watched through forward hooks that return nothing, so a
watched encoder computes what it always does.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from analysis.inside.attention_distance import Asked
from methods import delta
from methods.base import Context, Model
from methods.sam.attention import Attention
from methods.sam.attention_variants import relative_table
from methods.sam.build import build_segmenter
from methods.sam.checkpoints import file_digest, resolve
from methods.sam.encoder import ImageEncoder, partition
from methods.sam.mae import NATIVE, mae_vit, random_vit
from methods.sam.model import PIXEL_MEAN, PIXEL_STD
from methods.sam.sizes import size_of

if TYPE_CHECKING:
    from timm.models import VisionTransformer

See = Callable[[int, tuple[Any, ...], Any], None]
"""Called with the number of a layer, what it was given and what it made."""


@dataclass(frozen=True)
class About:
    """What a figure says of an encoder, and needs to know of it.

    Attributes:
        name: in legends.
        slug: in file names.
        look: whose colour it has: a method, or "sam", "mae", "random".
        image_size: side of the square input in pixels.
        checkpoint, digest: of its weights' file; "none" and "random" without one.
        cell: the trained cell's id.
        warnings: what has to be said wherever it is shown.
        grid: tokens along a side of the image.
        windows: side of each layer's windows in tokens, 0 where it attends over the whole image.
    """

    name: str
    slug: str
    look: str
    image_size: int
    checkpoint: str
    digest: str
    cell: str = ""
    warnings: tuple[str, ...] = ()
    grid: int = 0
    windows: tuple[int, ...] = ()

    @property
    def effective_windows(self) -> list[int]:
        """The side of each layer's windows, 0 where one covers the whole image."""
        return [window if window < self.grid else 0 for window in self.windows]

    def real(self, layer: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Which tokens of a layer's windows are of the image, (windows, tokens); None where nothing is padded."""
        window = self.windows[layer]
        return _inside(self.grid, window, torch.device(device)) if window and self.grid % window else None


@cache
def _inside(grid: int, window: int, device: torch.device) -> Tensor:
    return partition(torch.ones(1, grid, grid, 1, device=device), window)[0, ..., 0].flatten(1).bool()


class Encoder(abc.ABC):
    """An encoder in evaluation mode.

    Attributes:
        about: what it is.
        model: what moves between devices.
        blocks: its layers.
        attentions: the attention inside each.
    """

    def __init__(self, about: About, model: nn.Module, blocks: Iterable[Any]) -> None:
        self.about, self.model = about, model.eval().requires_grad_(False)
        self.blocks = list(blocks)
        self.attentions = [block.attn for block in self.blocks]

    @abc.abstractmethod
    def __call__(self, image: Tensor) -> None:
        """Run on an image (1, 3, S, S) in 0..255."""

    @abc.abstractmethod
    def asked(self, layer: int, given: tuple[Any, ...]) -> Asked:
        """What the attention of a layer compares, from what it was given."""

    @abc.abstractmethod
    def feature_map(self, made: Any) -> Tensor:
        """A block's output as (h, w, C), tokens without a place left out."""

    @contextmanager
    def watched(self, modules: Iterable[nn.Module], see: See) -> Iterator[None]:
        """``see`` is called after each of ``modules``, one a layer, in each run."""
        handles = [module.register_forward_hook(partial(_tell, see, layer)) for layer, module in enumerate(modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _tell(see: See, layer: int, module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
    see(layer, given, made)


class SamEncoder(Encoder):
    """The image encoder of a SAM, with whatever a method put into it."""

    def __init__(self, about: About, model: Model) -> None:
        encoder: ImageEncoder = model.image_encoder
        windows = tuple(block.window for block in encoder.blocks)
        super().__init__(replace(about, grid=encoder.pos_embed.shape[1], windows=windows), model, encoder.blocks)

    def __call__(self, image: Tensor) -> None:
        self.model.encode(image)

    def asked(self, layer: int, given: tuple[Any, ...]) -> Asked:
        attention: Attention = self.attentions[layer]
        tokens, extra = given
        side, channels = tokens.shape[-2:]
        qkv = attention.qkv(tokens).reshape(-1, side**2, 3, attention.heads, channels // attention.heads)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4).float().unbind(0)
        asking = query.unflatten(2, (side, side))
        rows, columns = (relative_table(side, table.float()) for table in (attention.rel_pos_h, attention.rel_pos_w))
        if extra is not None:
            project = getattr(attention.qkv, "forward_tokens", attention.qkv)
            loose = project(extra).unflatten(-1, (3, attention.heads, -1))[:, 1].transpose(0, 1).float()
            key = torch.cat([key, loose.expand(len(key), -1, -1, -1)], dim=2)
        with torch.autocast(tokens.device.type, enabled=False):
            return Asked(
                side,
                query * query.shape[-1] ** -0.5,
                key,
                by_row=torch.einsum("bnhwc,hkc->bnhwk", asking, rows).flatten(2, 3),
                by_column=torch.einsum("bnhwc,wkc->bnhwk", asking, columns).flatten(2, 3),
                real=self.about.real(layer, tokens.device),
            )

    def feature_map(self, made: Any) -> Tensor:
        return made[0][0]


class VitEncoder(Encoder):
    """timm's plain vision transformer, whose first token is a class token."""

    def __init__(self, about: About, vit: VisionTransformer) -> None:
        grid, windows = vit.patch_embed.grid_size[0], (0,) * len(vit.blocks)
        super().__init__(replace(about, grid=grid, windows=windows), vit, vit.blocks)

    def __call__(self, image: Tensor) -> None:
        # MAE was trained with the mean and deviation that SAM has, as shares of 255.
        mean, deviation = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
        self.model.forward_features((image - mean) / deviation)

    def asked(self, layer: int, given: tuple[Any, ...]) -> Asked:
        attention, tokens = self.attentions[layer], given[0]
        qkv = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1))
        query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = attention.q_norm(query).float()[:, :, 1:], attention.k_norm(key).float()
        return Asked(self.about.grid, query * attention.scale, torch.cat([key[:, :, 1:], key[:, :, :1]], dim=2))

    def feature_map(self, made: Any) -> Tensor:
        return made[0, 1:].unflatten(0, (self.about.grid, self.about.grid))


def sam(size: str, checkpoint: str = "auto", image_size: int = 0) -> Encoder:
    """A SAM's encoder with the weights that ``checkpoint`` means, at its own size for an ``image_size`` of 0.

    Raises:
        bench.registry.UnknownName: no such size.
        methods.sam.checkpoints.CheckpointError: the weights are missing, damaged or another model's.
        ValueError: an image size that the patches do not divide.
    """
    pixels, found = image_size or size_of(size).native, resolve(size, checkpoint)
    name, slug, look = f"SAM {size}", f"sam_{size}", "sam"
    if found.random:
        name, slug, look = f"random {name}", f"random_{slug}", "random"
    elif checkpoint != "auto":
        name = f"{name} ({found.name})"
    model = build_segmenter(Context(backbone=size, checkpoint=checkpoint, image_size=pixels))
    return SamEncoder(About(name, slug, look, pixels, found.name, found.digest()), model)


def mae(size: str, weights: str = "auto", image_size: int = 0) -> Encoder:
    """The MAE encoder of a SAM's size, at 224 px for an ``image_size`` of 0.

    Takes and raises what :func:`methods.sam.mae.mae_vit` does.
    """
    pixels = image_size or NATIVE
    vit, path = mae_vit(size, weights, pixels)
    return VitEncoder(About(f"MAE {size}", f"mae_{size}", "mae", pixels, path.name, file_digest(path)), vit)


def plain_random(size: str, image_size: int = 0) -> Encoder:
    """MAE's architecture with random weights, at 224 px for an ``image_size`` of 0.

    Raises:
        ValueError: an image size that the patches do not divide.
    """
    pixels = image_size or NATIVE
    about = About(f"random ViT {size}", f"random_vit_{size}", "random", pixels, "none", "random")
    return VitEncoder(about, random_vit(size, pixels))


def of_cell(folder: Path, *, name: str, method: str, warnings: tuple[str, ...] = ()) -> Encoder:
    """The encoder of a trained cell, at the size it was trained at.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        methods.delta.AdapterError: it does not fit the backbone found here.
        methods.sam.checkpoints.CheckpointError: the backbone's weights are missing.
        ValueError: its model has no SAM encoder.
    """
    model = delta.load(folder)
    encoder = getattr(model, "image_encoder", None)
    if not isinstance(encoder, ImageEncoder):
        raise ValueError(f"{folder.name}: its model, {type(model).__name__}, has no SAM encoder to look into")
    size = encoder.pos_embed.shape[1] * encoder.patch_embed.proj.kernel_size[0]
    if getattr(model, "side", None) is not None:
        warnings = (*warnings, f"{name}: this is the encoder that its side network reads, not that network.")
    digest = file_digest(folder / delta.WEIGHTS)
    return SamEncoder(About(name, folder.name, method, size, delta.WEIGHTS, digest, folder.name, warnings), model)
