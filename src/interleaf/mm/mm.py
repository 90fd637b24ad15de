"""A process's address space on the host, as far as a VM that lives in it can notice."""

from __future__ import annotations

from interleaf.runtime import Object


class Mm(Object):
    """`struct mm_struct`."""
