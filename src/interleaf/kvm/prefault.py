"""KVM_PRE_FAULT_MEMORY: userspace has guest memory mapped before the guest accesses it (arch/x86/kvm/mmu/mmu.c,
virt/kvm/kvm_main.c, v6.12).

Other than KVM_RUN, it stays in one reader of `kvm->srcu` all the time, and does not look at requests: what waits for
vCPUs to leave such a reader, or to take a request, waits for its end. In the kernel a signal may end it any time.
"""

from __future__ import annotations

import errno

from interleaf.hw.access import PFERR_GUEST_FINAL_MASK
from interleaf.hw.page_table import gfn_round_for_level, pages_per_entry
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.runtime import checkpoint, routine, say

from .attributes import kvm_mem_is_private
from .design import rule
from .kvm_host import PFERR_PRIVATE_ACCESS, KvmVcpu
from .mmu import kvm_mmu_reload
from .mmu_internal import RetPf
from .page_fault import kvm_mmu_do_page_fault

PRE_FAULT_MEMORY = rule(
    "pre-fault-memory",
    "Userspace can have guest memory mapped before the guest accesses it.",
    "v6.11",
)


@routine
def kvm_tdp_map_page(vcpu: KvmVcpu, gfn: int, error_code: int) -> int:
    """Map `gfn` as for a fault; returns the level, or a negative errno: -ENOENT if there is no memory. In a reader of
    `kvm->srcu`. Sleeps."""
    while True:
        checkpoint()
        result, level = kvm_mmu_do_page_fault(vcpu, gfn, error_code, True)
        if result is not RetPf.RETRY:
            break
        del result, level
    if result is RetPf.EMULATE:
        return -errno.ENOENT
    return int(result) if result < 0 else level


@routine
def kvm_arch_vcpu_pre_fault_memory(vcpu: KvmVcpu, gfn: int, npages: int) -> int:
    """Map the page at `gfn`, however large it is; returns how many of the `npages` pages from there it covers, or a
    negative errno. In a reader of `kvm->srcu`. Sleeps."""
    kvm_mmu_reload(vcpu)
    error_code = PFERR_GUEST_FINAL_MASK
    if kvm_mem_is_private(vcpu.kvm, gfn):
        error_code |= PFERR_PRIVATE_ACCESS
    level = kvm_tdp_map_page(vcpu, gfn, error_code)
    if level < 0:
        return level
    return min(npages, gfn_round_for_level(gfn, level) + pages_per_entry(level) - gfn)


@routine
def kvm_vcpu_pre_fault_memory(vcpu: KvmVcpu, gfn: int, npages: int) -> int:
    """KVM_PRE_FAULT_MEMORY for `npages` pages from `gfn` on: 0, or a negative errno. By the vCPU's own thread, which is
    not in KVM_RUN. -ENOTTY where there is no such call. Sleeps."""
    kvm = vcpu.kvm
    if not kvm.design.obeys(PRE_FAULT_MEMORY):
        return -errno.ENOTTY
    result = 0
    srcu = srcu_read_lock(kvm.srcu)
    while npages:
        checkpoint()
        result = kvm_arch_vcpu_pre_fault_memory(vcpu, gfn, npages)
        if result < 0:
            break
        gfn, npages = gfn + result, npages - result
    srcu_read_unlock(kvm.srcu, srcu)
    say(f"KVM_PRE_FAULT_MEMORY of vCPU{vcpu.index} {'fails' if result < 0 else 'returns'}")
    return min(result, 0)
