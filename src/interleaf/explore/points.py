"""Scheduling points: before which operations another task must be given the chance to run.

Left out are those that nobody can notice: before an access of a task to a cell on which it has no conflict (see
`runtime.cells.Cell`: the others need a lock that it holds, or cannot run, or only read), and before the giving back
of a lock, which only lets others go on (Lipton's movers, CACM 1975).

With *foresight*, an access needs none either if the tasks with which it conflicts are past that: their automata say
what each task may still touch from the node where it is. An operation that conflicts with nothing that others will
ever do is a persistent set by itself (Godefroid, LNCS 1032). Without, a task may touch at any time what it ever does.

What conflicts and what is still to come is assumed, until something shows that was not known: the pass of the search
is *surprised*. It is done again with what has been learned, so that the last pass relies on nothing that was not
checked in it (Stoller & Cohen, FMSD 2006, for locks).

Checks of properties look at cells without any lock (`Memory.look`), and note what nobody else may see happen halfway.
They are one with the marked operation before them; so it is before that operation that they need a scheduling point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from interleaf.runtime.cells import World
from interleaf.runtime.memory import Memory

from .automaton import Automata, Node

DECISIONS = 300_000
"""Decisions of one pass that are kept, to see whether they stand once more is known."""


class Points:
    """What is known of the conflicts of the tasks of one world, for the step that is being made."""

    def __init__(self, world: World, automata: Automata, foresight: bool) -> None:
        self.world = world
        self.automata = automata
        self.foresight = foresight
        self.surprised = False
        """Has anything been shown that was not known when the pass began?"""
        self.task = 0
        self.others: list[Node] = []
        """Where the other tasks are that could run, while a step is made."""
        self._decided: set[tuple[tuple[Node, ...], tuple[Node, ...]]] = set()
        """Operations before which no point was needed in this pass, and where the others were then."""
        self._observed = 0
        """Kinds of locks of which somebody looks whether they are free: giving one back may be noticed."""
        self._pairs: dict[int, dict[int, tuple[int, int]]] = {}
        """By task, and by bit of another one that conflicts with it or may start one that does: the clashes and
        glimpses of the world."""

    def begin_pass(self) -> None:
        """Use all that has been learned."""
        self.surprised = False
        self._decided.clear()
        self._look_ahead()

    def decided(self, nodes: tuple[Node, ...]) -> None:
        """No point was needed before the operations of `nodes` in the step that is made."""
        if nodes and len(self._decided) < DECISIONS:
            self._decided.add((nodes, tuple(self.others)))

    def stand(self) -> bool:
        """Did the pass leave out no point that is needed, by all that is known now?

        Nothing is ever forgotten, so the points that it had are needed still.
        """
        if not self.surprised:
            return True
        if len(self._decided) >= DECISIONS:
            return False
        self._look_ahead()
        for nodes, others in self._decided:
            self.task, self.others = nodes[0].task.index, list(others)
            if self.conflict(*demands(nodes)):
                return False
        return True

    def _look_ahead(self) -> None:
        """Find out what is still to come of each task, and on what they conflict."""
        observed = sum(domain.observed for domain in self.world.domains.values())
        if observed != self._observed:
            self._observed = observed
            for node in self.automata.nodes.values():
                if node.releases:
                    node.grown()
        self.automata.foresee(self.foresight)
        starters = self.automata.starters()
        clashes = _of_starters(self.world.clashes, starters)
        glimpses = _of_starters(self.world.glimpses, starters)
        self._pairs.clear()
        for task, other in clashes.keys() | glimpses.keys():
            pair = (clashes.get((task, other), 0), glimpses.get((task, other), 0))
            self._pairs.setdefault(task, {})[1 << other] = pair

    def beside(self, index: int, nodes: Sequence[Node | None]) -> int:
        """The other tasks that could run, now or later, before this one has ended.

        A task that is about to wait for the end of this one could not run: what it will do comes after that.
        """
        bit = 1 << index
        self.task = index
        self.others = others = []
        beside = 0
        for node in nodes:
            if node is not None and node.bit != bit and not node.joins & bit:
                others.append(node)
                beside |= node.bit
        return beside

    def needed(self, node: Node) -> bool:
        """Must there be a scheduling point before the operation of `node`, as far as is known?"""
        return self.conflict(*demand(node))

    def conflict(self, touched: int, writes: int, shown: int, shown_writes: int) -> bool:
        """Does the running task conflict with what others may still do, if it touches and writes these cells, and shows
        those to checks of properties?"""
        pairs = self._pairs.get(self.task)
        if pairs is None:
            return False
        for other in self.others:
            pair = pairs.get(other.bit)
            if pair is not None:
                clash, glimpse = pair
                future, future_writes = other.future, other.future_writes
                if touched & future_writes & clash or writes & future & clash:
                    return True
                if shown & future_writes & glimpse or shown_writes & future & glimpse:
                    return True
        return False

    def touched(self, node: Node, memory: Memory, glued: bool) -> None:
        """The operation of `node` has the footprint that is in the memory now; `glued` if no point was before it."""
        own, writes = memory.reads | memory.writes, memory.writes
        if own & ~node.own or writes & ~node.own_writes:
            node.own |= own
            node.own_writes |= writes
            node.grown()
            self.foreseen(node, own, writes)
            if glued and self.needed(node):
                self.surprised = True

    def shown(self, node: Node, marked: Node) -> None:
        """The operation of `node` is one with that of `marked`, before which no point was."""
        if node.own & ~marked.shown or node.own_writes & ~marked.shown_writes:
            marked.shown |= node.own
            marked.shown_writes |= node.own_writes
            marked.grown()
            if self.needed(marked):
                self.surprised = True

    def foreseen(self, node: Node, touched: int, writes: int) -> None:
        """From `node` on the task may touch these cells: was that known when the pass began?"""
        if touched & ~node.future or writes & ~node.future_writes:
            self.surprised = True

    def learn(self, node: Node, memory: Memory, write: bool) -> None:
        """Tell the cell of a read or write who made it, and with which locks held."""
        held = memory.held[memory.task]
        memory.learn(node.cell, write)
        node.beside = memory.beside | (node.beside if node.learned is held else 0)
        node.learned = held

    def starts(self, node: Node, started: Node, memory: Memory) -> None:
        """The operation of `node` has started another task."""
        memory.beside |= started.bit
        self.others.append(started)
        if started not in node.spawns:
            node.spawns.add(started)
            self.surprised = True


def demand(node: Node) -> tuple[int, int, int, int]:
    """What the operation of `node` touches, writes, shows, and shows to be written, so that others may notice it."""
    touched, writes = node.own, node.own_writes
    if node.releases and node.focus is not None and not node.focus.domain.observed:
        # what it does only lets others go on, but the lock itself may have been freed
        touched, writes = node.life.bit if node.life is not None else 0, 0
    return (touched, writes, node.shown, node.shown_writes) if node.marked else (touched, writes, 0, 0)


def demands(nodes: Iterable[Node]) -> tuple[int, int, int, int]:
    """The same of the operations of several nodes."""
    touched = writes = shown = shown_writes = 0
    for node in nodes:
        one = demand(node)
        touched, writes, shown, shown_writes = touched | one[0], writes | one[1], shown | one[2], shown_writes | one[3]
    return touched, writes, shown, shown_writes


def _of_starters(pairs: dict[tuple[int, int], int], starters: dict[int, set[int]]) -> dict[tuple[int, int], int]:
    """What is still to come of a task includes the tasks that it starts: their conflicts are its own."""
    found = dict(pairs)
    for (task, other), cells in pairs.items():
        for starter in starters.get(other, ()):
            found[task, starter] = found.get((task, starter), 0) | cells
    return found
