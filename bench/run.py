"""Run a matrix of cells: ``python -m bench.run --matrix smoke``.

Plans, executes what is not done yet on the devices at hand, keeps MLflow up to date, and says what to do next.
A second run of a finished matrix executes nothing. What a matrix has of measurements of speed is handed to
``bench.speed`` when all trainings have ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench import devices, fit
from bench import matrix as matrices
from bench.devices import Device
from bench.guard import check_packages
from bench.run_options import filters, parse, settings

if TYPE_CHECKING:
    from bench.progress import Display

FAILURES = {"failed", "oom", "timeout"}


def print_plan(plan: Any, places: Sequence[Any], options: argparse.Namespace, console: Console) -> None:
    """The plan in words: counts, what cannot run, loud where a backbone is random; every cell on a dry run."""
    todo = plan.todo()
    counts = ", ".join(f"{count} {state}" for state, count in sorted(plan.counts().items()))
    console.print(
        f"{len(plan.cells)} cells ({counts}); {len(todo)} to run on {', '.join(place.label for place in places)}",
    )
    if plan.random_backbones():
        console.print(
            f"RANDOM BACKBONE: {', '.join(sorted(plan.random_backbones()))} starts from random weights. "
            "The numbers show that everything runs; they say nothing about which method is better.",
            style="bold yellow",
        )
    shown = [cell for cell in plan.cells if options.dry_run or cell.state in FAILURES | {"stale"}]
    lines = [f"  {'run ' if cell.runs else '    '}{cell.state:<12}{cell.id}  {cell.note}" for cell in shown]
    if lines:
        console.print("\n".join(lines), soft_wrap=True)  # at once: there may be thousands
    states = {cell.state for cell in plan.cells if not cell.runs} & (FAILURES | {"stale"})
    for state in sorted(states):
        console.print(
            f"  --rerun {state} runs the {state} cells again; their logs: {options.results}/cells/<id>/log.txt"
        )
    rescore = [cell for cell in plan.cells if cell.rescore and not cell.runs]
    if rescore:
        notes = ", ".join(sorted({cell.note for cell in rescore}))
        console.print(
            f"  {len(rescore)} cells need no training, only new scores ({notes}); for each of them (--dry-run lists "
            f"them): python -m bench.cell ID --evaluate --device {places[0].device} --results {options.results}"
            f"{_data_root(options)}",
            soft_wrap=True,
        )


def _data_root(options: argparse.Namespace) -> str:
    """The option as it was given, for the next command."""
    return f" --data-root {options.data_root}" if options.data_root else ""


def print_unusable(plan: Any, options: argparse.Namespace, console: Console) -> None:
    """The datasets that cannot be used: a line for each missing one, the report of each with broken files."""
    root = options.data_root or os.environ.get("BENCH_DATA_ROOT")
    where = f"not found in {root}" if root else "no data folder was named"
    for label in plan.missing:
        fetch = f"python -m datasets fetch {label.partition(' ')[0]}{_data_root(options)}"
        console.print(f"missing: {label}: {where}; {fetch}", style="yellow", soft_wrap=True)
    if plan.missing:
        more = f"python -m datasets list NAME{_data_root(options)}"
        console.print(f"  where each was looked for, and what its folder must hold: {more}", soft_wrap=True)
    for report in plan.broken.values():
        console.print(f"broken: {report}", style="yellow", soft_wrap=True)


def fetch_checkpoints(plan: Any, console: Console) -> None:
    """Bring official checkpoints here before the first cell starts, so that no device waits for a download."""
    from methods.sam.checkpoints import resolve

    wanted = {
        (c.entered.cell.spec["backbone"], c.entered.checkpoint or c.entered.cell.spec["checkpoint"])
        for c in plan.todo()
        if c.entered.cell.method().on_backbone
    }
    for backbone, name in sorted(wanted):
        checkpoint = resolve(backbone, name)
        if not checkpoint.random:
            console.print(f"checkpoint {checkpoint.name}: {checkpoint.fetch()}", soft_wrap=True)


def backend_of(options: argparse.Namespace, matrix: matrices.Matrix) -> Any:
    """The ``[backend]`` section that says where dask finds workers; None where cells are started from here."""
    if options.backend == "local":
        return None
    from bench.backends import section

    given = section.read(options.backend_config) if options.backend_config else matrix.backend
    return given or (section.LocalCluster() if options.backend == "dask" else None)


def devices_of(options: argparse.Namespace, backend: Any) -> Sequence[Device]:
    """What the run is planned for."""
    if backend is None:
        return devices.devices(options.devices, per_gpu=options.per_gpu)
    from bench.backends import dask

    return dask.places(backend, options.devices, per_gpu=options.per_gpu)


def scheduler_of(options: argparse.Namespace, backend: Any, places: Sequence[Device], display: Display) -> Any:
    """What runs the cells: a :class:`bench.scheduler.Scheduler`, or what stands for it on a cluster."""
    from bench.estimates import Estimates
    from bench.scheduler import CellOptions, Scheduler
    from bench.store import Results

    results = Results(options.results)
    passed_on = CellOptions(
        options.data_root and options.data_root.resolve(),
        options.micro_batch,
        options.allow_broken,
        attention=options.attention,
        checkpointing=options.checkpointing,
        compile=options.compile,
    )
    told = {"on_start": display.started, "on_remark": display.remark}
    limits = {"timeout": options.timeout, "budget": options.budget}
    if backend is not None:
        from bench.backends import dask

        return dask.Front(results, backend, places, passed_on, per_gpu=options.per_gpu, **limits, **told)
    threads = places[0].slots[0].threads if places[0].device == "cpu" else 0
    estimates = Estimates(results, device=places[0].model, threads=threads)
    return Scheduler(results, places, passed_on, estimates=estimates, **limits, **told)


def execute(
    plan: Any, places: Sequence[Device], options: argparse.Namespace, backend: Any, console: Console
) -> tuple[dict[str, int], bool]:
    """Run the plan; returns how many cells ended in each state, and whether the run was stopped."""
    from bench.cell import headline
    from bench.progress import Display
    from bench.store import Results
    from bench.tracking import Tracker

    results, todo = Results(options.results), plan.todo()
    watched = [cell for cell in plan.cells if cell.state == "running"]
    display = Display(len(todo) + len(watched), console)
    scheduler = scheduler_of(options, backend, places, display)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: scheduler.stop())
    ended: dict[str, int] = {}
    left: dict[str, list[str]] = {}
    tracker = Tracker(options.results, uri=options.tracking_uri, enabled=not options.no_tracking)
    if todo or watched:
        tracker.start()
    with display.showing(scheduler):
        for outcome in scheduler.run(todo, watched):
            state = outcome.state if outcome.slot or outcome.state != "done" else "elsewhere"
            ended[state] = ended.get(state, 0) + 1
            if outcome.state == "not started":
                left.setdefault(outcome.reason, []).append(outcome.id)
                continue
            result = results.cell(outcome.id).result() if outcome.state == "done" else None
            display.ended(outcome, headline(result) if result else "")
            tracker.cell_changed(outcome.id)
    for reason, cells in left.items() if not scheduler.stopped else ():
        console.print(f"not started, {reason}: {', '.join(cells)}", soft_wrap=True)
    for busy in scheduler.busy if ended else ():
        console.print(str(busy), soft_wrap=True)
    message = tracker.close()
    if message:
        console.print(message, soft_wrap=True)
    return ended, scheduler.stopped


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m bench.run``; 0 if all cells are done, 1 if some failed, 2 for a usage error."""
    options = parse(words, description=__doc__.split("\n\n")[0])
    # Reasons and paths hold brackets of their own.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False, emoji=False)
    try:
        return _main(options, console)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace, console: Console) -> int:
    check_packages()
    changes, wanted = settings(options.set), filters(options.only)
    chosen = matrices.override(matrices.read(options.matrix), changes)
    from bench import counts, speed_part
    from bench import plan as planning
    from bench.store import Results

    backend = backend_of(options, chosen)
    places, results = devices_of(options, backend), Results(options.results)
    precision = devices.precision_for(places)
    entered, kinds = matrices.expand(chosen, precision=precision), speed_part.kinds(chosen, wanted)
    training, asked = speed_part.TRAINS in kinds, "speed" in wanted.pop("kind", [])
    entered = matrices.select(entered, wanted) if training else []
    fit.check(item.cell for item in entered)
    plan = planning.make(
        entered, results, data_root=options.data_root, allow_broken=options.allow_broken, rerun=options.rerun
    )
    speed = None
    if "speed" in kinds and backend is not None:
        alone = f"python -m bench.speed --matrix {options.matrix}"
        console.print(f"speed is not measured by a cluster's run; on one of its machines: {alone}", soft_wrap=True)
    elif "speed" in kinds:
        speed = speed_part.part(options.matrix, changes, places, options.results, asked=asked)
    if training:
        print_plan(plan, places, options, console)
    if speed:
        console.print(str(speed), soft_wrap=True)
    if options.dry_run and backend is not None:
        from bench.backends.cluster import describe

        console.print(describe(backend, places, options.results), soft_wrap=True)
    if options.dry_run:
        from bench.forecast import of_plan

        for line in of_plan(plan, results, places, micro_batch=options.micro_batch):
            console.print(f"  {line}", soft_wrap=True)
        states = {cell.id: cell.state for cell in plan.cells} | (speed.states(results) if speed else {})
        device = speed.device_model() if speed else ""
        for line in counts.by_table(states, changes, precision=precision, device=device):
            console.print(line)
    print_unusable(plan, options, console)
    if options.dry_run:
        return 0
    code = _train(plan, places, options, backend, console) if training else 0
    if speed and speed.runs and code in (0, 1):
        code = speed.measure() or code
    return code


def _train(plan: Any, places: Sequence[Device], options: argparse.Namespace, backend: Any, console: Console) -> int:
    """Run the plan's cells and say how it went; returns the exit code."""
    from bench import plan as planning
    from bench.store import Results

    if plan.broken:
        print("error: files of datasets are broken (above); nothing was started", file=sys.stderr)
        return 2
    if plan.missing and not options.skip_missing:
        print("error: datasets are missing (above); --skip-missing goes on without their cells", file=sys.stderr)
        return 2
    planning.write(plan, Results(options.results))
    fetch_checkpoints(plan, console)
    ended, stopped = execute(plan, places, options, backend, console)
    executed = sum(count for state, count in ended.items() if state not in ("not started", "elsewhere"))
    console.print(
        f"executed {executed} cells: " + (", ".join(f"{n} {s}" for s, n in sorted(ended.items())) or "nothing to do"),
    )
    if stopped:
        console.print("stopped; the same command goes on from here")
        return 130
    console.print(f"tables: python -m analysis.tables --results {options.results}")
    left = {cell.state for cell in plan.cells if not cell.runs} & FAILURES
    return 1 if left or set(ended) - {"done", "elsewhere"} else 0


if __name__ == "__main__":
    sys.exit(main())
