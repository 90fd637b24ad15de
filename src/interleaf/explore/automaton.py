"""What each task does, learned once: its code as an automaton over operation results.

A task's next operation depends only on its state (its frames, see `runtime.carrier`). So the states of a task
form an automaton: a node is a state with its pending operation, an edge is that operation's result. The
search walks these automata with the shared memory as the only moving part, and model code runs in a greenlet
only where an edge is new. A task that does the same thing in a million interleavings is executed once.

This is the same argument by which two equal states may be merged, and it is checked the same way: whenever
two ways lead to one node, the operations that the code asks for there are compared, and the audits of the
search replay complete executions without automata.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interleaf.runtime.carrier import END, READ, WRITE, Carrier, Op, function_key
from interleaf.runtime.cells import Cell, World
from interleaf.runtime.findings import ModelError
from interleaf.runtime.memory import Held
from interleaf.runtime.objects import Free
from interleaf.runtime.operations import Choose, Join, Task
from interleaf.runtime.values import Value

PARKED = 4_000
"""Greenlets kept at the nodes that they have reached, to go on from there; others are rebuilt when needed."""


class Node:
    """One state of one task, with the operation it is about to do.

    The first node of a task knows its `origin` (function, arguments); every other one the edge by which it was
    first reached: `source` and the `result` of the operation there.
    """

    __slots__ = (
        "beside",
        "bit",
        "bits",
        "carrier",
        "cell",
        "eager",
        "edges",
        "focus",
        "frees",
        "future",
        "future_writes",
        "glued_in",
        "joins",
        "kind",
        "known",
        "learned",
        "life",
        "local",
        "marked",
        "op",
        "origin",
        "outcomes",
        "own",
        "own_writes",
        "plain_bits",
        "progress",
        "releases",
        "result",
        "shown",
        "shown_writes",
        "source",
        "spawns",
        "task",
        "value",
        "zobrist",
    )

    def __init__(self, task: Task, op: Op, zobrist: int) -> None:
        self.task = task
        self.bit = task.bit
        self.op = op
        self.zobrist = zobrist
        self.edges: dict[Value, Node] = {}
        self.kind = op.kind
        self.marked = op.marked
        self.local = op.local
        self.eager = op.eager
        self.releases = op.releases
        self.focus: Cell | None = op.focus
        self.outcomes = op.outcomes if isinstance(op, Choose) else 0
        self.progress = isinstance(op, Choose) and op.progress
        self.cell: Any = getattr(op, "cell", None)
        self.value: Value = getattr(op, "value", None)
        self.life: Cell | None = op.focus.owner.life if op.focus is not None else None
        """The life of the object that the operation is about."""
        self.bits = self.plain_bits = 0
        """Footprint of a read or write: the cell, and the life of its owner."""
        if self.cell is not None:
            self.life = self.cell.owner.life
            self.bits = self.cell.bit | (self.life.bit if self.life is not None else 0)
            self.plain_bits = 0 if op.marked else self.bits
        self.learned: Held | None = None
        self.beside = 0
        """With which locks held, and beside which tasks, this access is already known to its cell."""
        self.joins = 0
        """The tasks that it waits for, if it is a join, as a bit set."""
        if isinstance(op, Join):
            for joined in op.tasks:
                self.joins |= joined.bit
        self.own = self.bits if op.kind in (READ, WRITE) else 0
        self.own_writes: int = self.cell.bit if self.cell is not None and op.kind == WRITE else 0
        """Cells that its operation has touched, and written, so far."""
        self.shown, self.shown_writes = self.own, self.own_writes
        """The same with the unmarked operations that come after it, up to the next marked one."""
        self.future = self.future_writes = 0
        """Cells that the task was known to touch, and write, from here to its end when the present pass began."""
        self.spawns: set[Node] = set()
        """First nodes of the tasks that its operation has started."""
        self.known: dict[Any, Any] = {}
        """What is known of the steps from here, for `known.py`."""
        self.glued_in: list[Any] = []
        """Known steps in which its operation comes without a scheduling point before it."""
        self.frees = isinstance(op, Free)
        self.origin: tuple[Callable[..., Any], tuple[Value, ...]] | None = None
        self.source: Node | None = None
        self.result: Value = None
        self.carrier: Carrier | None = None

    def grown(self) -> None:
        """More is known of what its operation touches: steps that were decided without that are not known any more."""
        for step in self.glued_in:
            step.valid = False
        self.glued_in.clear()

    def __repr__(self) -> str:
        return f"<{self.task} before {self.op.name} at {self.op.site[2]}:{self.op.site[1]}>"


class Automata:
    """The automata of all tasks of one world.

    `flat` gives tasks a flat history instead of call frames; it exists to measure what frames buy.
    """

    def __init__(self, world: World, flat: bool = False) -> None:
        self.world = world
        self.flat = flat
        self.nodes: dict[tuple[int, tuple[int, ...]], Node] = {}
        self.starts: dict[Any, Node] = {}
        self.parked = 0
        self.rebuilt = 0
        """Carriers that were rebuilt by feeding results."""

    def start(self, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]) -> Node:
        """The first node of a task."""
        key = (task.index, function_key(function), arguments)
        node = self.starts.get(key)
        if node is None:
            carrier = Carrier(self.world, task, function, arguments, self.flat)
            node = self._arrive(task, carrier, carrier.start())
            node.origin = (function, arguments)
            self.starts[key] = node
        return node

    def extend(self, node: Node, result: Value) -> Node:
        """Run the model to find where `node` goes when its operation returns `result`."""
        carrier = node.carrier
        if carrier is not None:
            node.carrier = None
            self.parked -= 1
        else:
            carrier = self._rebuild(node)
        known = len(self.nodes)
        following = self._arrive(node.task, carrier, carrier.resume(result))
        if len(self.nodes) > known:
            following.source, following.result = node, result
            # what was foreseen from the node before covers whatever was foreseen from here
            following.future, following.future_writes = node.future, node.future_writes
        node.edges[result] = following
        return following

    def foresee(self, onward: bool) -> None:
        """Find out what is known of every node's future: the least fixed point over all edges.

        If not `onward`, everything that a task ever does counts as its future everywhere.
        """
        nodes = list(self.nodes.values())
        known = [(node.shown, node.shown_writes) for node in nodes]
        for node in nodes:
            node.future, node.future_writes = node.shown, node.shown_writes = node.own, node.own_writes
        changed = True
        while changed:
            changed = False
            for node in reversed(nodes):
                future, writes = node.future, node.future_writes
                shown, shown_writes = node.shown, node.shown_writes
                for following in node.edges.values():
                    future |= following.future
                    writes |= following.future_writes
                    if not following.marked:
                        shown |= following.shown
                        shown_writes |= following.shown_writes
                for started in node.spawns:
                    future |= started.future
                    writes |= started.future_writes
                if (future, writes, shown, shown_writes) != (
                    node.future,
                    node.future_writes,
                    node.shown,
                    node.shown_writes,
                ):
                    node.future, node.future_writes = future, writes
                    node.shown, node.shown_writes = shown, shown_writes
                    changed = True
        for node, before in zip(nodes, known, strict=True):
            if before != (node.shown, node.shown_writes):
                node.grown()
        if not onward:
            for start in self.starts.values():
                for node in nodes:
                    if node.task is start.task:
                        node.future |= start.future
                        node.future_writes |= start.future_writes

    def starters(self) -> dict[int, set[int]]:
        """For each task that others start, those that may start it, or start one that does, and so on."""
        found: dict[int, set[int]] = {}
        for node in self.nodes.values():
            for started in node.spawns:
                found.setdefault(started.task.index, set()).add(node.task.index)
        changed = True
        while changed:
            changed = False
            for starters in found.values():
                further = set().union(*(found.get(starter, ()) for starter in starters)) - starters
                if further:
                    starters.update(further)
                    changed = True
        return found

    def close(self) -> None:
        """End all parked greenlets."""
        for node in self.nodes.values():
            if node.carrier is not None:
                node.carrier.kill()
                node.carrier = None

    def _rebuild(self, node: Node) -> Carrier:
        self.rebuilt += 1
        results = []
        first = node
        while first.source is not None:
            results.append(first.result)
            first = first.source
        results.reverse()
        assert first.origin is not None
        function, arguments = first.origin
        carrier = Carrier(self.world, node.task, function, arguments, self.flat)
        self._same(node, carrier.start(results))
        if (node.task.index, carrier.state) not in self.nodes:
            raise ModelError(
                f"the model is not deterministic: task {node.task} got the same results again and is in another state "
                f"before {node.op.name} at {node.op.site[0]}:{node.op.site[1]}. {HINT}"
            )
        return carrier

    def _arrive(self, task: Task, carrier: Carrier, op: Op) -> Node:
        key = (task.index, carrier.state)
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(task, op, self.world.rng.getrandbits(64))
        else:
            self._same(node, op)
        if node.carrier is None and op.kind != END and self.parked < PARKED:
            node.carrier = carrier
            self.parked += 1
        else:
            carrier.kill()
        return node

    def _same(self, node: Node, op: Op) -> None:
        known = node.op
        if type(known) is not type(op) or known.focus is not op.focus or known.site != op.site:
            raise ModelError(
                f"the model is not deterministic: task {node.task}, with the same calls and the same results, first "
                f"did {known.name} at {known.site[0]}:{known.site[1]} and now {op.name} at {op.site[0]}:{op.site[1]}. "
                f"{HINT}"
            )


HINT = (
    "Look for state that is not in a model object: a global, a list shared between functions, time, randomness, the "
    "order of a set."
)
