"""A SAM that runs at any image size from one set of native parameters, so that all sizes train the same tables."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.pretraining.batch import STRIDE
from bench.pretraining.dense import DenseHead
from methods.sam.build import random_parts, resize_position_tables
from methods.sam.model import PIXEL_MEAN, PIXEL_STD
from methods.sam.sizes import size_of

_ENCODER = "image_encoder."


class Pretrained(nn.Module):
    """SAM's three parts with random weights, and a head for dense predictions that no checkpoint keeps.

    Args:
        backbone: a size of SAM.
        seed: draws the weights.
    """

    def __init__(self, backbone: str, seed: int = 0) -> None:
        super().__init__()
        self.size = size_of(backbone)
        self.sam = random_parts(self.size, self.size.native, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = DenseHead(self.size.decoder_width, self.size.patch // STRIDE)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The neck's output (B, C, S / patch, S / patch) for uint8 images (B, 3, S, S)."""
        encoder = self.sam["image_encoder"]
        native = {_ENCODER + name: parameter for name, parameter in encoder.named_parameters()}
        resized = resize_position_tables(native, self.size, images.shape[-1])
        tables = {name.removeprefix(_ENCODER): table for name, table in resized.items()}
        return functional_call(encoder, tables, ((images - self.pixel_mean) / self.pixel_std,)).features

    def prompt_encoder(self, image_size: int) -> nn.Module:
        """The prompt encoder for images of another size: the same parameters, another grid."""
        encoder, grid = copy.copy(self.sam["prompt_encoder"]), self.size.grid(image_size)
        encoder.input_image_size = (image_size, image_size)
        encoder.image_embedding_size = (grid, grid)
        encoder.mask_input_size = (4 * grid, 4 * grid)
        return encoder
