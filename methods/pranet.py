"""PraNet (Fan et al. 2020, MICCAI, arXiv:2006.11392), the polyp specialist of tables 1 and 5.

Its map is refined on the backbone's own features, multiplied by the reversed probabilities. Its loss, weighted
cross-entropy plus weighted IoU, is the harness's task loss ``structure``, whose docstring says how the release computes
it. Its training on three scales of each batch is a matter of the regime, which has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from methods.base import Context, register
from methods.complete import CLASSIFIER, CompleteMethod
from methods.systems.receptive_field import CHANNELS, ConvNorm, ReverseAttentionModel


class ReverseAttention(nn.Module):
    """A stage: the level's features, where the map so far saw no object, through a few convolutions.

    Args:
        channels: of the level.
        width: of the convolutions.
        kernel, depth: size and number of those that end in a ReLU.
        last: size of the one that answers.
    """

    def __init__(self, channels: int, width: int, *, kernel: int, depth: int, last: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvNorm(channels, width, 1))
        for _ in range(depth):
            self.layers.extend([ConvNorm(width, width, kernel), nn.ReLU()])
        self.layers.append(ConvNorm(width, 1, last))

    def forward(self, features: Tensor, reversed_map: Tensor) -> Tensor:
        return self.layers(features * reversed_map)


class PraNetModel(ReverseAttentionModel):
    """The text has no sizes for the stages; these are the released network's."""

    def __init__(self, context: Context, *, side: int) -> None:
        super().__init__(context, side=side, neighbours=False)
        fine, middle, coarse = CHANNELS
        self.stages = nn.ModuleList(
            [
                ReverseAttention(fine, 64, kernel=3, depth=2, last=3),
                ReverseAttention(middle, 64, kernel=3, depth=2, last=3),
                ReverseAttention(coarse, 256, kernel=5, depth=3, last=1),
            ]
        )

    def refined_on(self, features: Sequence[Tensor], fields: Sequence[Tensor]) -> Sequence[Tensor]:
        return features


@register("pranet")
class PraNet(CompleteMethod):
    """Parallel partial decoder and reverse attention, for polyps.

    Attributes:
        side: of the images it works on, in pixels.
    """

    title: ClassVar[str] = "PraNet"
    evidence: ClassVar[str] = "released code"
    paper_trainable_m: ClassVar[float | None] = 32.55
    several_classes: ClassVar[bool] = False
    side: Annotated[int, Field(ge=32)] = 352

    def added_parameters(self, context: Context) -> int:
        return 30_498_319

    def idle_parameters(self, context: Context) -> int:
        """The backbone's classifier."""
        return CLASSIFIER

    def model(self, context: Context) -> PraNetModel:
        return PraNetModel(context, side=self.side)
