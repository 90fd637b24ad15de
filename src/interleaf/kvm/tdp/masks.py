"""The bits that KVM uses in SPTEs, which depend on the format of the page tables and on the kernel.

In the kernel these are globals that are set once when the module is loaded (kvm_mmu_set_ept_masks,
kvm_mmu_reset_all_pte_masks; arch/x86/kvm/mmu/spte.c, v6.12): `shadow_present_mask` and so on. Here they are a value
that follows from the platform and the design of the VM.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from interleaf.hw import ept, npt
from interleaf.hw.platform import Paging, Platform
from interleaf.kvm.design import Design, rule

VOLATILE_ACCESSED = rule(
    "volatile-accessed-bit",
    "A leaf whose A bit the hardware may set counts as one that may change at any time, and one without A/D bits only "
    "while it is access-tracked (up to v6.14, which ages under mmu_lock).",
    "ba3a6120a4e7",
)

NPT_MMIO_RESERVED_BIT = 1 << 51
"""A physical address bit that the processor does not have (with less than 52): reserved, so that its use faults."""


@dataclass(frozen=True, slots=True)
class SpteMasks:
    """The `shadow_*_mask` and `shadow_*_value` of one kernel on one machine. A mask is 0 where there is no such bit."""

    nonpresent: int
    """SHADOW_NONPRESENT_VALUE: an entry that maps nothing."""
    frozen: int
    """FROZEN_SPTE (REMOVED_SPTE up to v6.10): an entry that belongs to the task that is removing what it mapped."""
    present: int
    """Set in each present entry."""
    user: int
    """Lets the guest use the page at all."""
    x: int
    """Allows execution (EPT)."""
    nx: int
    """Forbids execution (NPT)."""
    accessed: int
    dirty: int
    acc_track: int
    """What access tracking clears in a leaf, where there are no A bits."""
    host_writable: int
    """The host allows the page to be written."""
    mmu_writable: int
    """KVM allows the page to be written, and fast_page_fault() may make the entry writable without mmu_lock."""
    memory_type: int
    """Set in each leaf: write-back, whatever the guest's PAT says."""
    ad_type: int
    """Where an entry says whether its A and D bits mean something (`ept.AdType`), 0 where they always do."""
    mmio_value: int
    """Set in an MMIO SPTE; 0 where MMIO is not cached."""
    mmio_mask: int
    """The bits to compare with `mmio_value`."""
    mmio_access: int
    """Which access bits an MMIO SPTE keeps."""
    volatile_accessed: bool
    """Is an entry volatile because the hardware may set its A bit?"""


@functools.cache
def spte_masks(design: Design, platform: Platform) -> SpteMasks:
    """The masks of the kernel `design` on the machine `platform`."""
    suppress_ve = design.shadow_nonpresent_value
    if platform.paging is Paging.EPT:
        return SpteMasks(
            nonpresent=design.shadow_nonpresent_value,
            frozen=design.removed_spte,
            present=ept.VMX_EPT_READABLE_MASK | suppress_ve,
            user=ept.VMX_EPT_READABLE_MASK,
            x=ept.VMX_EPT_EXECUTABLE_MASK,
            nx=0,
            accessed=ept.VMX_EPT_ACCESS_BIT if platform.ad_bits else 0,
            dirty=ept.VMX_EPT_DIRTY_BIT if platform.ad_bits else 0,
            acc_track=ept.VMX_EPT_RWX_MASK,
            host_writable=ept.EPT_SPTE_HOST_WRITABLE,
            mmu_writable=ept.EPT_SPTE_MMU_WRITABLE,
            memory_type=ept.MemoryType.WB << ept.VMX_EPT_MT_SHIFT | ept.VMX_EPT_IPAT_BIT,
            ad_type=ept.SPTE_TDP_AD_MASK,
            mmio_value=ept.VMX_EPT_WRITABLE_MASK | ept.VMX_EPT_EXECUTABLE_MASK,
            mmio_mask=ept.VMX_EPT_RWX_MASK | suppress_ve,
            mmio_access=0,
            volatile_accessed=design.obeys(VOLATILE_ACCESSED),
        )
    cached = platform.maxphyaddr < 52
    return SpteMasks(
        nonpresent=design.shadow_nonpresent_value,
        frozen=design.removed_spte,
        present=npt.PT_PRESENT_MASK,
        user=npt.PT_USER_MASK,
        x=0,
        nx=npt.PT64_NX_MASK,
        accessed=npt.PT_ACCESSED_MASK,
        dirty=npt.PT_DIRTY_MASK,
        acc_track=0,
        host_writable=npt.DEFAULT_SPTE_HOST_WRITABLE,
        mmu_writable=npt.DEFAULT_SPTE_MMU_WRITABLE,
        memory_type=0,
        ad_type=0,
        mmio_value=NPT_MMIO_RESERVED_BIT | npt.PT_PRESENT_MASK if cached else 0,
        mmio_mask=NPT_MMIO_RESERVED_BIT | npt.PT_PRESENT_MASK if cached else 0,
        mmio_access=npt.PT_WRITABLE_MASK | npt.PT_USER_MASK,
        volatile_accessed=design.obeys(VOLATILE_ACCESSED),
    )
