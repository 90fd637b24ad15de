"""The catalogue: bugs that the kernel had (or that were found in a patch in time), each a deviation of a few lines.

A bug is put back into a design that does not have it, and found again by a search of a scenario of the library, by a
property that was there before. Its id (`B21`) may be written after the name of any design: `v6.12 bug B21`.
"""

from __future__ import annotations

from interleaf import designs
from interleaf.kvm.design import Design

from . import faults, flushes, progress, roots, sptes
from .bug import Bug

__all__ = ["Bug", "library", "load"]


def library() -> dict[str, Bug]:
    """All bugs by id, in the order of the ids."""
    modules = (roots, flushes, sptes, faults, progress)
    found = [bug for module in modules for bug in module.BUGS]
    return {bug.id: bug for bug in sorted(found, key=lambda bug: bug.id)}


def load(what: str) -> Design:
    """The design that `what` says, as `designs.load`, with "bug ID" for a bug of the catalogue. Raises ModelError."""
    return designs.load(what, {id: bug.put_back for id, bug in library().items()})
