"""Random executions, before a long search, to learn what its passes would have to begin again for.

What tasks conflict on, what they do from where, what they wait for and which locks they hold when a step ends is found
out on the way, and each time the search begins again. Depth first, the first executions are all alike, so much is
found out late. Random ones differ from the start. They decide nothing: what they show is shown by some execution, and
whatever they do not show is still found out by the search itself.
"""

from __future__ import annotations

import random

from .footprint import LockModes, Watched, turns
from .machine import Machine
from .waits import NewWait, Waits

QUIET = 10
"""Executions in a row without anything new, after which there is nothing more to be learned in this way."""

STEPS = 1_000
"""Steps in one of them at most."""


def scout(machine: Machine, modes: LockModes, waits: Waits, rng: random.Random, eager: bool) -> None:
    """Run until nothing new is learned. With `eager`, what only frees is done as soon as it can be.

    The machine is left in some state.
    """
    quiet = 0
    while quiet < QUIET:
        machine.begin_pass()
        modes.restart()
        quiet = 0 if _execute(machine, modes, waits, rng, eager) or machine.surprised else quiet + 1


def _execute(machine: Machine, modes: LockModes, waits: Waits, rng: random.Random, eager: bool) -> bool:
    """One execution; True if it has shown a lock or a wait of a kind that was not known."""
    memory = machine.memory
    news = False
    for _ in range(STEPS):
        here = machine.snapshot()
        nodes = [node for node in here.nodes if node is not None]
        rng.shuffle(nodes)
        nodes.sort(key=lambda node: eager and node.eager)
        while nodes and not machine.step(nodes[-1].task.index):
            try:
                waits.waits(nodes.pop().op, memory)
            except NewWait:
                news = True
        if not nodes:
            break
        op, task = nodes[-1].op, nodes[-1].task.index
        if machine.branches:
            machine.restore(here)
            machine.step(task, (rng.randrange(machine.branches[0]),))
        taken = turns(memory.journal[here.mark :], memory.held[task])
        split = modes.split.get(task, 0)
        try:
            modes.footprint(memory, taken, machine.dead)
            waits.of_step(op, taken)
        except (Watched, NewWait):
            news = True
        news = news or modes.split.get(task, 0) != split
        if machine.dead:
            break
    return news
