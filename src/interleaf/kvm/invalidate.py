"""How page faults notice that what they looked up is out of date (virt/kvm/kvm_main.c, v6.12).

Whoever is about to take pages away raises `mmu_invalidate_in_progress` and names the gfns; when the pages are gone
`mmu_invalidate_seq` moves on. A page fault takes a snapshot of the latter before it looks up its pfn. Under
mmu_lock it then finds one of the two changed if the pfn may be out of date, and starts again.

Ranges are counted in gfns since v6.8, and in hvas before.
"""

from __future__ import annotations

from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.bug import BUG_ON
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.runtime import routine

from .design import rule
from .kvm_host import Kvm

INVALIDATE_NAMES_GFNS = rule(
    "invalidate-names-gfns",
    "An invalidation names gfns, by which faults find out whether it concerns them, instead of addresses in the "
    "process.",
    "8569992d64b8",
)


@routine
def kvm_mmu_invalidate_begin(kvm: Kvm) -> None:
    """An invalidation begins: faults that finish from now on must try again. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    kvm.mmu_invalidate_in_progress += 1
    if kvm.mmu_invalidate_in_progress == 1:
        kvm.mmu_invalidate_range_start = kvm.mmu_invalidate_range_end = 0


@routine
def kvm_mmu_invalidate_range_add(kvm: Kvm, start: int, end: int) -> None:
    """The invalidation in progress covers the gfns (up to v6.7: the hvas) from `start` to `end`, too. With several in
    progress, the range is what spans all of them. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    first, last = kvm.mmu_invalidate_range_start, kvm.mmu_invalidate_range_end
    if first == last:
        first, last = start, end
    kvm.mmu_invalidate_range_start = min(first, start)
    kvm.mmu_invalidate_range_end = max(last, end)


@routine
def kvm_mmu_invalidate_end(kvm: Kvm) -> None:
    """The invalidation ends: faults that have looked up a pfn until now must try again. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    # the fault takes its snapshot without the lock
    WRITE_ONCE(kvm, Kvm.mmu_invalidate_seq, (kvm.mmu_invalidate_seq + 1) % (1 << kvm.params.mmu_seq_bits))
    kvm.mmu_invalidate_in_progress -= 1
    BUG_ON(kvm.mmu_invalidate_in_progress < 0, "an invalidation ends that never began")


@routine
def mmu_invalidate_retry_gfn(kvm: Kvm, mmu_seq: int, gfn: int) -> bool:
    """May a pfn for `gfn`, looked up after the snapshot `mmu_seq`, be out of date? mmu_lock held."""
    return bool(_retry(kvm, mmu_seq, gfn))


@routine
def mmu_invalidate_retry_hva(kvm: Kvm, mmu_seq: int, hva: int) -> bool:
    """The same for the pfn that was found at `hva` (up to v6.7)."""
    return bool(_retry(kvm, mmu_seq, hva))


@routine
def _retry(kvm: Kvm, mmu_seq: int, where: int) -> bool:
    if kvm.mmu_invalidate_in_progress and kvm.mmu_invalidate_range_start <= where < kvm.mmu_invalidate_range_end:
        return True
    return kvm.mmu_invalidate_seq != mmu_seq
