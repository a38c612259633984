"""Dropout as a function of the images' keys, so that a training that goes on, or computes a block again, repeats it."""

from __future__ import annotations

from torch import Tensor, nn

from methods.randomness import uniform


class KeyedDropout(nn.Module):
    """Drops values, or whole channels, of each image by draws from its key; without keys it drops nothing.

    It is one of the layers that :func:`methods.randomness.hand_out` gives keys to.

    Args:
        p: how probably a value is dropped.
        salt: tells apart the layers of a network.
        whole_channels: of maps (B, C, h, w), whole channels are dropped.
    """

    noise_shape = None

    def __init__(self, p: float, *, salt: int = 0, whole_channels: bool = False) -> None:
        super().__init__()
        self.p, self.salt, self.whole_channels = p, salt, whole_channels
        self.random_keys: Tensor | None = None
        self.noise_drawn: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...), same shape.

        Raises:
            ValueError: there is not one key for each image.
        """
        keys = self.random_keys
        if not self.training or keys is None or self.p == 0:
            return x
        if len(keys) != len(x):
            raise ValueError(f"{len(keys)} random keys for {len(x)} images: one key an image")
        shape = (x.shape[1], 1, 1) if self.whole_channels else x.shape[1:]
        return x * (uniform(keys.to(x.device), shape, self.salt) > self.p) / (1 - self.p)
