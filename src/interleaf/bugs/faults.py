"""Bugs between page faults, notifiers and memslots."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = ()
