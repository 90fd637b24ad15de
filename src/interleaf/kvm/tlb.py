"""TLB flushes (virt/kvm/kvm_main.c, arch/x86/kvm/mmu/mmu.c, v6.12).

A remote flush is one operation here: the state after all vCPUs have acknowledged the interrupt, or, not being in
the guest, will flush before they enter it.
"""

from __future__ import annotations

from interleaf.hw.cpu import Cpu, flush_all, flush_range
from interleaf.runtime import Memory, operation

from .kvm_host import Kvm, KvmVcpu


@operation(words=lambda kvm, _: "flushes the TLBs of all vCPUs")
def kvm_flush_remote_tlbs(memory: Memory, kvm: Kvm) -> None:
    """No vCPU uses a translation or a page table any more that it has seen before."""
    for vcpu in memory.load(kvm, Kvm.vcpus):
        flush_all(memory, vcpu.cpu)


@operation(
    words=lambda kvm, start_gfn, nr_pages, _: (
        f"flushes gfns {start_gfn:#x} to {start_gfn + nr_pages:#x} from the TLBs of all vCPUs"
    )
)
def kvm_flush_remote_tlbs_range(memory: Memory, kvm: Kvm, start_gfn: int, nr_pages: int) -> None:
    """The same for the translations of start_gfn <= gfn < start_gfn + nr_pages, and the tables on their way."""
    for vcpu in memory.load(kvm, Kvm.vcpus):
        flush_range(memory, vcpu.cpu, start_gfn, start_gfn + nr_pages)


@operation(focus=lambda vcpu: Cpu.tlb.cell(vcpu.cpu), words=lambda vcpu, _: f"flushes the TLB of vCPU{vcpu.index}")
def kvm_flush_tlb_current(memory: Memory, vcpu: KvmVcpu) -> None:
    """Flush the TLB of the vCPU that runs this code."""
    flush_all(memory, vcpu.cpu)
