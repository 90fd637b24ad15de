"""Many requests in parallel: the same answers, whatever happens to a worker or to a scenario."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from interleaf import campaign
from interleaf.campaign import cores, hunter_of, run, with_hunt
from interleaf.check import HUNT_EXECUTIONS, Cell, Request, check
from interleaf.explore.outcome import Bounds, Progress
from interleaf.explore.verdict import Status
from interleaf.worker import Result
from tests.checkers import by_name, cell

# What a signal raises while the callback of a weak reference runs is swallowed, too; it is sent again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _no_gc_callbacks() -> Iterator[None]:
    """Hypothesis, which other tests use in this process, measures garbage collections in a callback. What a signal
    raises while that runs is swallowed by the interpreter, as it would be in no process of a user."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks.extend(callbacks)


HEADER = """
import time
from interleaf.runtime import Marked, Object, check, new, spawn, write_marked, the
from interleaf.scenarios import scenario

class Counter(Object):
    value = Marked(0)
"""

ENDLESS = f'''{HEADER}
def loop():
    the(Counter).value = 1
    while True:
        pass

@scenario("A task that never ends")
def endless(design):
    """A loop without operations."""
    spawn(loop, name="looper")
'''

ENDLESS_SET_UP = f'''{HEADER}
@scenario("A set-up that never ends")
def endless(design):
    """A loop with operations."""
    counter = the(Counter)
    while True:
        counter.value = 1 - counter.value
'''

ENDLESS_IMPORT = f"""{HEADER}
while True:
    time.sleep(0.01)
"""

LONG = f'''{HEADER}
def count(me):
    counter = the(Counter)
    for _ in range(40):
        counter.value = counter.value + me

def complain():
    check("small", the(Counter).value < 1, "the counter is not 0")

@scenario("A search that takes long")
def long(design):
    """Counters with very many values, and a violation that is found early."""
    for me in (1, 100, 10_000, 1_000_000):
        spawn(count, me, name=f"counter {{me}}")
    spawn(complain, name="complainer")
'''

NONDETERMINISTIC = f'''{HEADER}
import itertools
calls = itertools.count()

def step():
    counter = the(Counter)
    counter.value = next(calls)

@scenario("A scenario with a counter of its own")
def nondeterministic(design):
    """Its tasks do something else each time."""
    spawn(step, name="one")
    spawn(step, name="other")
'''


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int]] = []
        self.previews: list[Cell] = []

    def began(self, position: int) -> None:
        self.order.append(("began", position))

    def progress(self, position: int, progress: Progress) -> None:
        self.order.append(("progress", position))

    def ended(self, position: int, result: Result) -> None:
        self.order.append(("ended", position))

    def hunted(self, cell: Cell) -> None:
        self.previews.append(cell)


def asked(*names: str) -> list[Request]:
    return [Request(name, "v6.12") for name in names]


def user_file(folder: Path, text: str, bounds: Bounds | None = None) -> Request:
    path = folder / "mine.py"
    path.write_text(text)
    return Request(str(path), "v6.12", bounds=bounds or Bounds())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    names = ["slow", "fine", "violated", "bounded", "model", "other"]
    results = run(asked(*names), workers=workers, checker=by_name)
    assert [result.request.scenario for result in results] == names
    words = [result.cell.verdict.status if result.cell is not None else result.error for result in results]
    assert words == [
        Status.HOLDS,
        Status.HOLDS,
        Status.VIOLATED,
        Status.INCOMPLETE,
        "model on v6.12: hidden mutable state",
        Status.HOLDS,
    ]


def test_a_listener_hears_of_every_cell() -> None:
    recorder = Recorder()
    run(asked("fine", "slow"), workers=2, listener=recorder, checker=by_name)
    for position in (0, 1):
        assert recorder.order.index(("began", position)) < recorder.order.index(("ended", position))


def test_a_killed_worker_costs_its_own_cell_only() -> None:
    results = run(asked("fine", "killed", "slow", "violated", "killed too", "other"), workers=2, checker=by_name)
    assert [result.stopped for result in results] == [
        "",
        "its worker process was killed",
        "",
        "",
        "its worker process was killed",
        "",
    ]
    assert [result.cell is None for result in results] == [False, True, False, False, True, False]


def test_a_worker_that_is_silent_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "GRACE", 1.0)
    monkeypatch.setattr(campaign, "LEAST_PATIENCE", 1.0)
    silent = Request("stopped", "v6.12", bounds=Bounds(seconds=1))
    results = run([silent, *asked("fine")], workers=2, checker=by_name)
    assert results[0].error == "stopped on v6.12: it does not end: no sign of life for 1 s"
    assert results[1].cell is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_scenario_raises_is_one_message(workers: int) -> None:
    results = run(asked("raises", "fine"), workers=workers, checker=by_name)
    assert results[0].cell is None
    assert results[0].error.startswith("raises on v6.12: it raises ZeroDivisionError: division by zero (")
    assert "checkers.py:" in results[0].error
    assert "\n" not in results[0].error
    assert results[1].cell is not None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("text", "where"),
    [
        (ENDLESS, "after 0.5 s it is still at "),
        (ENDLESS_SET_UP, ""),  # which of two limits comes first depends on the machine
        (ENDLESS_IMPORT, "after 0.5 s it is still at "),
    ],
    ids=["task", "set-up", "import"],
)
def test_a_scenario_that_never_ends_is_ended(
    workers: int, text: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "LEAST_PATIENCE", 0.5)
    endless = user_file(tmp_path, text, Bounds(seconds=0.5))
    [result, other] = run([endless, Request("fault-vs-unmap", "v6.12")], workers=workers)
    assert f"it does not end: {where}" in result.error
    assert "mine.py:" in result.error
    assert other.cell is not None
    assert other.cell.verdict.status is Status.HOLDS


def interrupt_when(began: threading.Event, number: int) -> threading.Thread:
    """Send a signal to this process once `began` is set."""

    def send() -> None:
        began.wait()
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


class Interrupting(Recorder):
    """A listener that wants an interrupt when the first cell is done and another has something to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.now = threading.Event()

    def progress(self, position: int, progress: Progress) -> None:
        if ("ended", 0) in self.order and position == 1 and progress.found:
            self.now.set()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_an_interrupt_keeps_what_was_found(workers: int, number: int, name: str, tmp_path: Path) -> None:
    long = user_file(tmp_path, LONG)
    listener = Interrupting()
    before = signal.getsignal(number)
    thread = interrupt_when(listener.now, number)
    results = run([Request("fault-vs-unmap", "v6.12"), long, long, long], workers=workers, listener=listener)
    thread.join()
    assert signal.getsignal(number) is before
    first, second, _third, last = results
    assert first.cell is not None
    assert first.cell.verdict.status is Status.HOLDS
    assert second.cell is not None
    assert [finding.property for finding in second.cell.findings] == ["small"]
    assert not second.cell.verdict.exhaustive
    assert second.stopped == f"interrupted by {name}"
    assert last.stopped == f"it was not begun: interrupted by {name}"


def test_a_nondeterministic_scenario_is_told_so(tmp_path: Path) -> None:
    [result] = run([user_file(tmp_path, NONDETERMINISTIC)], workers=1)
    assert result.cell is None
    assert "mine.py" in result.error
    assert "it raises" not in result.error


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hunt_adds_to_a_proof_that_is_not_complete(workers: int) -> None:
    [result] = run(asked("bounded lucky"), workers=workers, checker=by_name)
    assert result.cell is not None
    assert result.cell.verdict.status is Status.VIOLATED
    assert result.cell.verdict.reason == ""
    assert dict(result.cell.verdict.properties)["I1"] is Status.VIOLATED
    assert [finding.message for finding in result.cell.findings] == ["found by chance"]
    assert result.cell.states == 1234


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hunt_without_luck_is_mentioned(workers: int) -> None:
    [result] = run(asked("bounded"), workers=workers, checker=by_name)
    assert result.cell is not None
    assert result.cell.verdict.status is Status.INCOMPLETE
    expected = "the bound of 9 states was reached; 90 random executions with seed 1 found nothing"
    assert result.cell.verdict.reason == expected


def test_a_hunt_is_the_answer_where_the_proof_was_killed() -> None:
    [result] = run(asked("killed lucky"), workers=2, checker=by_name)
    assert result.stopped == "its worker process was killed"
    assert result.cell is not None
    assert result.cell.request.engine == "states"
    assert result.cell.verdict.status is Status.VIOLATED
    assert [finding.message for finding in result.cell.findings] == ["found by chance"]
    [result] = run(asked("killed"), workers=2, checker=by_name)
    assert result.cell is not None
    assert result.cell.verdict.reason.startswith("its worker process was killed; 90 random executions with seed 1")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_scenario_raises_in_the_hunt_is_told(workers: int) -> None:
    [result] = run(asked("bounded unlucky"), workers=workers, checker=by_name)
    assert "it raises ZeroDivisionError: division by chance" in result.error
    assert result.cell is not None
    [result] = run(asked("slow unlucky"), workers=workers, checker=by_name)
    assert not result.error, "the proof has seen everything"


def test_a_property_that_consists_of_rules_is_violated_where_the_hunt_finds_one_of_them() -> None:
    proof = cell(Request("any", "v6.12"), Status.INCOMPLETE, exhaustive=False)
    hunt = cell(Request("any", "v6.12", engine="hunt"), Status.VIOLATED, "nobody can run", exhaustive=False)
    hunt = replace(hunt, findings=(replace(hunt.findings[0], property="deadlock"),))
    known = dict(with_hunt(proof, hunt).verdict.properties)
    assert known["deadlock"] is known["I13"] is Status.VIOLATED
    assert known["I1"] is Status.INCOMPLETE


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hunt_adds_nothing_to_a_complete_proof(workers: int) -> None:
    [result] = run(asked("slow lucky"), workers=workers, checker=by_name)
    assert result.cell is not None
    assert result.cell.verdict.status is Status.HOLDS
    assert result.cell.findings == ()


def test_the_hunt_is_shown_early() -> None:
    recorder = Recorder()
    run(asked("slow lucky"), workers=2, listener=recorder, checker=by_name)
    assert [found.findings[0].message for found in recorder.previews if found.findings] in (["found by chance"], [])
    assert all(name != "hunt" for name, _ in recorder.order)


def test_only_a_proof_has_a_hunt() -> None:
    assert hunter_of(Request("any", "v6.12", engine="hunt")) is None
    assert hunter_of(Request("any", "v6.12", bounds=Bounds(preemptions=2))) is None
    hunter = hunter_of(Request("any", "v6.12", ("rule",), seed=5, bounds=Bounds(states=9, seconds=3)))
    assert hunter is not None
    assert (hunter.engine, hunter.dropped, hunter.seed) == ("hunt", ("rule",), 5)
    assert hunter.bounds == Bounds(executions=HUNT_EXECUTIONS, seconds=3)


def test_two_cells_have_no_hunt() -> None:
    results = run(asked("bounded lucky", "bounded lucky"), workers=2, checker=by_name)
    assert [result.cell.findings if result.cell is not None else None for result in results] == [(), ()]


def test_there_is_a_core() -> None:
    assert cores() >= 1


def test_parallel_proofs_agree_with_single_ones() -> None:
    requests = [Request("fault-vs-unmap", "v6.12"), Request("last-put-vs-unmap", "v6.12")]
    parallel = run(requests, workers=2)
    for request, result in zip(requests, parallel, strict=True):
        alone = check(request)
        assert result.cell is not None
        assert result.cell.verdict == alone.verdict
        assert result.cell.findings == alone.findings
        assert result.cell.states == alone.states
