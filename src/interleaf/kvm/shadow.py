"""The legacy MMU, as far as it meets the TDP MMU: shadow pages of a nested guest, and their quota.

(arch/x86/kvm/mmu/mmu.c and paging_tmpl.h, v6.12)

A guest hypervisor, L1, may have tables of its own, by which it translates for its guest, L2. The processor cannot walk
two such tables, so KVM keeps shadow pages: for each table of L1 one that maps to the host's frames. They are on a list,
`active_mmu_pages`, oldest last; all is done with mmu_lock held for write, and there are no more of them than
`n_max_mmu_pages`: who needs one may have to recycle the oldest.

In the model L1 has one table of each level, which maps L2's gfns to L1's of the same number: the one of level n is at
gfn L1_TABLES + n, in no memslot, and a vCPU's L2 is translated by those of the levels 1 to `KvmVcpu.nested_levels`.
Unmapping sees what shadow pages map; aging and dirty logging do not, so a fault refuses to map a memslot whose writes
are logged by them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace

from interleaf.hw.page_table import PG_LEVEL_4K, entries_for, index_of
from interleaf.linux.list import (
    INIT_LIST_HEAD,
    list_add,
    list_del,
    list_empty,
    list_for_each_entry,
    list_for_each_entry_safe,
    list_head,
    list_move,
)
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rwlock import cond_resched_rwlock_write
from interleaf.linux.slab import kmem_cache_alloc, kmem_cache_free
from interleaf.runtime import Embedded, ModelError, Object, checkpoint, free, new, operation, routine, say, warn
from interleaf.runtime.memory import Memory

from .design import rule
from .kvm_host import Kvm, KvmMmuPage, KvmMmuPageRole, KvmVcpu
from .pfn import kvm_set_pfn_accessed, kvm_set_pfn_dirty
from .request import kvm_free_obsolete_remote_roots, kvm_reload_remote_mmus
from .tdp.entries import kvm_tdp_mmu_read_spte, write_spte, xchg_spte
from .tdp.iter import spte_to_child_pt
from .tdp.spte import (
    is_accessed_spte,
    is_dirty_spte,
    is_last_spte,
    is_shadow_present_pte,
    make_nonleaf_spte,
    spte_to_pfn,
)
from .tlb import kvm_flush_remote_tlbs
from .trace import trace_kvm_mmu_get_page, trace_kvm_mmu_prepare_zap_page

RECLAIM_FOR_LEGACY_ONLY = rule(
    "reclaim-for-legacy-only",
    "A fault that the TDP MMU handles, with mmu_lock held for read, does not recycle legacy shadow pages, of which it "
    "needs none.",
    "47b0c2e4c220",
)
ZAPPED_ROOT_REQUEST = rule(
    "zapped-root-frees-obsolete-only",
    "When a shadow page that is a root is zapped, vCPUs are requested to put those of their roots that are obsolete, "
    "instead of all.",
    "527d5cd7eece",
)

KVM_MIN_FREE_MMU_PAGES = 5
KVM_REFILL_PAGES = 25
BATCH_ZAP_PAGES = 10

L1_TABLES = 0x10000
"""The gfn below those of L1's tables."""

PAE_LEVELS = 3
"""Levels of the tables of a 32-bit L1, whose root has no shadow page."""


class InvalidList(Object):
    """A list of shadow pages to be freed, on the stack of whoever zaps them (`invalid_list`)."""

    freeable = True
    head = Embedded(list_head)


def to_shadow_page(root: KvmMmuPage) -> KvmMmuPage | None:
    """The shadow page of a root; None for a special root, which has none."""
    return None if root.special else root


@operation(marked=False)
def is_tdp_mmu_page(memory: Memory, sp: KvmMmuPage) -> bool:
    """Does the page belong to the TDP MMU? No access: that part of the role never changes."""
    return bool(memory.peek(KvmMmuPage.role.cell(sp)).direct)


@operation(marked=False)
def _is_of_another_generation(memory: Memory, kvm: Kvm, sp: KvmMmuPage) -> bool:
    # without mmu_lock the answer may be old: whoever begins a generation makes a request afterwards
    return bool(memory.look(KvmMmuPage.mmu_valid_gen.cell(sp)) != memory.look(Kvm.mmu_valid_gen.cell(kvm)))


@routine
def is_obsolete_sp(kvm: Kvm, sp: KvmMmuPage) -> bool:
    """Has the page been invalidated, or is it a legacy page of an older generation? mmu_lock held."""
    return sp.role.invalid or (not is_tdp_mmu_page(sp) and _is_of_another_generation(kvm, sp))


def kvm_mmu_available_pages(kvm: Kvm) -> int:
    """How many shadow pages may still be made. mmu_lock held."""
    return max(0, kvm.params.n_max_mmu_pages - kvm.n_used_mmu_pages)


@routine
def make_mmu_pages_available(vcpu: KvmVcpu) -> int:
    """See to it that a fault finds free shadow pages, by recycling old ones; 0, or -ENOSPC. mmu_lock held for write."""
    kvm = vcpu.kvm
    available = kvm_mmu_available_pages(kvm)
    if available >= KVM_MIN_FREE_MMU_PAGES:
        return 0
    say("recycles shadow pages, because too few may still be made")
    kvm_mmu_zap_oldest_mmu_pages(kvm, KVM_REFILL_PAGES - available)
    return 0 if kvm_mmu_available_pages(kvm) else -errno.ENOSPC


@routine
def kvm_mmu_zap_oldest_mmu_pages(kvm: Kvm, nr_to_zap: int) -> None:
    """Zap the oldest pages that are no root in use, up to so many. mmu_lock held for write."""
    if list_empty(kvm.active_mmu_pages):
        return
    invalid_list = _new_list()
    zapped = 0
    while zapped < nr_to_zap:
        checkpoint()
        # from the head again after each page: zapping one may zap others
        sp = _oldest_unused(kvm)
        if sp is None:
            break
        zapped += kvm_mmu_prepare_zap_page(kvm, sp, invalid_list.head)
        del sp
    kvm_mmu_commit_zap_page(kvm, invalid_list.head)
    free(invalid_list)


def _last(pages: Iterable[KvmMmuPage]) -> KvmMmuPage | None:
    found = None
    for sp in pages:
        found = sp
    return found


@routine
def _oldest_unused(kvm: Kvm) -> KvmMmuPage | None:
    """Of the active pages that no vCPU has as its root, the one that was made first."""
    return _last(sp for sp in list_for_each_entry(kvm.active_mmu_pages, KvmMmuPage) if not sp.root_count)


@routine
def _oldest_obsolete(kvm: Kvm) -> KvmMmuPage | None:
    """Of the active pages of older generations, the one that was made first."""
    return _last(sp for sp in list_for_each_entry(kvm.active_mmu_pages, KvmMmuPage) if is_obsolete_sp(kvm, sp))


@routine
def kvm_zap_obsolete_pages(kvm: Kvm) -> None:
    """Zap the legacy pages of older generations. mmu_lock held for write; given up on the way."""
    batch = 0
    while not list_empty(kvm.active_mmu_pages):
        checkpoint()
        sp = _oldest_obsolete(kvm)
        if sp is None:
            break
        if warn("WARN", sp.role.invalid, f"{sp.name} is on the list of active pages, and invalid"):
            break
        if batch >= BATCH_ZAP_PAGES and cond_resched_rwlock_write(kvm.mmu_lock):
            batch = 0
            del sp
            continue
        batch += kvm_mmu_prepare_zap_page(kvm, sp, kvm.zapped_obsolete_pages)
        del sp
    kvm_mmu_commit_zap_page(kvm, kvm.zapped_obsolete_pages)


@routine
def kvm_mmu_zap_all_legacy(kvm: Kvm) -> None:
    """Zap all legacy pages, as kvm_mmu_zap_all() does before it zaps the TDP MMU's. mmu_lock held for write; given up
    on the way."""
    if list_empty(kvm.active_mmu_pages):
        return
    invalid_list = _new_list()
    while not list_empty(kvm.active_mmu_pages):
        checkpoint()
        sp = _newest(kvm)
        if warn("WARN", sp.role.invalid, f"{sp.name} is on the list of active pages, and invalid"):
            break
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list.head)
        del sp
        # the kernel only does where no other page was zapped with this one
        cond_resched_rwlock_write(kvm.mmu_lock)
    kvm_mmu_commit_zap_page(kvm, invalid_list.head)
    free(invalid_list)


def _newest(kvm: Kvm) -> KvmMmuPage:
    return next(list_for_each_entry(kvm.active_mmu_pages, KvmMmuPage))


@routine
def _new_list() -> InvalidList:
    invalid_list = new(InvalidList)
    INIT_LIST_HEAD(invalid_list.head)
    return invalid_list


@routine
def kvm_mmu_prepare_zap_page(kvm: Kvm, sp: KvmMmuPage, invalid_list: list_head) -> int:
    """Take a shadow page out of the tables, with the pages that it alone leads to, and make it invalid. It goes to
    `invalid_list`, to be freed; a root that vCPUs have goes nowhere, and they are requested to put it.

    Returns how many pages are on the list now that were not. mmu_lock held for write.
    """
    trace_kvm_mmu_prepare_zap_page(sp)
    say(f"zaps {sp.name}, a shadow page of level {sp.role.level}")
    zapped = int(kvm_mmu_page_unlink_children(kvm, sp, invalid_list))
    kvm_mmu_unlink_parents(kvm, sp)
    role, requested = sp.role, False
    if sp.root_count:
        list_del(sp.link)
        requested = not is_obsolete_sp(kvm, sp)
    else:
        zapped += 1
        # an invalid page is no active one: it was a root that vCPUs had
        (list_add if role.invalid else list_move)(sp.link, invalid_list)
        kvm.n_used_mmu_pages -= 1
    sp.role = role.invalidated()
    if requested and kvm.design.obeys(ZAPPED_ROOT_REQUEST):
        kvm_free_obsolete_remote_roots(kvm)
    elif requested:
        kvm_reload_remote_mmus(kvm)
    return zapped


@routine
def kvm_mmu_page_unlink_children(kvm: Kvm, sp: KvmMmuPage, invalid_list: list_head) -> int:
    """Zap all entries of a page; returns how many pages that has zapped."""
    zapped, level = 0, sp.role.level
    for gfn in _mapped_by(kvm, level):
        zapped += int(mmu_page_zap_pte(kvm, sp, gfn, level, invalid_list))
    return zapped


def _mapped_by(kvm: Kvm, level: int) -> tuple[int, ...]:
    """The first gfns of the entries of a page that can be written: L1's tables all begin at gfn 0."""
    return tuple(index << 9 * (level - 1) for index in entries_for(kvm.gfns, 0, level))


@routine
def mmu_page_zap_pte(kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int, invalid_list: list_head) -> int:
    """Zap an entry of a page, and the page that it leads to if nothing else does; returns how many pages that has
    zapped."""
    spte = kvm_tdp_mmu_read_spte(kvm, sp, gfn, level)
    if not is_shadow_present_pte(spte):
        return 0
    if is_last_spte(spte, level):
        drop_spte(kvm, sp, gfn, level)
        return 0
    child = spte_to_child_pt(spte, level)
    assert child is not None
    drop_parent_pte(kvm, child, sp, gfn, level)
    if child.role.guest_mode and not child.parent_ptes:
        return int(kvm_mmu_prepare_zap_page(kvm, child, invalid_list))
    return 0


@routine
def drop_spte(kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int) -> None:
    """Zap a leaf, and tell the host what the guest has done to the page."""
    old_spte = xchg_spte(kvm, None, sp, gfn, level, kvm.masks.nonpresent)
    if is_dirty_spte(kvm.masks, old_spte):
        kvm_set_pfn_dirty(spte_to_pfn(old_spte))
    if is_accessed_spte(kvm.masks, old_spte):
        kvm_set_pfn_accessed(spte_to_pfn(old_spte))


@routine
def drop_parent_pte(kvm: Kvm, sp: KvmMmuPage, parent: KvmMmuPage, gfn: int, level: int) -> None:
    """Clear an entry that leads to the page `sp`."""
    entry = (parent, index_of(gfn, level))
    sp.parent_ptes = tuple(known for known in sp.parent_ptes if known != entry)
    write_spte(kvm, None, parent, gfn, level, kvm.masks.nonpresent)


@routine
def kvm_mmu_unlink_parents(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Clear all entries that lead to a page."""
    for parent, index in sp.parent_ptes:
        level = sp.role.level + 1
        drop_parent_pte(kvm, sp, parent, index << 9 * (level - 1), level)


@routine
def kvm_mmu_commit_zap_page(kvm: Kvm, invalid_list: list_head) -> None:
    """Flush TLBs, and free the pages on the list. mmu_lock held for write since they were put there."""
    if list_empty(invalid_list):
        return
    kvm_flush_remote_tlbs(kvm)
    for sp in list_for_each_entry_safe(invalid_list, KvmMmuPage):
        warn("WARN", bool(sp.root_count), f"{sp.name} is freed, and a vCPU has it as its root")
        warn("WARN", not sp.role.invalid, f"{sp.name} is freed, and valid")
        list_del(sp.link)
        kmem_cache_free(sp)


@routine
def kvm_mmu_get_shadow_page(vcpu: KvmVcpu, gfn: int, role: KvmMmuPageRole) -> KvmMmuPage:
    """The shadow page of the table of L1 at `gfn`: one that is there, or a new one. mmu_lock held for write.

    (The kernel looks in a hash, which holds the valid pages of the list.)
    """
    kvm = vcpu.kvm
    lockdep_assert_held_write(kvm.mmu_lock)
    for sp in list_for_each_entry(kvm.active_mmu_pages, KvmMmuPage):
        if sp.gfn == gfn and sp.role == role and not is_obsolete_sp(kvm, sp):
            return sp
    sp = kmem_cache_alloc(KvmMmuPage, gfn=gfn, role=role, mmu_valid_gen=kvm.mmu_valid_gen)
    trace_kvm_mmu_get_page(sp)
    list_add(sp.link, kvm.active_mmu_pages)
    kvm.n_used_mmu_pages += 1
    return sp


def kvm_calc_shadow_root_page_role(kvm: Kvm, nested_levels: int) -> KvmMmuPageRole:
    """The role of the root for an L2 that is translated by tables of L1 of so many levels (as
    kvm_calc_shadow_ept_root_page_role; those of a 32-bit L1 are walked with four levels, as on NPT)."""
    return KvmMmuPageRole(
        level=max(nested_levels, 4), direct=False, ad_disabled=not kvm.platform.ad_bits, guest_mode=True
    )


@routine
def mmu_alloc_shadow_roots(vcpu: KvmVcpu) -> KvmMmuPage:
    """A root for L2, on which the vCPU counts. mmu_lock held for write."""
    kvm, levels = vcpu.kvm, vcpu.nested_levels
    if not kvm.shadow_root_allocated:
        kvm.shadow_root_allocated = True
    if make_mmu_pages_available(vcpu):
        raise ModelError("n_max_mmu_pages is too small for a root.")
    if levels == PAE_LEVELS:
        return _mmu_alloc_special_root(vcpu)
    root = kvm_mmu_get_shadow_page(vcpu, L1_TABLES + levels, vcpu.root_role)
    root.root_count += 1
    return root


@routine
def _mmu_alloc_special_root(vcpu: KvmVcpu) -> KvmMmuPage:
    """`mmu->pml4_root`, which leads to `mmu->pae_root`, and that to the shadow page of a table of level 2: the root
    proper of a 32-bit L1 has four entries, which no shadow page is made for. Both are the vCPU's own for good."""
    kvm, role = vcpu.kvm, vcpu.root_role
    if vcpu.pae_root is None:
        vcpu.pml4_root = kmem_cache_alloc(KvmMmuPage, special=True, role=role)
        vcpu.pae_root = kmem_cache_alloc(KvmMmuPage, special=True, role=role.child())
        _link(kvm, vcpu.pml4_root, 0, vcpu.pae_root)
    sp = kvm_mmu_get_shadow_page(vcpu, L1_TABLES + 2, replace(role, level=2))
    sp.root_count += 1
    _link(kvm, vcpu.pae_root, 0, sp)
    assert vcpu.pml4_root is not None
    return vcpu.pml4_root


@routine
def link_shadow_page(kvm: Kvm, sp: KvmMmuPage, gfn: int, child: KvmMmuPage) -> None:
    """Make an entry of `sp` lead to the page `child`. mmu_lock held for write."""
    child.parent_ptes = (*child.parent_ptes, (sp, index_of(gfn, sp.role.level)))
    _link(kvm, sp, gfn, child)


@routine
def _link(kvm: Kvm, sp: KvmMmuPage, gfn: int, child: KvmMmuPage) -> None:
    spte = make_nonleaf_spte(kvm.masks, child.pfn, not kvm.platform.ad_bits)
    write_spte(kvm, None, sp, gfn, sp.role.level, spte)


@routine
def mmu_free_root_page(vcpu: KvmVcpu, root: KvmMmuPage, invalid_list: list_head) -> None:
    """The vCPU gives a legacy root back; it stays for whoever needs it next, if it is valid. mmu_lock held for
    write."""
    kvm: Kvm = vcpu.kvm
    sp: KvmMmuPage | None = root
    if root.special:
        assert vcpu.pae_root is not None
        level = PAE_LEVELS
        sp = spte_to_child_pt(kvm_tdp_mmu_read_spte(kvm, vcpu.pae_root, 0, level), level)
        write_spte(kvm, None, vcpu.pae_root, 0, level, kvm.masks.nonpresent)
    assert sp is not None
    sp.root_count -= 1
    if not sp.root_count and sp.role.invalid:
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)


@routine
def free_legacy_roots(vcpu: KvmVcpu, roots: tuple[KvmMmuPage, ...]) -> None:
    """The vCPU gives legacy roots back. mmu_lock held for write."""
    invalid_list = _new_list()
    for root in roots:
        mmu_free_root_page(vcpu, root, invalid_list.head)
    kvm_mmu_commit_zap_page(vcpu.kvm, invalid_list.head)
    free(invalid_list)


@routine
def free_mmu_pages(vcpu: KvmVcpu) -> None:
    """The vCPU is destroyed: it has no roots any more."""
    if vcpu.pml4_root is not None and vcpu.pae_root is not None:
        kmem_cache_free(vcpu.pae_root)
        kmem_cache_free(vcpu.pml4_root)


def kvm_memslots_have_rmaps(kvm: Kvm) -> bool:
    """Has there been a shadow page that could map anything? mmu_lock held."""
    return kvm.shadow_root_allocated


@routine
def kvm_rmap_zap_gfn_range(kvm: Kvm, gfn_start: int, gfn_end: int) -> bool:
    """Zap what shadow pages map of the gfns gfn_start <= gfn < gfn_end; returns whether a TLB flush is needed. mmu_lock
    held for write. (The kernel finds the entries by `slot->arch.rmap`.)"""
    flush = False
    for sp in list_for_each_entry(kvm.active_mmu_pages, KvmMmuPage):
        if sp.role.level == PG_LEVEL_4K:
            for gfn in _mapped_by(kvm, PG_LEVEL_4K):
                spte = kvm_tdp_mmu_read_spte(kvm, sp, gfn, PG_LEVEL_4K)
                if gfn_start <= gfn < gfn_end and is_shadow_present_pte(spte):
                    drop_spte(kvm, sp, gfn, PG_LEVEL_4K)
                    flush = True
    return flush
