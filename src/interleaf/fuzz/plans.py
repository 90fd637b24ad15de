"""Random scenarios as values. Hypothesis draws them, and shrinks towards fewer and simpler things.

Two kinds of draw make conflicts likely without aiming at any one of them. The VM has a history: what has happened to
it before the tasks begin is drawn from the same actions, and begins more often than not with what gives later actions
something to do (huge pages that must not be executed, accesses of the guest, a dirty log). And the pages are few.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import strategies

from .actions import ALIVE, BY_NAME, MODES, Action, Facts, Lane, possible

PLATFORMS = ("EPT", "NPT", "EPT_PML", "EPT_NO_AD", "EPT_5_LEVEL")
"""Names in `interleaf.hw.platform`, the plainest first."""

OPTIONS = {
    "": Facts.NONE,
    "manual_protect=True": Facts.MANUAL,
    "manual_protect=True, initially_all_set=True": Facts.MANUAL,
    "dirty_ring_size=32": Facts.RING,
    "private_mem=True": Facts.PRIVATE,
    "slot_zap_all=False": Facts.NONE,
    "eager_page_split=False": Facts.NONE,
    "mmio_caching=False": Facts.NONE,
    "disable_nx_huge_pages=True": Facts.NONE,
}
"""How the VM's `KvmParams` differ from the usual ones, and what is the case then. The ring never gets full."""

MOST_OTHERS = 2
"""Tasks besides the first one, and the one that destroys the VM. More would make most searches too long."""
MOST_ACTIONS = 2
"""Of one task."""
MOST_BEFORE = 2
"""Actions of the history beyond those that it often begins with."""

SHARES = {Lane.HOST: 2, Lane.SLOTS: 4}
"""How often a lane is drawn, where not once: these two have most of the actions."""

EXITS = (*(7 * (False,)), True)
"""How often the process ends while others still use its memory."""

OPENING = (
    ("switch nx_huge_pages on", 1, 1),
    ("", 1, 1),
    ("enter L2", 1, 3),
    ("log dirty pages", 1, 1),
    ("", 2, 1),
)
"""What the history often begins with: which action (or any access), and how often it is done and left out."""

HISTORY = "history"
"""Name of the task that the history becomes if it violates a property itself."""

ACCESSES = tuple(BY_NAME[name] for name in ("read", "write", "execute"))


@dataclass(frozen=True, slots=True)
class Call:
    """An action with the page that it is about (0 … pages - 1), and the vCPU, if it is one's."""

    action: Action
    page: int = 0
    vcpu: int = 0

    def __str__(self) -> str:
        whose = f"vCPU{self.vcpu} " if self.action.lane is Lane.VCPU else ""
        about = f" page {self.page}" if "{gfn}" in self.action.call or "{hva}" in self.action.call else ""
        return f"{whose}{self.action.name}{about}"


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What one task does."""

    name: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A random scenario."""

    tasks: tuple[TaskPlan, ...]
    history: tuple[Call, ...] = ()
    """What has happened before the tasks begin."""
    vcpus: int = 1
    pages: int = 1
    far: bool = False
    """The memory begins at 512 GiB, so that walks may yield before its first page."""
    dummy: bool = False
    """There is a memslot that nobody accesses, to be deleted."""
    huge: bool = False
    """The memory is a huge page of 2 MiB, of which the first pages are used."""
    option: str = ""
    """One of OPTIONS."""
    platform: str = PLATFORMS[0]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All that happens."""
        return (*self.history, *(call for task in self.tasks for call in task.calls))

    @property
    def size(self) -> tuple[int, ...]:
        """To choose the smaller of two."""
        racing = len(self.calls) - len(self.history)
        extras = self.far + self.dummy + self.huge + bool(self.option)
        whole = (racing, len(self.tasks), len(self.history), self.vcpus, self.pages, extras)
        return (*whole, PLATFORMS.index(self.platform))

    def alone(self) -> Plan:
        """The scenario in which the history is all that happens, as a task of its own."""
        return replace(self, tasks=(TaskPlan(HISTORY, self.history),), history=())


class _State:
    """What is the case, action by action."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.modes: dict[int, Facts] = {}

    def copy(self) -> _State:
        copy = _State(self.facts)
        copy.modes = dict(self.modes)
        return copy

    def of(self, vcpu: int) -> Facts:
        return self.facts | self.modes.get(vcpu, Facts.NONE)

    def after(self, call: Call) -> None:
        facts = (self.of(call.vcpu) | call.action.gives) & ~call.action.takes
        self.facts = facts & ~MODES
        self.modes[call.vcpu] = facts & MODES


@strategies.composite
def plans(draw: strategies.DrawFn) -> Plan:
    """Any random scenario of one to three tasks, most often two."""
    vcpus = draw(strategies.sampled_from((1, 2, 2)))
    pages = draw(strategies.sampled_from((1, 2, 2)))
    dummy = draw(strategies.booleans())
    huge = draw(strategies.sampled_from((False, True, True)))
    option = draw(strategies.sampled_from(("", "", "", *OPTIONS)))
    state = _State(Facts.MEMORY | OPTIONS[option])
    for known, fact in ((dummy, Facts.DUMMY), (huge, Facts.HUGE), (pages > 1, Facts.PAIR)):
        state.facts |= fact if known else Facts.NONE

    def call(lane: Lane, vcpu: int, where: _State) -> Call | None:
        facts = where.of(vcpu)
        choices = possible(lane, facts)
        if not choices:
            return None
        # what only the history has made possible is what few scenarios come to
        choices += 4 * tuple(action for action in choices if action.needs & ~Facts.MEMORY)
        if lane is Lane.VCPU:
            choices += 4 * ACCESSES
        made = Call(draw(strategies.sampled_from(choices)), draw(strategies.integers(0, pages - 1)), vcpu)
        where.after(made)
        return made

    def calls(lanes: Iterable[tuple[Lane, int]], where: _State) -> tuple[Call, ...]:
        return tuple(made for lane, vcpu in lanes if (made := call(lane, vcpu, where)) is not None)

    lanes = [(Lane.VCPU, index) for index in range(vcpus)]
    lanes += [(lane, 0) for lane in (Lane.HOST, Lane.RECLAIM, Lane.SLOTS, Lane.ADMIN)]
    history: list[Call] = []
    for name, done, left_out in OPENING:
        if not draw(strategies.sampled_from((*(left_out * (False,)), *(done * (True,))))):
            continue
        action = BY_NAME[name] if name else draw(strategies.sampled_from(ACCESSES))
        vcpu = draw(strategies.integers(0, vcpus - 1)) if action.lane is Lane.VCPU else 0
        history.append(Call(action, 0 if name else draw(strategies.integers(0, pages - 1)), vcpu))
        state.after(history[-1])
    history += calls(draw(strategies.lists(strategies.sampled_from(lanes), max_size=MOST_BEFORE)), state)

    # most of what can go wrong goes wrong beside a vCPU
    first = draw(strategies.sampled_from((*(5 * lanes[:vcpus]), *lanes[vcpus:])))
    beside = strategies.sampled_from([lane for lane in lanes if lane != first for _ in range(SHARES.get(lane[0], 1))])
    chosen = [first, *draw(strategies.lists(beside, min_size=1, max_size=MOST_OTHERS, unique=True))]
    if draw(strategies.sampled_from(EXITS)):
        chosen = [(Lane.EXIT, 0), *(one for one in chosen if one[0] not in ALIVE)]
    tasks = []
    for lane, vcpu in chosen:
        times = 1 if lane is Lane.EXIT else draw(strategies.integers(1, MOST_ACTIONS))
        made = calls([(lane, vcpu)] * times, state.copy())
        if made:
            tasks.append(TaskPlan(f"{lane.value}{vcpu}" if lane is Lane.VCPU else lane.value, made))
    return Plan(
        tuple(tasks),
        tuple(history),
        vcpus,
        pages,
        far=draw(strategies.booleans()),
        dummy=dummy,
        huge=huge,
        option=option,
        platform=draw(strategies.sampled_from((PLATFORMS[0], PLATFORMS[0], *PLATFORMS))),
    )
