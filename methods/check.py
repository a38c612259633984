"""The conformance suite: what every method promises the harness, tried on a small model in under a minute.

``python -m methods check NAME`` runs it on any plugin, one's own included; the project's tests run the same checks on
all of them. A check raises :class:`Broken` with what is wrong, or returns why it does not apply.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Context, Model, Output
from methods.compose import create, parameters_of
from methods.delta import load, save
from methods.randomness import image_keys
from methods.sam.checkpoints import resolve


class Broken(AssertionError):
    """A promise that a method does not keep."""


def require(kept: bool, what: str) -> None:
    """Raise :class:`Broken` with ``what`` unless ``kept``."""
    if not kept:
        raise Broken(what)


def task_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, one value an image: any smooth loss would do."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))


@dataclass(frozen=True)
class Subject:
    """A method under test with a backbone and the images it is tried on.

    Attributes:
        name: the method, or several joined by "+".
        parameters: those that differ from the defaults.
        backbone: a size of SAM; "tiny" keeps the suite under a minute.
        image_size: side in pixels.
        images_count: images of the fixed batch.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "tiny"
    image_size: int = 64
    images_count: int = 4

    @cached_property
    def method(self) -> Any:
        return create(self.name, self.parameters)

    @property
    def context(self) -> Context:
        return Context(backbone=self.backbone, checkpoint="none", image_size=self.image_size)

    @property
    def keys(self) -> Tensor:
        return image_keys(0, 0, range(self.images_count))

    def build(self) -> Model:
        """The model as built, ready to train."""
        return self.method.build(self.context).train()

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, S, S) of a bright block on noise, and its masks (B, S, S)."""
        side, generator = self.image_size, torch.Generator().manual_seed(5)
        images = torch.randint(0, 120, (self.images_count, 3, side, side), generator=generator, dtype=torch.uint8)
        masks = torch.zeros(self.images_count, side, side, dtype=torch.uint8)
        for index in range(self.images_count):
            top, left = (side * (index % 3)) // 6, (side * (index % 4)) // 8
            masks[index, top : top + side // 2, left : left + side // 3] = 1
            images[index, index % 3] += 130 * masks[index]
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
def predict(model: Model, images: Tensor) -> Tensor:
    """Mask logits in evaluation."""
    return model.eval()(images).masks


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
        values.append(task_loss(output.masks, model.targets(subject.batch[1])).mean().item())
        if step < steps:
            loss.mean().backward()
            reached |= {n for n, p in model.trainable().items() if p.grad is not None and p.grad.any()}
            optimiser.step()
    return values[0], values[-1], reached


def check_training_moves_only_what_it_declares(subject: Subject) -> str | None:
    """After steps the loss is lower, every declared parameter had a gradient, frozen ones are bit-identical."""
    model = subject.build()
    if not model.trainable():
        return "trains nothing"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start, end, reached = train(subject, model, steps=6, lr=1e-3)
    require(end < start, f"six steps took the loss from {start:.4f} to {end:.4f}")
    declared = model.trainable().keys()
    moved = [n for n, p in model.named_parameters() if n not in declared and not torch.equal(p, before[n])]
    require(not moved, f"frozen parameters changed: {moved[:3]}")
    exceptions = subject.method.no_gradient
    silent = [n for n in declared - reached if not any(re.fullmatch(pattern, n) for pattern in exceptions)]
    require(not silent, f"{len(silent)} declared parameters never had a gradient: {silent[:3]}")
    return None


def check_added_parts_alone_lower_the_loss(subject: Subject) -> str | None:
    """With the decoder frozen what the method adds still learns."""
    model = subject.build()
    if not added(model):
        return "adds nothing to the decoder"
    # A freshly random decoder answers almost the same to any features; a rough one listens to them.
    shake(dict(model.mask_decoder.named_parameters()), 0.3)
    model.mask_decoder.requires_grad_(False)
    start, end, reached = train(subject, model, steps=10, lr=1e-2)
    require(end < 0.97 * start, f"ten steps took the loss from {start:.4f} to {end:.4f}")
    silent = model.trainable().keys() - reached
    require(not silent, f"{len(silent)} added parameters never had a gradient: {sorted(silent)[:3]}")
    return None


def check_added_parts_change_the_output(subject: Subject) -> str | None:
    """Other values in the added parts give other masks."""
    model, images = subject.build(), subject.batch[0]
    if not model.trainable():
        return "trains nothing"
    before = predict(model, images)
    shake(added(model) or model.trainable(), 0.1)
    require(
        not torch.allclose(predict(model, images), before, rtol=1e-3), "noise in them leaves the masks as they were"
    )
    return None


def check_starts_as_the_frozen_sam(subject: Subject) -> str | None:
    """Before the first step the masks are those of the frozen SAM, bit for bit."""
    if not subject.method.starts_as_sam:
        return "does not claim it"
    sam = replace(subject, name="decoder_only", parameters={}).build()
    images = subject.batch[0]
    require(torch.equal(predict(subject.build(), images), predict(sam, images)), "the masks differ")
    return None


def check_a_saved_delta_gives_the_same_masks(subject: Subject) -> str | None:
    """What is saved is enough to build the trained model again."""
    model, images = subject.build(), subject.batch[0]
    shake(model.trainable(), 0.02)
    digest = resolve(subject.backbone, "none").digest()
    method = {"name": subject.name, "parameters": parameters_of(subject.method)}
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder), {"method": method, "context": asdict(subject.context), "backbone_digest": digest})
        again = load(folder)
    require(torch.equal(predict(again, images), predict(model, images)), "the loaded model answers differently")
    return None


def check_bf16(subject: Subject) -> str | None:
    """Training and evaluation run under bf16 autocast, near the float32 masks."""
    model, images = subject.build(), subject.batch[0]
    exact = predict(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = predict(model, images)
        if model.train().trainable():
            losses(subject, model)[0].mean().backward()
    require(rounded.dtype == torch.float32 and bool(torch.isfinite(rounded).all()), "masks are not finite float32")
    require((rounded - exact).abs().max() < 0.2 * exact.abs().max(), "masks are far from those in float32")
    gradients = [p.grad for p in model.trainable().values() if p.grad is not None]
    require(all(torch.isfinite(g).all() for g in gradients), "a gradient is not finite")
    return None


def check_micro_batches_change_nothing(subject: Subject) -> str | None:
    """A batch of four and four batches of one give the same losses and gradients, up to rounding."""
    whole, single = subject.build(), subject.build()
    if not whole.trainable():
        return "trains nothing"
    loss, _ = losses(subject, whole)
    loss.mean().backward()
    alone = []
    for index in range(subject.images_count):
        one, _ = losses(subject, single, slice(index, index + 1))
        (one.sum() / subject.images_count).backward()
        alone.append(one.detach())
    require(torch.allclose(loss, torch.cat(alone), rtol=1e-4, atol=1e-5), f"losses {loss.tolist()} and {alone}")
    others = single.trainable()
    for name, parameter in whole.trainable().items():
        if parameter.grad is not None:
            error, scale = (parameter.grad - others[name].grad).abs().max(), parameter.grad.abs().max()
            require(bool(error <= 1e-3 * scale + 1e-6), f"the gradient of {name} differs by {error:.2e} of {scale:.2e}")
    return None


def check_sizes(subject: Subject) -> str | None:
    """One image and four, at two image sizes, give masks of the input's size."""
    for side in (subject.image_size, subject.image_size + 32):
        for count in (1, 4):
            other = replace(subject, image_size=side, images_count=count)
            shape = predict(other.build(), other.batch[0]).shape
            require(tuple(shape) == (count, 1, side, side), f"{count} images of {side} px give masks {tuple(shape)}")
    return None


def check_count_equals_the_formula(subject: Subject) -> str | None:
    """What is added has as many parameters as the method says."""
    expected = subject.method.added_parameters(subject.context)
    if expected is None:
        return "declares no formula (added_parameters)"
    found = sum(p.numel() for p in added(subject.build()).values())
    require(found == expected, f"{found:,} parameters are added, {expected:,} declared")
    return None


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    name.removeprefix("check_").replace("_", " "): function
    for name, function in list(globals().items())
    if name.startswith("check_") and callable(function)
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Small models are fastest on one thread, and sums then come out the same for every batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_method(name: str, backbone: str = "tiny") -> int:
    """Run all checks and print a line for each; returns 1 if any failed.

    Raises:
        bench.registry.UnknownName: no such method or backbone.
    """
    subject, failed = Subject(name, backbone=backbone), 0
    create(name)
    with one_thread():
        for title, check in CHECKS.items():
            began = time.perf_counter()
            try:
                reason = check(subject)
                verdict = "ok" if reason is None else f"does not apply: {reason}"
            except Broken as error:
                failed += 1
                verdict = f"FAILED: {error}"
            print(f"{title:<42} {time.perf_counter() - began:5.1f} s  {verdict}", flush=True)
    print(f"{name}: {'conforms' if not failed else f'{failed} checks failed'}")
    return 1 if failed else 0
