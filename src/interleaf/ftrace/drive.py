"""The model, run as a trace says: threads that are told what to do, stepped until each reaction.

Each thread of the trace is a thread of the model. It runs from one reaction (a record of `kvm/trace.py`) to the next;
when it waits for a lock or for a grace period, the others run, each as far as its own next reaction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from interleaf.hw.frames import PAGE_TABLE_PFN_BASE, is_allocated
from interleaf.hw.page_table import index_of, pages_per_entry
from interleaf.hw.platform import Platform
from interleaf.kvm import trace as model
from interleaf.kvm.design import Design, Rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmParams, KvmVcpu
from interleaf.linux.rwlock import asks_to_yield
from interleaf.mm.mm import Mm
from interleaf.runtime import Execution, ModelError, Task, World
from interleaf.runtime.cells import Cell
from interleaf.runtime.objects import intern_object, singleton
from interleaf.runtime.operations import Choose

from .host import Host, follow_host
from .programs import Command, Machine, Mailbox, boot, start_thread
from .rewind import Past

THREADS = 64
"""Threads that a machine starts with."""

PATIENCE = 20_000
"""Steps between two reactions after which the model is taken to be stuck."""

HELP = 1_000
"""Steps of others while a thread waits, after which it is taken to wait for what they do not do."""

STIMULI = (
    model.PageFault,
    model.UnmapHvaRange,
    model.AgeHva,
    model.TestAgeHva,
    model.SetSpteHva,
    model.DirtyRingPush,
    model.DirtyRingReset,
    model.DirtyRingExit,
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


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken, and the cells that it depends on."""

    at: int
    """How many steps were taken before it for the same event, not counting those of others."""
    round: int
    """How many detours were made before it for the same event."""
    task: Task
    length: int
    """Operations that the task had done after it."""
    reads: int
    writes: int

    def conflicts(self, later: Taken) -> bool:
        """Does it matter which of the two comes first?"""
        return bool(self.writes & (later.reads | later.writes) or self.reads & later.writes)


@dataclass(frozen=True, slots=True)
class Detour:
    """Before the step of that number, another task takes its steps until it has done so many operations."""

    at: int
    task: Task
    length: int


class Driver:
    """One machine with one process."""

    def __init__(self, design: Design, platform: Platform) -> None:
        self.design = design = followed(design)
        self.platform = platform
        self.world = World()
        follow_host(self.world)
        machine = singleton(self.world, Machine)
        self._machine = machine
        mailboxes = tuple(
            intern_object(self.world, Mailbox, f"mailbox{number}", None, "Mailbox", {}) for number in range(THREADS)
        )

        def setup() -> None:
            boot(machine, design)
            for number, mailbox in enumerate(mailboxes):
                start_thread(mailbox, f"thread{number}")

        self.run = Execution(self.world, setup, step_limit=1 << 62)
        self.memory = self.run.memory
        self.past = Past(self.run)
        self.world.listener = self._listen
        tasks = {task.name: task for task in self.run.unfinished}
        self._free = [Thread(tasks[f"thread{n}"], mailbox) for n, mailbox in enumerate(mailboxes)]
        self._mine = {thread.task.index: thread for thread in self._free}
        self.strays: deque[Reaction] = deque()
        """Reactions of tasks that the model has started by itself."""
        self.foresee: Callable[[Thread], None] = lambda _thread: None
        """Called before another thread than that whose turn it is takes a step."""
        self.taken: list[Taken] | None = None
        """The steps that are taken, while somebody wants to know."""
        self.detours: deque[Detour] = deque()
        self.rounds = 0
        """Detours that have been made since they were set."""
        self.steps = 0
        """Steps that were taken in all."""
        self.clock = 0
        """Steps since the detours were set."""
        mm = self.memory.peek(Machine.mm.cell(machine))
        assert isinstance(mm, Mm)
        self.mm = mm
        self.host = Host(self.memory, mm, self.past.note)
        self.tables: dict[tuple[int, int], tuple[KvmMmuPage, ...]] = {}
        """Tables by level and first gfn, oldest first."""
        self.violations: list[str] = []

    # what is there

    @property
    def kvm(self) -> Kvm | None:
        found = self.memory.peek(Machine.kvm.cell(self._machine))
        return found if isinstance(found, Kvm) else None

    def vcpus(self) -> tuple[KvmVcpu, ...]:
        kvm = self.kvm
        found: tuple[KvmVcpu, ...] = self.memory.peek(Kvm.vcpus.cell(kvm)) if kvm is not None else ()
        return found

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
        self.past.note(self._put_back, place, self.tables.get(place))
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

    # threads

    def thread(self) -> Thread:
        """A thread that does nothing yet. Raises ModelError if all have got stuck."""
        if not self._free:
            raise ModelError(f"the model of {self.design.name} has all its {THREADS} threads waiting for ever.")
        self.past.note(self._free.insert, 0, self._free[0])
        return self._free.pop(0)

    def give_back(self, thread: Thread) -> None:
        self.past.note(self._free.pop)
        self._free.append(thread)

    def begin(self, thread: Thread, *command: object) -> None:
        """Tell an idle thread what to do."""
        assert self.idle(thread), command
        self.past.rest(thread.task)
        self.memory.set(Mailbox.command.cell(thread.mailbox), command)

    def command(self, thread: Thread) -> Command | None:
        """What the thread is doing."""
        found: Command | None = self.memory.peek(Mailbox.command.cell(thread.mailbox))
        return found

    def go_round(self, detours: Iterable[Detour]) -> None:
        """Make these detours from here on, and forget others."""
        self.detours = deque(detours)
        self.clock = self.rounds = 0

    def idle(self, thread: Thread) -> bool:
        """Has the thread done what it was told?"""
        return self.memory.peek(Mailbox.command.cell(thread.mailbox)) is None

    def reaction(self, thread: Thread) -> Reaction:
        """What the thread has done, which is now looked at."""
        found = thread.reactions.popleft()
        self.past.note(thread.reactions.appendleft, found)
        return found

    def stray(self) -> Reaction | None:
        """What a task of the model's own has done, which is now looked at."""
        if not self.strays:
            return None
        found = self.strays.popleft()
        self.past.note(self.strays.appendleft, found)
        return found

    def advance(self, thread: Thread) -> bool:
        """Run the thread until it has a reaction, and others where it waits for them. False if it is idle, or waits for
        something that the trace has to say."""
        steps = helped = 0
        while not thread.reactions:
            if self.idle(thread) or steps > PATIENCE or helped > HELP:
                return False
            if self._step(thread.task):
                helped = 0
            elif self._asks_host(thread.task) or not self._others(thread.task):
                return False
            else:
                helped += 1
            steps += 1
        return True

    def wander(self) -> bool:
        """A step of any task of the model's own; False if none can take one, or one has reacted."""
        if self.strays:
            return False
        return any(self._step(self.world.tasks[index]) for index in list(self.run.pending) if index not in self._mine)

    def ahead(self, task: Task, length: int | None = None) -> None:
        """Let a task take steps before its turn: until it has done `length` operations, reacts, or has to wait."""
        thread = self._mine.get(task.index)
        if thread is not None:
            if thread.reactions or self.idle(thread):
                return
            self.foresee(thread)
        for _ in range(PATIENCE):
            if task.index not in self.run.pending or (length is not None and self.past.length(task) >= length):
                return
            if (thread is not None and (thread.reactions or self.idle(thread))) or not self._take(task):
                return

    def busy(self) -> list[Thread]:
        """Threads that have something to do."""
        return [thread for thread in self._mine.values() if not self.idle(thread)]

    def looked(self, thread: Thread, *cells: Cell) -> None:
        """What comes next depends on these cells, which somebody has looked at for the thread."""
        self._go_round()
        if self.taken is not None:
            reads = 0
            for cell in cells:
                reads |= cell.bit
            self.taken.append(Taken(self.clock, self.rounds, thread.task, self.past.length(thread.task), reads, 0))

    def finish(self, thread: Thread) -> bool:
        """Run the thread until it is idle; False if it reacts, or waits."""
        return not self.advance(thread) and self.idle(thread)

    def create_vm(self, thread: Thread, params: KvmParams) -> None:
        """Make a VM."""
        self.begin(thread, "create VM", self._machine, self.design, self.platform, params)
        self.finish(thread)

    def vcpu(self, index: int) -> KvmVcpu:
        """The vCPU of that number, which is made if there is none yet. Raises ModelError if it cannot be made."""
        while len(self.vcpus()) <= index:
            known = len(self.vcpus())
            helper = self.thread()
            self.begin(helper, "create vCPU", self.kvm)
            self.finish(helper)
            if len(self.vcpus()) == known:
                raise ModelError(f"the model of {self.design.name} cannot make a vCPU: {self.violations[-1:]}")
            if self.idle(helper):
                self.give_back(helper)
        return self.vcpus()[index]

    def site(self, thread: Thread) -> str:
        """The function of the model that the thread is in."""
        op = self.run.pending.get(thread.task.index)
        return op.site[2] if op is not None else ""

    def rules(self) -> tuple[str, ...]:
        """The rules that the model asked for last, latest first."""
        latest: dict[str, bool] = {}
        for name, obeys in reversed(ASKED):
            latest.setdefault(name, obeys)
        return tuple(name if obeys else f"not {name}" for name, obeys in latest.items())

    def forget_vm(self) -> None:
        """The VM is gone."""
        self.memory.set(Machine.kvm.cell(self._machine), None)
        self.past.note(setattr, self, "tables", self.tables)
        self.tables = {}

    def _asks_host(self, task: Task) -> bool:
        """Does the task look at the host's mappings, of which the trace has to tell?"""
        op = self.run.pending.get(task.index)
        return op is not None and op.focus is not None and op.focus.owner is self.mm

    def _others(self, waiting: Task) -> bool:
        """A step of somebody else: of a task that the model has started by itself, of a thread that has what is waited
        for, or of another one; of none further than to its next reaction."""
        op = self.run.pending[waiting.index]
        wanted = op.focus.bit if op.focus is not None else 0
        held = self.memory.held

        def order(index: int) -> tuple[bool, bool]:
            return index in self._mine, not held[index].any & wanted

        for index in sorted(self.run.pending, key=order):
            task = self.world.tasks[index]
            thread = self._mine.get(index)
            if task is waiting:
                continue
            if thread is not None:
                if thread.reactions or self.idle(thread):
                    continue
                self.foresee(thread)
            if self._take(task, self._yielding(task) if held[index].any & wanted else ()):
                return True
        return False

    def _yielding(self, task: Task) -> Iterator[int]:
        """The choices of a task that holds what another one waits for: it yields where it can."""
        while True:
            op = self.run.pending[task.index]
            yield int(isinstance(op, Choose) and asks_to_yield(op))

    def _step(self, task: Task) -> bool:
        """A step of a task whose turn it is."""
        self._go_round()
        if task.index not in self.run.pending:
            return False
        if not self._take(task):
            return False
        self.clock += 1
        return True

    def _go_round(self) -> None:
        while self.detours and self.detours[0].at <= self.clock:
            detour = self.detours.popleft()
            self.ahead(detour.task, detour.length)
            self.rounds += 1

    def _take(self, task: Task, choices: Iterable[int] = ()) -> bool:
        if not self.past.step(task, choices):
            return False
        self.steps += 1
        step = self.run.steps.pop()
        if self.taken is not None:
            reads = step.reads | self.memory.further
            self.taken.append(Taken(self.clock, self.rounds, task, self.past.length(task), reads, step.writes))
        for violation in step.violations:
            self.past.note(self.violations.pop)
            self.violations.append(f"{violation.rule}: {violation.message}")
        return not step.fatal

    def _listen(self, task: Task, record: object) -> None:
        if self.past.repeating or isinstance(record, STIMULI):
            return
        table = None
        if isinstance(record, model.GetPage | model.PrepareZapPage):
            sp = record.sp
            role, gfn = self.memory.peek(KvmMmuPage.role.cell(sp)), self.memory.peek(KvmMmuPage.gfn.cell(sp))
            table = gfn & -pages_per_entry(role.level + 1), role.level
            if isinstance(record, model.GetPage):
                place = role.level, table[0]
                self._tables_are(place, (*self.tables.get(place, ()), sp))
        thread = self._mine.get(task.index)
        reactions = self.strays if thread is None else thread.reactions
        self.past.note(reactions.pop)
        reactions.append(Reaction(task, record, table))
