"""Virtual machines: made, and destroyed with the last reference (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c, v6.12)."""

from __future__ import annotations

from interleaf.hw.cpu import Cpu
from interleaf.hw.frames import is_allocated
from interleaf.hw.platform import EPT, Platform
from interleaf.linux.bug import WARN_ON
from interleaf.linux.list import INIT_LIST_HEAD
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.refcount import refcount_dec_and_test, refcount_inc, refcount_set
from interleaf.mm.mm import Mm
from interleaf.mm.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from interleaf.runtime import Memory, ModelError, Violation, free, new, operation, routine, say, the

from .design import Design
from .kvm_host import DEFAULT_PARAMS, Kvm, KvmMemslots, KvmMmuPage, KvmModule, KvmParams, KvmVcpu
from .memslots import kvm_memslots
from .mmu import kvm_calc_tdp_mmu_root_page_role, kvm_mmu_unload
from .mmu_notifier import mmu_notifier_of
from .nx_recovery import kvm_mmu_pre_destroy_vm
from .shadow import free_mmu_pages
from .tdp import tdp_mmu


@routine
def kvm_create_vm(
    design: Design, mm: Mm, gfns: tuple[int, ...] | None, platform: Platform = EPT, params: KvmParams = DEFAULT_PARAMS
) -> Kvm:
    """A new VM in the address space `mm` whose guest memory will only ever be at `gfns` (None: anywhere). Sleeps."""
    if gfns is not None and (not gfns or list(gfns) != sorted(set(gfns))):
        raise ModelError(f"Kvm.gfns must name the gfns that the VM can have, once each, ascending; found {gfns}.")
    kvm = new(Kvm, design=design, mm=mm, gfns=gfns, platform=platform, params=params)
    refcount_set(kvm.users_count, 1)
    kvm.memslots = new(KvmMemslots)
    INIT_LIST_HEAD(kvm.possible_nx_huge_pages)
    INIT_LIST_HEAD(kvm.active_mmu_pages)
    INIT_LIST_HEAD(kvm.zapped_obsolete_pages)
    tdp_mmu.kvm_mmu_init_tdp_mmu(kvm)
    mmu_notifier_register(mm, mmu_notifier_of(kvm))
    module = the(KvmModule)
    mutex_lock(module.kvm_lock)
    module.vm_list = (*module.vm_list, kvm)
    mutex_unlock(module.kvm_lock)
    return kvm


@routine
def kvm_vm_ioctl_create_vcpu(kvm: Kvm) -> KvmVcpu:
    """One more vCPU, with a processor of its own. Before any of the VM's vCPUs runs."""
    index = len(kvm.vcpus)
    cpu = new(Cpu, index=index, platform=kvm.platform)
    vcpu = new(KvmVcpu, kvm=kvm, index=index, cpu=cpu, root_role=kvm_calc_tdp_mmu_root_page_role(kvm))
    kvm.vcpus = (*kvm.vcpus, vcpu)
    return vcpu


def kvm_get_kvm(kvm: Kvm) -> None:
    """One more reference on the VM."""
    refcount_inc(kvm.users_count)


@routine
def kvm_put_kvm(kvm: Kvm) -> None:
    """Give a reference on the VM back; the last one destroys it. Sleeps."""
    if refcount_dec_and_test(kvm.users_count):
        kvm_destroy_vm(kvm)


@operation(marked=False)
def _expect_no_shadow_pages(memory: Memory, kvm: Kvm) -> None:
    """I12: no page table of the VM, root or other, is left. (There is one VM in a scenario.)"""
    memory.exercise("I12")
    pages = [page for (kind, _serial), page in memory.world.serials.items() if kind is KvmMmuPage]
    left = [page.name for page in pages if is_allocated(memory, page)]
    if left:
        message = f"{kvm.name} is destroyed, but {len(left)} of its page tables are not freed"
        memory.violate(Violation("I12", message, object=min(left)))


@routine
def kvm_destroy_vm(kvm: Kvm) -> None:
    """Take the VM apart: nobody can reach it any more but its MMU notifier and set_nx_huge_pages(). Sleeps."""
    say(f"{kvm.name} is destroyed")
    module = the(KvmModule)
    mutex_lock(module.kvm_lock)
    module.vm_list = tuple(other for other in module.vm_list if other is not kvm)
    mutex_unlock(module.kvm_lock)
    kvm_mmu_pre_destroy_vm(kvm)
    mmu_notifier_unregister(kvm.mm, mmu_notifier_of(kvm))
    _abandon_invalidations(kvm)
    for vcpu in kvm.vcpus:
        kvm_mmu_unload(vcpu)
        free_mmu_pages(vcpu)
    tdp_mmu.kvm_mmu_uninit_tdp_mmu(kvm)
    _expect_no_shadow_pages(kvm)
    slots = kvm_memslots(kvm)
    for slot in slots.slots:
        free(slot)
    free(slots)
    free(kvm)


@routine
def _abandon_invalidations(kvm: Kvm) -> None:
    """A notifier whose range_start was called before the VM unregistered may have had no range_end."""
    if kvm.mn_active_invalidate_count:
        kvm.mn_active_invalidate_count = 0
    else:
        WARN_ON(kvm.mmu_invalidate_in_progress != 0, "an invalidation is in progress that nobody will end")
