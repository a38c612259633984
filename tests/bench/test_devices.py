"""Devices from what the machine has: a processor, graphics cards that NVML knows, and cards that torch cannot use."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import cards
from bench.devices import DeviceError, Slot, devices, precision_for, slots

GIB = 2**30


class Simulated:
    """NVML of a machine; a card is its model, or its model and the instances that it is divided into."""

    class NVMLError(Exception):
        pass

    def __init__(self, *models: str | tuple[str, int], cuda: int = 13000, used: int = 1 * GIB) -> None:
        self._models, self._cuda, self.used = models, cuda, used

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self._cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self._models)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple:
        return (index,)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple:
        kind, *numbers = uuid.split("-")
        if kind not in ("GPU", "MIG") or int(numbers[0]) >= len(self._models):
            raise self.NVMLError(uuid)
        return tuple(map(int, numbers))

    def nvmlDeviceGetUUID(self, handle: tuple) -> str:
        return "-".join(["GPU" if len(handle) == 1 else "MIG", *map(str, handle)])

    def nvmlDeviceGetName(self, handle: tuple) -> str:
        model = self._models[handle[0]]
        return model if isinstance(model, str) else model[0] + (" MIG 1g.5gb" if len(handle) > 1 else "")

    def nvmlDeviceGetMemoryInfo(self, handle: tuple) -> SimpleNamespace:
        total = 40 * GIB if len(handle) == 1 else 5 * GIB
        return SimpleNamespace(total=total, used=self.used, free=total - self.used)

    def nvmlDeviceGetMigMode(self, handle: tuple) -> list[int]:
        if isinstance(self._models[handle[0]], str):
            raise self.NVMLError("not supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: tuple) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: tuple, index: int) -> tuple:
        if index >= self._models[handle[0]][1]:
            raise self.NVMLError("not found")
        return (*handle, index)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of eight cores without a driver; returns how to give it cards."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cards, "_torch_build", lambda: ("2.12.1", "13.0"))

    def have(*models: str | tuple[str, int], **more: int) -> Simulated:
        library = Simulated(*models, **more) if models else None
        monkeypatch.setattr(cards, "nvml", lambda: library)
        return library

    have()
    return have


def seen(found) -> list[str]:
    """What the cells on each device see."""
    return [device.slots[0].environment["CUDA_VISIBLE_DEVICES"] for device in found]


def test_auto_takes_the_processor_where_there_is_no_card():
    (device,) = devices()
    (slot,) = device.slots
    assert (slot.label, slot.device, slot.threads) == ("cpu", "cpu", 8)
    assert slot.environment == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "8", "GOMP_SPINCOUNT": "10000"}
    assert (device.label, device.model, device.memory, device.free_memory()) == ("cpu", "cpu", None, None)
    assert devices("cpu") == [device]
    assert slots() == [slot]
    assert precision_for([device]) == precision_for([slot]) == "fp32"


@pytest.mark.parametrize(("count", "threads"), [(1, 8), (2, 4), (3, 2), (20, 1)])
def test_several_cells_share_the_cores(count, threads):
    (device,) = devices(f"cpu:{count}")
    assert [slot.threads for slot in device.slots] == [threads] * count
    assert [slot.environment["OMP_NUM_THREADS"] for slot in device.slots] == [str(threads)] * count
    assert len({slot.label for slot in device.slots}) == count
    assert {slot.device for slot in device.slots} == {"cpu"}


def test_threads_are_those_the_process_may_use(monkeypatch):
    """On a shared cluster a job may use a few of a machine's cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert slots("cpu")[0].threads == 2


def test_a_slot_with_other_threads():
    slot = Slot("gpu 0", "cuda:0", 4, {"CUDA_VISIBLE_DEVICES": "GPU-0"}).with_threads(2)
    assert (slot.threads, slot.environment["OMP_NUM_THREADS"]) == (2, "2")
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == "GPU-0"


@pytest.mark.parametrize("word", ["gpu", "cuda:0", "cpu:0", "cpu:x", "cpu:-1", "0,x", "", "1.5", "0,", "-1", "auto:2"])
def test_words_that_mean_nothing(machine, word):
    machine("A100", "A100")
    with pytest.raises(DeviceError, match="cpu:N"):
        devices(word)


@pytest.mark.parametrize("wanted", ["auto", "0"])
@pytest.mark.parametrize(
    ("build", "cuda", "reason"),
    [
        (("2.12.1", None), 13000, "built without CUDA"),
        (("2.12.1", "13.0"), 12040, r"built for CUDA 13.0, the driver goes up to CUDA 12.4"),
    ],
)
def test_a_card_that_torch_cannot_use_stops_with_the_reason(machine, monkeypatch, wanted, build, cuda, reason):
    machine("NVIDIA A100-SXM4-40GB", cuda=cuda)
    monkeypatch.setattr(cards, "_torch_build", lambda: build)
    with pytest.raises(DeviceError, match=reason) as error:
        devices(wanted)
    message = str(error.value)
    assert "GPU 0: NVIDIA A100-SXM4-40GB" in message and "torch 2.12.1" in message and "--devices cpu" in message
    assert devices("cpu")[0].device == "cpu", "whoever says cpu gets it"


@pytest.mark.parametrize(("built", "cuda"), [("12.1", 12080), ("12.8", 12020), ("12.8", 13000)])
def test_drivers_of_the_same_or_a_newer_major_version_do(machine, monkeypatch, built, cuda):
    machine("A100", cuda=cuda)
    monkeypatch.setattr(cards, "_torch_build", lambda: ("2.12.1", built))
    assert devices()[0].label == "gpu 0"


def test_what_torch_is_built_for_is_read_without_loading_it():
    import torch

    code = "import sys; from bench.cards import _torch_build; print(*_torch_build(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [torch.__version__, str(torch.version.cuda), "False"]


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_cards_hidden_by_the_user_mean_the_processor(machine, monkeypatch, hidden):
    machine("A100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert devices("auto")[0].device == "cpu"


def test_auto_takes_all_cards(machine):
    library = machine("A100", "H100")
    found = devices()
    assert [device.label for device in found] == ["gpu 0", "gpu 1"]
    assert [device.model for device in found] == ["A100", "H100"]
    assert {slot.device for device in found for slot in device.slots} == {"cuda:0"}, "each process sees one card only"
    assert seen(found) == [device.uuid for device in found] == ["GPU-0", "GPU-1"]
    assert {device.slots[0].environment["CUDA_DEVICE_ORDER"] for device in found} == {"PCI_BUS_ID"}
    assert [device.slots[0].threads for device in found] == [4, 4]
    assert [(device.memory, device.free_memory()) for device in found] == [(40 * GIB, 39 * GIB)] * 2
    library.used = 30 * GIB
    assert found[0].free_memory() == 10 * GIB, "it is asked anew each time"
    assert precision_for(found) == "bf16"


@pytest.mark.parametrize(
    ("models", "per_gpu", "lanes"),
    [(1, None, [8]), (2, None, [4, 4]), (2, 1, [1, 1]), (2, 3, [3, 3]), (16, None, [1] * 16)],
)
def test_cells_at_a_time_on_a_card(machine, models, per_gpu, lanes):
    """By itself no more than there are cores for them."""
    machine(*["A100"] * models)
    assert [len(device.slots) for device in devices(per_gpu=per_gpu)] == lanes
    assert len(slots()) == models, "a slot that a cell has for itself"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", ["GPU-1"]),
        ("2,0", ["GPU-2", "GPU-0"]),
        ("GPU-2,GPU-1", ["GPU-2", "GPU-1"]),
        (" 1 , GPU-2", ["GPU-1", "GPU-2"]),
        ("1,-1,0", ["GPU-1"]),
        ("0,7,1", ["GPU-0"]),
    ],
)
def test_what_the_user_left_visible(machine, monkeypatch, value, expected):
    """As CUDA reads it: a word that names no card hides all that follow."""
    machine("A100", "A100", "A100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = devices()
    assert seen(found) == expected
    assert [device.label for device in found] == [f"gpu {number}" for number in range(len(expected))]


def test_numbers_count_what_the_user_left_visible(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2,GPU-0")
    machine("A100", "A100", "A100")
    (second,) = devices("1")
    assert (second.label, second.uuid) == ("gpu 1", "GPU-0")


def test_a_value_that_names_no_card_is_said(machine, monkeypatch):
    machine("A100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(DeviceError, match=r"CUDA_VISIBLE_DEVICES=3 names none.*\n.*GPU-0"):
        devices()


def test_instances_of_a_divided_card_are_devices_of_their_own(machine, monkeypatch):
    machine("A100", ("A100", 2))
    found = devices()
    assert seen(found) == ["GPU-0", "MIG-1-0", "MIG-1-1"]
    assert [device.model for device in found] == ["A100", "A100 MIG 1g.5gb", "A100 MIG 1g.5gb"]
    assert [device.memory for device in found] == [40 * GIB, 5 * GIB, 5 * GIB]
    assert found[1].free_memory() == 4 * GIB
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1-1")
    assert seen(devices()) == ["MIG-1-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert seen(devices()) == ["MIG-1-0"], "a number means the card, of which CUDA gives the first instance"


def test_a_number_given_twice_holds_two_cells(machine):
    machine("A100", "A100")
    found = devices("1,0,1", per_gpu=1)
    assert [(device.uuid, len(device.slots)) for device in found] == [("GPU-1", 2), ("GPU-0", 1)]


def test_a_card_that_is_not_there(machine):
    machine("A100", "A100")
    with pytest.raises(DeviceError, match=r"there are 2 GPUs.*auto, cpu"):
        devices("0,2")


def test_the_order_of_cards_is_the_same_here_and_in_the_cells(machine, monkeypatch):
    """Numbers in the outer variable were counted in the user's order; another order would mean other cards."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine("A100", "H100")
    with pytest.raises(DeviceError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        devices()
    machine("A100", "A100")
    assert seen(devices()) == ["GPU-1"], "equal cards have one order"
    machine("A100", "H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert devices()[0].model == "H100"


def test_a_card_that_fell_off_the_bus_or_says_nothing(machine, monkeypatch):
    library = machine("A100")
    (device,) = devices()
    assert cards.free_memory("GPU-9") is None

    def unsupported(handle: tuple) -> None:
        raise Simulated.NVMLError("not supported")

    monkeypatch.setattr(library, "nvmlDeviceGetMemoryInfo", unsupported)
    assert device.free_memory() is None
    assert devices()[0].memory is None


def test_a_machine_without_a_driver_has_no_cards(monkeypatch):
    monkeypatch.undo()
    cards.nvml.cache_clear()
    import pynvml

    def none() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", none)
    assert cards.nvml() is None and cards.all_cards() == []
    cards.nvml.cache_clear()
