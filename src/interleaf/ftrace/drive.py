"""The model, run as a trace says: threads that are told what to do, and run until each reaction.

Each thread of the trace is a thread of the model. It runs from one reaction (a record of `kvm/trace.py`) to the next;
when it waits for a lock or for a grace period, the others run, each as far as its own next reaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from interleaf.hw.frames import PAGE_TABLE_PFN_BASE, is_allocated
from interleaf.hw.page_table import index_of, pages_per_entry
from interleaf.hw.platform import Platform
from interleaf.kvm import trace as model
from interleaf.kvm.design import Design, Rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmMmuPageRole, KvmParams, KvmVcpu
from interleaf.mm.mm import Mm
from interleaf.runtime import Memory, ModelError, Task, World
from interleaf.runtime.cells import Cell
from interleaf.runtime.objects import intern_object, singleton

from .host import Host, follow_host
from .programs import WAITING, Command, Machine, Mailbox, boot, start_thread

THREADS = 64
"""Threads that a machine starts with."""

CROWDED = 1024
"""Places of tables from which on those are looked for that were freed."""

STIMULI = (
    model.PageFault,
    model.Entry,
    model.UnmapHvaRange,
    model.AgeHva,
    model.TestAgeHva,
    model.SetSpteHva,
    model.DirtyRingPush,
    model.DirtyRingReset,
    model.DirtyRingExit,
    model.SetMemoryRegion,
    model.LoadMmuPgd,
    model.ZapAll,
    model.ZapGfnRange,
)
"""Records of the model that only repeat what it was told, or that KVM's MMU events do not have."""


ASKED: deque[tuple[str, bool]] = deque(maxlen=64)
"""The rules that the model has asked for last, and whether its design follows them."""


@dataclass(frozen=True)
class Followed(Design):
    """A design of which is remembered which rules are asked for."""

    def obeys(self, asked: Rule) -> bool:
        obeys = asked.name in self.rules
        ASKED.append((asked.name, obeys))
        return obeys


def followed(design: Design) -> Design:
    """The same design, remembering that."""
    return Followed(**{each.name: getattr(design, each.name) for each in fields(design)})


class Reaction(NamedTuple):
    """Something that the model has done."""

    task: Task
    record: object
    table: tuple[int, int] | None = None
    """Of a table: first gfn and level."""


class Thread:
    """A thread of the model."""

    def __init__(self, task: Task, mailbox: Mailbox) -> None:
        self.task = task
        self.mailbox = mailbox
        self.reactions: deque[Reaction] = deque()
        """What it has done, and nobody has looked at yet."""


class Driver(ABC):
    """One machine with one process. How its threads run, and whether it can go back (`stepping`) or not (`follow`),
    is the business of a subclass."""

    memory: Memory

    def __init__(self, design: Design, platform: Platform, world: World) -> None:
        self.design = design = followed(design)
        self.platform = platform
        self.world = world
        follow_host(world)
        machine = singleton(world, Machine)
        self._machine = machine
        mailboxes = tuple(
            intern_object(world, Mailbox, f"mailbox{number}", None, "Mailbox", {}) for number in range(THREADS)
        )

        def setup() -> None:
            boot(machine, design)
            for number, mailbox in enumerate(mailboxes):
                start_thread(mailbox, f"thread{number}")

        self.violations: deque[str] = deque(maxlen=64)
        """What the model has violated last."""
        self.world.listener = self._listen
        tasks = {task.name: task for task in self._start(setup)}
        self._free = [Thread(tasks[f"thread{n}"], mailbox) for n, mailbox in enumerate(mailboxes)]
        self._mine = {thread.task.index: thread for thread in self._free}
        self.strays: deque[Reaction] = deque()
        """Reactions of tasks that the model has started by itself."""
        self.foresee: Callable[..., None] = lambda _thread, _bold=False: None
        """Called before another thread than that whose turn it is takes a step."""
        mm = self.memory.peek(Machine.mm.cell(machine))
        assert isinstance(mm, Mm)
        self.mm = mm
        self.host = Host(self.memory, mm, self.note)
        self.tables: dict[tuple[int, int], tuple[KvmMmuPage, ...]] = {}
        """Tables by level and first gfn, oldest first."""
        self._crowded = CROWDED

    # how its threads run

    @abstractmethod
    def _start(self, setup: Callable[[], None]) -> list[Task]:
        """Run `setup` in `world`, set `memory`, and say which tasks there are then."""

    @abstractmethod
    def advance(self, thread: Thread) -> bool:
        """Run the thread until it has a reaction, and others where it waits for them. False if it is idle, or waits for
        something that the trace has to say."""

    @abstractmethod
    def wander(self) -> bool:
        """Run any task of the model's own; False if none can run, or one has reacted."""

    @abstractmethod
    def site(self, thread: Thread) -> str:
        """The function of the model that the thread is in."""

    @abstractmethod
    def note(self, undo: Callable[..., object], *arguments: Any) -> None:
        """Something has changed beside the memory; `undo` makes it what it was, for who can go back."""

    @abstractmethod
    def looked(self, thread: Thread, *cells: Cell) -> None:
        """What comes next depends on these cells, which somebody has looked at for the thread."""

    @abstractmethod
    def _reacted(self) -> None:
        """A task has a reaction more, and is in the middle of what it does."""

    @abstractmethod
    def _rests(self, thread: Thread) -> None:
        """The thread is about to do something new."""

    # what is there

    @property
    def kvm(self) -> Kvm | None:
        """The VM; None if there is none yet, or it is gone."""
        found = self.memory.peek(Machine.kvm.cell(self._machine))
        return found if isinstance(found, Kvm) and is_allocated(self.memory, found) else None

    def vcpus(self) -> tuple[KvmVcpu, ...]:
        kvm = self.kvm
        found: tuple[KvmVcpu, ...] = self.memory.peek(Kvm.vcpus.cell(kvm)) if kvm is not None else ()
        return found

    def as_id(self, index: int) -> int:
        """The address space that the vCPU of that number is in."""
        role: KvmMmuPageRole = self.memory.peek(KvmVcpu.root_role.cell(self.vcpu(index)))
        return role.as_id

    def must_prepare(self, vcpu: KvmVcpu) -> bool:
        """Is there anything to do before the vCPU enters the guest?"""
        peek = self.memory.peek
        return bool(peek(KvmVcpu.requests.cell(vcpu))) or peek(KvmVcpu.mmu_root.cell(vcpu)) is None

    def alive(self, sp: KvmMmuPage) -> bool:
        return is_allocated(self.memory, sp)

    def tables_at(self, level: int, gfn: int) -> tuple[KvmMmuPage, ...]:
        """The tables of `level` that have an entry for `gfn`, oldest first; those that were freed are forgotten."""
        place = level, gfn & -pages_per_entry(level + 1)
        found = self.tables.get(place)
        if found is None:
            return ()
        kept = tuple(sp for sp in found if self.alive(sp))
        if len(kept) != len(found):
            self._tables_are(place, kept)
        return kept

    def _tables_are(self, place: tuple[int, int], tables: tuple[KvmMmuPage, ...]) -> None:
        self.note(self._put_back, place, self.tables.get(place))
        self._put_back(place, tables)

    def _put_back(self, place: tuple[int, int], tables: tuple[KvmMmuPage, ...] | None) -> None:
        if tables:
            self.tables[place] = tables
        else:
            self.tables.pop(place, None)

    def entry(self, sp: KvmMmuPage, index: int) -> int:
        """An entry of a table; 0 is the design's non-present value."""
        cells = sp.__dict__["_cells"]
        cell = cells.get((KvmMmuPage.spt.name, index))
        value: int = 0 if cell is None else self.memory.peek(cell)
        return value or self.design.shadow_nonpresent_value

    def set_entry(self, sp: KvmMmuPage, index: int, value: int) -> None:
        """What the hardware does to an entry."""
        self.memory.set(KvmMmuPage.spt.element(sp, index), value)

    def assist(self, level: int, gfn: int, old: int, bits: int) -> bool:
        """Let the hardware set those of the A and D bits that make an entry `old`; was there anything to set?"""
        if not old & bits:
            return False
        index = index_of(gfn, level)
        fitting = None
        for sp in self.tables_at(level, gfn):
            entry = self.entry(sp, index)
            if entry & ~bits == 0 or (entry ^ old) & ~bits:
                continue
            if entry == old:
                return False
            if entry | old & bits == old:
                fitting = sp
        if fitting is None:
            return False
        self.set_entry(fitting, index, old)
        return True

    def table_of_pfn(self, pfn: int) -> KvmMmuPage | None:
        found = self.world.serials.get((KvmMmuPage, pfn - PAGE_TABLE_PFN_BASE))
        return found if isinstance(found, KvmMmuPage) else None

    def is_table(self, pfn: int) -> bool:
        """Is there a table of the model in the frame `pfn` that has not been freed?"""
        found = self.table_of_pfn(pfn)
        return found is not None and self.alive(found)

    # threads

    def thread(self) -> Thread:
        """A thread that does nothing yet. Raises ModelError if there is none left."""
        if not self._free:
            raise ModelError(
                f"all {THREADS} threads of the model run vCPUs, or have not come to the end of what the trace says "
                "that they do. A trace of fewer vCPUs can be compared."
            )
        self.note(self._free.insert, 0, self._free[0])
        return self._free.pop(0)

    def left(self) -> int:
        """How many threads do nothing yet."""
        return len(self._free)

    def give_back(self, thread: Thread) -> None:
        self.note(self._free.pop)
        self._free.append(thread)

    def begin(self, thread: Thread, *command: object) -> None:
        """Tell an idle thread what to do."""
        assert self.idle(thread), command
        self._rests(thread)
        self.memory.set(Mailbox.command.cell(thread.mailbox), command)

    def command(self, thread: Thread) -> Command | None:
        """What the thread is doing."""
        found: Command | None = self.memory.peek(Mailbox.command.cell(thread.mailbox))
        return found

    def idle(self, thread: Thread) -> bool:
        """Has the thread done what it was told?"""
        return self.memory.peek(Mailbox.command.cell(thread.mailbox)) is None

    def begun(self, thread: Thread) -> bool:
        """Has the thread begun to do what it was told?"""
        return self.site(thread) != WAITING

    def call_off(self, thread: Thread) -> None:
        """The thread, which has not begun, need not do what it was told."""
        self.memory.set(Mailbox.command.cell(thread.mailbox), None)

    def reaction(self, thread: Thread) -> Reaction:
        """What the thread has done, which is now looked at."""
        found = thread.reactions.popleft()
        self.note(thread.reactions.appendleft, found)
        return found

    def stray(self) -> Reaction | None:
        """What a task of the model's own has done, which is now looked at."""
        if not self.strays:
            return None
        found = self.strays.popleft()
        self.note(self.strays.appendleft, found)
        return found

    def finish(self, thread: Thread) -> bool:
        """Run the thread until it is idle; False if it reacts, or waits."""
        return not self.advance(thread) and self.idle(thread)

    def create_vm(self, thread: Thread, params: KvmParams, nx_huge_pages: bool) -> None:
        """Make a VM, on a host whose huge pages are, or are not, executable."""
        self.begin(thread, "create VM", self._machine, self.design, self.platform, params, nx_huge_pages)
        self.finish(thread)

    def vcpu(self, index: int) -> KvmVcpu:
        """The vCPU of that number, which is made if there is none yet. Raises ModelError if it cannot be made."""
        while len(self.vcpus()) <= index:
            known = len(self.vcpus())
            helper = self.thread()
            self.begin(helper, "create vCPU", self.kvm)
            self.finish(helper)
            if len(self.vcpus()) == known:
                raise ModelError(f"the model of {self.design.name} cannot make a vCPU: {'; '.join(self.violations)}")
            if self.idle(helper):
                self.give_back(helper)
        return self.vcpus()[index]

    def rules(self) -> tuple[str, ...]:
        """The rules that the model asked for last, latest first."""
        latest: dict[str, bool] = {}
        for name, obeys in reversed(ASKED):
            latest.setdefault(name, obeys)
        return tuple(name if obeys else f"not {name}" for name, obeys in latest.items())

    def complaint(self) -> str:
        """What the model has violated last, to be added to what is told of a divergence."""
        found = "; ".join(list(self.violations)[-2:])
        return f" ({found})" if found else ""

    def forget_vm(self) -> None:
        """The VM is gone."""
        self.memory.set(Machine.kvm.cell(self._machine), None)
        self.note(setattr, self, "tables", self.tables)
        self.tables = {}

    def _listen(self, task: Task, record: object) -> None:
        if isinstance(record, STIMULI):
            return
        table = None
        if isinstance(record, model.GetPage | model.PrepareZapPage):
            sp = record.sp
            role, gfn = self.memory.peek(KvmMmuPage.role.cell(sp)), self.memory.peek(KvmMmuPage.gfn.cell(sp))
            table = gfn & -pages_per_entry(role.level + 1), role.level
            if isinstance(record, model.GetPage):
                place = role.level, table[0]
                self._tables_are(place, (*self.tables.get(place, ()), sp))
                if len(self.tables) >= self._crowded:
                    for known in list(self.tables):
                        self.tables_at(*known)
                    self._crowded = CROWDED + 2 * len(self.tables)
        thread = self._mine.get(task.index)
        reactions = self.strays if thread is None else thread.reactions
        self.note(reactions.pop)
        reactions.append(Reaction(task, record, table))
        self._reacted()
