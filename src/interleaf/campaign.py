"""Many requests checked in parallel, with the same answers as one after the other.

Each worker is an executor with one process of its own, so that a process that is killed, or that has to be, costs
the request that it was at and nothing else. Results come as they are ready; `run` returns them in the order of
the requests.

When one request alone is checked and there is a core to spare, a hunt runs beside the proof. It shows early what
it finds; into the answer its findings go only if the proof did not get to its end, and then always, so that the
answer does not depend on who was faster.
"""

from __future__ import annotations

import functools
import os
import signal
import time
import types
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import Pipe, get_context, parent_process
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import Any, Protocol

from interleaf.check import HUNT_EXECUTIONS, Cell, Request, check
from interleaf.explore.outcome import Bounds, Progress
from interleaf.explore.verdict import Status
from interleaf.properties import MADE_OF

from .worker import Checker, Result, Sent, attempt

PATIENCE = 60.0
"""Seconds that code of a scenario may run without an operation, unless there is a bound on seconds."""

LEAST_PATIENCE = 5.0

GRACE = 10.0
"""Seconds that a worker that was told to stop, or that is silent, has before it is killed."""

TURN = 0.1
"""Seconds between two looks at the workers."""

HUNTED_ENGINES = ("states", "steps", "both")


class Listener(Protocol):
    """Told what happens while it happens, in the main thread; positions are those of the requests."""

    def began(self, position: int) -> None: ...

    def progress(self, position: int, progress: Progress) -> None: ...

    def ended(self, position: int, result: Result) -> None: ...

    def hunted(self, cell: Cell) -> None:
        """The hunt beside the proof is over."""


class Silent:
    """Listens to nothing."""

    def began(self, position: int) -> None:
        """A request is being checked."""

    def progress(self, position: int, progress: Progress) -> None:
        """The search goes on."""

    def ended(self, position: int, result: Result) -> None:
        """A result is there."""

    def hunted(self, cell: Cell) -> None:
        """The hunt beside the proof is over."""


def cores() -> int:
    """How many processes can run at the same time here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    requests: Sequence[Request],
    *,
    workers: int | None = None,
    listener: Listener | None = None,
    checker: Checker = check,
) -> list[Result]:
    """Check all requests, at most `workers` at a time (as many as there are cores), and return their results in order.

    Ctrl-C and SIGTERM end it early: what is finished and what was found is kept, the rest is incomplete.
    A second one ends the program.
    """
    workers = cores() if workers is None else workers
    listener = listener or Silent()
    campaign = _Campaign(requests, listener, checker)
    with _signals(campaign):
        if workers == 1:
            campaign.run_here()
        else:
            campaign.run_in_workers(workers)
    return campaign.results()


class _Campaign:
    def __init__(self, requests: Sequence[Request], listener: Listener, checker: Checker) -> None:
        self.requests = list(requests)
        self.listener = listener
        self.checker = checker
        self.stopping = ""
        """Why everything is to stop; empty as long as it is not."""
        self._finished: dict[int, Result] = {}
        self._hunter: Request | None = hunter_of(self.requests[0]) if len(self.requests) == 1 else None

    def results(self) -> list[Result]:
        """All results; those of requests that were never begun too."""
        lost = f"it was not begun: {self.stopping}"
        found = [self._finished.get(at, Result(asked, None, "", lost)) for at, asked in enumerate(self.requests)]
        if self._hunter is not None:
            return [self._joined(found[0], self._finished.get(1))]
        return found

    def run_here(self) -> None:
        """In this process, one after the other."""
        for position, request in enumerate(self.requests):
            if self.stopping:
                return
            self.listener.began(position)
            self._finish(position, self._attempt(position, request))
        if self._hunter is not None and self._wants_hunt() and not self.stopping:
            self._finish(1, self._attempt(1, self._hunter))

    def _attempt(self, position: int, request: Request) -> Result:
        def send(sent: Sent) -> None:
            if sent is not None and position < len(self.requests):
                self.listener.progress(position, sent)

        return attempt(request, self.checker, patience_for(request), send, lambda: self.stopping)

    def run_in_workers(self, workers: int) -> None:
        """In processes of their own."""
        todo = deque(enumerate(self.requests))
        if self._hunter is not None:
            todo.append((1, self._hunter))
        slots = [_Slot(self.checker) for _ in range(min(workers, len(todo)))]
        try:
            while todo or any(slot.future for slot in slots):
                for slot in slots:
                    if todo and slot.future is None and not self.stopping:
                        position, request = todo.popleft()
                        slot.begin(position, request)
                        if position < len(self.requests):
                            self.listener.began(position)
                running = [slot.future for slot in slots if slot.future is not None]
                if not running:
                    break
                wait(running, TURN, FIRST_COMPLETED)
                for slot in slots:
                    self._look_at(slot)
        finally:
            for slot in slots:
                slot.close()

    def _look_at(self, slot: _Slot) -> None:
        for sent in slot.messages():
            if sent is not None and slot.position < len(self.requests):
                self.listener.progress(slot.position, sent)
        result = slot.result(self.stopping)
        if result is not None:
            self._finish(slot.position, result)
        elif slot.future is not None:
            if self.stopping:
                slot.stop(self.stopping)
            elif slot.position >= len(self.requests) and 0 in self._finished and not self._wants_hunt():
                slot.stop("the proof is complete")

    def _finish(self, position: int, result: Result) -> None:
        self._finished[position] = result
        if position < len(self.requests):
            self.listener.ended(position, result)
        elif result.cell is not None and 0 not in self._finished:
            self.listener.hunted(result.cell)

    def _wants_hunt(self) -> bool:
        """Is the proof over, and without having seen everything?"""
        proof = self._finished.get(0)
        if proof is None or proof.error:
            return False
        return proof.cell is None or not proof.cell.verdict.exhaustive

    def _joined(self, proof: Result, hunt: Result | None) -> Result:
        if hunt is None or not self._wants_hunt():
            return proof
        if hunt.error:
            return replace(proof, error=hunt.error)
        if hunt.cell is None:
            return proof
        if proof.cell is None:
            return replace(proof, cell=instead_of_proof(proof, hunt.cell))
        return replace(proof, cell=with_hunt(proof.cell, hunt.cell))


def hunter_of(request: Request) -> Request | None:
    """The hunt that goes with a proof; None if the request is none."""
    if request.engine not in HUNTED_ENGINES or request.bounds.preemptions is not None:
        return None
    bounds = Bounds(executions=HUNT_EXECUTIONS, seconds=request.bounds.seconds, steps=request.bounds.steps)
    return replace(request, engine="hunt", bounds=bounds)


def with_hunt(proof: Cell, hunt: Cell) -> Cell:
    """An answer that is not complete, and what the hunt found beside it."""
    known = {(finding.property, finding.message) for finding in proof.findings}
    more = tuple(finding for finding in hunt.findings if (finding.property, finding.message) not in known)
    verdict = proof.verdict
    if more:
        violated = {finding.property for finding in more}
        statuses = dict(verdict.properties) | dict.fromkeys(violated, Status.VIOLATED)
        statuses |= {name: Status.VIOLATED for name, rules in MADE_OF.items() if not violated.isdisjoint(rules)}
        verdict = replace(verdict, status=Status.VIOLATED, reason="", properties=tuple(sorted(statuses.items())))
    elif verdict.status is Status.INCOMPLETE:
        verdict = replace(verdict, reason=f"{verdict.reason}; {_nothing(hunt)}")
    return replace(proof, verdict=verdict, findings=(*proof.findings, *more))


def instead_of_proof(proof: Result, hunt: Cell) -> Cell:
    """An answer where there is none of the proof, because its process was killed: what the hunt found beside it."""
    verdict = hunt.verdict
    if verdict.status is Status.INCOMPLETE:
        verdict = replace(verdict, reason=f"{proof.stopped}; {_nothing(hunt)}")
    return replace(hunt, request=proof.request, verdict=verdict)


def _nothing(hunt: Cell) -> str:
    return f"{hunt.executions} random executions with seed {hunt.request.seed} found nothing"


def patience_for(request: Request) -> float:
    """How long code of the scenario may keep the search waiting."""
    seconds = request.bounds.seconds
    return PATIENCE if seconds is None else max(seconds, LEAST_PATIENCE)


class _Slot:
    """A worker: one process, and what it is doing. A process that dies is replaced by the next request."""

    def __init__(self, checker: Checker) -> None:
        self.position = -1
        self.future: Future[Result] | None = None
        self._checker = checker
        self._request: Request | None = None
        self._executor: ProcessPoolExecutor | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._pid = 0
        self._deadline = 0.0
        self._told = False
        self._killed = False

    def begin(self, position: int, request: Request) -> None:
        """Check `request` next."""
        patience = patience_for(request)
        self.position, self._request = position, request
        self._deadline = time.monotonic() + patience + GRACE
        self._told = self._killed = False
        task = functools.partial(_work, position, request, self._checker, patience)
        if self._executor is not None:
            self.future = self._executor.submit(task)
            return
        self._pipe, theirs = Pipe()
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _settle_in, (theirs,))
        self.future = self._executor.submit(task)  # this starts the process, which then has its end of the pipe
        theirs.close()

    def messages(self) -> Iterator[Sent]:
        """What the worker has told since the last look."""
        pipe = self._pipe
        try:
            while pipe is not None and pipe.poll():
                told = pipe.recv()
                if isinstance(told, int):
                    self._pid = told
                    continue
                position, sent = told
                if position == self.position and not self._told and self._request is not None:
                    self._deadline = time.monotonic() + patience_for(self._request) + GRACE
                    yield sent
        except (EOFError, OSError):
            self._pipe = None

    def stop(self, why: str) -> None:
        """Tell the worker to come to an end; later, if it has not, kill it."""
        if not self._told:
            self._told = True
            self._deadline = time.monotonic() + GRACE
            if self._pipe is not None:
                with suppress(OSError):
                    self._pipe.send((self.position, why))

    def result(self, stopping: str) -> Result | None:
        """What came of the request, once it is over. A worker that is silent for too long is killed."""
        future, request = self.future, self._request
        if future is None or request is None:
            return None
        if not future.done():
            if time.monotonic() > self._deadline and not self._killed and self._pid:
                self._killed = True
                self._kill()
            return None
        self.future = None
        try:
            return future.result()
        except BrokenProcessPool:
            self.close()
        if self._told:
            return Result(request, None, "", stopping or "it was stopped")
        if self._killed:
            seconds = patience_for(request)
            error = f"{request.scenario} on {request.design}: it does not end: no sign of life for {seconds:g} s"
            return Result(request, None, error)
        return Result(request, None, "", "its worker process was killed")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._executor is not None:
            if self.future is not None:
                self._kill()
            self._executor.shutdown(wait=self.future is None, cancel_futures=True)
            self._executor = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self._pid = 0

    def _kill(self) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


_pipe: Connection[Any, Any] | None = None
"""In a worker: the way to the main process."""
_pipe_lock = Lock()


def _settle_in(pipe: Connection[Any, Any]) -> None:
    """A worker begins. Ctrl-C reaches all processes; the main one decides what it means."""
    global _pipe  # noqa: PLW0603 - an initializer has no other way to hand something to the calls
    _pipe = pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    pipe.send(os.getpid())


def end_with_parent() -> None:
    """End this process when its main process is gone: nobody waits for its answers then."""

    def end() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=end, daemon=True).start()


def _work(position: int, request: Request, checker: Checker, patience: float) -> Result:
    """In a worker: check one request."""
    pipe = _pipe
    assert pipe is not None

    def send(sent: Sent) -> None:
        with _pipe_lock, suppress(OSError):
            pipe.send((position, sent))

    def told_to_stop() -> str:
        try:
            while pipe.poll():
                stopped, why = pipe.recv()
                if stopped == position:
                    return str(why)
        except (EOFError, OSError):
            return "the main process is gone"
        return ""

    return attempt(request, checker, patience, send, told_to_stop)


@contextmanager
def _signals(campaign: _Campaign) -> Iterator[None]:
    """While this is active, the first Ctrl-C or SIGTERM stops the campaign, and the second one the program."""
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, _frame: types.FrameType | None) -> None:
        campaign.stopping = "interrupted by Ctrl-C" if number == signal.SIGINT else "interrupted by SIGTERM"
        for known in before:
            signal.signal(known, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Listener", "Result", "cores", "end_with_parent", "hunter_of", "patience_for", "run", "with_hunt"]
