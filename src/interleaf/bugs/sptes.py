"""Bugs in which two updates of one SPTE get in each other's way."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = ()
