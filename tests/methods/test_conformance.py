"""Every registered method and the important variants keep all promises; plugins that break one are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from methods import Context, Method, Model, Output, SamMethod, registry
from methods.__main__ import main
from methods.check import CHECKS, Broken, one_thread
from methods.sam.build import build_segmenter
from methods.trial import SEVERAL, Subject, task_loss

# Variants are held to the promises that depend on their arithmetic.
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("conv_lora", {"variant": "paper"}),
    ("conv_lora", {"gate": "image"}),
    ("conv_lora", {"routing": "sum"}),
    ("conv_lora", {"top_k": 2}),
    ("conv_lora", {"scales": [4]}),
    ("lora", {"rank": 12}),
    ("conv_lora", {"num_experts": 4}),
    ("inception", {"rank": 2}),
    ("ssf", {"decoder_mlp": False, "neck": True}),
    ("ssf+vpt", {}),
    ("adapter+ssf", {}),
    ("bitfit+lora", {}),
    ("conv_lora+vpt", {"vpt.num_tokens": 5}),
    ("sam_adapter+lora", {}),
    ("lora+lst", {}),
    ("convpass+vpt", {}),
    ("adaptformer+lora", {}),
    ("norm+ssf", {}),
    *((name, {"last_k": 1}) for name in ("conv_lora", "bitfit", "ssf", "sam_adapter", "vpt", "convpass")),
]
SEVERAL_TOO = [
    *(name for name in registry.names() if registry[name].several_classes and ":" not in name),
    *("peft:lora", "peft:dora"),  # peft's tuners know nothing of classes: two stand for all
    "conv_lora+vpt",
]
# Complete networks work at a side of their own, too large to be tried on every promise; those sides have a test each.
SMALL = {name: {"side": 64} for name in registry.names() if "side" in registry[name].model_fields}
SUBJECTS = [
    *((name, SMALL.get(name, {}), 1) for name in registry.names()),
    *((name, parameters, 1) for name, parameters in VARIANTS),
    *((name, SMALL.get(name, {}), SEVERAL) for name in SEVERAL_TOO),
]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda value: " ".join(map(str, value)))
def subject(request: pytest.FixtureRequest, mini: str) -> Subject:
    name, parameters, num_classes = request.param
    return Subject(name, parameters, backbone=mini, num_classes=num_classes)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_method_keeps_its_promises(subject: Subject, check: Callable[[Subject], str | None]) -> None:
    with one_thread():
        reason = check(subject)
    if reason is not None:
        pytest.skip(reason)


class Added(nn.Module):
    """A layer with a trained part beside it, in several broken ways."""

    def __init__(self, base: nn.Module, fault: str) -> None:
        super().__init__()
        self.base, self.fault = base, fault
        self.part = nn.Parameter(torch.zeros(base.out_features))
        self.idle = nn.Parameter(torch.zeros(1)) if fault == "an idle parameter" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self.fault == "no effect":
            return y + 0 * self.part
        if self.fault == "frozen weights move" and self.training:
            with torch.no_grad():
                self.base.bias += 1e-3
        if self.fault == "statistics of the batch":
            return y + self.part + y.mean() * 0.1
        if self.fault == "chance":
            return y + self.part + 0.01 * torch.randn(())
        return y + self.part + (0.1 if self.fault == "another start" else 0.0)


FAULTS = {
    "no effect": "added parts change the output",
    "an idle parameter": "training moves only what it declares",
    "frozen weights move": "training moves only what it declares",
    "statistics of the batch": "micro batches change nothing",
    "chance": "a saved delta gives the same masks",
    "another start": "starts as the frozen sam",
    "another count": "count equals the formula",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_plugin_is_caught(fault: str, mini: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(SamMethod):
        """Broken on purpose."""

        name: ClassVar[str] = "faulty"
        title: ClassVar[str] = "faulty"
        starts_as_sam: ClassVar[bool] = True

        def added_parameters(self, context: Context) -> int | None:
            return 1 if fault == "another count" else None

        def adapt(self, sam, context: Context) -> None:
            for block in sam.image_encoder.blocks:
                block.attn.proj = Added(block.attn.proj, fault)

    monkeypatch.setitem(registry._classes, "faulty", Faulty)
    with pytest.raises(Broken), one_thread():
        CHECKS[FAULTS[fault]](Subject("faulty", backbone=mini))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("denies what it builds", "several classes are built or refused"),
        ("refuses what it declares", "several classes are built or refused"),
        ("one class whatever is asked", "sizes"),
        ("no class logits", "sizes"),
        ("a class too few", "sizes"),
        ("a class head drawn by chance", "starts as the frozen sam"),
    ],
)
def test_a_plugin_that_mishandles_several_classes_is_caught(
    fault: str, check: str, mini: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mishandling(Method):
        """Broken on purpose."""

        name: ClassVar[str] = "mishandling"
        title: ClassVar[str] = "mishandling"
        starts_as_sam: ClassVar[bool] = True
        several_classes: ClassVar[bool] = fault != "denies what it builds"

        def build(self, context: Context) -> Model:
            if fault == "refuses what it declares" and context.num_classes > 1:
                raise ValueError("only binary masks")
            if fault == "one class whatever is asked":
                context = replace(context, num_classes=1)
            model = build_segmenter(context)
            head = model.mask_decoder.class_head
            if fault == "no class logits":
                model.mask_decoder.class_head = None
            if fault == "a class too few":
                model.mask_decoder.class_head = nn.Linear(head.in_features, context.num_classes)
            if fault == "a class head drawn by chance":
                nn.init.normal_(head.weight)
            return model

    monkeypatch.setitem(registry._classes, "mishandling", Mishandling)
    with pytest.raises(Broken), one_thread():
        CHECKS[check](Subject("mishandling", backbone=mini, num_classes=SEVERAL))


def test_the_loss_of_the_suite_leaves_out_what_is_ignored_and_tells_equal_queries_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(1, 1, 8, 8, generator=generator).repeat(2, 5, 1, 1).requires_grad_()
    classes = torch.randn(1, 1, 4, generator=generator).repeat(2, 5, 1).requires_grad_()
    target = torch.randint(0, 3, (2, 8, 8), generator=generator, dtype=torch.uint8)
    target[0, :3] = 255
    loss = task_loss(Output(masks, classes), target)
    assert loss.shape == (2,)
    loss.sum().backward()
    assert not masks.grad[0, :, :3].any() and masks.grad[0, :, 3:].all() and masks.grad[1].all()
    for query in (1, 2):
        assert not torch.allclose(masks.grad[:, query], masks.grad[:, 0])
        assert not torch.allclose(classes.grad[:, query], classes.grad[:, 0])


def test_the_command_prints_a_line_for_each_check(mini: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", "lora", "--backbone", mini]) == 0
    binary, several = capsys.readouterr().out.split(f"lora on {SEVERAL} classes")
    assert binary.startswith("lora on binary masks")
    assert all(title in part for title in CHECKS for part in (binary, several))
    assert several.endswith("lora: conforms\n")
    assert main(["check", "sam_zero_shot", "--backbone", mini]) == 0
    shown = capsys.readouterr().out
    assert "several classes: not tried" in shown and "sam_zero_shot: conforms" in shown
    assert main(["check", "vpt+conv_lora", "num_tokens=5", "--backbone", mini]) == 0
    assert "conv_lora+vpt vpt.num_tokens=5: conforms" in capsys.readouterr().out
    assert main(["check", "lora", "rank"]) == 2
    assert "check 'rank': write KEY=VALUE" in capsys.readouterr().err
    assert main(["check", "lora", "rnk=3"]) == 2
    assert "'rnk'" in capsys.readouterr().err
    assert main(["check", "lora+conv_lora"]) == 2
    assert "'conv_lora' and 'lora' both want the slot" in capsys.readouterr().err
    assert main(["check", "lorra"]) == 2
    assert "Did you mean 'lora'?" in capsys.readouterr().err
