"""v6.1 as it is maintained (6.1.192): zapped synchronously, as v6.12, by backports; roots under the write lock."""

from __future__ import annotations

from interleaf.kvm.attributes import MEMORY_ATTRIBUTES
from interleaf.kvm.dirty_protect import CLEAR_SPLITS_LAST
from interleaf.kvm.hugepage import ADJUST_CHECKS_DISALLOWED
from interleaf.kvm.invalidate import INVALIDATE_NAMES_GFNS
from interleaf.kvm.nx_huge_page import NX_DISALLOWED_BEFORE_LINK, NX_TRACK_RECHECK
from interleaf.kvm.nx_recovery import NX_SKIPS_DIRTY_LOGGED
from interleaf.kvm.page_fault import RETRY_BEFORE_LOCK
from interleaf.kvm.prefault import PRE_FAULT_MEMORY
from interleaf.kvm.tdp import roots
from interleaf.kvm.tdp.age import AGE_CLEARS_ACCESSED
from interleaf.kvm.tdp.change_pte import CHANGE_PTE, CHANGE_PTE_BATCHES, ZAP_BEFORE_CHANGE
from interleaf.kvm.tdp.changed import DEFERRED_BOOKKEEPING
from interleaf.kvm.tdp.dirty import CLEAR_DIRTY_ATOMIC
from interleaf.kvm.tdp.map import MAP_LEVEL_GUARD, SPLIT_ON_FAULT
from interleaf.kvm.tdp.split import SPLIT_ALLOCATES_UNLOCKED
from interleaf.kvm.tdp.wrprot import WRPROT_VALID_ROOTS
from interleaf.kvm.tdp.zap import SKIP_FLUSH_INVALID, ZAP_SMALL_FIRST
from interleaf.kvm.zap import SLOT_ZAP_QUIRK

from .v6_4 import kvm_tdp_mmu_get_vcpu_root_hpa, kvm_tdp_mmu_zap_leafs
from .v6_12 import V6_12

V6_1 = V6_12.derive(
    "v6.1",
    "The stable kernel: roots are zapped by whoever invalidates them, and come and go under mmu_lock held for write.",
    ("edbdb43fc96b", "0df9dab891ff", "2abd5287f083"),
    obeys=(
        CHANGE_PTE,
        CHANGE_PTE_BATCHES,
        ZAP_BEFORE_CHANGE,
    ),
    drops=(
        MEMORY_ATTRIBUTES,
        PRE_FAULT_MEMORY,
        ADJUST_CHECKS_DISALLOWED,
        AGE_CLEARS_ACCESSED,
        CLEAR_DIRTY_ATOMIC,
        CLEAR_SPLITS_LAST,
        DEFERRED_BOOKKEEPING,
        INVALIDATE_NAMES_GFNS,
        MAP_LEVEL_GUARD,
        NX_DISALLOWED_BEFORE_LINK,
        NX_SKIPS_DIRTY_LOGGED,
        NX_TRACK_RECHECK,
        RETRY_BEFORE_LOCK,
        SKIP_FLUSH_INVALID,
        SLOT_ZAP_QUIRK,
        SPLIT_ALLOCATES_UNLOCKED,
        SPLIT_ON_FAULT,
        WRPROT_VALID_ROOTS,
        ZAP_SMALL_FIRST,
        roots.ROOTS_UNDER_READ_LOCK,
    ),
    shadow_nonpresent_value=0,
    removed_spte=0x5A0,
    kvm_tdp_mmu_get_vcpu_root_hpa=kvm_tdp_mmu_get_vcpu_root_hpa,
    kvm_tdp_mmu_zap_leafs=kvm_tdp_mmu_zap_leafs,
)
