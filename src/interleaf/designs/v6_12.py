"""v6.12 as it is maintained (6.12.101 on): synchronous zapping, roots made and freed under mmu_lock held for read,
invalid roots on the list."""

from interleaf.kvm.attributes import MEMORY_ATTRIBUTES
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_protect import CLEAR_SPLITS_LAST, ENABLE_LOG_FLUSHES
from interleaf.kvm.fast_page_fault import FAST_PAGE_FAULT
from interleaf.kvm.hugepage import ADJUST_CHECKS_DISALLOWED
from interleaf.kvm.invalidate import INVALIDATE_NAMES_GFNS
from interleaf.kvm.memslots import MMIO_GENERATION_WRAP, SWAP_WAITS_FOR_NOTIFIERS
from interleaf.kvm.mmio import MMIO_REFUSES_UPDATE
from interleaf.kvm.mmu import CR0_WP_KEEPS_ROOTS, FREE_OBSOLETE_CHECKS_EACH
from interleaf.kvm.nx_huge_page import NX_DISALLOWED_BEFORE_LINK, NX_TRACK_RECHECK
from interleaf.kvm.nx_recovery import NX_RECOVERY_FLUSHES, NX_SKIPS_DIRTY_LOGGED
from interleaf.kvm.page_fault import (
    FULL_MMU_SEQ,
    INVALID_SLOT_RETRY,
    NOTIFIER_RETRY,
    RETRY_BEFORE_LOCK,
    SPECIAL_ROOT_CHECK,
    STALE_CHECK_AFTER_RECLAIM,
    STALE_ROOT_CHECK,
)
from interleaf.kvm.paging_tmpl import CHILD_ROLE_FROM_PARENT
from interleaf.kvm.prefault import PRE_FAULT_MEMORY
from interleaf.kvm.request import RELOAD_REQUEST
from interleaf.kvm.shadow import RECLAIM_FOR_LEGACY_ONLY, ZAPPED_ROOT_REQUEST
from interleaf.kvm.tdp import roots, unmap
from interleaf.kvm.tdp.age import AGE_CLEARS_ACCESSED, AGE_KEEPS_DIRTY
from interleaf.kvm.tdp.changed import (
    ATOMIC_FROZEN_WARN,
    ATOMIC_ZAP_FLUSHES,
    DEFERRED_BOOKKEEPING,
    EXCLUSIVE_FROZEN_WARN,
    LEAF_REPLACES_TABLE,
    XCHG_VOLATILE,
)
from interleaf.kvm.tdp.collapse import COLLAPSE_LEAFS, COLLAPSE_PARENTS
from interleaf.kvm.tdp.dirty import CLEAR_DIRTY_ATOMIC, CLEAR_DIRTY_BY_ROOT
from interleaf.kvm.tdp.handle_gfn import RCU_PER_ROOT
from interleaf.kvm.tdp.iter import ITER_YIELDED
from interleaf.kvm.tdp.map import (
    FROZEN_LEAF_CHECK,
    MAP_AT_GOAL_ONLY,
    MAP_LEVEL_GUARD,
    REPLACED_TABLE_FLUSH,
    SPLIT_ON_FAULT,
)
from interleaf.kvm.tdp.masks import VOLATILE_ACCESSED
from interleaf.kvm.tdp.split import EAGER_SPLIT, SPLIT_ALLOCATES_UNLOCKED, SPLIT_VALID_ROOTS
from interleaf.kvm.tdp.spte import LEAF_WRITABLE_HINT, REMADE_SPTE_CLEAN
from interleaf.kvm.tdp.wrprot import WRPROT_MMU_WRITABLE, WRPROT_VALID_ROOTS
from interleaf.kvm.tdp.zap import (
    FLUSH_IN_RCU,
    FORWARD_PROGRESS,
    MAX_GFN_OF_ARCHITECTURE,
    SKIP_FLUSH_INVALID,
    ZAP_1G_FIRST,
    ZAP_SMALL_FIRST,
)
from interleaf.kvm.zap import SLOT_ZAP_QUIRK, ZAP_ALL_SLOTS_LOCK, ZAP_RANGE_COUNTS, ZAP_RANGE_UNIT

RULES = (
    MEMORY_ATTRIBUTES,
    PRE_FAULT_MEMORY,
    ADJUST_CHECKS_DISALLOWED,
    AGE_CLEARS_ACCESSED,
    AGE_KEEPS_DIRTY,
    CHILD_ROLE_FROM_PARENT,
    ATOMIC_FROZEN_WARN,
    ATOMIC_ZAP_FLUSHES,
    CLEAR_DIRTY_ATOMIC,
    CLEAR_DIRTY_BY_ROOT,
    CLEAR_SPLITS_LAST,
    COLLAPSE_LEAFS,
    COLLAPSE_PARENTS,
    CR0_WP_KEEPS_ROOTS,
    DEFERRED_BOOKKEEPING,
    EAGER_SPLIT,
    ENABLE_LOG_FLUSHES,
    EXCLUSIVE_FROZEN_WARN,
    FAST_PAGE_FAULT,
    FLUSH_IN_RCU,
    FORWARD_PROGRESS,
    FREE_OBSOLETE_CHECKS_EACH,
    FROZEN_LEAF_CHECK,
    FULL_MMU_SEQ,
    INVALIDATE_NAMES_GFNS,
    INVALID_SLOT_RETRY,
    ITER_YIELDED,
    LEAF_REPLACES_TABLE,
    LEAF_WRITABLE_HINT,
    MAP_AT_GOAL_ONLY,
    MAP_LEVEL_GUARD,
    MAX_GFN_OF_ARCHITECTURE,
    MMIO_GENERATION_WRAP,
    MMIO_REFUSES_UPDATE,
    NOTIFIER_RETRY,
    NX_DISALLOWED_BEFORE_LINK,
    NX_RECOVERY_FLUSHES,
    NX_SKIPS_DIRTY_LOGGED,
    NX_TRACK_RECHECK,
    RCU_PER_ROOT,
    RECLAIM_FOR_LEGACY_ONLY,
    RELOAD_REQUEST,
    REMADE_SPTE_CLEAN,
    REPLACED_TABLE_FLUSH,
    RETRY_BEFORE_LOCK,
    SKIP_FLUSH_INVALID,
    SLOT_ZAP_QUIRK,
    SPECIAL_ROOT_CHECK,
    SPLIT_ALLOCATES_UNLOCKED,
    SPLIT_ON_FAULT,
    SPLIT_VALID_ROOTS,
    STALE_CHECK_AFTER_RECLAIM,
    STALE_ROOT_CHECK,
    SWAP_WAITS_FOR_NOTIFIERS,
    VOLATILE_ACCESSED,
    WRPROT_MMU_WRITABLE,
    WRPROT_VALID_ROOTS,
    XCHG_VOLATILE,
    ZAP_1G_FIRST,
    ZAPPED_ROOT_REQUEST,
    ZAP_ALL_SLOTS_LOCK,
    ZAP_RANGE_COUNTS,
    ZAP_RANGE_UNIT,
    ZAP_SMALL_FIRST,
    roots.NEXT_ROOT_RCU,
    roots.ROOTS_UNDER_READ_LOCK,
    unmap.FLUSH_ACROSS_ROOTS,
    unmap.FLUSH_BEFORE_YIELD,
    unmap.UNMAP_INVALID_ROOTS,
)

V6_12 = Design(
    name="v6.12",
    summary="Roots are zapped by whoever invalidates them, and come and go under mmu_lock held for read.",
    commits=(
        "0df9dab891ff",
        "edbdb43fc96b",
        "576a15de8d29",
        "f5238c2a60f1",
        "dab285e4ec73",
        "8ca983631f3c",
        "2abd5287f083",
    ),
    rules=frozenset(rule.name for rule in RULES),
    shadow_nonpresent_value=1 << 63,
    removed_spte=1 << 63 | 0x5A0,
    kvm_mmu_init_tdp_mmu=roots.kvm_mmu_init_tdp_mmu,
    kvm_mmu_uninit_tdp_mmu=roots.kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_get_vcpu_root_hpa=roots.kvm_tdp_mmu_get_vcpu_root_hpa,
    kvm_tdp_mmu_get_root=roots.kvm_tdp_mmu_get_root,
    kvm_tdp_mmu_put_root=roots.kvm_tdp_mmu_put_root,
    tdp_mmu_next_root=roots.tdp_mmu_next_root,
    kvm_tdp_mmu_invalidate_all_roots=roots.kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=roots.kvm_tdp_mmu_zap_invalidated_roots,
    kvm_mmu_zap_all_fast=roots.kvm_mmu_zap_all_fast,
    kvm_tdp_mmu_unmap_gfn_range=unmap.kvm_tdp_mmu_unmap_gfn_range,
    kvm_tdp_mmu_zap_leafs=unmap.kvm_tdp_mmu_zap_leafs,
    kvm_tdp_mmu_zap_all=unmap.kvm_tdp_mmu_zap_all,
)
