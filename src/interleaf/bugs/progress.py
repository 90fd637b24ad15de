"""Bugs in which somebody waits or tries for ever."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = ()
