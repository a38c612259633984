"""What the conformance suite tries a method on: a fixed batch, a smooth loss, and a few steps on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, Model, Output
from methods.compose import create
from methods.randomness import image_keys

SEVERAL = 4  # classes with the background
IGNORED = 255


def task_loss(output: Output, target: Tensor) -> Tensor:
    """Any smooth loss would do; one value an image.

    Binary masks: cross-entropy. Several classes: query i answers for class i modulo K, with its mask in the pixels that
    count and with its class, "no object" where the image has none. Queries that start alike are to differ from then on,
    as they do once a real loss has matched them to segments.
    """
    if output.classes is None and output.masks.shape[1] > 1:  # a network without mask queries
        return F.cross_entropy(output.masks, target.long(), ignore_index=IGNORED, reduction="none").mean((1, 2))
    if output.classes is None:
        return F.binary_cross_entropy_with_logits(output.masks, target, reduction="none").mean((1, 2, 3))
    queries, no_object = output.classes.shape[1], output.classes.shape[2] - 1
    wanted = torch.arange(queries) % no_object
    truth, counts = target[:, None] == wanted[:, None, None], (target != IGNORED)[:, None]
    pixels = F.binary_cross_entropy_with_logits(output.masks, truth.float(), reduction="none") * counts
    labels = torch.where(truth.any(3).any(2), wanted, no_object)
    classes = F.cross_entropy(output.classes.transpose(1, 2).float(), labels, reduction="none")
    return (pixels.sum((2, 3)) / counts.sum((2, 3)) + classes).mean(1)


@dataclass(frozen=True)
class Subject:
    """A method under test with a backbone and the images it is tried on.

    Attributes:
        name: the method, or several joined by "+".
        parameters: those that differ from the defaults.
        backbone: a size of SAM; "tiny" keeps the suite under a minute.
        image_size: side in pixels.
        images_count: images of the fixed batch.
        num_classes: 1 for binary masks, else the number of classes with the background.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "tiny"
    image_size: int = 64
    images_count: int = 4
    num_classes: int = 1

    @cached_property
    def method(self) -> Any:
        return create(self.name, self.parameters)

    @property
    def context(self) -> Context:
        return Context(self.num_classes, self.image_size, self.backbone, checkpoint="none")

    @property
    def keys(self) -> Tensor:
        return image_keys(0, 0, range(self.images_count))

    def build(self) -> Model:
        """The model as built, ready to train."""
        return self.method.build(self.context).train()

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, S, S) of a bright block on noise, and its masks (B, S, S).

        Of several classes an image has two, and a strip that counts nowhere.
        """
        side, generator = self.image_size, torch.Generator().manual_seed(5)
        images = torch.randint(0, 120, (self.images_count, 3, side, side), generator=generator, dtype=torch.uint8)
        masks = torch.zeros(self.images_count, side, side, dtype=torch.uint8)
        for index in range(self.images_count):
            top, left = (side * (index % 3)) // 6, (side * (index % 4)) // 8
            masks[index, top : top + side // 2, left : left + side // 3] = 1
            images[index, index % 3] += 130 * masks[index]
            if self.num_classes > 1:
                masks[index] *= 1 + index % (self.num_classes - 1)
                masks[index, -side // 8 :] = IGNORED
        return images, masks


def added(model: Model) -> dict[str, nn.Parameter]:
    """What a method trains beside the mask decoder."""
    return {name: p for name, p in model.trainable().items() if not name.startswith("mask_decoder.")}


def shake(parameters: Mapping[str, nn.Parameter], deviation: float) -> None:
    """Add noise, always the same, so that nothing keeps a neutral initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def predict(model: Model, images: Tensor) -> list[Tensor]:
    """Mask logits in evaluation, and class logits if there are any."""
    output = model.eval()(images)
    return [output.masks] if output.classes is None else [output.masks, output.classes]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two predictions are equal, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def losses(subject: Subject, model: Model, part: slice = slice(None)) -> tuple[Tensor, Output]:
    """The training loss of each image of the batch, or of a part of it."""
    images, masks = subject.batch
    output = model(images[part], subject.keys[part])
    return model.loss(output, model.targets(masks[part]), task_loss), output


def train(subject: Subject, model: Model, *, steps: int, lr: float) -> tuple[float, float, set[str]]:
    """A few AdamW steps on the batch; the loss before and after, and which parameters ever had a gradient."""
    model.train()
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=lr)
    reached: set[str] = set()
    values = []
    for step in range(steps + 1):
        optimiser.zero_grad()
        loss, output = losses(subject, model)
        values.append(task_loss(output, model.targets(subject.batch[1])).mean().item())
        if step < steps:
            loss.mean().backward()
            reached |= {n for n, p in model.trainable().items() if p.grad is not None and p.grad.any()}
            optimiser.step()
    return values[0], values[-1], reached
