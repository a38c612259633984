"""Methods that adapt a SAM's encoder block by block: all of its blocks, or the last of them only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from methods.base import Context, SamMethod
from methods.sam.sizes import size_of

if TYPE_CHECKING:
    from methods.sam.encoder import Block
    from methods.sam.model import SamSegmenter


class BlockwiseMethod(SamMethod):
    """A method whose parts lie in encoder blocks.

    ``last_k`` leaves all that comes before the last k blocks as it is, the patch embedding included; None adapts all
    blocks. Below the first adapted block no gradient is needed, so nothing there is kept for the backward pass.
    """

    last_k: PositiveInt | None = None

    def num_blocks(self, context: Context) -> int:
        """How many blocks are adapted.

        Raises:
            ValueError: the backbone has fewer than ``last_k``.
        """
        depth = size_of(context.backbone).depth
        if self.last_k is not None and self.last_k > depth:
            raise ValueError(
                f"last_k = {self.last_k}; allowed for {context.backbone}: 1 to {depth}, its number of blocks. "
                "Leave it out to adapt them all"
            )
        return self.last_k or depth

    def blocks(self, sam: SamSegmenter, context: Context) -> list[Block]:
        """The blocks of ``sam`` to adapt, first to last; raises what :meth:`num_blocks` does."""
        return list(sam.image_encoder.blocks)[-self.num_blocks(context) :]
