"""The sizes of SAM: the three published ones and a tiny one for laptops and tests."""

from __future__ import annotations

from dataclasses import dataclass

from bench.registry import UnknownName


@dataclass(frozen=True)
class Size:
    """The dimensions of one SAM.

    Attributes:
        width: channels of the encoder's tokens.
        depth: encoder blocks.
        heads: attention heads an encoder block.
        global_blocks: indices of the blocks that attend over the whole image; the others use windows.
        window: side of a window in tokens.
        decoder_width: channels of the neck, the prompt encoder and the mask decoder.
        native: image side in pixels the position tables are stored for.
        patch: side of a patch in pixels.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    decoder_width: int = 256
    native: int = 1024
    patch: int = 16

    def grid(self, image_size: int) -> int:
        """Tokens along a side of a square image.

        Raises:
            ValueError: ``image_size`` is no positive multiple of the patch size.
        """
        if image_size <= 0 or image_size % self.patch:
            near = max(self.patch, round(image_size / self.patch) * self.patch)
            raise ValueError(f"image_size {image_size} is no multiple of the patch size {self.patch}; try {near}")
        return image_size // self.patch

    def encoder_parameters(self, image_size: int) -> int:
        """Parameters of an image encoder of this size, by formula."""
        width, out, grid = self.width, self.decoder_width, self.grid(image_size)
        windowed = self.depth - len(self.global_blocks)
        tables = (
            2 * (windowed * (2 * self.window - 1) + len(self.global_blocks) * (2 * grid - 1)) * (width // self.heads)
        )
        patches = (3 * self.patch**2 + 1) * width + grid**2 * width
        return patches + self.depth * (12 * width**2 + 13 * width) + tables + (width + 9 * out + 4) * out


SIZES: dict[str, Size] = {
    "vit_h": Size(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "vit_l": Size(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_b": Size(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "tiny": Size(width=192, depth=12, heads=3, global_blocks=(2, 5, 8, 11), window=8, decoder_width=128, native=256),
}


def size_of(backbone: str) -> Size:
    """The size named ``backbone``.

    Raises:
        UnknownName: no such size; the message lists all.
    """
    if backbone not in SIZES:
        raise UnknownName("backbone", backbone, SIZES)
    return SIZES[backbone]
