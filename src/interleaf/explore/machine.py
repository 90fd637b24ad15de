"""The machine that searches drive: one memory, the automata of all tasks, and cheap return to earlier states.

A step of the machine is larger than one of `runtime.Execution`: it leaves out the scheduling points that
nobody can notice. Those are the accesses of a task to a cell on which it has no conflict (see
`runtime.cells.Cell`: the others need a lock that it holds, or cannot run, or only read), and the giving back of a
lock, which only lets others go on (Lipton's movers, CACM 1975).

With *foresight*, an access is left out also if the tasks with which it conflicts are past that: their automata
say what each task may still touch from the node where it is. A step that conflicts with nothing that others will
ever do is a persistent set by itself (Godefroid, LNCS 1032).

What conflicts and what is still to come is assumed, until something shows that was not known. Then the search
starts again with what it has learned, so that its last pass relies on nothing that was not checked in it
(Stoller & Cohen, FMSD 2006, for locks).

Marked and plain accesses are treated alike: a plain access that conflicts could be a data race, so it is a
scheduling point, and two tasks that are both about to make conflicting accesses are seen in a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from interleaf.runtime.carrier import CHOICE, CUSTOM, END, READ, WRITE
from interleaf.runtime.cells import World
from interleaf.runtime.execution import StepLimit
from interleaf.runtime.findings import ModelError, Violation, ViolationRaised
from interleaf.runtime.memory import ALIVE, BLOCK, NOTHING_HELD, Memory
from interleaf.runtime.objects import Free
from interleaf.runtime.operations import Task, end_task, intern_task

from .automaton import Automata, Node

CHAIN_LIMIT = 20_000
"""Operations in one step; a task that does more without a scheduling point is taken to loop for ever."""

Choices: TypeAlias = tuple[int, ...]
Basic: TypeAlias = tuple[Choices, int]


class Undisciplined(Exception):
    """An access has shown a conflict of which the search did not know."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to return to."""

    nodes: tuple[Node | None, ...]
    mark: int
    zobrist: int


class Machine:
    """A program at one of its states.

    With `reduce` the marked operations that nobody can notice are no scheduling points. With `learn` conflicts are
    looked for, and plain accesses that have one are scheduling points; without, only marked operations are. A new
    conflict raises Undisciplined, or sets `surprised` where the machine is `patient`.

    After `step`: `reads`, `writes`, `plains` of its memory are its footprint (bit sets of cells), `basic` its
    schedule in steps of an `Execution` (as (choices, operations), see `Move`), `branches` the number of outcomes
    of each choice in it, `violations` what it violated, and `dead` whether a fatal one ended the execution.
    """

    def __init__(
        self,
        world: World,
        setup: Callable[[], object],
        *,
        reduce: bool = True,
        learn: bool = True,
        patient: bool = False,
        foresight: bool = False,
        flat: bool = False,
    ) -> None:
        self.world = world
        self.reduce = reduce
        self.learn = learn
        self.patient = patient
        self.foresight = foresight
        self.surprised = False
        self.automata = Automata(world, flat)
        self.memory = Memory(world)
        self.memory.learning = learn
        self.nodes: list[Node | None] = []
        self.basic: list[Basic] = []
        self.branches: list[int] = []
        self.violations: list[Violation] = []
        self.dead = False
        self.operations = 0
        self.site: tuple[str, int, str] = ("", 0, "")
        """Where in the model the running operation was asked for; kept up while there is an observer."""
        self._clashes: dict[tuple[int, int], int] = {}
        """Cells on which the first task conflicts with the second, or with one that the second may start."""
        self._others: list[Node] = []
        """Where the other tasks are that could run, while a step is made."""
        self._set_up(setup)
        self.initial = self.snapshot()

    @property
    def unfinished(self) -> list[int]:
        """Indices of the tasks that have not ended."""
        return [index for index, node in enumerate(self.nodes) if node is not None]

    def task(self, index: int) -> Task:
        found: Task = self.world.tasks[index]
        return found

    def key(self) -> int:
        """The hash of the whole state."""
        key = self.memory.zobrist
        for node in self.nodes:
            if node is not None:
                key ^= node.zobrist
        return key

    def snapshot(self) -> Snapshot:
        return Snapshot(tuple(self.nodes), len(self.memory.journal), self.memory.zobrist)

    def restore(self, snapshot: Snapshot) -> None:
        """Return to an earlier state of the current path."""
        self.memory.rollback(snapshot.mark, snapshot.zobrist)
        self.nodes[:] = snapshot.nodes

    def close(self) -> None:
        self.automata.close()
        self.memory.detach()

    def step(self, index: int, choices: Sequence[int] = ()) -> bool:
        """Run one step of a task; False if its operation cannot happen now (nothing has changed then).

        `choices` are the outcomes of the choices on the way; beyond them every choice is 0.
        """
        memory = self.memory
        memory.begin_step(index)
        nodes = self.nodes
        node = nodes[index]
        if node is None:
            raise ModelError(f"task {self.task(index)} cannot run: it has ended or was never started.")
        memory.beside = self._beside(index) if self.learn else 0
        values = memory.values
        observer = memory.observer
        foresight, learn = self.foresight, self.learn
        branches: list[int] = []
        self.branches = branches
        self.violations = []
        self.dead = False
        outcomes: Choices = ()
        self.basic = basic = []
        first = True
        begun = cut = 0
        eager = node.eager
        seen: tuple[Node, int] | None = None
        for count in range(CHAIN_LIMIT):
            if eager and not first:
                self._expect_freeing(node)
            elif not first:
                if node.marked:
                    if not self.reduce or self._conflicts(node):
                        break
                elif node.kind == CHOICE:
                    if branches:
                        # one choice a step: the ways through a loop of choices are merged where they meet
                        cut = count - begun
                        break
                elif not node.local and self.learn and self._conflicts(node):
                    cut = count - begun
                    break
            if count & 63 == 63:
                # A loop without scheduling points that changes nothing spins: let others run (Brent's cycle finding).
                if seen is None or count & (count + 1) == 0:
                    seen = (node, memory.zobrist)
            elif seen is not None and seen == (node, memory.zobrist):
                cut = 0 if node.marked else count - begun
                break
            kind = node.kind
            mark, zobrist = len(memory.journal), memory.zobrist
            try:
                if observer is not None:
                    self.site = node.op.site
                if kind == READ and observer is None:
                    cell = node.cell
                    memory.reads |= node.bits
                    memory.plains |= node.plain_bits
                    if node.life is not None and values[node.life.index] != ALIVE:
                        memory.use_after_free(cell, False)
                    if learn and (node.learned is not memory.held[index] or memory.beside & ~node.beside):
                        self._learn(node, False)
                    result = values[cell.index]
                elif kind == WRITE and observer is None:
                    cell = node.cell
                    memory.reads |= node.bits
                    memory.writes |= cell.bit
                    memory.plains |= node.plain_bits
                    if node.life is not None and values[node.life.index] != ALIVE:
                        memory.use_after_free(cell, True)
                    if learn and (node.learned is not memory.held[index] or memory.beside & ~node.beside):
                        self._learn(node, True)
                    memory.set(cell, node.value)
                    result = None
                elif kind == CHOICE:
                    taken = len(branches)
                    result = choices[taken] if taken < len(choices) else 0
                    branches.append(node.outcomes)
                    outcomes = (*outcomes, result)
                elif kind == END:
                    end_task(memory, node.task)
                    nodes[index] = None
                    break
                else:
                    memory.glued = not first and not eager and not node.releases
                    memory.plainly = not node.marked
                    if foresight:
                        reads, writes = memory.reads, memory.writes
                        memory.reads = memory.writes = 0
                        try:
                            result = node.op.run(memory)
                        finally:
                            self._touched(node)
                            memory.reads |= reads
                            memory.writes |= writes
                    else:
                        result = node.op.run(memory)
                    memory.glued = False
            except ViolationRaised as raised:
                memory.glued = False
                if memory.broken is not None or (memory.exposed and not foresight):
                    self._surprise(node)
                if not first:
                    # It ends the execution, and what came before may show something to others: a step of its own.
                    memory.rollback(mark, zobrist)
                    memory.spawned.clear()
                    memory.warnings.clear()
                    cut = 0 if node.marked else count - begun
                    break
                self.violations.append(raised.violation)
                self.dead = True
                break
            if memory.broken is not None or (memory.exposed and not foresight):
                self._surprise(node)
            if result is BLOCK:
                if first:
                    return False
                break
            if node.marked and not first:
                basic.append((outcomes, 0))
                outcomes = ()
                begun = count
            following = node.edges.get(result)
            if following is None:
                following = self.automata.extend(node, result)
                if foresight:
                    self._foreseen(
                        node, following.future | following.own, following.future_writes | following.own_writes
                    )
            spawning = node
            nodes[index] = node = following
            if kind == CUSTOM:
                if memory.spawned:
                    self._spawn(spawning)
                if memory.warnings:
                    self.violations.extend(memory.warnings)
                    memory.warnings.clear()
            first = False
        else:
            raise StepLimit(
                f"task {self.task(index)} did {CHAIN_LIMIT} operations without a scheduling point; the last was "
                f"{node.op.name} at {node.op.site[0]}:{node.op.site[1]}"
            )
        basic.append((outcomes, cut))
        self.operations += 1
        return True

    def able(self, index: int) -> bool:
        """Can the next operation of a task happen now? Nothing is changed."""
        memory = self.memory
        node = self.nodes[index]
        assert node is not None
        mark, zobrist = len(memory.journal), memory.zobrist
        memory.begin_step(index)
        learning, memory.learning = memory.learning, False
        result = node.op.run(memory)
        memory.learning = learning
        memory.rollback(mark, zobrist)
        return result is not BLOCK

    def begin_pass(self) -> None:
        """A search begins, or begins again, from the initial state: use all that has been learned."""
        self.restore(self.initial)
        self.surprised = False
        if self.foresight:
            self.automata.foresee()
            self._foresee_clashes()

    def _foresee_clashes(self) -> None:
        """What is still to come of a task includes the tasks that it starts: their conflicts are its own."""
        starters = self.automata.starters()
        self._clashes = dict(self.world.clashes)
        for (task, other), cells in self.world.clashes.items():
            for starter in starters.get(other, ()):
                self._clashes[task, starter] = self._clashes.get((task, starter), 0) | cells

    def _beside(self, index: int) -> int:
        """The other tasks that could run, now or later, before this one has ended.

        A task that is about to wait for the end of this one could not run: what it will do comes after that.
        """
        bit = 1 << index
        self._others = others = []
        beside = 0
        for node in self.nodes:
            if node is not None and node.bit != bit and not node.joins & bit:
                others.append(node)
                beside |= node.bit
        return beside

    def _conflicts(self, node: Node) -> bool:
        """Must there be a scheduling point before the operation of `node`, as far as is known?"""
        focus, life = node.focus, node.life
        quiet = node.releases and focus is not None and not focus.domain.observed
        if self.foresight:
            if quiet and life is None:
                return False
            # what a release does only lets others go on, but the lock itself may have been freed
            touched, writes = (life.bit, 0) if quiet and life is not None else (node.own, node.own_writes)
            clashes = self._clashes
            task = node.task.index
            for other in self._others:
                clash = clashes.get((task, other.task.index))
                if clash and (touched & other.future_writes & clash or writes & other.future & clash):
                    return True
            return False
        bit = node.bit
        if life is not None and life.conflicts & bit:
            return True  # it may come too late: somebody else may have freed the object
        if node.releases:
            return not quiet
        if focus is not None and focus.conflicts & bit:
            return True
        return node.place.exposed

    def _expect_freeing(self, node: Node) -> None:
        """An eager step may free objects, and nothing else."""
        if not (isinstance(node.op, Free) or node.releases or node.local):
            raise ModelError(
                f"task {node.task} is declared to only free objects, but it does {node.op.name} at {node.op.site[0]}:"
                f"{node.op.site[1]}. Drop the declaration."
            )

    def _touched(self, node: Node) -> None:
        """The operation of `node` has the footprint that is in the memory now."""
        memory = self.memory
        own, writes = memory.reads | memory.writes, memory.writes
        if own & ~node.own or writes & ~node.own_writes:
            node.own |= own
            node.own_writes |= writes
            self._foreseen(node, own, writes)
            if memory.glued and self._conflicts(node):
                self.surprised = True

    def _foreseen(self, node: Node, touched: int, writes: int) -> None:
        """From `node` on the task may touch these cells: was that known when the pass began?"""
        if touched & ~node.future or writes & ~node.future_writes:
            self.surprised = True

    def _learn(self, node: Node, write: bool) -> None:
        """Tell the cell of a read or write who made it, and with which locks held."""
        memory = self.memory
        held = memory.held[memory.task]
        memory.learn(node.cell, write)
        node.beside = memory.beside | (node.beside if node.learned is held else 0)
        node.learned = held

    def _surprise(self, node: Node) -> None:
        """The operation of `node` has shown a conflict."""
        memory = self.memory
        if memory.exposed:
            node.place.exposed = True
        memory.broken = None
        memory.exposed = False
        if not self.learn:
            return
        self.surprised = True
        if not self.patient:
            memory.spawned.clear()
            memory.warnings.clear()
            raise Undisciplined

    def _spawn(self, spawner: Node | None = None) -> None:
        memory = self.memory
        for task, function, arguments in memory.spawned:
            while len(self.nodes) <= task.index:
                self.nodes.append(None)
            while len(memory.held) <= task.index:
                memory.held.append(NOTHING_HELD)
            if self.nodes[task.index] is not None or memory.values[Task.done.cell(task).index]:
                raise ModelError(f"two tasks are called {task}; give each a name of its own.")
            node = self.nodes[task.index] = self.automata.start(task, function, arguments)
            if self.learn and spawner is not None:
                memory.beside |= task.bit
                self._others.append(node)
            if self.foresight and spawner is not None and node not in spawner.spawns:
                spawner.spawns.add(node)
                self.surprised = True
        memory.spawned.clear()

    def _set_up(self, setup: Callable[[], object]) -> None:
        task = intern_task(self.world, "setup")
        self.memory.spawned.append((task, setup, ()))
        self._spawn()
        while self.nodes[task.index] is not None:
            node: Any = self.nodes[task.index]
            if not self.step(task.index):
                raise ModelError(
                    f"the set-up waits for ever in {node.op.name} at {node.op.site[0]}:{node.op.site[1]}: nothing else "
                    "is running yet. Move the waiting into a task."
                )
            if self.violations:
                raise ModelError(f"the set-up itself violates {self.violations[0].rule}: {self.violations[0].message}")
        self.memory.journal.clear()
