"""Random scenarios as values. Hypothesis draws them, and shrinks towards fewer and simpler things."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies

from .actions import Action, Lane, Slots, possible

PLATFORMS = ("EPT", "NPT", "EPT_PML", "EPT_NO_AD", "EPT_5_LEVEL")
"""Names in `interleaf.hw.platform`, the plainest first."""

MOST_VCPUS = 2
MOST_PAGES = 2
MOST_TASKS = 3
"""Besides the one that destroys the VM. More would make most searches too long."""
MOST_ACTIONS = 2
"""Of one task."""


@dataclass(frozen=True, slots=True)
class Call:
    """An action with the page that it is about (0 … pages - 1)."""

    action: Action
    page: int


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What one task does."""

    lane: Lane
    vcpu: int
    """Which vCPU, if it is one."""
    calls: tuple[Call, ...]

    @property
    def name(self) -> str:
        return f"{self.lane.value}{self.vcpu}" if self.lane is Lane.VCPU else self.lane.value


@dataclass(frozen=True, slots=True)
class Plan:
    """A random scenario."""

    tasks: tuple[TaskPlan, ...]
    vcpus: int = 1
    pages: int = 1
    populated: bool = False
    """The guest has written all of its memory before the tasks begin."""
    far: bool = False
    """The memory begins at 512 GiB, so that walks may yield before its first page."""
    dummy: bool = False
    """There is a memslot that nobody accesses, to be deleted."""
    logged: bool = False
    """After that, dirty logging of the memory has begun."""
    zapped: bool = False
    """After that, the last page has been zapped."""
    huge: bool = False
    """The memory is a huge page of 2 MiB, of which the first pages are used."""
    nx: bool = False
    """nx_huge_pages is on."""
    manual: bool = False
    """The dirty log is cleared by hand (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)."""
    platform: str = PLATFORMS[0]

    @property
    def size(self) -> tuple[int, ...]:
        """To choose the smaller of two."""
        calls = sum(len(task.calls) for task in self.tasks)
        history = self.populated + self.logged + self.zapped
        extras = history + self.far + self.dummy + self.huge + self.nx + self.manual
        return calls, len(self.tasks), self.vcpus, self.pages, extras, PLATFORMS.index(self.platform)


@strategies.composite
def plans(draw: strategies.DrawFn) -> Plan:
    """Any random scenario of two or three tasks."""
    vcpus = draw(strategies.integers(1, MOST_VCPUS))
    pages = draw(strategies.integers(1, MOST_PAGES))
    dummy = draw(strategies.booleans())
    manual = draw(strategies.booleans())
    logged = draw(strategies.booleans())
    present = Slots.MEMORY
    for known, flag in ((dummy, Slots.DUMMY), (manual, Slots.MANUAL), (logged, Slots.LOGGED)):
        present |= flag if known else Slots.NONE
    lanes = [(Lane.VCPU, index) for index in range(vcpus)]
    lanes += [(lane, 0) for lane in (Lane.HOST, Lane.SLOTS, Lane.ADMIN)]
    chosen = draw(strategies.lists(strategies.sampled_from(lanes), min_size=2, max_size=MOST_TASKS, unique=True))
    tasks = []
    for lane, vcpu in chosen:
        state = present
        calls: list[Call] = []
        for _ in range(draw(strategies.integers(1, MOST_ACTIONS))):
            choices = possible(lane, state)
            action = draw(strategies.sampled_from(choices))
            calls.append(Call(action, draw(strategies.integers(0, pages - 1))))
            state = (state | action.gives) & ~action.takes
            if not possible(lane, state):
                break
        tasks.append(TaskPlan(lane, vcpu, tuple(calls)))
    return Plan(
        tuple(tasks),
        vcpus,
        pages,
        populated=draw(strategies.booleans()),
        far=draw(strategies.booleans()),
        dummy=dummy,
        huge=draw(strategies.booleans()),
        manual=manual,
        logged=logged,
        zapped=draw(strategies.booleans()),
        nx=draw(strategies.booleans()),
        platform=draw(strategies.sampled_from(PLATFORMS)),
    )
