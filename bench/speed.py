"""Measure how fast methods train and predict: ``python -m bench.speed``.

Runs cells of kind "speed" one after the other, alone, each in a process of its own; prints the paper's tables 14 and 3
beside what was measured, and writes ``results/speed/<device>.json``. What was measured before, with the same code and
the same torch, is not measured again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench import matrix as matrices
from bench.guard import check_packages
from bench.timing.clock import Pace

if TYPE_CHECKING:
    from bench.devices import Slot

SMALL, LARGE = "speed", "speed_gpu"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line of ``python -m bench.speed``."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--device", default="auto", help="cpu or cuda:N (default: the first GPU, else the CPU)")
    add("--matrix", help=f"a name or a .toml file (default: {LARGE} on a GPU, else {SMALL})")
    add("--methods", help="in place of the matrix's: lora,conv_lora:implementation=explicit")
    add("--backbone", help="in place of the matrix's")
    add("--image-size", type=_positive, help="in place of the matrix's")
    add("--precision", choices=("auto", "fp32", "bf16"), help="in place of the matrix's")
    add("--batch", type=_positives, default=[], metavar="N,...", help="micro-batches in place of the matrix's: 1,4")
    add("--machine", action="append", default=[], metavar="KEY=VALUE,...", help=(
        "how models are executed, in place of the matrix's: attention=folded,bias, checkpointing=none,selective, "
        "compile=false,true"
    ))  # fmt: skip
    add("--repeats", type=_positive, default=Pace.repeats, help="how often each is timed (default: %(default)s)")
    add("--seconds", type=float, default=Pace.seconds, help="how long each of these times is (default: %(default)s)")
    add("--threads", type=_positive, help="CPU threads (default: all cores)")
    add("--clock", choices=("wall", "processor"), default="wall", help=(
        "processor: on a CPU, the time of all threads together, which other processes lengthen less (default: wall)"
    ))  # fmt: skip
    add("--again", action="store_true", help="measure all anew")
    add("--beside-others", action="store_true", help="use a GPU although other processes do")
    add("--json", action="store_true", help="print the export in place of the tables")
    add("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    return parser.parse_args(words)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return int(text)


def _positives(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; 0 if all is measured, 1 if something failed, 2 for a usage error, 130 if it was stopped."""
    options = parse(words)
    # What a program reads alone goes to the standard output.
    stream = sys.stderr if options.json else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 120, markup=False, highlight=False, emoji=False)
    try:
        check_packages()
        return _main(options, console)
    except (ValueError, OSError, RuntimeError, ImportError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def place(device: str, threads: int | None) -> Slot:
    """The slot of a device; ``threads`` None for all cores.

    Raises:
        bench.devices.DeviceError: no such device.
    """
    from bench.devices import DeviceError, slots

    number = "0" if device == "cuda" else device.removeprefix("cuda:")
    if device not in ("auto", "cpu") and (number == device or not number.isdigit()):
        raise DeviceError(f"--device {device!r} is unknown; allowed: auto, cpu, cuda:N")
    slot = slots(number)[0]
    if threads:
        slot = replace(slot, threads=threads, environment={**slot.environment, "OMP_NUM_THREADS": str(threads)})
    return slot


def _main(options: argparse.Namespace, console: Console) -> int:
    from bench.devices import DeviceError, precision_for
    from bench.store import Results
    from bench.timing import cells, surroundings

    slot = place(options.device, options.threads)
    if options.clock == "processor" and slot.device != "cpu":
        raise ValueError("--clock processor is for the CPU; a GPU works while the processor waits")
    others = surroundings.others_on(slot)
    if others and slot.device != "cpu" and not options.beside_others:
        listed = "\n  ".join(others)
        raise DeviceError(
            f"{slot.label} is in use, and what is measured beside others is wrong:\n  {listed}\n"
            "Wait, choose another with --device, or measure all the same with --beside-others."
        )
    for line in others:
        console.print(f"MEASURED BESIDE OTHERS: {line}", style="bold red")

    model = surroundings.device_model(device_of(slot), slot.threads)
    matrix = matrices.read(options.matrix or (SMALL if slot.device == "cpu" else LARGE))
    given = {"backbone": options.backbone, "image_size": options.image_size, "precision": options.precision}
    settings = {key: value for key, value in given.items() if value is not None}
    methods = cells.read_methods(options.methods) if options.methods else []
    machine = cells.read_machine(options.machine) | ({"micro_batch": options.batch} if options.batch else {})
    matrix = cells.changed(matrix, settings, methods, machine)
    entered = cells.expand(matrix, precision=precision_for([slot]), device=model, clock=options.clock)

    results = Results(options.results)
    reasons = {item.cell.id: cells.reason_to_measure(item, results) for item in entered}
    todo = [item for item in entered if options.again or reasons[item.cell.id]]
    references = cells.references(todo, entered)
    todo = [item for item in entered if item in todo or item in references]
    console.print(f"{model}: {len(entered)} cells, {len(entered) - len(todo)} measured before")
    for item in todo:
        if reasons[item.cell.id].startswith("differs"):
            console.print(f"  again, {reasons[item.cell.id]}: {cells.title(item)}", soft_wrap=True)
    failed, stopped = _measure(todo, references, slot, options, console)
    _show([item.cell.id for item in entered], model, options, console)
    return 130 if stopped else int(failed)


def device_of(slot: Slot) -> str:
    """The slot's device as this process calls it: the slot's own process sees no other GPU."""
    return "cpu" if slot.device == "cpu" else f"cuda:{slot.label.removeprefix('gpu ')}"


def _measure(
    todo: list[Any], references: list[Any], slot: Slot, options: argparse.Namespace, console: Console
) -> tuple[bool, bool]:
    """Run cells one after the other, and the references once more at the end; whether any failed, and a stop came.

    Both times count together, so that what changes slowly meanwhile does not favour those measured first or last.
    """
    from bench.cell import headline
    from bench.devices import Device
    from bench.plan import Planned
    from bench.scheduler import CellOptions, Running, Scheduler
    from bench.store import Results
    from bench.timing import cells

    results, names, failed = Results(options.results), {}, False

    def started(running: Running) -> None:
        console.print(f"  {names[running.planned.id]}", soft_wrap=True)

    words = ("--repeats", str(options.repeats), "--seconds", str(options.seconds))
    stopped = False
    for group, remark, more in ((todo, "", ()), (references, ", once more", ("--join",))):
        scheduler = Scheduler(results, [Device.of(slot)], CellOptions(more=(*words, *more)), on_start=started)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_, running=scheduler: running.stop())
        for item in group:
            names[item.cell.id] = cells.title(item) + remark
            folder = results.cell(item.cell.id)
            if not (folder.path / "cell.json").exists():
                folder.create(item.cell, {})
        planned = [Planned(item, results.cell(item.cell.id).status()["state"], True) for item in group]
        for outcome in scheduler.run(planned):
            failed |= outcome.state != "done"
            said = headline(results.cell(outcome.id).result()) if outcome.state == "done" else outcome.reason
            console.print(f"    {said or outcome.state} ({outcome.seconds:.0f} s)", soft_wrap=True)
        stopped = scheduler.stopped
        if stopped:
            break
    return failed, stopped


def _show(ids: list[str], model: str, options: argparse.Namespace, console: Console) -> None:
    """Have the device's export written and printed, or the tables of the cells asked for.

    In a process of its own: this room measures, and knows no table.
    """
    words = ["-m", "analysis.speed_report", "--results", str(options.results), "--device", model]
    words += ["--json"] if options.json else []
    done = subprocess.run(
        [sys.executable, *words, "--cells", *ids],
        stdout=None if sys.stdout.isatty() else subprocess.PIPE,
        env={**os.environ, "COLUMNS": str(console.width)},
        text=True,
        encoding="utf-8",
        check=True,
    )
    print(done.stdout or "", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
