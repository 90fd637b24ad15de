"""One request checked under watch, in this process: an answer always, whatever the scenario does.

The check runs in the main thread. Beside it a thread looks ten times a second where the main thread is: in the
search, or in code of the scenario. Code that stays in the scenario without ever giving control back will not end
by itself, and is ended. The same thread listens for the order to stop.

A search that is to stop is sent `Stopped`: it returns what it has found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import interleaf
from interleaf.check import Cell, Request, files_of
from interleaf.explore.machine import Machine
from interleaf.explore.outcome import Progress, Stopped
from interleaf.runtime import Execution, ModelError, StepLimit
from interleaf.runtime.carrier import Carrier

Checker: TypeAlias = Callable[[Request, Callable[[Progress], None] | None], Cell]
"""What checks a request: `check.check`."""

BEAT = 0.1
"""Seconds between two looks at the check, and at least between two reports of progress."""

INSIST = 2
"""Looks after which a stop is sent again, to a check that goes on (with the next search, the next story)."""

_PACKAGE = str(Path(interleaf.__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ENGINE = tuple(f"{_PACKAGE}{os.sep}{part}" for part in ("runtime", "explore", "check.py", "worker.py"))

_SCENARIO = (Carrier._main.__code__, Machine._set_up.__code__, Execution.__init__.__code__)
"""Functions that run code of the scenario, with nothing but its end to wait for."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request."""

    request: Request
    cell: Cell | None
    """The answer, which may be incomplete; None if there is none."""
    error: str = ""
    """What is wrong with the request, the scenario or the design; there may still be findings in the cell."""
    stopped: str = ""
    """Why the check ended before its time, if nobody is at fault; the cell has what was found until then."""


Sent: TypeAlias = Progress | None
"""What a check tells while it runs: its progress, or only that it is alive."""


def attempt(
    request: Request,
    checker: Checker,
    patience: float,
    send: Callable[[Sent], None],
    told_to_stop: Callable[[], str],
) -> Result:
    """Check `request` in the main thread; never raises what the scenario raises.

    `send` is called from two threads. `told_to_stop` returns the reason to stop, or nothing. Code of the scenario
    that runs for `patience` seconds without an operation is taken to run for ever. What it prints goes to standard
    error: standard output is for the answer.
    """
    guard = _Guard(patience, send, told_to_stop)
    try:
        guard.start()
        with contextlib.redirect_stdout(sys.stderr):
            cell = checker(request, guard.progress)
    except Stopped as stopped:
        if guard.endless:
            return Result(request, None, _at_fault(request, guard.endless))
        return Result(request, None, "", str(stopped))
    except StepLimit as limit:
        return Result(request, None, _at_fault(request, f"it does not end: {limit}"))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return Result(request, None, explain(request, error))
    finally:
        guard.close()
    if guard.endless:
        return Result(request, cell, _at_fault(request, guard.endless))
    return Result(request, cell, "", "" if cell.verdict.exhaustive else guard.why)


class _Guard(threading.Thread):
    """Watches over what the main thread does between `start` and `close`."""

    def __init__(self, patience: float, send: Callable[[Sent], None], told_to_stop: Callable[[], str]) -> None:
        super().__init__(name="guard", daemon=True)
        self.endless = ""
        """What was found to run for ever, in words."""
        self._patience = patience
        self._send = send
        self._told_to_stop = told_to_stop
        self._main = threading.main_thread().ident
        self._over = threading.Event()
        self._alive = self._sent = time.monotonic()
        self.why = ""
        """Why the check is to stop."""
        self._busy_at = "?"
        """Where code of the scenario was last seen."""
        self._handler = signal.signal(signal.SIGUSR1, self._raise)
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._lost

    def close(self) -> None:
        """Stop watching; from now on nothing is raised in the main thread."""
        self._over.set()
        self.join()
        signal.signal(signal.SIGUSR1, self._handler)
        sys.unraisablehook = self._unraisable

    def progress(self, progress: Progress) -> None:
        """Called by the search, a few times a second or more."""
        self._alive = now = time.monotonic()
        if now - self._sent >= BEAT:
            self._sent = now
            self._send(progress)

    def run(self) -> None:
        looks = 0
        while not self._over.wait(BEAT):
            looks += 1
            if self.why:
                if looks % INSIST == 0:
                    self._interrupt()
                continue
            self.why = self._told_to_stop()
            if not self._in_scenario():
                self._alive = time.monotonic()
                self._send(None)
            elif time.monotonic() - self._alive > self._patience:
                self.endless = self.why = f"it does not end: after {self._patience:g} s it is still at {self._busy_at}"
            if self.why:
                looks = 0
                self._interrupt()

    def _in_scenario(self) -> bool:
        """Is the main thread in a task's code, in the set-up, or loading a file?"""
        frame = sys._current_frames().get(self._main or 0)
        places = []
        codes = []
        while frame is not None and frame.f_code is not attempt.__code__:
            places.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
            codes.append(frame.f_code)
            frame = frame.f_back
        found = any(code in _SCENARIO or code.co_name == "<module>" for code in codes)
        if found and any(not place[0].startswith((*_ENGINE, *_LIBRARIES, "<")) for place in places):
            self._busy_at = _place(places[::-1])
        return found

    def _interrupt(self) -> None:
        if self._main is not None and not self._over.is_set():
            signal.pthread_kill(self._main, signal.SIGUSR1)

    def _lost(self, raised: sys.UnraisableHookArgs) -> None:
        """Something was raised where nobody can catch it: in a callback of the memory management. A stop is sent again,
        so there is nothing to be told."""
        if not isinstance(raised.exc_value, Stopped):
            self._unraisable(raised)

    def _raise(self, _signal: int, _frame: types.FrameType | None) -> None:
        if not self._over.is_set():
            raise Stopped(self.why)


def _at_fault(request: Request, what: str) -> str:
    dropped = "".join(f" without {rule}" for rule in request.dropped)
    return f"{request.scenario} on {request.design}{dropped}: {what}"


def explain(request: Request, error: BaseException) -> str:
    """What went wrong with a request, as one line with the place in the scenario, the design or the model."""
    return _at_fault(request, _in_words(request, error))


def _in_words(request: Request, error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({_short(error.filename or '?')}:{error.lineno})"
    places = _places_of(error)
    own = [place for place in places if not place[0].startswith(_ENGINE)]
    if isinstance(error, ModelError):
        named = _named(request, own) or _named(request, _places_of(error.__cause__))
        return f"{text} ({_place(named)})" if named else text
    return f"it raises {type(error).__name__}: {text} ({_place(places)})"


def _places_of(error: BaseException | None) -> list[tuple[str, int, str]]:
    """Where an error was raised, outermost first; nowhere if there is none."""
    entries = traceback.extract_tb(error.__traceback__) if error is not None else ()
    return [(entry.filename, entry.lineno or 0, entry.name) for entry in entries]


def _named(request: Request, places: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    """Those of the places that are in the files that the request names."""
    files = {str(file.resolve()) for file in files_of(request)}
    return [place for place in places if str(Path(place[0]).resolve()) in files]


def _place(places: list[tuple[str, int, str]]) -> str:
    """The innermost place that the reader can do something about; outermost come first in `places`."""
    outside = [place for place in places if not place[0].startswith((_PACKAGE, "<", *_LIBRARIES))]
    model = [place for place in places if place[0].startswith(_PACKAGE) and not place[0].startswith(_ENGINE)]
    file, line, function = (outside or model or places or [("?", 0, "?")])[-1]
    return f"{_short(file)}:{line} in {function}"


def _short(file: str) -> str:
    """A path as short as it is clear: from the package on, or relative to the working directory."""
    path = Path(file)
    for base in (Path(_PACKAGE).parent, Path.cwd()):
        with contextlib.suppress(ValueError):
            return str(path.relative_to(base))
    return file


__all__ = ["Checker", "Result", "Sent", "attempt", "explain"]
