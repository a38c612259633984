"""Timing: stretches and their rates, floating-point operations against formulas, what a measurement is made on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bench.devices import Slot
from bench.timing import operations, surroundings
from bench.timing.clock import WARM_UP, Pace, rates
from bench.timing.work import pictures


class Machine:
    """A clock that goes on by what each call costs, and a queue that is only worked off when it is waited for."""

    def __init__(self, costs):
        self.now, self.waiting, self.calls, self._costs = 0.0, 0.0, 0, costs

    def call(self):
        self.waiting += self._costs(self.calls)
        self.calls += 1

    def synchronise(self):
        self.now += self.waiting
        self.waiting = 0.0

    def rates(self, pace):
        return rates(self.call, pace, synchronise=self.synchronise, clock=lambda: self.now)


@given(st.integers(1, 8), st.floats(0.01, 3), st.floats(1e-3, 10))
def test_rates_are_those_of_a_steady_machine(repeats, seconds, cost):
    machine = Machine(lambda number: cost)
    found = machine.rates(Pace(repeats, seconds))
    assert found == pytest.approx([1 / cost] * repeats)
    assert machine.waiting == 0, "a stretch ended before its work did"


def test_slow_first_calls_are_warm_up_and_no_part_of_a_rate():
    machine = Machine(lambda number: 100.0 if number == 0 else 0.5)
    assert machine.rates(Pace(3, 2.0)) == pytest.approx([2.0] * 3)
    assert machine.calls == WARM_UP + 3 * 4, "the first call says nothing about how many fill a stretch"


def test_a_stretch_has_one_call_at_least():
    machine = Machine(lambda number: 60.0)
    machine.rates(Pace(2, 0.1))
    assert machine.calls == WARM_UP + 2


def test_flop_of_two_linear_layers_forward_and_backward():
    batch, inner, hidden, outer = 5, 7, 11, 3
    model = nn.Sequential(nn.Linear(inner, hidden), nn.Linear(hidden, outer))
    images = torch.randn(batch, inner)
    forward = 2 * batch * (inner * hidden + hidden * outer)
    # The gradient of the first layer's input is not needed; those of both weights and of the second input are.
    backward = 2 * batch * (inner * hidden + 2 * hidden * outer)

    def predict():
        with torch.no_grad():
            model(images)

    assert operations.flop(predict) == forward
    assert operations.flop(lambda: model(images).sum().backward()) == forward + backward


def test_flop_of_a_frozen_layer_are_fewer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    one = 2 * 2 * 4 * 4
    assert operations.flop(lambda: model(torch.ones(2, 4)).sum().backward()) == (2 + 2) * one


@pytest.mark.parametrize("gradient", [False, True])
def test_flop_of_attention_on_a_cpu(gradient):
    batch, heads, tokens, width = 2, 3, 16, 8
    query, key, value = (torch.randn(batch, heads, tokens, width, requires_grad=gradient) for _ in range(3))
    product = 2 * batch * heads * tokens * tokens * width

    def attend():
        out = F.scaled_dot_product_attention(query, key, value)
        if gradient:
            out.sum().backward()

    # Backward: the scores once more, and two products for each of the two forward.
    assert operations.flop(attend) == (2 + 5 * gradient) * product


def test_the_rate_of_matrix_products_is_the_best_stretch(monkeypatch):
    monkeypatch.setitem(operations.SIDES, "cpu", 32)
    costs = iter([1.0] * WARM_UP + [2.0, 0.5, 1.0])
    now = [0.0]
    product = torch.mm

    def slow(*arguments, **options):
        now[0] += next(costs)
        return product(*arguments, **options)

    monkeypatch.setattr(torch, "mm", slow)
    rate = operations.matrix_rate("cpu", "fp32", Pace(3, 0.1), clock=lambda: now[0])
    assert rate == pytest.approx(2 * 32**3 / 0.5)


def test_pictures_are_the_same_every_time_and_hold_both_classes():
    images, masks = pictures(4, 64)
    again, _ = pictures(4, 64)
    assert torch.equal(images, again)
    assert (images.shape, images.dtype) == ((4, 3, 64, 64), torch.uint8)
    assert (masks.shape, masks.dtype) == ((4, 64, 64), torch.uint8)
    assert all(set(mask.unique().tolist()) == {0, 1} for mask in masks)
    assert images.float().std() > 20


def test_a_processor_counts_its_threads():
    one, two = surroundings.device_model("cpu", 1), surroundings.device_model("cpu", 2)
    assert one.endswith(", 1 thread") and two.endswith(", 2 threads")
    assert one.split(",")[0] == two.split(",")[0] != ""


GPU = Slot("gpu 1", "cuda:0", 1, {"CUDA_VISIBLE_DEVICES": "1"})


def test_other_processes_on_a_gpu_are_named(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ntest "$2" = 1 && echo "77, python, 4000 MiB"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert surroundings.others_on(GPU) == ["process 77, python, 4000 MiB"]
    program.write_text("#!/bin/sh\necho no devices; exit 6\n")
    assert surroundings.others_on(GPU) == []
    program.unlink()
    assert surroundings.others_on(GPU) == []


def test_a_busy_processor_is_named(monkeypatch):
    monkeypatch.setattr(surroundings, "cores", lambda: 4)
    for load, expected in ((1.0, []), (2.5, ["load average 2.5 on 4 cores"])):
        monkeypatch.setattr(surroundings.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert surroundings.others_on(Slot("cpu", "cpu", 1)) == expected


def test_cores_busy_elsewhere_are_counted():
    """A child that computes counts, our own work does not."""
    with surroundings.busy_elsewhere() as quiet:
        sum(range(10**6))
    with surroundings.busy_elsewhere() as busy:
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert quiet["cores_busy_elsewhere"] >= 0
    assert busy["cores_busy_elsewhere"] > 0.3
