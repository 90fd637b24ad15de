"""v6.18 as it is maintained (6.18.42 on): huge pages are recovered in place, and what changes SPTEs under mmu_lock
held for read no longer freezes them."""

from __future__ import annotations

from interleaf.kvm.attributes import ATTRIBUTES_COVER_HUGE_PAGES
from interleaf.kvm.mmu import RELOAD_FREES_OBSOLETE
from interleaf.kvm.mmu_notifier import AGE_ELIDES_FLUSH
from interleaf.kvm.nx_recovery import NX_RECOVERY_UNDER_READ_LOCK
from interleaf.kvm.page_fault import PREFAULT_INVALID_SLOT
from interleaf.kvm.tdp.age import AGE_CLEARS_ACCESSED, AGE_LOCKLESS
from interleaf.kvm.tdp.changed import ATOMIC_ZAP_FLUSHES, DEFERRED_BOOKKEEPING
from interleaf.kvm.tdp.collapse import COLLAPSE_LEAFS, COLLAPSE_PARENTS, RECOVER_IN_PLACE
from interleaf.kvm.tdp.handle_gfn import RCU_PER_ROOT
from interleaf.kvm.tdp.map import PREFETCH_KEEPS_PRESENT, SPURIOUS_IF_ALLOWED
from interleaf.kvm.tdp.masks import VOLATILE_ACCESSED
from interleaf.kvm.tdp.spte import REMADE_SPTE_CLEAN

from .v6_12 import V6_12

V6_18 = V6_12.derive(
    "v6.18",
    "Huge pages are recovered in place, and pages are aged, and NX huge pages recovered, without excluding others.",
    ("b146a9b34aed", "20a6cff3b283", "a57750909580", "e287e4316713"),
    obeys=(
        AGE_ELIDES_FLUSH,
        AGE_LOCKLESS,
        ATTRIBUTES_COVER_HUGE_PAGES,
        NX_RECOVERY_UNDER_READ_LOCK,
        PREFAULT_INVALID_SLOT,
        PREFETCH_KEEPS_PRESENT,
        RECOVER_IN_PLACE,
        RELOAD_FREES_OBSOLETE,
        SPURIOUS_IF_ALLOWED,
    ),
    drops=(
        AGE_CLEARS_ACCESSED,
        ATOMIC_ZAP_FLUSHES,
        COLLAPSE_LEAFS,
        COLLAPSE_PARENTS,
        DEFERRED_BOOKKEEPING,
        RCU_PER_ROOT,
        REMADE_SPTE_CLEAN,
        VOLATILE_ACCESSED,
    ),
)
