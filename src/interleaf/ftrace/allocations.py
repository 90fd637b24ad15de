"""Tables that a task has allocated, and either links or loses.

`kvm_mmu_get_page` tells of a table before it is linked. Of one that loses the race to be linked nothing is heard any
more: the task enters the guest without it. From 5.13 to 5.16 the event comes once more as soon as the table is linked,
and that is no other table.
"""

from __future__ import annotations

from .records import KvmMmuPage


class Allocations:
    """By task: the tables that it is to link, and the one that it has linked last. Each is (level, first gfn)."""

    def __init__(self) -> None:
        self._allocated: dict[int, set[tuple[int, int]]] = {}
        self._linked: dict[int, tuple[int, int]] = {}

    def told(self, pid: int, page: KvmMmuPage) -> None:
        """kvm_mmu_get_page tells of a new table."""
        place = page.level, page.gfn & -(1 << page.level * 9)
        if self._linked.pop(pid, None) != place:
            self._allocated.setdefault(pid, set()).add(place)

    def linked(self, pid: int, level: int, gfn: int) -> None:
        """The task has linked a table of this level, whose first gfn this is."""
        self._linked[pid] = level, gfn
        self._allocated.get(pid, set()).discard((level, gfn))

    def ended(self, pid: int) -> int:
        """The task's fault is over, or another one begins: how many tables has it lost?"""
        self._linked.pop(pid, None)
        return len(self._allocated.pop(pid, ()))
