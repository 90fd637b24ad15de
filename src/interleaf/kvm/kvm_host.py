"""KVM's structures: what a VM, a vCPU, a memslot and a shadow page consist of.

Names are the kernel's (include/linux/kvm_host.h, arch/x86/include/asm/kvm_host.h,
arch/x86/kvm/mmu/mmu_internal.h); where a field has moved over the years, the name is that of v6.12. Each
field's comment says which lock protects it. gfns and pfns are numbers of 4 KiB pages.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

from interleaf.hw.cpu import Cpu
from interleaf.hw.page_table import PG_LEVEL_1G, ROOT_LEVEL, PageTable
from interleaf.hw.platform import EPT, Platform
from interleaf.linux.list import list_head
from interleaf.linux.mutex import mutex
from interleaf.linux.refcount import refcount_t
from interleaf.linux.rwlock import rwlock_t
from interleaf.linux.spinlock import spinlock_t
from interleaf.linux.srcu import srcu_struct
from interleaf.linux.wait import wait_queue_head_t
from interleaf.linux.workqueue import work_struct, workqueue_struct
from interleaf.mm.mm import Mm, Pte
from interleaf.mm.page import Page
from interleaf.runtime import Array, Const, Embedded, Marked, ModelError, Object, Plain, Task
from interleaf.runtime.objects import Slots

from .tdp.masks import SpteMasks, spte_masks

if TYPE_CHECKING:
    from .design import Design

ACC_EXEC_MASK = 1
ACC_WRITE_MASK = 2
ACC_USER_MASK = 4
ACC_ALL = ACC_EXEC_MASK | ACC_WRITE_MASK | ACC_USER_MASK

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
"""Userspace wants to know which pages of the slot the guest writes."""
KVM_MEM_READONLY = 1 << 1
KVM_MEMSLOT_INVALID = 1 << 16
"""The slot is being deleted or moved: faults that find it must retry."""

KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 1 << 63
"""Flag in the memslot generation between the swap of the slots and the end of the SRCU grace period."""

PFERR_PRIVATE_ACCESS = 1 << 49
"""KVM's own bit in the error code: the access is to private memory of the guest."""

KVM_PFN_NOSLOT = 1 << 63
"""The pfn of a fault on a gfn without a memslot."""

KVM_MMU_NUM_PREV_ROOTS = 3

NR_ADDRESS_SPACES = 2
"""One for system management mode; the generation of the memslots advances by as many."""


class KvmRequest(enum.IntEnum):
    """Bit numbers of `KvmVcpu.requests` (KVM_REQ_*)."""

    MMU_RELOAD = 0
    """Put all roots and load a new one before the guest runs again (up to v5.17)."""
    MMU_FREE_OBSOLETE_ROOTS = 1
    """Put the roots that are obsolete (v5.18 on)."""
    DIRTY_RING_SOFT_FULL = 2
    """Return to userspace: the vCPU's dirty ring is nearly full."""


@dataclass(frozen=True, slots=True)
class KvmMmuPageRole:
    """`union kvm_mmu_page_role`: what distinguishes shadow pages; `word` is its layout as a u32."""

    level: int = ROOT_LEVEL
    direct: bool = True
    access: int = ACC_ALL
    invalid: bool = False
    efer_nx: bool = True
    cr0_wp: bool = True
    ad_disabled: bool = False
    guest_mode: bool = False
    smm: int = 0

    @property
    def word(self) -> int:
        """The role as the number that the kernel compares roots by; `invalid` is bit 11 of it."""
        return (
            self.level
            | self.direct << 7
            | self.access << 8
            | self.invalid << 11
            | self.efer_nx << 12
            | self.cr0_wp << 13
            | self.ad_disabled << 16
            | self.guest_mode << 17
            | self.smm << 24
        )

    @property
    def as_id(self) -> int:
        """The address space (and so the set of memslots) that a page of this role belongs to."""
        return self.smm

    def child(self) -> KvmMmuPageRole:
        """The role of a table one level below (tdp_mmu_alloc_sp)."""
        return replace(self, level=self.level - 1)

    def invalidated(self) -> KvmMmuPageRole:
        """The same role with the invalid bit set."""
        return replace(self, invalid=True)


class KvmMmuPage(PageTable):
    """`struct kvm_mmu_page` together with the page of SPTEs that it describes (`spt`).

    An entry that is 0 stands for the design's non-present value, which every entry of a new table has.
    """

    gfn = Plain(0)
    """First gfn that the table covers; constant once the page is linked."""
    role: Plain[KvmMmuPageRole] = Plain(KvmMmuPageRole())
    """`role.invalid` is written under mmu_lock; the rest is constant once the page is linked."""
    tdp_mmu_root_count = Embedded(refcount_t)
    """References to a root; meaningless in other pages."""
    link = Embedded(list_head)
    """Of a root: in `Kvm.tdp_mmu_roots`; changed under tdp_mmu_pages_lock. Of a legacy page: in
    `Kvm.active_mmu_pages`, or a list of those to be freed; changed under mmu_lock held for write."""
    parent: Plain[tuple[KvmMmuPage, int] | None] = Plain(None)
    """Where the SPTE that points to this page is (`sp->ptep`): table and index. None for a root."""
    tdp_mmu_scheduled_root_to_zap = Plain(False)
    """v6.6 on: zap_invalidated_roots must zap this root. Protected by mmu_lock and slots_lock."""
    tdp_mmu_async_work = Embedded(work_struct)
    """v5.18 to v6.5: the work item that zaps this root."""
    tdp_mmu_async_data: Plain[Kvm | None] = Plain(None)
    """v5.18 to v6.5: the VM, for that work item."""
    nx_huge_page_disallowed = Marked(False)
    """The table is here because a huge page in its place would not be executable. Set before it is linked, cleared
    under tdp_mmu_pages_lock, read by faults without it (by plain accesses in the kernel, where a bool is written and
    read in one)."""
    mmu_valid_gen = Plain(0)
    """Of a legacy page: the VM's generation when it was made. Constant."""
    root_count = Plain(0)
    """Of a legacy page: how many vCPUs have it as a root; under mmu_lock held for write."""
    parent_ptes: Plain[tuple[tuple[KvmMmuPage, int], ...]] = Plain(())
    """Of a legacy page: the entries that lead to it, as table and index; under mmu_lock held for write."""
    special = Plain(False)
    """It is a page of SPTEs only, without a header: a special root, of which there is no shadow page. Constant."""
    possible_nx_huge_page_link = Embedded(list_head)
    """In `Kvm.possible_nx_huge_pages`; changed under tdp_mmu_pages_lock, or mmu_lock held for write. Initialised in
    the tables that are disallowed only."""


class KvmArchMemorySlot(Object):
    """`struct kvm_arch_memory_slot`: what KVM keeps for each page of a slot. Copies of the slot share it, until it is
    freed with the last of them (kvm_arch_free_memslot)."""

    freeable = True
    gfn_write_track = Array(0)
    """By gfn: how many there are who must see each write to the page; written under mmu_lock held for write."""
    disallow_lpage = Array(0)
    """By (level, first gfn): how many reasons there are not to map these gfns by one page of that level (`lpage_info`),
    beside the borders of the slot; written under mmu_lock held for write."""


class KvmDirtyBitmap(Object):
    """The dirty bitmap of a slot. Copies of the slot share it while its dirty pages are logged."""

    freeable = True
    bits = Array(False)
    """By the page's offset in the slot: it has been written since userspace was last told so."""


class KvmMemorySlot(Object):
    """`struct kvm_memory_slot`. Constant while published; freed after the SRCU grace period."""

    freeable = True
    arch: Const[KvmArchMemorySlot] = Const(KvmArchMemorySlot)
    dirty_bitmap: Const[KvmDirtyBitmap | None] = cast("Const[KvmDirtyBitmap | None]", Const(KvmDirtyBitmap))
    """None if dirty pages are not logged, or in the vCPUs' dirty rings."""
    id = Plain(0)
    as_id = Plain(0)
    base_gfn = Plain(0)
    npages = Plain(0)
    userspace_addr = Plain(0)
    """Host virtual address of the first page, in pages (an hva divided by 4 KiB)."""
    flags = Plain(0)

    @property
    def gfn_write_track(self) -> Slots[int]:
        """How many there are who must see each write to a page of the slot, by gfn."""
        return self.arch.gfn_write_track


class KvmMemslots(Object):
    """`struct kvm_memslots`: one consistent set of slots, replaced as a whole. Freed after the grace period."""

    freeable = True
    generation = Plain(0)
    slots: Plain[tuple[KvmMemorySlot, ...]] = Plain(())
    """Ordered by base gfn."""


class KvmGfnRange(NamedTuple):
    """`struct kvm_gfn_range`: gfns start <= gfn < end of one slot."""

    slot: KvmMemorySlot
    start: int
    end: int
    may_block: bool
    arg: Pte | None = None
    """What the host's PTE becomes, where that is what the notifier tells of (`arg.pte`)."""


@dataclass(frozen=True, slots=True)
class KvmParams:
    """What userspace and the administrator have chosen for a VM, and do not change while it runs."""

    max_level: int = PG_LEVEL_1G
    """Largest pages that KVM maps (`max_huge_page_level`)."""
    slot_zap_all: bool = True
    """Deleting a memslot zaps everything (KVM_X86_QUIRK_SLOT_ZAP_ALL; without the quirk, the slot's range only)."""
    eager_page_split: bool = True
    """Dirty logging splits huge pages when it begins, or is cleared (module parameter of that name)."""
    manual_protect: bool = False
    """KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: getting the dirty log does not protect pages again, clearing it does."""
    initially_all_set: bool = False
    """KVM_DIRTY_LOG_INITIALLY_SET: a new dirty log says that all pages are dirty, and protects none."""
    dirty_ring_size: int = 0
    """Entries of each vCPU's dirty ring; 0: dirty pages are logged in the slots' bitmaps."""
    mmio_caching: bool = True
    """gfns without a memslot get SPTEs that say so (module parameter enable_mmio_caching)."""
    private_mem: bool = False
    """The guest may have private memory (KVM_X86_SW_PROTECTED_VM), which the host has no mapping of."""
    disable_nx_huge_pages: bool = False
    """The VM is trusted not to attack the host through executable huge pages (KVM_CAP_VM_DISABLE_NX_HUGE_PAGES)."""
    n_max_mmu_pages: int = 1024
    """How many legacy shadow pages there may be (KVM_SET_NR_MMU_PAGES)."""
    mmu_seq_bits: int = 64
    """Width of `Kvm.mmu_invalidate_seq`, an unsigned long; an int is half as wide."""
    mmio_gen_bits: int = 19
    """How much of the memslots' generation an MMIO SPTE keeps (MMIO_SPTE_GEN_MASK)."""

    @property
    def mmio_gen_mask(self) -> int:
        """MMIO_SPTE_GEN_MASK."""
        return (1 << self.mmio_gen_bits) - 1


DEFAULT_PARAMS = KvmParams()


class Kvm(Object):
    """`struct kvm` with its `kvm_arch`: one virtual machine."""

    freeable = True
    design: Const[Design] = cast("Const[Design]", Const(object))
    """How this kernel's TDP MMU is built."""
    mm = Const(Mm)
    """The address space that guest memory comes from; KVM holds a reference on it (mmgrab), not on its users."""
    platform: Const[Platform] = Const(Platform, EPT)
    """The machine it runs on."""
    params: Const[KvmParams] = Const(KvmParams, DEFAULT_PARAMS)
    gfns: Const[tuple[int, ...] | None] = cast("Const[tuple[int, ...] | None]", Const(tuple, ()))
    """All gfns that the scenario can ever map, ascending. Walks visit, at each level, only the entries that
    lead to one of them, because all others are never written; mapping another gfn is a ModelError. None: every gfn
    may be mapped, and walks visit every entry."""

    @property
    def named_gfns(self) -> tuple[int, ...]:
        """All gfns of a VM that names them."""
        if self.gfns is None:
            raise ModelError(f"{self.name} may map every gfn, and names none.")
        return self.gfns

    @functools.cached_property
    def masks(self) -> SpteMasks:
        """Which bits of an SPTE mean what."""
        return spte_masks(self.design, self.platform)

    users_count = Embedded(refcount_t)
    """References to the VM (`kvm->users_count`); the last one destroys it."""
    vcpus: Plain[tuple[KvmVcpu, ...]] = Plain(())

    mmu_lock = Embedded(rwlock_t)
    slots_lock = Embedded(mutex)
    slots_arch_lock = Embedded(mutex)
    srcu = Embedded(srcu_struct)
    memslots: Marked[KvmMemslots | None] = Marked(None)
    """RCU pointer: read under `srcu`, replaced under slots_lock and slots_arch_lock."""

    mn_invalidate_lock = Embedded(spinlock_t)
    mn_active_invalidate_count = Plain(0)
    """Notifiers between range_start and range_end; under mn_invalidate_lock."""
    mn_memslots_update_rcuwait = Embedded(wait_queue_head_t)
    """Where the update of the memslots waits for that to become 0."""
    mmu_invalidate_seq = Plain(0)
    """Written under mmu_lock held for write; a fault takes its snapshot without the lock."""
    mmu_invalidate_in_progress = Plain(0)
    """Under mmu_lock, as the two below."""
    mmu_invalidate_range_start = Plain(0)
    mmu_invalidate_range_end = Plain(0)

    mmu_valid_gen = Plain(0)
    """Toggles between 0 and 1 with each fast zap; written under slots_lock and mmu_lock."""
    active_mmu_pages = Embedded(list_head)
    """Legacy shadow pages by `link`, newest first; under mmu_lock held for write, as the three below."""
    zapped_obsolete_pages = Embedded(list_head)
    """Those of older generations that are about to be freed."""
    shadow_root_allocated = Plain(False)
    """A vCPU has had a legacy root, so that there may be legacy shadow pages; under mmu_lock, too. (The kernel sets it
    before it takes that, under slots_arch_lock, with which it allocates what it needs for such pages.)"""
    n_used_mmu_pages = Plain(0)
    """How many legacy shadow pages there are."""
    tdp_mmu_roots = Embedded(list_head)
    """Roots by `link`; read under mmu_lock or RCU, changed under tdp_mmu_pages_lock."""
    tdp_mmu_pages_lock = Embedded(spinlock_t)
    """Nests inside mmu_lock."""
    tdp_mmu_zap_wq: Plain[workqueue_struct | None] = Plain(None)
    """v5.18 to v6.5: the queue of roots to zap."""

    possible_nx_huge_pages = Embedded(list_head)
    """Tables that could be huge pages again, were they not executable; under tdp_mmu_pages_lock."""
    nx_lpage_splits = Marked(0)
    """How many there are (`stat.nx_lpage_splits`); written as the list is, read without a lock."""
    nx_huge_page_recovery_thread: Plain[Task | None] = Plain(None)
    """Makes huge pages of them again, now and then."""
    mem_attr_array = Array(0)
    """By gfn: KVM_MEMORY_ATTRIBUTE_*. Written under slots_lock, read without a lock."""
    gmem: Array[Page | None] = Array(None)
    """The file that private memory comes from (guest_memfd), by gfn."""


class KvmModule(Object):
    """The globals of the kvm module."""

    kvm_lock = Embedded(mutex)
    vm_list: Plain[tuple[Kvm, ...]] = Plain(())
    """All VMs, under kvm_lock."""
    nx_huge_pages = Marked(False)
    """Module parameter: huge pages are not executable (a guest could crash the host by them)."""


class kvm_dirty_ring(Object):
    """`struct kvm_dirty_ring`: the pages that a vCPU has written, in the order in which it logged them.

    The kernel appends at `dirty_index`, userspace collects from `fetch_index` on, and the kernel resets what has been
    collected, from `reset_index` on. The indices only grow; the entry of an index is at its remainder by the size.
    """

    dirty_index = Marked(0)
    """Written by the vCPU."""
    fetch_index = Plain(0)
    """Userspace's own."""
    reset_index = Marked(0)
    """Written under slots_lock."""
    entries: Array[DirtyGfn | None] = Array(None)


class DirtyGfn(NamedTuple):
    """`struct kvm_dirty_gfn`: one written page, by its slot and its offset there."""

    as_id: int
    slot: int
    offset: int
    collected: bool = False
    """Userspace has taken it (KVM_DIRTY_GFN_F_RESET)."""


class KvmVcpu(Object):
    """`struct kvm_vcpu` with its `kvm_mmu`: one virtual processor."""

    kvm = Const(Kvm)
    index = Const(int)
    cpu = Const(Cpu)
    """The processor that runs it."""
    requests = Marked(0)
    """Bit set of `KvmRequest` numbers."""
    dirty_ring = Embedded(kvm_dirty_ring)
    pml_buffer: Plain[tuple[int, ...]] = Plain(())
    """The gfns that the processor has logged because it set the D bit of their SPTE (page-modification logging), oldest
    first. (The hardware's buffer has 512 entries, and makes the vCPU leave the guest when it is full.)"""
    root_role: Plain[KvmMmuPageRole] = Plain(KvmMmuPageRole())
    """The role of the root that this vCPU needs (`mmu->root_role`)."""
    mmu_root: Plain[KvmMmuPage | None] = Plain(None)
    """The loaded root (`mmu->root.hpa`), to which the vCPU holds a reference; None is INVALID_PAGE. Used by
    the vCPU's own task only, as all that follows."""
    prev_roots: Plain[tuple[KvmMmuPage | None, ...]] = Plain((None,) * KVM_MMU_NUM_PREV_ROOTS)
    """Roots that were loaded before, latest first, with a reference on each (`mmu->prev_roots`)."""
    smm = Plain(False)
    """It is in system management mode, and so in the second address space."""
    guest_mode = Plain(False)
    """It runs a guest of its guest (L2), which has no nested paging of its own."""
    nested_levels = Plain(0)
    """Levels of the tables by which L1 translates for the L2 that it runs; 0 if there are none. Constant."""
    pml4_root: Plain[KvmMmuPage | None] = Plain(None)
    """The special root for an L1 whose tables have three levels (`mmu->pml4_root`)."""
    pae_root: Plain[KvmMmuPage | None] = Plain(None)
    """The table that leads to (`mmu->pae_root`)."""
    mmio_cache: Plain[tuple[int, int] | None] = Plain(None)
    """The gfn of the latest MMIO access, and the generation of the memslots then (`mmio_gfn`, `mmio_gen`)."""
