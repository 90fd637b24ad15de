"""Carriers: the greenlets that run model code, and the call frames by which a task's state is known.

Model code is plain Python. Where it touches shared state it *performs an operation*: the greenlet hands an
`Op` to the hub (whoever drives the execution) and gets the result back. Between two operations nothing can
be seen or changed from outside.

**Frames.** What a task will do next depends only on where it is in each of its active functions and what
those functions know. A function decorated `@routine` has a frame of its own: entering it pushes
(function, arguments), each operation's result is folded into the top frame, and returning pops the frame and
folds only the return value into the caller's. So two tasks with equal frames behave alike from here on
(induction over the call depth: a returned callee can influence its caller only through its return value and
through shared cells), and what a callee saw on its way is forgotten. `checkpoint()` forgets more: from there
on the frame is its position and its local variables.

**Feeding.** A carrier is rebuilt at an earlier point by running the function again with the results it got
then, without the hub. The frames computed on the way must come out equal, which is the check that the model
is deterministic.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec, Protocol, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from .cells import Cell, World
from .findings import ModelError
from .memory import Memory
from .values import Value, canonical

P = ParamSpec("P")
R = TypeVar("R")

CUSTOM, READ, WRITE, CHOICE, JOIN, END = range(6)
"""Kinds of operation that drivers treat specially; CUSTOM is every other."""


class _WhereItStands:
    """The site of an operation that a task performs itself: found when it is asked for, from the frames above."""

    def __get__(self, op: Op, kind: type) -> tuple[str, int, str]:
        carrier = getattr(getcurrent(), "carrier", None)
        return _site() if carrier is not None and carrier.direct is not None else ("", 0, "")


class Op:
    """One indivisible action on shared state, requested by a task and run by the hub.

    `marked` operations are scheduling points: another task may run before them. `focus` is the cell on
    which they depend, where there is one. `releases` marks the
    operations that only enable others, and so need no scheduling point before them.
    """

    kind: ClassVar[int] = CUSTOM
    marked: bool = False
    local: bool = False
    """Touches nothing that another task can reach, so that it never matters when it happens."""
    focus: Cell | None = None
    releases: bool = False
    eager: bool = False
    """Begins a step that only frees objects which nobody may use any more. A search may take such a step as soon as
    it can happen: whoever uses one of them later violates a property, which waiting would only hide."""
    if TYPE_CHECKING:
        site: tuple[str, int, str]
    else:
        site = _WhereItStands()
    """File, line and function of the model code that asked for it."""

    def run(self, memory: Memory) -> Value:
        """Do it: return the result, or BLOCK if it cannot happen now."""
        raise NotImplementedError

    def text(self, result: Value) -> str:
        """The operation in words, for a story."""
        raise NotImplementedError

    def attempted(self) -> str:
        """The operation in words when it was a fatal violation, and so has no result."""
        return self.text(None)

    @property
    def name(self) -> str:
        return type(self).__name__.lower()


class End(Op):
    """The task's function has returned."""

    kind = END
    local = True

    def text(self, result: Value) -> str:
        return "ends"


class TaskGreenlet(greenlet):
    """A greenlet that knows whose code it runs."""

    carrier: Carrier


class Direct(Protocol):
    """The memory of a run whose tasks perform their operations themselves (`live`)."""

    def read(self, cell: Any) -> Value:
        """Read a field."""

    def write(self, cell: Any, value: Value) -> None:
        """Write a field."""

    def perform(self, op: Op) -> Value:
        """Perform an operation."""

    def call(self, run: Callable[..., Value], arguments: tuple[Value, ...]) -> Value:
        """Perform the operation whose body is `run`."""

    def ask(self, question: Callable[..., R], *arguments: Any) -> R:
        """The answer to a question that depends on more than the results of operations. No operation."""

    def next_changed(self, obj: Any, name: str, start: int, end: int) -> int | None:
        """The first index, start <= index < end, of an element of an array that is not as it started."""


class Note(NamedTuple):
    """A line of the story, in the words of the model."""

    text: str
    function: str
    """The kernel's function that says it."""


class Carrier:
    """One greenlet running one task's function.

    `start` begins the function and `resume` goes on with an operation's result; both return the next
    operation, `End` at the end. `state` is the task's state in between.

    `direct` is None where the hub performs the operations.

    `flat` drops the call structure (a frame is never popped); it exists to measure what frames buy.
    """

    direct: Direct | None = None

    def __init__(
        self,
        world: World,
        task: Any,
        function: Callable[..., Any],
        arguments: Sequence[Value],
        flat: bool = False,
    ) -> None:
        self.world = world
        self.task = task
        self.flat = flat
        self.stack: list[int] = []
        self.codes: list[types.CodeType | None] = []
        self.notes: list[Note] | None = None
        """What the model says while it runs; None when nobody listens."""
        self._numbers = world.frames
        self._function = function
        self._arguments = tuple(arguments)
        self._feed: Sequence[Value] = ()
        self._fed = 0
        self._greenlet: TaskGreenlet | None = None
        self._hub: greenlet | None = None
        self._error: BaseException | None = None
        self._dying = False

    @property
    def state(self) -> tuple[int, ...]:
        """The task's state: one number a frame, outermost first."""
        return tuple(self.stack)

    @property
    def feeding(self) -> bool:
        return self._fed < len(self._feed)

    def start(self, feed: Sequence[Value] = ()) -> Op:
        """Run up to the operation that comes after the fed results."""
        self._feed = feed
        self._fed = 0
        self._dying = False
        self.stack = [self.number((function_key(self._function), self._arguments))]
        self.codes = [None]
        self._greenlet = TaskGreenlet(self._main)
        self._greenlet.carrier = self
        return self._switch(None)

    def resume(self, result: Value) -> Op:
        """Give the pending operation its result and run up to the next."""
        self.fold(result)
        return self._switch(result)

    def kill(self) -> None:
        """End the greenlet wherever it is."""
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw(GreenletExit)
        self._greenlet = None

    @property
    def calls(self) -> tuple[tuple[str, int, str], ...]:
        """File, line and function of the model code that is active in the task, innermost first."""
        frame: types.FrameType | None = self._greenlet.gr_frame if self._greenlet is not None else None
        found = []
        while frame is not None:
            if not _is_quiet(frame):
                found.append(_place(frame))
            frame = frame.f_back
        return tuple(found)

    def number(self, key: Any) -> int:
        """Equal frames get equal numbers."""
        numbers = self._numbers
        return numbers.setdefault(key, len(numbers))

    def fold(self, result: Value) -> None:
        self.stack[-1] = self.number((self.stack[-1], result))

    def perform(self, op: Op) -> Value:
        """Called in the greenlet: hand `op` to the hub and wait for its result."""
        if self._fed < len(self._feed):
            result = self._feed[self._fed]
            self._fed += 1
            self.fold(result)
            return result
        if self._dying:
            raise GreenletExit
        assert self._hub is not None
        op.site = _site()
        try:
            return self._hub.switch(op)
        except GreenletExit:
            # clean-up code of the model may perform further operations; they must not reach the hub
            self._dying = True
            raise

    def enter(self, function: Callable[..., Any], arguments: tuple[Value, ...]) -> None:
        if self.flat:
            self.stack[-1] = self.number((self.stack[-1], "call", function, arguments))
            return
        self.stack.append(self.number((function, arguments)))
        self.codes.append(function.__code__)

    def leave(self, result: Value) -> None:
        if self.flat:
            return
        self.stack.pop()
        self.codes.pop()
        self.stack[-1] = self.number((self.stack[-1], "returned", result))

    def settle(self, frame: types.FrameType) -> None:
        """Replace the top frame's history by its position and its local variables."""
        code = frame.f_code
        if self.flat:
            return
        if self.codes[-1] is not code:
            raise ModelError(
                f"checkpoint() in {code.co_name}: it must be called directly in a function decorated @routine."
            )
        _check_statement_level(code)
        known = tuple(
            (name, canonical(value, f"local variable {name!r} of {code.co_name} at checkpoint()"))
            for name, value in sorted(frame.f_locals.items())
        )
        self.stack[-1] = self.number((code, frame.f_lasti, known))

    def _main(self, _start: Value) -> Op:
        try:
            self._function(*self._arguments)
        except GreenletExit:
            raise
        except BaseException as error:
            self._error = error
        return End()

    def _switch(self, value: Value) -> Op:
        assert self._greenlet is not None
        self._hub = self._greenlet.parent = getcurrent()
        op: Op = self._greenlet.switch(value)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return op


def function_key(function: Callable[..., Any]) -> Any:
    """What a function is, across executions: a closure is its code and what it closes over."""
    if isinstance(function, types.FunctionType) and function.__closure__:
        where = f"closure of {function.__qualname__}"
        return (
            function.__code__,
            tuple(canonical(cell.cell_contents, where) for cell in function.__closure__),
        )
    return function


def running() -> Carrier:
    """The carrier of the code that is running now."""
    try:
        return getcurrent().carrier  # type: ignore[attr-defined, no-any-return]
    except AttributeError:
        raise ModelError(
            "a shared field was used outside a task. Model state exists in an execution only: use it in the "
            "scenario's functions, or peek() at a memory in a check."
        ) from None


def is_running() -> bool:
    """Is this code part of a task?"""
    return getattr(getcurrent(), "carrier", None) is not None


def perform(op: Op) -> Value:
    """Request one operation from inside a task; returns its result."""
    carrier = running()
    return carrier.perform(op) if carrier.direct is None else carrier.direct.perform(op)


def routine(function: Callable[P, R]) -> Callable[P, R]:
    """Give a model function a call frame of its own, so that what it saw is forgotten when it returns.

    Arguments and return value must be canonical. Positional and keyword arguments both work.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        carrier = running()
        if carrier.direct is not None:
            return function(*args, **kwargs)
        where = f"argument of {function.__qualname__}"
        arguments = (*args, *sorted(kwargs.items()))
        for argument in arguments:
            canonical(argument, where)
        carrier.enter(function, arguments)
        result = function(*args, **kwargs)
        carrier.leave(canonical(result, f"return value of {function.__qualname__}"))
        return result

    return call


def checkpoint() -> None:
    """Forget how this function came here: from now on its state is its position and its local variables.

    Put it first in the body of a `while` loop, so that what earlier rounds saw does not keep otherwise equal
    states apart. Sound by construction: it takes all local variables as they are (`del` the dead ones), and
    refuses to stand where Python keeps hidden state (inside `for`, `with` or `try`).
    """
    carrier = running()
    if carrier.direct is None:
        carrier.settle(sys._getframe(1))


_RUNTIME = __file__.rpartition("/")[0]
_quiet: list[str] = [_RUNTIME]


def quiet(folder: str) -> None:
    """Code in `folder` is a building block: an operation's site is the model code that called it."""
    _quiet.append(folder)
    _is_quiet_file.cache_clear()


def _site() -> tuple[str, int, str]:
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        if not _is_quiet(frame):
            return _place(frame)
        frame = frame.f_back
    return ("", 0, "")


def _is_quiet(frame: types.FrameType) -> bool:
    return _is_quiet_file(frame.f_code.co_filename)


@functools.cache
def _is_quiet_file(name: str) -> bool:
    return name.startswith(tuple(_quiet))


def function_of(names: Iterable[str]) -> str:
    """Of the active functions of the model, innermost first, the first whose name does not begin with an underscore:
    the kernel's function. Empty if there is none."""
    return next((name for name in names if not name.startswith(("_", "<"))), "")


def running_function() -> str:
    """The kernel's function that the running task is in."""

    def names() -> Iterator[str]:
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None:
            if not _is_quiet(frame):
                yield frame.f_code.co_name
            frame = frame.f_back

    return function_of(names())


def _place(frame: types.FrameType) -> tuple[str, int, str]:
    return (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


_PLAIN_STATEMENTS = (ast.Module, ast.FunctionDef, ast.While, ast.If, ast.Expr)


@functools.cache
def _check_statement_level(code: types.CodeType) -> None:
    """Refuse a checkpoint() that stands where the interpreter holds more than local variables."""

    def walk(node: ast.AST, outer: ast.AST | None) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "checkpoint":
            if outer is not None:
                raise ModelError(
                    f"checkpoint() in {code.co_name} stands inside a `{type(outer).__name__.lower()}`, where Python "
                    "keeps hidden state. Make it a statement of its own in a while loop."
                )
            return
        hidden = outer if isinstance(node, _PLAIN_STATEMENTS) else node
        for child in ast.iter_child_nodes(node):
            # the call of an expression statement is where checkpoint() belongs
            walk(child, outer if isinstance(node, ast.Expr) and isinstance(child, ast.Call) else hidden)

    walk(ast.parse(textwrap.dedent(inspect.getsource(code))), None)
