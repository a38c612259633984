"""What starts next: order, memory, retries, others' cells and budget, without a process or a file."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.devices import Device, Slot
from bench.estimates import Demand
from bench.matrix import Entered
from bench.occupancy import has_room
from bench.plan import Planned
from bench.queueing import PATIENCE, WorkQueue
from bench.spec import Cell, SpeedCell
from bench.tasks import Outcome, Outside, Task, order

CPU = Device.of(Slot("cpu", "cpu", 1))


class Nothing(Exception):
    """A lane would wait."""


class Known:
    """Estimates by a cell's name: bytes at the whole batch of 4, which shrink with the micro-batch, and seconds."""

    def __init__(self, needs: Mapping[str, tuple[int | None, float | None]]) -> None:
        self.needs, self.learned = needs, []

    def of(self, cell: Cell, *, micro_batch: int = 0, images: Any = None) -> Demand:
        memory, seconds = self.needs.get(cell.spec["name"], (None, None))
        return Demand(memory * (micro_batch or 4) // 4 if memory is not None else None, seconds, False)

    def learn(self, cell_id: str) -> None:
        self.learned.append(cell_id)


class World(Outside):
    """Other processes' cells and cards' free memory as a test says; what is told is kept."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.free: dict[str, int] = {}
        self.ended: list[Outcome] = []
        self.retries: list[str] = []
        self.remarks: list[str] = []

    def status(self, cell_id: str) -> Mapping[str, Any]:
        return self.states.get(cell_id, {"state": "planned"})

    def free_memory(self, device: Device) -> int | None:
        return self.free.get(device.label, device.memory)

    def ended_elsewhere(self, outcome: Outcome) -> None:
        self.ended.append(outcome)

    def once_more(self, task: Task, reason: str) -> None:
        self.retries.append(reason)

    def remark(self, line: str) -> None:
        self.remarks.append(line)


def card(number: int = 0, memory: int = 100, lanes: int = 4, model: str = "card") -> Device:
    slot = Slot(f"gpu {number}", "cuda:0", 1)
    return Device(slot.label, (slot,) * lanes, model, memory, f"GPU-{number}")


def planned(name: str, seed: int = 0, state: str = "planned", kind: type[Cell] = Cell) -> Planned:
    spec = {"name": name, "dataset": {"name": "shapes"}, "method": {"name": name}, "seed": seed, "regime": {}}
    return Planned(Entered(kind({**spec, "machine": {"micro_batch": 4}})), state, True)


def queue(cells: list[Planned], needs: Mapping[str, tuple] | None = None, **options: Any) -> WorkQueue:
    """A queue that raises :class:`Nothing` where a lane would wait."""
    made = WorkQueue(cells, Known(needs) if needs else None, **options)

    def wait(timeout: float | None = None) -> None:
        raise Nothing

    made._changed.wait = wait
    return made


def ended(task: Task, state: str = "done") -> Outcome:
    return Outcome(task.id, state, "", 1.0, "gpu 0")


def name(task: Task) -> str:
    return task.planned.entered.cell.spec["name"]


def taken(made: WorkQueue, device: Device) -> Iterator[str]:
    """The names of what may start on a device now."""
    while True:
        try:
            task = made.take(device)
        except Nothing:
            return
        if task is None:
            return
        yield name(task)


def test_seeds_come_one_after_the_other_the_longest_first_and_failed_ones_last():
    cells = [
        planned("short", 1),
        planned("failed", 0, "failed"),
        planned("long", 1),
        planned("short", 0),
        planned("unknown", 0),
        planned("long", 0),
        planned("unknown too", 0),
    ]
    known = Known({"short": (1, 10.0), "long": (1, 20.0), "failed": (1, 99.0)})
    names = [(one.entered.cell.spec["seed"], one.entered.cell.spec["name"]) for one in order(cells, known)]
    first = [(0, "unknown"), (0, "unknown too"), (0, "long"), (0, "short")]
    assert names == [*first, (1, "long"), (1, "short"), (0, "failed")]
    assert [one.entered.cell.spec["seed"] for one in order(cells)] == [0, 0, 0, 0, 1, 1, 0]


def test_cells_join_a_card_as_long_as_all_have_room():
    made = queue([planned(word, seed) for seed, word in enumerate(("40", "50", "20", "10"))], sizes := needs())
    assert list(taken(made, card())) == ["40", "50", "10"], "the third has no room, the fourth has"
    assert sizes["20"] == (20, None)


def needs(*more: tuple[str, int]) -> dict[str, tuple[int | None, float | None]]:
    """Cells that are named after the bytes they need."""
    return {str(count): (count, None) for count in range(1, 301)} | {key: (value, None) for key, value in more}


def test_a_cell_of_unknown_size_shares_with_none():
    made = queue([planned("unknown"), planned("10", 1)], needs())
    assert list(taken(made, card())) == ["unknown"]
    made = queue([planned("10"), planned("unknown", 1), planned("20", 2)], needs())
    assert list(taken(made, card())) == ["10", "20"]


def test_a_cell_that_is_thought_to_need_more_than_a_card_is_tried_on_an_empty_one():
    made = queue([planned("300"), planned("1", 1)], needs())
    assert list(taken(made, card())) == ["300"]


@pytest.mark.parametrize(("free", "first"), [(100, ["60"]), (65, ["60"]), (50, [])])
def test_what_others_hold_is_left_to_them(free, first):
    world = World()
    world.free["gpu 0"] = free
    made = queue([planned("60")], needs(), outside=world)
    assert list(taken(made, card())) == first
    assert bool(world.remarks) == (not first), "a lane that waits for others says so"


def test_what_others_took_meanwhile_counts_too():
    world = World()
    made = queue([planned("30"), planned("40", 1)], needs(), outside=world)
    assert name(made.take(card())) == "30"
    world.free["gpu 0"] = 30  # ours and 40 of others
    with pytest.raises(Nothing):
        made.take(card())


def test_others_small_shares_do_not_keep_a_large_cell_out():
    world = World()
    world.free["gpu 0"] = 92
    assert list(taken(queue([planned("99")], needs(), outside=world), card())) == ["99"]


def test_cells_are_spread_over_cards_before_they_share_one():
    cards = [card(0), card(1)]
    made = queue([planned("10", seed) for seed in range(4)], needs(), devices=cards)
    assert list(taken(made, cards[0])) == ["10"], "the other card is empty, and its lanes wait"
    assert list(taken(made, cards[1])) == ["10", "10"]
    assert list(taken(made, cards[0])) == ["10"]


def test_a_card_is_kept_for_a_cell_that_was_overtaken_often():
    made = queue([planned("10", -1), planned("95"), *(planned("1", seed) for seed in range(1, 20))], needs())
    device, names = card(), []
    running = [made.take(device)]
    for _ in range(PATIENCE):
        running.append(made.take(device))
        names.append(name(running[-1]))
    assert names == ["1"] * PATIENCE
    with pytest.raises(Nothing):
        made.take(device)
    for task in running:
        made.give_back(task, ended(task))
    assert name(made.take(device)) == "95"


def test_out_of_memory_alone_then_with_half_the_micro_batch():
    world = World()
    made, device = queue([planned("40"), planned("50", 1)], needs(), outside=world), card()
    first, other = made.take(device), made.take(device)
    assert made.give_back(first, ended(first, "oom")) is None
    assert world.retries == ["out of memory; once more, alone on gpu 0"]
    with pytest.raises(Nothing):
        made.take(device)  # the other one is still there
    assert made.give_back(other, ended(other)) == ended(other)
    tried = []
    for _ in range(3):
        assert made.take(device) is first
        tried.append((first.alone, first.micro_batch, first.retries))
        last = made.give_back(first, ended(first, "oom"))
    assert tried == [(True, 0, 1), (True, 2, 2), (True, 1, 3)]
    assert last == ended(first, "oom"), "alone with a single image it is the last word"
    assert made.take(device) is None


@pytest.mark.parametrize(("given", "tried"), [(0, [2, 1]), (3, [1]), (1, []), (8, [2, 1])])
def test_the_micro_batch_is_halved_from_what_the_run_gives(given, tried):
    made, device, seen = queue([planned("4")], needs(), micro_batch=given), card(), []
    while task := made.take(device):
        seen += [task.micro_batch] if task.micro_batch else []
        made.give_back(task, ended(task, "oom"))
    assert seen == tried


def test_a_measurement_of_speed_is_not_tried_with_less():
    made = queue([planned("40", kind=SpeedCell)], needs())
    task = made.take(CPU)
    assert made.give_back(task, ended(task, "oom")) == ended(task, "oom")


def test_what_needs_no_less_waits_until_a_dead_cell_is_settled():
    cells = [planned("30"), planned("40", 1), planned("30", 2), planned("20", 3)]
    first, second, other = card(0), card(1), card(2, model="another")
    made = queue(cells, needs())
    dead = made.take(first)
    made.give_back(dead, ended(dead, "oom"))
    assert list(taken(made, second)) == ["20"], "the larger ones are held back on a card of this model"
    assert name(made.take(other)) == "40", "and on no other"
    assert made.take(first) is dead
    made.give_back(dead, ended(dead))
    assert list(taken(made, second)) == ["30"]


def test_a_promised_cell_is_prepared_for_its_lane_only_and_given_up_for_a_retry():
    made, device = queue([planned("60"), planned("50", 1), planned("1", 2)], needs()), card()
    running = made.take(device)
    promised = made.promise(device, running)
    assert name(promised) == "50", "it has room when the present one has ended"
    assert list(taken(made, device)) == ["1"]
    assert made.give_back(running, ended(running)) is not None
    assert made.take(device, promised=promised) is promised

    made = queue([planned("60"), planned("50", 1)], needs())
    running = made.take(device)
    promised = made.promise(device, running)
    made.give_back(running, ended(running, "oom"))
    assert made.take(device, promised=promised) is running, "what ran out of memory comes first"
    made.give_back(running, ended(running))
    assert made.take(device) is promised, "and what was promised is not lost"


class Clock:
    """Seconds that pass as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_within_a_budget_nothing_starts_that_would_not_end_in_time():
    clock, cells = Clock(), [planned("long"), planned("short"), planned("short", 1), planned("unknown", 1)]
    made = queue(cells, {"long": (None, 100.0), "short": (None, 40.0)}, budget=90.0, clock=clock)
    names = []
    while task := made.take(CPU):
        names.append(name(task))
        clock.now += 40.0
        made.give_back(task, ended(task))
    assert names == ["short", "unknown"], "80 seconds have passed; the second short one would end after 120"
    assert {(outcome.state, outcome.reason) for outcome in made.rest()} == {
        ("not started", "it takes about 1m40s, 1m30s of the budget of 1m30s were left"),
        ("not started", "it takes about 40s, 10s of the budget of 1m30s were left"),
    }
    clock.now = 91.0
    assert queue([planned("unknown")], budget=90.0, clock=clock).take(CPU) is not None
    late = queue([planned("unknown")], budget=90.0, clock=clock)
    clock.now += 91.0
    assert late.take(CPU) is None
    assert [outcome.id for outcome in late.rest()] == [planned("unknown").id]


def test_cells_of_others_are_skipped_watched_and_taken_over():
    world, clock = World(), Clock()
    cells = [planned("theirs"), planned("done"), planned("ours"), planned("left")]
    ids = {cell.entered.cell.spec["name"]: cell.id for cell in cells}
    world.states |= {ids["theirs"]: {"state": "running"}, ids["left"]: {"state": "running"}}
    world.states[ids["done"]] = {"state": "failed", "reason": "why"}
    made = queue(cells[:3], outside=world, watched=cells[3:], clock=clock)
    task = made.take(CPU)
    assert name(task) == "ours"
    assert world.ended == [Outcome(ids["done"], "failed", "why", 0.0, "")]
    made.give_back(task, ended(task))
    with pytest.raises(Nothing):
        made.take(CPU)
    assert world.remarks == ["waiting for 2 cells that other processes run; Ctrl-C leaves what runs elsewhere alone"]
    world.states[ids["theirs"]] = {"state": "done"}
    world.states[ids["left"]] = {"state": "interrupted"}
    with pytest.raises(Nothing):
        made.take(CPU)  # it has just looked
    clock.now += 5.0
    task = made.take(CPU)
    assert name(task) == "left"
    assert world.ended[1:] == [Outcome(ids["theirs"], "done", "", 0.0, "")]
    made.give_back(task, ended(task))
    assert made.take(CPU) is None and made.rest() == []


def test_a_cell_that_is_run_again_is_not_taken_for_done():
    world, cells = World(), [planned("old", state="stale"), planned("new", state="stale")]
    world.states[cells[0].id] = {"state": "done", "updated": "2020-01-01T00:00:00+00:00"}
    world.states[cells[1].id] = {"state": "done", "updated": "2999-01-01T00:00:00+00:00"}
    made = queue(cells, outside=world)
    assert list(taken(made, CPU)) == ["old"]
    assert [outcome.id for outcome in world.ended] == [cells[1].id], "another process has run it since"


def test_a_closed_queue_hands_out_nothing_and_accounts_for_all():
    made = queue([planned("running"), planned("next"), planned("waiting")])
    running = made.take(CPU)
    promised = made.promise(CPU, running)
    made.close()
    assert made.give_back(running, ended(running, "interrupted")).state == "interrupted"
    assert made.take(CPU, promised=promised) is None
    assert {(outcome.id, outcome.reason) for outcome in made.rest()} == {
        (planned(word).id, "the run was stopped") for word in ("next", "waiting")
    }


def test_what_was_learned_changes_what_is_expected():
    known = Known(needs())
    made = WorkQueue([planned("60"), planned("50", 1), planned("50", 2)], known)
    first = made.take(card())
    known.needs = known.needs | {"50": (30, None)}
    made.give_back(first, ended(first))
    assert known.learned == [first.id]
    assert [name(made.take(card())), name(made.take(card()))] == ["50", "50"]


def test_lanes_that_wait_are_woken():
    made, device, got = WorkQueue([planned("60"), planned("70", 1)], Known(needs())), card(), []
    first = made.take(device)
    lane = threading.Thread(target=lambda: got.append(made.take(device)))
    lane.start()
    made.give_back(first, ended(first))
    lane.join(10)
    assert [name(task) for task in got] == ["70"]


@given(st.lists(st.integers(0, 50)), st.integers(0, 100), st.integers(0, 60), st.integers(1, 200), st.integers(0, 60))
def test_room_is_never_more_than_there_is(others, used, foreign, needs, before):
    if has_room(needs, others, memory=100, used=used, foreign=foreign) and others:
        assert sum(others) + foreign + needs <= 100 and used + needs <= 100


SIZES = st.one_of(st.none(), st.integers(1, 130))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=14),
    st.integers(1, 3),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_every_cell_ends_once_and_no_card_is_ever_overfull(cells, count, lanes, chance: random.Random):
    """Whatever order cells end in, and however often they run out of memory: ``deaths`` times, or for ever at 3."""
    cards = [card(number, lanes=lanes) for number in range(count)]
    plan = [planned(f"cell {index}", seed) for index, (_, seed, _) in enumerate(cells)]
    deaths = Counter({planned.id: times for planned, (_, _, times) in zip(plan, cells, strict=True)})
    sizes = {f"cell {index}": (memory, None) for index, (memory, _, _) in enumerate(cells)}
    world = World()
    made = queue(plan, sizes, outside=world, devices=cards)
    running: dict[tuple[str, int], tuple[Task, Task | None]] = {}
    ahead: dict[tuple[str, int], Task | None] = {}
    open_lanes = {(device.label, lane): device for device in cards for lane in range(lanes)}
    finished: list[str] = []
    while True:
        for lane in chance.sample(sorted(open_lanes), len(open_lanes)):
            if lane in running:
                continue
            try:
                task = made.take(open_lanes[lane], promised=ahead.pop(lane, None))
            except Nothing:
                continue
            if task is None:
                del open_lanes[lane]
                continue
            running[lane] = task
            _check(cards, running)
        if not running:
            break
        lane = chance.choice(sorted(running))
        task = running[lane]
        if chance.random() < 0.5:
            ahead[lane] = made.promise(open_lanes[lane], task)
        del running[lane]
        state = "oom" if deaths[task.id] else "done"
        deaths[task.id] -= state == "oom" and deaths[task.id] < 3
        settled = made.give_back(task, ended(task, state))
        finished += [settled.id] if settled else []
    assert sorted(finished) == sorted(cell.id for cell in plan), "none is forgotten, none ends twice"
    assert made.rest() == []


def _check(cards: list[Device], running: dict[tuple[str, int], Task]) -> None:
    """No card holds more than it has, none that is to be alone has company."""
    for device in cards:
        here = [task for (label, _), task in running.items() if label == device.label]
        if len(here) > 1:
            assert not any(task.alone or task.memory is None for task in here)
            assert sum(task.memory for task in here) <= device.memory


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(1, 100) | st.none()), min_size=1, max_size=30))
def test_no_seed_starts_before_the_one_before_it(cells):
    plan = [planned(f"cell {index}", seed) for index, (seed, _) in enumerate(cells)]
    made = queue(plan, {f"cell {index}": (1, seconds) for index, (_, seconds) in enumerate(cells)})
    started = []
    while task := made.take(CPU):
        started.append(task)
        made.give_back(task, ended(task))
    seeds = [task.planned.entered.cell.spec["seed"] for task in started]
    assert seeds == sorted(seeds)
    for one, other in pairwise(started):
        if one.planned.entered.cell.spec["seed"] == other.planned.entered.cell.spec["seed"] and one.seconds:
            assert other.seconds is not None and one.seconds >= other.seconds
