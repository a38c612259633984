"""Where and how a cell computes: what changes its speed and memory, and of its numbers nothing beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Execution


@dataclass(frozen=True)
class Machine:
    """Where and how a cell computes; no part of its identity but its precision.

    Attributes:
        device: "cpu", "cuda", "cuda:1".
        precision: "fp32" or "bf16" (autocast; weights stay float32).
        micro_batch: images a forward pass, 0 for the whole batch.
        attention, checkpointing, compile: as in :class:`methods.base.Execution`.

    Raises:
        ValueError: what an ``Execution`` cannot be.
    """

    device: str = "cpu"
    precision: str = "fp32"
    micro_batch: int = 0
    attention: str = Execution.attention
    checkpointing: str = Execution.checkpointing
    compile: bool = Execution.compile

    def __post_init__(self) -> None:
        _ = self.execution

    @property
    def execution(self) -> Execution:
        """What a model is told of it."""
        return Execution(self.attention, self.checkpointing, self.compile)

    def autocast(self) -> torch.autocast:
        """The context in which models run."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision == "bf16")
