"""The machine that searches drive: one memory, the automata of all tasks, and cheap return to earlier states.

A step of the machine is larger than one of `runtime.Execution`: it leaves out the scheduling points that nobody can
notice (`points.py` says which).

Marked and plain accesses are treated alike: a plain access that conflicts could be a data race, so it is a
scheduling point, and two tasks that are both about to make conflicting accesses are seen in a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from interleaf.runtime.carrier import CHOICE, CUSTOM, END, JOIN, READ, WRITE
from interleaf.runtime.cells import SETUP, World
from interleaf.runtime.execution import StepLimit
from interleaf.runtime.findings import ModelError, Violation, ViolationRaised
from interleaf.runtime.memory import ALIVE, BLOCK, NOTHING_HELD, Memory
from interleaf.runtime.objects import Free
from interleaf.runtime.operations import Task, end_task, intern_task

from .automaton import Automata, Node
from .known import CHECKED, KnownStep, Table, expect, keep
from .points import Points
from .waits import kind_of

CHAIN_LIMIT = 20_000
"""Operations in one step; a task that does more without a scheduling point is taken to loop for ever."""

Choices: TypeAlias = tuple[int, ...]
Basic: TypeAlias = tuple[Choices, int]


class SetupViolated(ModelError):
    """The set-up violates a property, before any task of the program runs."""


SETUP_LIMIT = 20_000
"""Steps of the set-up; one that does more is taken to loop for ever."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to return to."""

    nodes: tuple[Node | None, ...]
    mark: int
    zobrist: int


class Machine:
    """A program at one of its states.

    With `reduce` the marked operations that nobody can notice are no scheduling points. With `learn` conflicts are
    looked for, and plain accesses that have one are scheduling points; without, only marked operations are.

    After `step`: `reads`, `writes`, `plains` of its memory are its footprint (bit sets of cells), `basic` its
    schedule in steps of an `Execution` (as (choices, operations), see `Move`), `branches` the number of outcomes
    of each choice in it, `length` how many operations it had, `progress` whether it completed a round
    (`runtime.again`), `violations` what it violated, and `dead` whether a fatal one ended the execution.
    """

    def __init__(
        self,
        world: World,
        setup: Callable[[], object],
        *,
        reduce: bool = True,
        learn: bool = True,
        foresight: bool = True,
        flat: bool = False,
        remember: bool = True,
    ) -> None:
        self.world = world
        self.reduce = reduce
        self.learn = learn
        self.remember = remember
        self.automata = Automata(world, flat)
        self.points = Points(world, self.automata, foresight)
        self.memory = Memory(world)
        self.memory.learning = learn
        self.nodes: list[Node | None] = []
        self.basic: list[Basic] = []
        self.branches: list[int] = []
        self.violations: list[Violation] = []
        self.dead = False
        self.length = 0
        self.progress = False
        self.waits: set[Any] = set()
        """Kinds of operations that have had to wait."""
        self.taken = 0
        """Known steps that were taken, or could have been."""
        self._glued: list[Node] = []
        """Operations of the step before which a scheduling point could have been, and was not needed."""
        self._stopped = False
        """Did the step end because a scheduling point is needed?"""
        self._frees = False
        """Did the step free an object?"""
        self._told = False
        """Did the step do more than change the state: start a task, or violate a property?"""
        self.site: tuple[str, int, str] = ("", 0, "")
        """Where in the model the running operation was asked for; kept up while there is an observer."""
        self._set_up(setup)
        self.initial = self.snapshot()

    @property
    def surprised(self) -> bool:
        """Has the pass shown anything that was not known when it began?"""
        return self.points.surprised

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

    def step(self, index: int, choices: Sequence[int] = (), length: int = 0) -> bool:
        """Run one step of a task; False if its operation cannot happen now (nothing has changed then).

        `choices` are the outcomes of the choices on the way; beyond them every choice is 0. With `length` the step
        has so many operations, wherever that ends.
        """
        memory = self.memory
        memory.begin_step(index)
        node = self.nodes[index]
        if node is None:
            raise ModelError(f"task {self.task(index)} cannot run: it has ended or was never started.")
        self.violations = []
        self.dead = False
        memory.beside = self._beside(index) if self.learn else 0
        if not self.remember or length or memory.observer is not None:
            return self._make(index, node, choices, length)
        held = memory.held[index]
        key = (choices, id(held))
        table = node.known.get(key)
        if table is None:
            table = node.known[key] = Table()
        same = None
        for known in table.find(memory.values) or ():
            if known.valid and known.still(self.points, memory):
                self.taken += 1
                if self.taken % CHECKED:
                    return self._take(index, known)
                same = known
                break
        mark, zobrist = len(memory.journal), memory.zobrist
        possible = self._make(index, node, choices)
        if not self._told:
            made = KnownStep(memory, mark, zobrist, self._frees)
            if possible:
                made.goes(self.nodes[index], self._glued, self._stopped)
                made.branches, made.basic, made.length = self.branches, self.basic, self.length
                made.progress = self.progress
            if same is not None:
                expect(same, made)
            else:
                keep(table, made, memory)
        return possible

    def _take(self, index: int, known: KnownStep) -> bool:
        """Make a step as it was made before."""
        known.apply(self.memory)
        if known.possible:
            self.nodes[index] = known.node
            self.branches, self.basic, self.length = known.branches, known.basic, known.length
            self.progress = known.progress
            self.points.decided(known.glued)
        return known.possible

    def _make(self, index: int, node: Node, choices: Sequence[int], length: int = 0) -> bool:
        """Make a step operation by operation."""
        memory, nodes = self.memory, self.nodes
        learn, points = self.learn, self.points
        values = memory.values
        observer = memory.observer
        branches: list[int] = []
        self.branches = branches
        outcomes: Choices = ()
        self.basic = basic = []
        first = True
        begun = cut = decided = 0
        eager = node.eager
        seen: tuple[Node, int] | None = None
        marked: Node | None = None  # the latest marked operation before which there is no scheduling point
        self._glued = glued = []
        self._stopped = self._told = self._frees = self.progress = False
        for count in range(CHAIN_LIMIT):
            self.length = count
            if length:
                if count == length:
                    break
            elif eager and not first:
                self._expect_freeing(node)
            elif not first:
                if node.marked:
                    if not self.reduce:
                        break
                    if points.needed(node):
                        self._stopped = True
                        break
                    marked = node
                    glued.append(node)
                elif node.kind == CHOICE:
                    if branches:
                        # one choice a step: the ways through a loop of choices are merged where they meet
                        cut = count - begun
                        break
                elif not node.local and learn:
                    if points.needed(node):
                        self._stopped = True
                        cut = count - begun
                        break
                    glued.append(node)
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
                        points.learn(node, memory, False)
                    result = values[cell.index]
                elif kind == WRITE and observer is None:
                    cell = node.cell
                    memory.reads |= node.bits
                    memory.writes |= cell.bit
                    memory.plains |= node.plain_bits
                    if node.life is not None and values[node.life.index] != ALIVE:
                        memory.use_after_free(cell, True)
                    if learn and (node.learned is not memory.held[index] or memory.beside & ~node.beside):
                        points.learn(node, memory, True)
                    memory.set(cell, node.value)
                    result = None
                elif kind == CHOICE:
                    taken = len(branches)
                    result = choices[taken] if taken < len(choices) else 0
                    if result and node.progress:
                        self.progress = True
                    branches.append(node.outcomes)
                    outcomes = (*outcomes, result)
                elif kind == END:
                    end_task(memory, node.task)
                    nodes[index] = None
                    self.length = count + 1
                    break
                else:
                    memory.plainly = not node.marked
                    reads, writes = memory.reads, memory.writes
                    memory.reads = memory.writes = 0
                    try:
                        result = node.op.run(memory)
                    finally:
                        if learn:
                            points.touched(node, memory, not (first or eager or node.local))
                        memory.reads |= reads
                        memory.writes |= writes
            except ViolationRaised as raised:
                if memory.broken is not None:
                    self._surprise()
                if not first:
                    # It ends the execution, and what came before may show something to others: a step of its own.
                    memory.rollback(mark, zobrist)
                    memory.spawned.clear()
                    memory.warnings.clear()
                    cut = 0 if node.marked else count - begun
                    break
                self.violations.append(raised.violation)
                self.dead = self._told = True
                break
            if memory.broken is not None:
                self._surprise()
            if marked is not None:
                points.shown(node, marked)
            if result is BLOCK:
                if first:
                    self.waits.add(kind_of(node.op))
                    return False
                break
            if node.marked and not first:
                basic.append((outcomes, 0))
                outcomes = ()
                begun = count
            following = node.edges.get(result)
            if following is None:
                following = self.automata.extend(node, result)
                points.foreseen(node, following.future | following.own, following.future_writes | following.own_writes)
            spawning = node
            nodes[index] = node = following
            if kind == CUSTOM:
                if spawning.frees:
                    self._frees = True
                if memory.spawned:
                    self._told = True
                    points.decided(tuple(glued[decided:]))
                    decided = len(glued)
                    self._spawn(spawning)
                if memory.warnings:
                    self._told = True
                    self.violations.extend(memory.warnings)
                    memory.warnings.clear()
            first = False
        else:
            raise StepLimit(
                f"task {self.task(index)} did {CHAIN_LIMIT} operations without a scheduling point; the last was "
                f"{node.op.name} at {node.op.site[0]}:{node.op.site[1]}"
            )
        basic.append((outcomes, cut))
        points.decided(tuple(glued[decided:]))
        return True

    def able(self, index: int) -> bool:
        """Can the next operation of a task happen now? Nothing is changed."""
        memory = self.memory
        node = self.nodes[index]
        assert node is not None
        if node.kind not in (CUSTOM, JOIN):
            return True
        mark, zobrist = len(memory.journal), memory.zobrist
        memory.begin_step(index)
        learning, memory.learning = memory.learning, False
        try:
            blocked = node.op.run(memory) is BLOCK
        except ViolationRaised:
            blocked = False
        memory.learning = learning
        memory.spawned.clear()
        memory.warnings.clear()
        memory.rollback(mark, zobrist)
        return not blocked

    def begin_pass(self) -> None:
        """A search begins, or begins again, from the initial state: use all that has been learned."""
        self.restore(self.initial)
        self.points.begin_pass()

    def _beside(self, index: int) -> int:
        """The tasks beside which the next step is made."""
        return self.points.beside(index, self.nodes)

    def _expect_freeing(self, node: Node) -> None:
        """An eager step may free objects, and nothing else."""
        if not (isinstance(node.op, Free) or node.releases or node.local):
            raise ModelError(
                f"task {node.task} is declared to only free objects, but it does {node.op.name} at {node.op.site[0]}:"
                f"{node.op.site[1]}. Drop the declaration."
            )

    def _surprise(self) -> None:
        """An access has shown a dependence that was not known."""
        self.memory.broken = None
        if self.learn:
            self.points.surprised = True

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
                self.points.starts(spawner, node, memory)
        memory.spawned.clear()

    def _set_up(self, setup: Callable[[], object]) -> None:
        task = intern_task(self.world, SETUP)
        self.memory.spawned.append((task, setup, ()))
        self._spawn()
        steps = 0
        while self.nodes[task.index] is not None:
            node: Any = self.nodes[task.index]
            steps += 1
            if steps > SETUP_LIMIT:
                raise StepLimit(f"the set-up did {SETUP_LIMIT} steps without coming to its end")
            if not self.step(task.index):
                raise ModelError(
                    f"the set-up waits for ever in {node.op.name} at {node.op.site[0]}:{node.op.site[1]}: nothing else "
                    "is running yet. Move the waiting into a task."
                )
            if self.violations:
                raise SetupViolated(
                    f"the set-up itself violates {self.violations[0].rule}: {self.violations[0].message}"
                )
        self.memory.journal.clear()
