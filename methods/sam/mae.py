"""Plain vision transformers as wide and as deep as SAM's encoders, with the MAE weights that SAM's began as.

Masked autoencoders (He et al. 2022, arXiv:2111.06377) as timm builds them: every block attends over the whole image,
there is a class token, and positions are those of 224 px. MAE's weights are Meta's, under CC BY-NC 4.0; they are no
part of this project and are downloaded when first used. No MAE was published for ``tiny``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.download import DownloadError, download
from methods.sam.checkpoints import SUFFIXES, CheckpointError, cache_folder
from methods.sam.sizes import size_of
from methods.sam.weights import read_weights

if TYPE_CHECKING:
    from timm.models import VisionTransformer

IN_TIMM = {
    "vit_h": "vit_huge_patch14_224.mae",
    "vit_l": "vit_large_patch16_224.mae",
    "vit_b": "vit_base_patch16_224.mae",
    "tiny": "vit_tiny_patch16_224",
}
PUBLISHED = tuple(size for size, name in IN_TIMM.items() if name.endswith(".mae"))
NATIVE = 224
RANDOM_SEED = 0
_NOT_OF_THE_ENCODER = ("decoder_", "mask_token", "head.")


def random_vit(size: str, image_size: int = NATIVE) -> VisionTransformer:
    """A plain vision transformer of a SAM's width, depth and heads, its weights random and always the same ones.

    Raises:
        bench.registry.UnknownName: no such size.
        ValueError: an image size that the patches do not divide.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return _build(size, image_size)


def mae_vit(size: str, weights: str, image_size: int = NATIVE) -> tuple[VisionTransformer, Path]:
    """The MAE encoder of a size, and the file its weights are from.

    Args:
        weights: "auto" (the published file, downloaded on first use) or the path of one.

    Raises:
        CheckpointError: nothing was published for this size, or the file is missing, damaged or another model's.
        ValueError: as :func:`random_vit`.
    """
    with torch.device("meta"):
        vit = _build(size, image_size)
    path = mae_file(size, weights)
    vit.load_state_dict(mae_state(path, vit), assign=True)
    return vit, path


def _build(size: str, image_size: int) -> VisionTransformer:
    import timm

    size_of(size)
    vit = timm.create_model(IN_TIMM[size], pretrained=False, num_classes=0, img_size=image_size)
    patch = vit.patch_embed.patch_size[0]
    if image_size < patch or image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise ValueError(f"image_size {image_size} is no multiple of the patch size {patch}; try {near}")
    return vit


def mae_file(size: str, weights: str) -> Path:
    """The file that ``weights`` means, downloaded where it is the published one and not there yet."""
    from timm.models import get_pretrained_cfg

    if weights != "auto":
        path = Path(weights).expanduser()
        if path.is_file() and path.suffix in SUFFIXES:
            return path
        problem = f"it ends in none of {', '.join(SUFFIXES)}" if path.is_file() else "that is no file"
        raise CheckpointError(f'MAE weights {weights!r}: {problem}. Allowed: "auto" (the published ones), or a path.')
    if size not in PUBLISHED:
        raise CheckpointError(f"no MAE was published for {size}; there is one for {', '.join(PUBLISHED)}")
    url = get_pretrained_cfg(IN_TIMM[size]).url
    path = cache_folder() / "checkpoints" / Path(url).name
    if not path.exists():
        try:
            download(url, path)
        except DownloadError as error:
            raise CheckpointError(
                f"cannot download {path.name}: {error}.\n"
                f"  Run the same command again to go on from where it stopped, or get the file by hand:\n  {url}\n"
                f"  and put it into {path.parent}, or anywhere and name its path in place of auto."
            ) from error
    return path


def mae_state(path: Path, vit: VisionTransformer) -> dict[str, Tensor]:
    """An MAE checkpoint as the state of timm's encoder, its position table interpolated to the encoder's grid.

    The published file holds the encoder under timm's names; a pre-training run's own also holds the decoder, which is
    left out.

    Raises:
        CheckpointError: the file is damaged, or is not of this encoder at 224 px.
    """
    from timm.layers import resample_abs_pos_embed

    found = {key: value for key, value in read_weights(path, None).items() if not key.startswith(_NOT_OF_THE_ENCODER)}
    shapes = {key: tuple(value.shape) for key, value in found.items()}
    expected = {key: tuple(value.shape) for key, value in vit.state_dict().items()}
    stored = NATIVE // vit.patch_embed.patch_size[0]
    expected["pos_embed"] = (1, 1 + stored**2, vit.embed_dim)
    odd = [
        f"{key}: expected {expected.get(key, 'nothing')}, found {shapes.get(key, 'nothing')}"
        for key in sorted({*expected, *shapes})
        if shapes.get(key) != expected.get(key)
    ]
    if odd:
        raise CheckpointError(
            f"{path} is no MAE of width {vit.embed_dim} and {len(vit.blocks)} blocks: {len(odd)} tensors differ.\n  "
            + "\n  ".join(odd[:4])
            + '\n  "auto" takes the published file.'
        )
    table = resample_abs_pos_embed(found["pos_embed"], list(vit.patch_embed.grid_size), num_prefix_tokens=1)
    return {**found, "pos_embed": table}
