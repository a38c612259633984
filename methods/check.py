"""The conformance suite: what every method promises the harness, tried on a small model in under a minute.

``python -m methods check NAME`` runs it on any plugin, one's own included, with binary masks and with several classes;
``KEY=VALUE`` words after the name are its parameters. The project's tests run the same checks on all methods. A check
raises :class:`Broken` with what is wrong, or returns why it does not apply.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.compose import parameters_of
from methods.delta import load, save
from methods.sam.checkpoints import resolve
from methods.trial import SEVERAL, Subject, added, losses, predict, same, shake, train


class Broken(AssertionError):
    """A promise that a method does not keep."""


def require(kept: bool, what: str) -> None:
    """Raise :class:`Broken` with ``what`` unless ``kept``."""
    if not kept:
        raise Broken(what)


def require_shape(value: Tensor | None, wanted: tuple[int, ...] | None, what: str) -> None:
    """Raise :class:`Broken` unless ``value`` has the shape ``wanted``; None stands for no tensor."""
    shape = None if value is None else tuple(value.shape)
    require(shape == wanted, f"{what} {shape}, not {wanted}")


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
    if not hasattr(model, "mask_decoder"):
        return "is a complete model"
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
    after = predict(model, images)
    require(not torch.allclose(after[0], before[0], rtol=1e-3), "noise in them leaves the masks as they were")
    return None


def check_starts_as_the_frozen_sam(subject: Subject) -> str | None:
    """Before the first step the masks are those of the frozen SAM, bit for bit."""
    if not subject.method.starts_as_sam:
        return "does not claim it"
    sam = replace(subject, name="decoder_only", parameters={}).build()
    images = subject.batch[0]
    require(same(predict(subject.build(), images), predict(sam, images)), "the masks or the class logits differ")
    return None


def check_a_saved_delta_gives_the_same_masks(subject: Subject) -> str | None:
    """What is saved is enough to build the trained model again."""
    model, images = subject.build(), subject.batch[0]
    shake(model.trainable(), 0.02)
    digest = resolve(subject.backbone, "none").digest()
    method = {"name": subject.method.name, "parameters": parameters_of(subject.method)}
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder), {"method": method, "context": asdict(subject.context), "backbone_digest": digest})
        again = load(folder)
    require(same(predict(again, images), predict(model, images)), "the loaded model answers differently")
    return None


def check_bf16(subject: Subject) -> str | None:
    """Training and evaluation run under bf16 autocast, near the float32 answer; what is scored is float32."""
    model, images = subject.build(), subject.batch[0]
    exact = predict(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = predict(model, images)
        scored = model.probabilities(model(images))
        if model.train().trainable():
            losses(subject, model)[0].mean().backward()
    for what, values in (("masks", rounded[0]), ("probabilities", scored)):
        require(values.dtype == torch.float32 and bool(values.isfinite().all()), f"{what} are not finite float32")
    for what, near, value in zip(("masks", "classes"), rounded, exact, strict=False):
        require((near - value).abs().max() < 0.2 * value.abs().max(), f"{what} are far from those in float32")
    gradients = [p.grad for p in model.trainable().values() if p.grad is not None]
    require(all(torch.isfinite(g).all() for g in gradients), "a gradient is not finite")
    return None


def check_micro_batches_change_nothing(subject: Subject) -> str | None:
    """A batch of four and four batches of one give the same losses and gradients, up to rounding."""
    whole, single = subject.build(), subject.build()
    if not whole.trainable():
        return "trains nothing"
    if whole.batch_statistics:
        return "takes statistics from its batch, which is never cut"
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


@torch.no_grad()
def check_sizes(subject: Subject) -> str | None:
    """One image and four, at two image sizes, give masks and probabilities of the input's size, one for each class."""
    classes = subject.num_classes
    for side in (subject.image_size, subject.image_size + 32):
        for count in (1, 4):
            other = replace(subject, image_size=side, images_count=count)
            model = other.build().eval()
            require(model.num_classes == classes, f"its num_classes is {model.num_classes}, {classes} were asked for")
            output, given = model(other.batch[0]), f"{count} images of {side} px give"
            complete = classes > 1 and output.classes is None and not hasattr(model, "mask_decoder")
            queries = classes if complete else output.masks.shape[1] if classes > 1 else 1
            logits = (count, queries, classes + 1) if classes > 1 and not complete else None
            require_shape(output.masks, (count, queries, side, side), f"{given} masks")
            require_shape(output.classes, logits, f"{given} classes")
            scores = (count, classes, side, side) if classes > 1 else (count, side, side)
            require_shape(model.probabilities(output), scores, f"{given} probabilities")
    return None


def check_several_classes_are_built_or_refused(subject: Subject) -> str | None:
    """A method that declares ``several_classes = False`` does not build for them."""
    try:
        replace(subject, num_classes=SEVERAL).build()
    except ValueError as error:
        require(not subject.method.several_classes, f"it declares several_classes, but {error}")
        return None
    require(subject.method.several_classes, f"it declares several_classes = False and yet builds for {SEVERAL} classes")
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


def check_method(name: str, parameters: Mapping[str, Any] | None = None, *, backbone: str = "tiny") -> int:
    """Run all checks, on several classes too where the method can, a line for each; returns 1 if any failed.

    Raises:
        bench.registry.UnknownName: no such method or backbone.
        methods.compose.ParameterError: a parameter that the method does not take, or methods that do not combine.
    """
    subject = Subject(name, parameters or {}, backbone=backbone)
    given = parameters_of(subject.method, changed_only=True)
    title = " ".join([subject.method.name, *(f"{key}={value}" for key, value in given.items())])
    tried = {"binary masks": subject}
    if subject.method.several_classes:
        tried[f"{SEVERAL} classes"] = replace(subject, num_classes=SEVERAL)
    failed = 0
    with one_thread():
        for kind, one in tried.items():
            print(f"{title} on {kind}")
            failed += sum(not passes(what, check, one) for what, check in CHECKS.items())
    if len(tried) == 1:
        print(f"several classes: not tried, {title} is for binary masks only")
    print(f"{title}: {'conforms' if not failed else f'{failed} checks failed'}")
    return 1 if failed else 0


def passes(title: str, check: Callable[[Subject], str | None], subject: Subject) -> bool:
    """Run one check and print its line."""
    began = time.perf_counter()
    passed = True
    try:
        reason = check(subject)
        verdict = "ok" if reason is None else f"does not apply: {reason}"
    except Broken as error:
        passed, verdict = False, f"FAILED: {error}"
    print(f"  {title:<42} {time.perf_counter() - began:5.1f} s  {verdict}", flush=True)
    return passed
