"""Every registered method and the important variants keep all promises; plugins that break one are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import nn

from methods import Context, SamMethod, registry
from methods.__main__ import main
from methods.check import CHECKS, Broken, Subject, one_thread

# Variants are held to the promises that depend on their arithmetic.
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("conv_lora", {"variant": "paper"}),
    ("conv_lora", {"gate": "image"}),
    ("conv_lora", {"routing": "sum"}),
    ("conv_lora", {"top_k": 2}),
    ("conv_lora", {"scales": [4]}),
    ("lora", {"rank": 12}),
    ("lora+conv_lora", {}),
    ("ssf", {"decoder_mlp": False, "neck": True}),
    ("ssf+conv_lora", {}),
    ("adapter+ssf", {}),
    ("conv_lora+vpt", {"vpt.num_tokens": 5}),
    ("sam_adapter+lora", {}),
    ("lora+lst", {}),
]
SUBJECTS = [*((name, {}) for name in registry.names()), *VARIANTS]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda value: " ".join(map(str, value)))
def subject(request: pytest.FixtureRequest, mini: str) -> Subject:
    name, parameters = request.param
    return Subject(name, parameters, backbone=mini)


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


def test_the_command_prints_a_line_for_each_check(mini: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", "lora", "--backbone", mini]) == 0
    shown = capsys.readouterr().out
    assert all(title in shown for title in CHECKS) and "lora: conforms" in shown
    assert main(["check", "lorra"]) == 2
    assert "Did you mean 'lora'?" in capsys.readouterr().err
