"""Designs: kernel versions and proposed patches, each a value in a module of its own.

Each says what differs from its newer neighbour and nothing else; v6.12 is what `interleaf.kvm` has as it is.

`load` finds one by what a user types: a name (`v5.18`) or a file with a design in it (`mine.py:MyRoots`), with rules
dropped or added (`off-list without rcu-list-del`), functions taken from other designs (`v6.12 swap
kvm_tdp_mmu_put_root=v5.18`), and bugs put back (`v6.12 bug B21`).
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from interleaf.kvm.design import Design
from interleaf.runtime import ModelError

from .off_list import OFF_LIST
from .series_v1 import SERIES_V1
from .series_v3 import SERIES_V3
from .v5_13 import V5_13
from .v5_16 import V5_16
from .v5_18 import V5_18
from .v6_1 import V6_1
from .v6_4 import V6_4
from .v6_12 import V6_12
from .v6_18 import V6_18

__all__ = [
    "OFF_LIST",
    "SERIES_V1",
    "SERIES_V3",
    "V5_13",
    "V5_16",
    "V5_18",
    "V6_1",
    "V6_4",
    "V6_12",
    "V6_18",
    "changed",
    "library",
    "load",
    "named",
]


def library() -> dict[str, Design]:
    """All designs by name, oldest first."""
    designs = (V5_13, V5_16, SERIES_V1, OFF_LIST, SERIES_V3, V5_18, V6_1, V6_4, V6_12, V6_18)
    return {design.name: design for design in designs}


Bugs = Mapping[str, Callable[[Design], Design]]
"""By id: what puts a bug back into a design."""

NO_BUGS: Bugs = MappingProxyType({})


def load(what: str, bugs: Bugs = NO_BUGS) -> Design:
    """The design that `what` says: NAME or FILE.py:NAME, followed by changes (see `changed`).

    Raises ModelError if there is no such thing, saying what there is.
    """
    base, _, changes = what.strip().partition(" ")
    return changed(named(base), changes, bugs)


def changed(design: Design, changes: str, bugs: Bugs = NO_BUGS) -> Design:
    """The design with any number of changes, done from left to right: "without RULE", "with RULE", "swap
    FUNCTION=DESIGN", or "bug ID" for one of `bugs`. Raises ModelError for anything else."""
    words = changes.split()
    if len(words) % 2 or any(word not in ("with", "without", "swap", "bug") for word in words[::2]):
        raise ModelError(
            f"{f'{design.name} {changes}'!r} is no design: after its name there may only be "
            '"without RULE", "with RULE", "swap FUNCTION=DESIGN" or "bug ID".'
        )
    for how, name in zip(words[::2], words[1::2], strict=True):
        match how:
            case "without":
                design = design.without(name)
            case "with":
                design = design.adding(name)
            case "swap":
                design = _swapped(design, name)
            case "bug":
                if name not in bugs:
                    close = difflib.get_close_matches(name.upper(), bugs, 3)
                    there = ", ".join(bugs) or "none"
                    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {there}."
                    raise ModelError(f"there is no bug {name!r}. {hint}")
                design = bugs[name](design)
    return design


def named(what: str) -> Design:
    """The design NAME or FILE.py:NAME. Raises ModelError if there is none, saying what there is."""
    return _from_file(what) if ".py" in what else _from_library(what)


def _swapped(design: Design, what: str) -> Design:
    function, equals, other = what.partition("=")
    if not equals:
        raise ModelError(f"swap {what!r}: expected FUNCTION=DESIGN, such as kvm_tdp_mmu_put_root=v5.18.")
    return design.swapping(function, named(other))


def _from_library(name: str) -> Design:
    designs = library()
    if name not in designs:
        close = difflib.get_close_matches(name, designs, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ModelError(f"there is no design {name!r}; there are {', '.join(designs)}.{hint}")
    return designs[name]


def _from_file(what: str) -> Design:
    file, _, name = what.rpartition(":")
    if not file.endswith(".py"):
        raise ModelError(f"{what!r} does not say which design in the file is meant: write FILE.py:NAME.")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"there is no file {file!r}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Design):
        designs = ", ".join(key for key, value in vars(module).items() if isinstance(value, Design)) or "none"
        raise ModelError(f"{file} has no design {name!r}; the designs in it: {designs}.")
    return found
