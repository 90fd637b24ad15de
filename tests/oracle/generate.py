"""Random programs, small enough for brute force.

A program comes from a *mix*: the statements it may have and how likely they are. Each mix is about some of the
primitives; most of them nest locks in whatever order comes, so that deadlocks are common.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import fields

from .primitives import Barrier, CallRcu, Dispose, Get, Locked, Publish, Put, RcuReader, Synchronize, Trylock, Use
from .programs import (
    Assert,
    Block,
    Call,
    Choose,
    Cmpxchg,
    FetchAdd,
    If,
    Loop,
    PlainRead,
    PlainWrite,
    Program,
    Read,
    Retry,
    Rotate,
    Statement,
    Store,
    Warn,
    Work,
    Write,
)

INTERLEAVINGS = 12_000
"""About as many a program may have; an estimate that does not know of waiting."""

CROWD = (50_000, 5_000_000)
"""How many interleavings a crowded program has."""

VARIABLES = 2

CROSSED = 0.5
"""Share of the programs, in mixes that nest locks, whose tasks nest them in opposite orders."""

MIXES: dict[str, dict[str, int]] = {
    "locks": {"nest": 9, "spin": 3, "mutex": 2, "read": 2, "write": 2, "Read": 2, "Write": 3, "PlainWrite": 2, "If": 1},
    "rwlocks": {"rwnest": 9, "read": 4, "write": 3, "Read": 3, "Write": 3, "PlainRead": 1, "PlainWrite": 1, "If": 2},
    "marked": {"Read": 4, "Write": 4, "Store": 2, "Cmpxchg": 3, "FetchAdd": 3, "If": 3, "Call": 2, "Assert": 2},
    "calls": {
        "nest": 3,
        "Call": 4,
        "Loop": 2,
        "If": 3,
        "Read": 3,
        "Write": 3,
        "spin": 3,
        "Warn": 1,
        "Choose": 2,
        "Assert": 1,
    },
    "drops": {
        "nest": 4,
        "rwnest": 4,
        "drops": 5,
        "spin": 2,
        "read": 2,
        "Read": 2,
        "Write": 3,
        "PlainWrite": 1,
        "If": 1,
        "Warn": 1,
    },
    "rcu": {
        "RcuReader": 4,
        "CallRcu": 3,
        "Synchronize": 2,
        "Barrier": 1,
        "Read": 3,
        "Write": 2,
        "Assert": 2,
        "spin": 2,
    },
    "work": {
        "nest": 4,
        "Work": 4,
        "spin": 4,
        "Read": 3,
        "Write": 3,
        "PlainWrite": 2,
        "FetchAdd": 1,
        "Assert": 1,
        "write": 1,
    },
    "lives": {"Use": 4, "Dispose": 3, "Publish": 1, "RcuReader": 4, "spin": 2, "Read": 1, "Write": 1, "If": 1},
    "references": {"Get": 3, "Put": 4, "Use": 3, "spin": 2, "read": 2, "If": 3, "Read": 1, "Write": 1},
    "trylocks": {"nest": 4, "Trylock": 4, "spin": 5, "Read": 2, "Write": 3, "If": 2, "PlainWrite": 1, "Assert": 1},
    "retries": {"Retry": 4, "nest": 2, "spin": 2, "Store": 4, "Write": 2, "FetchAdd": 1, "If": 1, "Assert": 1},
    "everything": {
        **dict.fromkeys(("nest", "rwnest"), 6),
        **dict.fromkeys(("spin", "mutex", "read", "write", "drops", "Trylock", "RcuReader", "Read", "Write"), 3),
        **dict.fromkeys(("Cmpxchg", "PlainRead", "PlainWrite", "CallRcu", "Use", "Dispose", "Get", "Put", "If"), 2),
        **dict.fromkeys(("Call", "Loop", "Choose", "Work", "Assert", "Warn", "Synchronize", "Barrier", "Publish"), 1),
    },
}


class Generator:
    """Makes one program after the other from one random number generator."""

    def __init__(self, rng: random.Random, *, crowded: bool = False) -> None:
        self.rng = rng
        self.crowded = crowded
        """Three tasks, and far too many interleavings to try them all."""
        self.serial = 0
        self.weights: dict[str, int] = {}

    def program(self, mix: str) -> Program:
        """The next program of `mix`."""
        self.weights = MIXES[mix]
        while True:
            tasks = 3 if self.crowded else self.rng.choice((2, 2, 2, 3, 3))
            length = 8 if tasks == 2 or self.crowded else 5
            self.serial = 0
            crossed = self.rng.random() < CROSSED
            program = Program(tuple(self.task(self.rng.randint(3, length), crossed, task) for task in range(tasks)))
            number = interleavings(program)
            if CROWD[0] <= number <= CROWD[1] if self.crowded else 30 <= number <= INTERLEAVINGS:
                return program

    def task(self, size: int, crossed: bool, number: int) -> Block:
        """The body of a task; of crossed tasks, every second one nests two locks the other way round."""
        if not crossed or not {"nest", "rwnest"} & self.weights.keys():
            return self.block(size, (), 0)
        before = self.block(self.rng.choice((0, 0, 1)), (), 0)
        nest = self.nest("nest" not in self.weights, (), 0, number % 2 == 1)
        after = self.block(max(size - points(nest), 0), (), 0)
        return Block((*before.statements, nest, *after.statements))

    def block(self, size: int, held: tuple[str, ...], depth: int) -> Block:
        """A block with about `size` scheduling points, under the locks `held`."""
        statements = []
        while size > 0:
            statement = self.statement(size, held, depth)
            statements.append(statement)
            size -= max(points(statement), 1)
        return Block(tuple(statements))

    def statement(self, size: int, held: tuple[str, ...], depth: int) -> Statement:
        names = list(self.weights)
        while True:
            [name] = self.rng.choices(names, list(self.weights.values()))
            made = self.make(name, size, held, depth)
            if made is not None:
                return made

    def make(self, name: str, size: int, held: tuple[str, ...], depth: int) -> Statement | None:
        """A statement called `name`, or None if it does not fit here."""
        rng = self.rng
        inside = max(size - 2, 0)
        if name in ("nest", "rwnest"):
            return self.nest(name == "rwnest", held, depth, rng.random() < 0.5) if not held and size >= 4 else None
        if name in ("spin", "mutex", "read", "write", "drops"):
            return self.locked(name, inside, held, depth) if depth < 3 else None
        if name in ("Call", "If", "Loop", "RcuReader", "Work", "Trylock") and (depth >= 3 or size < 2):
            return None
        self.serial += 1
        variable, value = rng.randrange(VARIABLES), rng.randrange(3)
        simple: dict[str, Callable[[], Statement]] = {
            "Read": lambda: Read(variable),
            "Write": lambda: Write(variable, value),
            "Store": lambda: Store(variable, value),
            "Cmpxchg": lambda: Cmpxchg(variable, value, rng.randrange(3)),
            "FetchAdd": lambda: FetchAdd(variable),
            "PlainRead": lambda: PlainRead(variable),
            "PlainWrite": lambda: PlainWrite(variable, value),
            "Synchronize": Synchronize,
            "Barrier": Barrier,
            "CallRcu": lambda: CallRcu(variable, value, self.serial),
            "Use": lambda: Use(rng.choice(("marked", "plain", "lock"))),
            "Dispose": lambda: Dispose(rng.choice(("at once", "grace", "callback"))),
            "Publish": Publish,
            "Get": lambda: Get(rng.random() < 0.7),
            "Put": Put,
            "Choose": lambda: Choose(rng.choice((2, 2, 3))),
            "Assert": lambda: Assert(value, self.serial),
            "Warn": lambda: Warn(value, self.serial),
            "Call": lambda: Call(self.block(rng.randint(1, size), held, depth + 1)),
            "If": lambda: If(value, self.block(rng.randint(1, size), held, depth + 1), self.branch(size, held, depth)),
            "Loop": lambda: Loop(2, self.block(rng.randint(1, size // 2), held, depth + 1)),
            "Retry": lambda: Retry(value, self.attempt(variable)),
            "RcuReader": lambda: RcuReader(self.block(rng.randint(1, max(inside, 1)), held, depth + 1)),
            "Trylock": lambda: Trylock(rng.choice("ab"), self.block(rng.randint(0, inside), held, depth + 1)),
            "Work": lambda: self.work(size, depth),
        }
        return simple[name]()

    def locked(self, name: str, inside: int, held: tuple[str, ...], depth: int) -> Statement | None:
        """A critical section of a lock that is not held yet (or, seldom, is)."""
        rng = self.rng
        how = rng.choice(("spin", "read", "write")) if name == "drops" else name
        pool = {"spin": "aabc", "mutex": "m", "read": "vvw", "write": "vvw"}[how]
        lock = rng.choice(pool)
        if lock in held and rng.random() > 0.02:
            return None
        body = self.block(rng.randint(0, inside), (*held, lock), depth + 1)
        if name != "drops":
            return Locked(how, lock, body)
        return Locked(how, lock, body, True, self.block(rng.randint(0, 1), (*held, lock), depth + 1))

    def nest(self, shared: bool, held: tuple[str, ...], depth: int, swapped: bool) -> Statement:
        """Two locks, one inside the other."""
        rng = self.rng
        pair = [("write", "v"), ("write", "w")] if shared else [("spin", "a"), ("spin", "b")]
        if shared:
            pair = [(rng.choice(("read", "write")), lock) for _, lock in pair]
        elif rng.random() < 0.2:
            pair[1] = (rng.choice(("read", "write")), "v")
        (outer, first), (inner, second) = pair[::-1] if swapped else pair
        both = (*held, first, second)
        inside = Locked(inner, second, self.block(rng.randint(0, 1), both, depth + 2))
        before = self.block(rng.choice((0, 0, 1)), (*held, first), depth + 1)
        return Locked(outer, first, Block((*before.statements, inside)))

    def attempt(self, variable: int) -> Block:
        """What is done again and again: a look, bare or under a lock, or a change."""
        rng = self.rng
        if rng.random() < 0.15:
            return Block((Rotate(variable), Read(rng.randrange(VARIABLES))))
        look = rng.choice((Read(variable), Read(variable), Cmpxchg(variable, rng.randrange(3), rng.randrange(3))))
        if rng.random() < 0.4:
            return Block((Locked(*rng.choice((("spin", "a"), ("read", "v"))), Block((look,))),))
        return Block((look,))

    def branch(self, size: int, held: tuple[str, ...], depth: int) -> Block:
        return self.block(self.rng.choice((0, size)), held, depth + 1)

    def work(self, size: int, depth: int) -> Statement:
        body = self.block(self.rng.randint(1, size), (), depth + 1)
        return Work(body, self.block(self.rng.randint(0, 1), (), depth + 1), self.rng.random() < 0.6)


def points(statement: Statement) -> int:
    """Scheduling points that a statement has at most, in the task that runs it."""
    inside = {field.name: getattr(statement, field.name) for field in fields(statement)}  # type: ignore[arg-type]
    blocks = {name: points(block) for name, block in inside.items() if isinstance(block, Block)}
    match statement:
        case Block(statements):
            return sum(map(points, statements))
        case If():
            return max(blocks.values())
        case Loop(rounds):
            return rounds * blocks["body"]
        case Work(joins=joins):
            return blocks["between"] + joins
        case Locked(drops=drops):
            return sum(blocks.values()) + (4 if drops else 2)
        case Retry():
            return 2 * blocks["body"]
        case Trylock() | RcuReader():
            return blocks["body"] + 2
        case Use(how):
            return {"plain": 2, "marked": 2, "lock": 4}[how]
        case Dispose(how):
            return {"at once": 2, "grace": 4, "callback": 2}[how]
        case Get():
            return 2
        case Put():
            return 4
        case Synchronize() | Barrier():
            return 2
        case Choose() | Assert() | Warn():
            return 0
    return sum(blocks.values()) or 1


def interleavings(program: Program) -> int:
    """How many interleavings a program has if nobody ever waits: the orders of the steps, times the choices."""
    lengths: list[int] = []
    outcomes = 1

    def walk(statement: Statement) -> None:
        nonlocal outcomes
        if isinstance(statement, Choose):
            outcomes *= statement.outcomes
        elif isinstance(statement, Locked) and statement.drops:
            outcomes *= 2
        elif isinstance(statement, Work):
            lengths.append(points(statement.body) + 1)
        elif isinstance(statement, CallRcu) or (isinstance(statement, Dispose) and statement.how == "callback"):
            lengths.append(2)
        for field in fields(statement):  # type: ignore[arg-type]
            value = getattr(statement, field.name)
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Statement):
                    walk(inner)

    for body in program.tasks:
        lengths.append(points(body) + 1)
        walk(body)
    orders = math.factorial(sum(lengths))
    for length in lengths:
        orders //= math.factorial(length)
    return orders * outcomes
