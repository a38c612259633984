"""What a plan will take: hours of its devices, when it ends, disk; and how much of that is measured."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from statistics import median

from bench.devices import Device
from bench.durations import duration
from bench.estimates import Demand, Estimates
from bench.plan import Plan, Planned
from bench.store import Results

GIB = 2**30


def of_plan(plan: Plan, results: Results, devices: Sequence[Device], *, micro_batch: int = 0) -> Iterator[str]:
    """:func:`forecast` of the cells that a plan executes, from what ``results`` holds."""
    first = devices[0]
    threads = first.slots[0].threads if first.device == "cpu" else 0
    estimates = Estimates(results, device=first.model, threads=threads)
    return forecast(plan.todo(), estimates, devices, micro_batch=micro_batch)


def forecast(
    cells: Sequence[Planned],
    estimates: Estimates,
    devices: Sequence[Device],
    *,
    micro_batch: int = 0,
    now: datetime | None = None,
) -> Iterator[str]:
    """Lines about the cells that will be executed; none where there are no cells.

    Args:
        cells: to be executed, in the order of their start.
        estimates: of the devices' model.
        devices: what executes them.
        micro_batch: as for :meth:`bench.estimates.Estimates.of`.
        now: when the first cell starts, by default now.
    """
    if not cells:
        return
    demands = [_demand(cell, estimates, micro_batch) for cell in cells]
    known = [demand.seconds for demand in demands if demand.seconds is not None]
    measured = sum(demand.measured for demand in demands)
    basis = _basis(measured, len(known) - measured, len(demands) - len(known))
    kind = "CPU" if devices[0].device == "cpu" else "GPU"
    if known:
        lanes = sum(_lanes(device, demands) for device in devices)
        took = _makespan(known, lanes)
        ends = (now or datetime.now()) + timedelta(seconds=took)
        at_a_time = f", {lanes} cells at a time" if lanes > 1 else ""
        yield f"takes about {sum(known) * len(devices) / lanes / 3600:.1f} {kind}-hours ({basis})"
        yield f"ends about {ends:%a %d %b %H:%M}, in {duration(took)}{at_a_time}, if all epochs are trained"
    else:
        yield f"takes an unknown time: {basis}"
    if kind == "GPU":
        most = max(demands, key=lambda demand: demand.memory or 0)
        source = "as measured" if most.measured else "estimated, erring upwards"
        yield f"the largest cell needs about {(most.memory or 0) / GIB:.1f} GiB of a GPU ({source})"
    sizes = [size for cell in cells if (size := estimates.disk(cell.entered.cell)) is not None]
    if sizes:
        unknown = f", without {len(cells) - len(sizes)} cells of unknown size" if len(sizes) < len(cells) else ""
        yield f"writes about {sum(sizes) / GIB:.1f} GiB, as cells that are done have{unknown}"


def _lanes(device: Device, demands: Sequence[Demand]) -> int:
    """How many of the cells run on a device at a time: where memory limits them, as many as hold the middle one."""
    needs = [demand.memory for demand in demands if demand.memory]
    if device.memory is None or not needs:
        return len(device.slots)
    return max(1, min(len(device.slots), int(device.memory / median(needs))))


def _demand(planned: Planned, estimates: Estimates, micro_batch: int) -> Demand:
    images = (planned.evidence or {}).get("images")
    return estimates.of(planned.entered.cell, micro_batch=micro_batch, images=images)


def _basis(measured: int, scaled: int, unknown: int) -> str:
    """How much is known: "3 cells as measured of their kind, 2 scaled from others, 1 unknown and not counted"."""
    parts = [
        (measured, "as measured of their kind"),
        (scaled, "scaled from other cells on such a device"),
        (unknown, "of unknown length and not counted"),
    ]
    said = [f"{count} {what}" for count, what in parts if count]
    said[0] = said[0].replace(" ", " cells " if said[0].split()[0] != "1" else " cell ", 1)
    return ", ".join(said)


def _makespan(seconds: Sequence[float], lanes: int) -> float:
    """When the last cell ends, if each starts in the lane that is free first."""
    free = [0.0] * lanes
    for length in seconds:
        heapq.heapreplace(free, free[0] + length)
    return max(free)
