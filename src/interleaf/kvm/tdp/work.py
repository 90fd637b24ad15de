"""How much a task does between two yield points, with mmu_lock held: measured, and bounded by property I14.

What is counted are SPTEs that are changed, in one walk over one root. The number of those that are only looked at
would say nothing: walks of the model pass over entries that are never written. For the same reason each walk begins
with nothing done: the walk before offered to yield at the entries behind its last one, which the model has not visited.

The bound is the one that the kernel gives itself: it must be able to replace the table of a 1 GiB page by that page
without a stall, so all that one entry of 1 GiB has below it may be torn down in one go, and no more
(tdp_mmu_zap_root). A notifier that may not sleep has no choice; whoever calls it keeps its range small.
"""

from __future__ import annotations

from typing import TypeAlias

from interleaf.hw.page_table import PG_LEVEL_1G, gfn_round_for_level
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.linux.lockdep import lock
from interleaf.linux.rwlock import forget, rwlock_t
from interleaf.runtime import Memory, Violation, operation

from . import ghost
from .spte import is_shadow_present_pte

CHANGED, TORN_DOWN = "SPTEs changed", "SPTEs torn down"
"""What is measured: the most SPTEs that a task changes between two yield points, and those of them that it zaps."""

Done: TypeAlias = tuple[int, int, int | None]
"""SPTEs changed, SPTEs torn down, and the first gfn of the entry of 1 GiB that all of them are below, if the VM has
memory below more than one: what `rwlock_t.done` of mmu_lock is."""

NOTHING: Done = (0, 0, None)


@operation(marked=False)
def walk_starts(memory: Memory, kvm: Kvm, root: KvmMmuPage) -> int:
    """The running task begins to walk the entries of `root`; returns the address space of the root. No access: that
    part of the role never changes."""
    forget(memory, kvm.mmu_lock)
    return int(memory.peek(KvmMmuPage.role.cell(root)).as_id)


@operation(marked=False)
def must_not_yield(memory: Memory, must_not: bool) -> None:
    """From here on the running task is in a notifier that must not sleep, or not any more."""
    memory.set(ghost.must_not_yield.cell(memory.world.tasks[memory.task]), must_not)


def spte_changed(memory: Memory, kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int, old: int, new: int) -> None:
    """Inside an operation: the running task changes an SPTE of `level` in `sp` from `old` to `new`. It counts if `sp`
    is a table of the TDP MMU, and the task holds mmu_lock."""
    torn_down = not is_shadow_present_pte(new)
    if torn_down and not is_shadow_present_pte(old):
        return
    if not memory.held[memory.task].any & lock.holders.cell(kvm.mmu_lock).bit:
        return
    if not memory.peek(KvmMmuPage.role.cell(sp)).direct:
        return
    cell = rwlock_t.done.element(kvm.mmu_lock, memory.task)
    changes, zaps, below = memory.peek(cell) or NOTHING
    changes, zaps = changes + 1, zaps + torn_down
    if level <= PG_LEVEL_1G and _may_go_beyond(kvm):
        below = _expect_bounded(memory, gfn, below)
    memory.set(cell, (changes, zaps, below))
    memory.measure(CHANGED, changes)
    memory.measure(TORN_DOWN, zaps)


def _may_go_beyond(kvm: Kvm) -> bool:
    """Is the VM's memory below more than one entry of 1 GiB?"""
    gfns = kvm.gfns
    return gfns is None or gfn_round_for_level(gfns[0], PG_LEVEL_1G) != gfn_round_for_level(gfns[-1], PG_LEVEL_1G)


def _expect_bounded(memory: Memory, gfn: int, below: int | None) -> int:
    """I14: what is changed is below one entry of 1 GiB, whose first gfn is `below`; returns that of the new one."""
    memory.exercise("I14")
    entry = gfn_round_for_level(gfn, PG_LEVEL_1G)
    task = memory.world.tasks[memory.task]
    if below is not None and below != entry and not memory.peek(ghost.must_not_yield.cell(task)):
        message = (
            f"{task.name} changes SPTEs below the entries of 1 GiB at gfn {below:#x} and at gfn {entry:#x}, and does "
            "not offer to give mmu_lock up in between: nothing bounds how long it holds the lock"
        )
        memory.violate(Violation("I14", message, False))
    return entry
