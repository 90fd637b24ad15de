"""tracefs: the kernel's folder of files by which tracing is controlled.

Everything is set up in an *instance*, which has buffers and switches of its own, so that whatever else is traced on
the host goes on undisturbed. Only probes of functions belong to all of tracefs; ours have a group of their own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

MOUNTS = ("sys/kernel/tracing", "sys/kernel/debug/tracing")


class Missing(Exception):
    """The host lacks something without which nothing can be recorded; the text says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe at the entry of a function."""

    name: str
    """Of its event."""
    function: str
    arguments: str

    def definition(self, group: str) -> str:
        """As it is written to kprobe_events."""
        return f"p:{group}/{self.name} {self.function} {self.arguments}"


class Tracefs:
    """The files of tracefs below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> str:
        """What a file says. Raises OSError."""
        return (self.root / path).read_text(encoding="utf-8", errors="replace")

    def write(self, path: str, text: str) -> None:
        """Set a file. Raises OSError if the kernel refuses that."""
        self._write(path, text, os.O_WRONLY | os.O_TRUNC)

    def append(self, path: str, text: str) -> None:
        """Add to a file; to overwrite kprobe_events would remove everybody's probes. Raises OSError."""
        self._write(path, text, os.O_WRONLY | os.O_APPEND)

    def exists(self, path: str) -> bool:
        """Is there such a file or folder?"""
        return (self.root / path).exists()

    def make_instance(self, path: str) -> None:
        """Make a folder for an instance; the kernel puts the files into it. Raises OSError."""
        (self.root / path).mkdir()

    def remove_instance(self, path: str) -> None:
        """Remove an instance with its buffers. Raises OSError while anything in it is in use."""
        (self.root / path).rmdir()

    def _write(self, path: str, text: str, flags: int) -> None:
        descriptor = os.open(self.root / path, flags)
        try:
            os.write(descriptor, f"{text}\n".encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.root / path)) from None
        finally:
            os.close(descriptor)


def find_tracefs(host: Path) -> Tracefs:
    """The tracefs of the host whose file system begins at `host`. Raises Missing."""
    for mount in MOUNTS:
        root = host / mount
        try:
            (root / "instances").stat()
            return Tracefs(root)
        except FileNotFoundError:
            continue
        except PermissionError:
            raise Missing(f"{root} may not be read: recording needs root.") from None
    raise Missing("there is no tracefs: mount it with `mount -t tracefs nodev /sys/kernel/tracing`.")


class Instance:
    """One instance with its events and probes, for as long as `with` lasts.

    Leaving restores everything, one thing after the other; what cannot be restored is in `leftovers`, as what to do
    about it by hand.
    """

    def __init__(self, tracefs: Tracefs, name: str) -> None:
        self.tracefs = tracefs
        self.name = name
        self.folder = f"instances/{name}"
        self.group = name.replace("-", "_")
        self.probes: list[Probe] = []
        self.leftovers: list[str] = []
        self._enabled: list[str] = []

    def __enter__(self) -> Instance:
        try:
            self.tracefs.make_instance(self.folder)
        except PermissionError:
            raise Missing(f"{self.tracefs.root} may not be written: recording needs root.") from None
        except OSError as error:
            raise Missing(f"{self.tracefs.root}/{self.folder} cannot be made: {error.strerror or error}.") from None
        return self

    def __exit__(self, *error: object) -> None:
        # an impatient second Ctrl-C must not leave the host half restored
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._restore_all()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def _restore_all(self) -> None:
        for switch in ("tracing_on", *reversed(self._enabled)):
            self._undo(f"echo 0 > {self.tracefs.root}/{self.folder}/{switch}", partial(self.set, switch, "0"))
        for probe in reversed(self.probes):
            removal = f"-:{self.group}/{probe.name}"
            self._undo(
                f"echo '{removal}' >> {self.tracefs.root}/kprobe_events",
                partial(self.tracefs.append, "kprobe_events", removal),
            )
        self._undo(f"rmdir {self.tracefs.root}/{self.folder}", partial(self.tracefs.remove_instance, self.folder))

    def set(self, path: str, text: str) -> None:
        """Set a file of the instance. Raises OSError."""
        self.tracefs.write(f"{self.folder}/{path}", text)

    def enable(self, system: str, event: str) -> bool:
        """Switch an event on; False if this kernel has no such event. Raises OSError."""
        switch = f"events/{system}/{event}/enable"
        if not self.tracefs.exists(f"{self.folder}/{switch}"):
            return False
        self._enabled.append(switch)  # before it is, for Ctrl-C may come in between
        self.set(switch, "1")
        return True

    def probe(self, choices: Iterable[Probe]) -> Probe | None:
        """Set the first of the probes whose function this kernel has; None if it has none of them."""
        for probe in choices:
            self.probes.append(probe)  # before it is set, for Ctrl-C may come in between
            try:
                self.tracefs.append("kprobe_events", probe.definition(self.group))
            except OSError:
                self.probes.pop()
                continue  # no such function here, or it cannot be probed
            return probe if self.enable(self.group, probe.name) else None
        return None

    def _undo(self, by_hand: str, undo: Callable[[], None]) -> None:
        try:
            undo()
        except OSError as error:
            self.leftovers.append(f"{by_hand}   # {error.strerror or error}")
