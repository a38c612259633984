"""DeepLabv3 (Chen et al. 2017, arXiv:1706.05587), torchvision's, which is what the paper's 41.99 M parameters are.

A ResNet-50 whose last two stages are dilated, so that features keep an eighth of the input's side; atrous spatial
pyramid pooling with rates 12, 24 and 36; and a fully convolutional head on the third stage, an auxiliary answer that is
asked for in training only. torchvision's reference training weighs it 0.5, which is taken over here; what the
Conv-LoRA paper trained with it does not say (inferred), as little as the input's side.

Parameters: 41,993,280 and 514 for each class; 41,993,794 with binary masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from methods.base import Context, Output, TaskLoss, register
from methods.complete import CompleteMethod, CompleteModel, cross_entropy, supervise, with_imagenet_weights


def dilated_resnet50(pretrained: bool) -> nn.Module:
    """torchvision's ResNet-50 at an eighth of the input's side, with its first published ImageNet weights."""
    weights = ResNet50_Weights.IMAGENET1K_V1 if pretrained else None
    return resnet50(weights=weights, replace_stride_with_dilation=[False, True, True])


class DeepLabv3Model(CompleteModel):
    """Answers from the last stage, and in training from the third.

    Args:
        context: the cell's.
        side: as in :class:`CompleteModel`.
        aux_weight: of the loss of the third stage's answer.
    """

    def __init__(self, context: Context, *, side: int | None, aux_weight: float) -> None:
        super().__init__(context, side=side)
        resnet, self.random_backbone = with_imagenet_weights(dilated_resnet50, context, name="resnet50")
        self.backbone = create_feature_extractor(resnet, {"layer4": "last", "layer3": "third"})
        self.classifier = DeepLabHead(2048, context.num_classes)
        self.aux_classifier = FCNHead(1024, context.num_classes)
        self.aux_weight = aux_weight

    def features(self, images: Tensor) -> Sequence[Tensor]:
        found = self.backbone(images)
        return found["last"], found["third"]

    def answers(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        last, third = features
        scored = self.classifier(last)
        return (scored, self.aux_classifier(third)) if self.training else (scored,)

    def loss(self, output: Output, target: Tensor, task_loss: TaskLoss) -> Tensor:
        """The regime's loss of both answers; of several classes the cross-entropy, whatever the regime's is."""
        own = task_loss if self.num_classes == 1 else lambda answer, truth: cross_entropy(answer.masks, truth)
        return supervise(output, target, own, (1.0, self.aux_weight)[: 1 + len(output.others)])


@register("deeplabv3")
class DeepLabv3(CompleteMethod):
    """torchvision's DeepLabv3 on a ResNet-50.

    Args:
        side: what it works at, in pixels; None for the cell's image size.
        aux_weight: of the auxiliary answer's loss; the scored one's weighs 1.
    """

    title: ClassVar[str] = "DeepLabv3"
    evidence: ClassVar[str] = "forced by count"
    paper_trainable_m: ClassVar[float | None] = 41.99
    side: int | None = Field(None, ge=32)
    aux_weight: NonNegativeFloat = 0.5

    def added_parameters(self, context: Context) -> int:
        return 41_993_280 + 514 * context.num_classes

    def model(self, context: Context) -> CompleteModel:
        return DeepLabv3Model(context, side=self.side, aux_weight=self.aux_weight)
