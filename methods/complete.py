"""Complete networks beside the adapted SAMs: systems that were built for a task, on backbones trained on ImageNet.

A system works at a side of its own: images are resized to it on the way in, masks to the input's side on the way out,
so that it stands in the same tables as everything else of that image size. It may answer several times (deep
supervision, boundaries, directions); the first answer is the one that is scored. What SAM's checkpoint is to the other
methods, the backbone's ImageNet weights from timm or torchvision are here: a cell whose ``checkpoint`` is "none", or
where they cannot be reached, starts from random ones and says so.
"""

from __future__ import annotations

import abc
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from methods.base import Context, Embedding, Method, Model, Output, TaskLoss
from methods.dropout import KeyedDropout
from methods.randomness import hand_out

log = logging.getLogger("methods")

CLASSIFIER = 2048 * 1000 + 1000
"""Parameters of a ResNet-50's classifier for ImageNet, which four of the releases carry along."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Answers(Output):
    """An output with everything else the network answered, at the input's size where it is a mask.

    Attributes:
        others: further answers, for the loss alone.
    """

    others: tuple[Tensor, ...] = ()


class CompleteModel(Model):
    """A network that is trained as a whole.

    With one class its first answer is a logit a pixel, (B, 1, h, w); with K classes a logit for each, (B, K, h, w).
    There are no mask queries: ``Output.classes`` is None. BatchNorm takes its statistics from the batch, but from its
    running ones where that is a single image.

    Args:
        context: the cell's; images come in at its ``image_size``.
        side: what the network works at, in pixels; None for the cell's image size.
    """

    def __init__(self, context: Context, *, side: int | None = None) -> None:
        super().__init__(context.num_classes)
        self.image_size, self.side = context.image_size, side or context.image_size
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255, persistent=False)

    @abc.abstractmethod
    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps of normalised images (B, 3, side, side), as :meth:`answers` wants them."""

    @abc.abstractmethod
    def answers(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Logits (B, C, h, w) at any resolution, the one to score first."""

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Embedding:
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(self.training and len(images) > 1)
        hand_out(keys, (layer for layer in self.modules() if isinstance(layer, KeyedDropout)))
        images = (images - self.pixel_mean) / self.pixel_std
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        first, *rest = self.features(images)
        return Embedding(first, {}, taps=tuple(rest))

    def decode(self, embedding: Embedding) -> Answers:
        first, *others = map(self._at_input_size, self.answers((embedding.features, *embedding.taps)))
        return Answers(first, others=tuple(others))

    def _at_input_size(self, answer: Tensor) -> Tensor:
        answer, size = answer.float(), (self.image_size, self.image_size)
        if answer.shape[-2:] == size:
            return answer
        return F.interpolate(answer, size, mode="bilinear", align_corners=False)

    def probabilities(self, output: Output) -> Tensor:
        if self.num_classes == 1:
            return super().probabilities(output)
        return output.masks.float().softmax(1)


def supervise(output: Answers, target: Tensor, task_loss: TaskLoss, weights: Sequence[float]) -> Tensor:
    """The task loss of every answer, weighted and added up (deep supervision), (B,).

    Args:
        weights: of the scored answer and the others, in their order.
    """
    answers = (output.masks, *output.others)
    parts = [weight * task_loss(Output(answer), target) for answer, weight in zip(answers, weights, strict=True)]
    return torch.stack(parts).sum(0)


def cross_entropy(logits: Tensor, target: Tensor, *, ignored: int = 255) -> Tensor:
    """Of class logits (B, K, H, W) with indices (B, H, W): the mean over an image's pixels that count, (B,)."""
    values = F.cross_entropy(logits.float(), target.long(), ignore_index=ignored, reduction="none")
    counts = (target != ignored).sum((1, 2)).clamp(min=1)
    return values.sum((1, 2)) / counts


def with_imagenet_weights(make: Callable[[bool], nn.Module], context: Context, *, name: str) -> tuple[nn.Module, bool]:
    """A backbone with its ImageNet weights where they can be had, else with random ones; and whether it is random.

    Args:
        make: called with True for pretrained weights, which timm and torchvision then fetch, else for random ones.
        context: ``checkpoint = "none"`` asks for random weights.
        name: the backbone's, for the log.
    """
    backbone = None
    if context.checkpoint != "none":
        try:
            with _no_long_wait():
                backbone = make(True)
        except (OSError, RuntimeError, ValueError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            log.warning("RANDOM BACKBONE: the ImageNet weights of %s cannot be had (%s)", name, first)
    random = backbone is None
    if random:
        torch.manual_seed(context.seed)
        backbone = make(False)
    torch.manual_seed(context.seed)  # what is drawn next does not depend on what the backbone drew
    return backbone, random


@contextmanager
def _no_long_wait() -> Iterator[None]:
    """timm's weights come from a hub whose library asks for a minute when nobody answers; five seconds tell as much."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not (before or getproxies()):
        try:
            socket.create_connection((urlsplit(constants.ENDPOINT).hostname, 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True  # what is cached is still found
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class CompleteMethod(Method):
    """A method whose model is complete: built under the cell's seed, every parameter trained.

    ``model`` makes it; what it draws depends on the seed alone.
    """

    starred: ClassVar[bool] = False
    on_backbone: ClassVar[bool] = False

    def caveats(self, context: Context) -> tuple[str, ...]:
        idle = f"{self.idle_parameters(context) / 1e6:.2f}"
        return () if idle == "0.00" else (f"its released model counts {idle} M more, which no gradient reaches",)

    @abc.abstractmethod
    def model(self, context: Context) -> CompleteModel:
        """The network, its ``random_backbone`` set."""

    def build(self, context: Context) -> Model:
        self.refuse_unsupported(context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            model = self.model(context)
        layers = [
            (path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Dropout | nn.Dropout2d)
        ]
        for salt, (path, layer) in enumerate((path, layer) for path, layer in layers if layer.p):
            parent, _, name = path.rpartition(".")
            keyed = KeyedDropout(layer.p, salt=salt, whole_channels=isinstance(layer, nn.Dropout2d))
            setattr(model.get_submodule(parent), name, keyed)
        return model.requires_grad_(True)
