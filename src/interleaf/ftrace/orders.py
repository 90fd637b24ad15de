"""Other orders: where an event does not fit, was the order of the threads' steps another than that of their events?

An event is written after what it tells of has happened, and between two events of a thread nothing tells when it takes
which of its steps. So the events allow many orders. The comparison takes the steps of a thread as late as they can be:
when its next event has its turn. If then an event does not fit, it goes back, and lets a thread take some of its steps
before those of another one with which they conflict (they touch the same cell, and one of them writes it), but never
before the thread's previous event. What fits up to the event and beyond it is an explanation. Orders are tried by how
far they come, near the event first; bounds are set to how many are tried, to how much is done for them, and to how far
back it goes. If none fits, the event diverges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol, TypeAlias

from interleaf.runtime import Task

from . import records
from .flows import Flows
from .outcome import Result
from .stepping import PATIENCE, Detour, SteppedDriver, Taken

WINDOW = 15_000
"""Operations over which the comparison can go back, while several threads are in the middle of something."""

DROPPED = 512
"""Events that leave the window before their past is forgotten."""

REACHES = (40, 40, False), (WINDOW, 20, False), (40, 20, True), (40, 200, False), (WINDOW, 200, False)
"""Another order is looked for in so many events before one that does not fit, and so many are tried: near, where most
are found; then as far as it can go back; then boldly (`SteppedDriver.ahead`). If a few do not help, many are tried."""

EFFORT = 500_000
"""Operations that are performed for that, each time, before the rest is given up."""

CHILDREN = 64
"""Orders that are made of one that has failed, by moving one thread's steps."""

BEYOND = 6
"""Events beyond the one that did not fit, which must fit as well."""

Plan: TypeAlias = tuple[tuple[int, Detour], ...]
"""Which steps are taken early: the number of the event before whose steps, and the steps."""


class Compared(Protocol):
    """What is compared event by event, and can go back (`compare.Comparison`)."""

    result: Result
    flows: Flows
    reordered: bool
    """The event that is compared next fits only in another order than that of the events."""

    def goes_on(self) -> bool: ...

    def more(self) -> bool: ...

    def next(self) -> records.Event: ...

    def again(self, events: Iterable[records.Event]) -> None: ...

    def keep(self) -> Callable[[], None]: ...


@dataclass(slots=True)
class Moment:
    """The moment before an event was compared, and what was done for the event."""

    mark: int
    bring_back: Callable[[], None]
    event: records.Event | None = None
    tasks: frozenset[Task] = frozenset()
    """Those that act for the thread of the event."""
    detours: tuple[Detour, ...] = ()
    taken: list[Taken] = field(default_factory=list)
    operations: int = 0
    """Operations that were performed until then."""


class OutOfOrder(Exception):
    """An event does not fit in a trace of several threads: another order of their steps may explain it."""


class InOrder:
    """Compares events in their order, and goes no other way."""

    def __init__(self, compared: Compared) -> None:
        self._compared = compared

    def next(self) -> None:
        """Compare the next event. Raises OutOfOrder if it does not fit, and another order is possible."""
        compared = self._compared
        divergent = compared.result.divergent
        compared.next()
        if compared.result.divergent > divergent and len(compared.flows.known) > 1:
            raise OutOfOrder


class Orders:
    """Compares events in their order, and looks for another one where one does not fit."""

    def __init__(self, driver: SteppedDriver, compared: Compared) -> None:
        self._driver = driver
        self._compared = compared
        self._window: deque[Moment] = deque()
        self._position = 0
        """Number of the event that is compared next."""
        self._dropped = 0
        """Events that are no longer in the window, and of which the past is still there."""
        self._latest: dict[int, int] = {}
        """The number of the latest event of each thread of the trace."""
        self._best: tuple[int, Plan] = (0, ())
        """The number of the event that did not fit in the order which has come farthest, and that order."""
        self._explained: set[int] = set()
        """Numbers of events in the window that were explained by another order."""
        self._vain = 0
        """How often no order was found that fits: each time, half as many are tried as before, because what comes after
        a divergence seldom fits, and an answer is wanted."""

    def next(self) -> None:
        """Compare the next event."""
        compared = self._compared
        if not self._fits(()) and compared.goes_on():
            self._search()
        first = min((self._latest[pid] for pid in compared.flows.busy()), default=self._position) + 1
        window, now = self._window, self._driver.operations
        keep = WINDOW if not window or now - window[0].operations <= WINDOW else WINDOW // 2
        while window and (self._first() < first or (len(window) > 1 and now - window[0].operations > keep)):
            window.popleft()
            self._dropped += 1
        if not window:
            self._forget()
        elif self._dropped >= DROPPED:
            self._dropped = 0
            self._driver.past.forget(window[0].mark)

    def _forget(self) -> None:
        self._window.clear()
        self._explained.clear()
        self._dropped = 0
        self._driver.past.forget(None)

    def _fits(self, detours: tuple[Detour, ...]) -> bool:
        driver, compared = self._driver, self._compared
        if not self._window:
            driver.operations = 0
        moment = Moment(driver.past.now, compared.keep(), detours=detours, operations=driver.operations)
        self._window.append(moment)
        driver.go_round(detours)
        if driver.taken is not None:
            driver.taken = moment.taken
        divergent = compared.result.divergent
        compared.reordered = self._position in self._explained
        moment.event = event = compared.next()
        driver.go_round(())
        self._latest[event.task.pid] = self._position
        moment.tasks = frozenset(thread.task for thread in compared.flows.threads(event.task.pid))
        self._position += 1
        return compared.result.divergent == divergent

    def _first(self) -> int:
        return self._position - len(self._window)

    def _back(self, position: int) -> None:
        """Go back to the moment before an event in the window, or before the next one."""
        if position == self._position:
            return
        moment = self._window[position - self._first()]
        events = []
        while self._position > position:
            event = self._window.pop().event
            assert event is not None
            events.append(event)
            self._position -= 1
        self._driver.past.back(moment.mark)
        self._driver.operations = moment.operations
        moment.bring_back()
        self._compared.again(reversed(events))

    def _search(self) -> None:
        """The last event of the window does not fit: is there another order in which it does?"""
        failed, start = self._position - 1, self._first()
        before = tuple((start + n, detour) for n, moment in enumerate(self._window) for detour in moment.detours)
        self._explained.add(failed)
        found, self._best = False, (failed, before)
        for number, (reach, orders, bold) in enumerate(REACHES):
            near = max(start, failed - reach)
            if number:
                self._back(start)
                self._follow(before, near - 1)
            self._driver.bold = bold
            found = self._try_all(before, failed, near, orders >> self._vain)
            if found:
                break
        self._driver.bold = False
        self._vain += not found
        if not found and self._best[0] > failed:
            self._back(start)
            found = self._follow(self._best[1], failed)  # what does not fit comes later
        if not found:
            self._explained.discard(failed)
            self._back(start)
            self._follow(before, failed)
            self._forget()  # nothing before this divergence is to be explained any more
        for moment in self._window:
            moment.taken.clear()
        self._compared.result.orders += found

    def _try_all(self, before: Plan, failed: int, start: int, orders: int) -> bool:
        """Try so many orders that differ from that in which the event did not fit from event `start` on."""
        self._driver.taken = []
        found = self._find(before, failed, start, orders)
        self._driver.taken = None
        return found

    def _find(self, before: Plan, failed: int, start: int, orders: int) -> bool:
        waiting: list[tuple[int, int, int, Plan]] = [(0, 0, 0, before)]
        seen, number = {before}, 0
        executed: Plan | None = None
        limit = self._driver.performed + (EFFORT >> self._vain)
        for _ in range(orders):
            if not waiting or self._driver.performed > limit:
                return False
            _reached, depth, _number, plan = heappop(waiting)
            self._back(start if executed is None else _first_difference(executed, plan, self._position - 1))
            executed = plan
            if self._follow(plan, failed + BEYOND):
                return True
            reached = self._position
            if reached - 1 > self._best[0]:
                self._best = reached - 1, plan
            for child in self._children(plan):
                if child not in seen:
                    seen.add(child)
                    number += 1
                    heappush(waiting, (-reached, depth + 1, number, child))
        return False

    def _follow(self, plan: Plan, last: int) -> bool:
        """Compare up to the event of that number; False if one does not fit, which is then the last of the window."""
        while self._position <= last and self._compared.more():
            if not self._fits(tuple(detour for position, detour in plan if position == self._position)):
                return False
        return True

    def _children(self, plan: Plan) -> Iterator[Plan]:
        """The orders that differ from the one that has just failed by the order of two steps that conflict."""
        driver = self._driver
        mine = self._window[-1].tasks
        further: list[Taken] = []
        driver.taken = further
        flows = self._compared.flows
        for thread in [thread for pid in flows.known for thread in flows.threads(pid)]:
            driver.ahead(thread.task, None, driver.bold)
        found: dict[tuple[int, int, Detour], tuple[bool, int]] = {}
        firsts: dict[tuple[Task, int], int] = {}
        uses: dict[object, list[int]] = {}
        """What was read or changed -> by which steps. Of those that a task takes one after the other, the first and the
        last one: there may be thousands, by which it waits for others."""
        runs: dict[object, tuple[tuple[int, Task, bool], bool]] = {}
        """What -> the latest use of it, and whether it was such a one as that before it."""
        steps = self._taken(further)
        for late, (position, since, step) in enumerate(steps):
            first = firsts.setdefault((step.task, since), step.length)
            racing = []
            for what in (*step.reads, *step.writes):
                for early in reversed(uses.setdefault(what, [])):
                    where, _, other = steps[early]
                    if where <= since:
                        break
                    conflict = what in other.writes or what in step.writes
                    if conflict and where < self._position and other.task is not step.task:
                        racing.append(early)
                use = position, step.task, what in step.writes
                before, several = runs.get(what, (None, False))
                if several and before == use:
                    uses[what][-1] = late
                else:
                    uses[what].append(late)
                runs[what] = use, before == use
            # Before the last of them the step changes places with that one alone, and with the one before it in an
            # order that is made of this one, if it fails; before the first it has overtaken all of them at once.
            for early in {max(racing), min(racing)} if racing else ():
                where, _, other = steps[early]
                rank = min(step.length - first, len(steps) - late)
                likely = step.task in mine or other.task in mine
                for length in (step.length, PATIENCE) if step.waits else (step.length,):
                    key = where, other.round, Detour(other.at, step.task, length, driver.bold)
                    found[key] = min(found.get(key, (True, rank)), (not likely, rank))
        for key in sorted(found, key=lambda key: found[key])[:CHILDREN]:
            where, made, detour = key
            earlier = tuple(each for each in plan if each[0] < where)
            same = tuple(each for each in plan if each[0] == where)
            later = tuple(each for each in plan if each[0] > where)
            yield (*earlier, *same[:made], (where, detour), *same[made:], *later)
            if later or same[made:]:
                yield (*earlier, *same[:made], (where, detour))

    def _taken(self, further: list[Taken]) -> list[tuple[int, int, Taken]]:
        """The operations since event `start`, and `further` ones: each with the number of the event for which it was
        performed, and of the task's previous event, after which it may have been."""
        found = []
        number = start = self._first()
        latest: dict[Task, int] = {}
        for number, moment in enumerate(self._window, start):
            found += [(number, latest.get(step.task, start - 1), step) for step in moment.taken]
            latest.update(dict.fromkeys(moment.tasks, number))
        return found + [(number + 1, latest.get(step.task, start - 1), step) for step in further]


def _first_difference(one: Plan, other: Plan, last: int) -> int:
    """The number of the first event for which two plans differ; at most `last`."""
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            return min(mine[0], its[0], last)
    longer = max(one, other, key=len)[min(len(one), len(other)) :]
    return min(longer[0][0], last) if longer else last
