"""Slots from what the machine has: a processor, graphics cards that work, and cards that do not."""

from __future__ import annotations

import os

import pytest

from bench.devices import DeviceError, precision_for, slots


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine of four cores without a driver or a card; returns how to give it cards that torch sees."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def cards(count: int) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    cards(0)
    return cards


@pytest.fixture
def driver(tmp_path):
    """A driver that prints what ``nvidia-smi -L`` does."""

    def install(listing: str, code: int = 0) -> None:
        command = tmp_path / "bin" / "nvidia-smi"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 9\nprintf "%s\\n" "{listing}"\nexit {code}\n')
        command.chmod(0o755)

    return install


LISTING = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5f2c)"


def test_auto_takes_the_processor_where_there_is_no_card():
    (slot,) = slots()
    assert (slot.label, slot.device, slot.threads) == ("cpu", "cpu", 4)
    assert slot.environment == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "4", "GOMP_SPINCOUNT": "10000"}
    assert slots("cpu") == [slot]
    assert precision_for([slot]) == "fp32"


@pytest.mark.parametrize(("count", "threads"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_several_cells_share_the_cores(count, threads):
    places = slots(f"cpu:{count}")
    assert [place.threads for place in places] == [threads] * count
    assert [place.environment["OMP_NUM_THREADS"] for place in places] == [str(threads)] * count
    assert len({place.label for place in places}) == count
    assert {place.device for place in places} == {"cpu"}


def test_threads_are_those_the_process_may_use(monkeypatch):
    """On a shared cluster a job may use a few of a machine's cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert slots("cpu")[0].threads == 2


@pytest.mark.parametrize("word", ["gpu", "cuda:0", "cpu:0", "cpu:x", "cpu:-1", "0,x", "", "1.5", "0,", "-1", "auto:2"])
def test_words_that_mean_nothing(machine, word):
    machine(2)
    with pytest.raises(DeviceError, match="cpu:N"):
        slots(word)


def test_a_card_that_torch_cannot_use_stops_with_the_reason(driver):
    import torch

    driver(LISTING)
    with pytest.raises(DeviceError) as error:
        slots("auto")
    message = str(error.value)
    assert LISTING in message
    assert torch.__version__ in message
    assert "--devices cpu" in message
    assert slots("cpu")[0].device == "cpu", "whoever says cpu gets it"


def test_a_number_says_too_why_torch_has_no_card(driver):
    driver(LISTING)
    with pytest.raises(DeviceError, match=r"GPU 0: NVIDIA A100"):
        slots("0")


@pytest.mark.parametrize(
    ("listing", "code"), [("No devices found", 0), ("NVIDIA-SMI has failed: no GPU driver", 9), ("", 0)]
)
def test_a_driver_without_a_card_is_no_reason_to_stop(driver, listing, code):
    driver(listing, code)
    assert slots("auto")[0].device == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_cards_hidden_by_the_user_mean_the_processor(driver, monkeypatch, hidden):
    driver(LISTING)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert slots("auto")[0].device == "cpu"


def test_auto_takes_all_cards(machine):
    machine(2)
    places = slots()
    assert [place.label for place in places] == ["gpu 0", "gpu 1"]
    assert {place.device for place in places} == {"cuda:0"}, "each process sees one card only"
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1"]
    assert {place.environment["CUDA_DEVICE_ORDER"] for place in places} == {"PCI_BUS_ID"}
    assert [place.threads for place in places] == [2, 2]
    assert precision_for(places) == "bf16"


def test_numbers_count_what_the_user_left_visible(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5f2c,GPU-91ab")
    machine(2)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in slots()] == ["GPU-5f2c", "GPU-91ab"]
    (second,) = slots("1")
    assert (second.label, second.environment["CUDA_VISIBLE_DEVICES"]) == ("gpu 1", "GPU-91ab")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [place.environment["CUDA_VISIBLE_DEVICES"].strip() for place in slots()] == ["3", "5"]


def test_a_number_given_twice_holds_two_cells(machine):
    machine(2)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in slots("1,0,1")] == ["1", "0", "1"]


def test_a_card_that_is_not_there(machine):
    machine(2)
    with pytest.raises(DeviceError, match=r"torch sees 2 GPUs.*auto, cpu"):
        slots("0,2")


def test_the_order_of_cards_is_the_same_here_and_in_the_cells(machine, monkeypatch):
    """Numbers in the outer variable were counted in the user's order; another order would mean other cards."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine(1)
    (slot,) = slots()
    inside = os.environ | slot.environment
    assert inside["CUDA_DEVICE_ORDER"] == os.environ["CUDA_DEVICE_ORDER"]
