"""Requests: how one task makes vCPUs do something before they run guest code again (virt/kvm/kvm_main.c, v6.12).

The requests that matter here are made with KVM_REQUEST_WAIT: when kvm_make_all_cpus_request() returns, no vCPU is
in the guest any more without having seen the request. In the model that is one operation; a vCPU looks at its
requests in the same operation as it makes an access, and leaves the guest instead.
"""

from __future__ import annotations

from interleaf.runtime import Memory, operation

from .design import rule
from .kvm_host import Kvm, KvmRequest, KvmVcpu

RELOAD_REQUEST = rule(
    "invalidate-requests-reload",
    "Whoever invalidates all roots requests all vCPUs to take new ones, so that no guest code runs on an invalid root.",
    "b7cccd397f31",
)


@operation(words=lambda kvm, request, _: f"requests {request.name} from all vCPUs, which leave the guest")
def kvm_make_all_cpus_request(memory: Memory, kvm: Kvm, request: KvmRequest) -> None:
    """Make a request of all vCPUs, and wait until none of them is in the guest without having seen it."""
    for vcpu in memory.load(kvm, Kvm.vcpus):
        memory.order(vcpu, release=True)
        # it has left the guest: what the guest and its page walks did was before
        memory.order(vcpu.cpu, acquire=True)
        memory.store(vcpu, KvmVcpu.requests, memory.load(vcpu, KvmVcpu.requests) | 1 << request)


@operation(focus=KvmVcpu.requests.cell, words=lambda vcpu, pending: f"vCPU{vcpu.index} takes its requests")
def kvm_check_requests(memory: Memory, vcpu: KvmVcpu) -> int:
    """Take the pending requests, as the bits of `KvmRequest`; they are not pending any more.

    The kernel tests and clears one after the other (kvm_check_request); no kernel has both of those modelled here.
    """
    memory.order(vcpu, acquire=True)
    pending: int = memory.load(vcpu, KvmVcpu.requests)
    memory.store(vcpu, KvmVcpu.requests, 0)
    return pending


@operation(
    focus=lambda vcpu, request: KvmVcpu.requests.cell(vcpu),
    words=lambda vcpu, request, found: f"vCPU{vcpu.index} {'takes' if found else 'finds no'} request {request.name}",
)
def kvm_check_request(memory: Memory, vcpu: KvmVcpu, request: KvmRequest) -> bool:
    """Take one request, if it is pending; was it?"""
    pending: int = memory.load(vcpu, KvmVcpu.requests)
    if not pending >> request & 1:
        return False
    memory.order(vcpu, acquire=True)
    memory.store(vcpu, KvmVcpu.requests, pending & ~(1 << request))
    return True


@operation(
    focus=KvmVcpu.requests.cell,
    words=lambda vcpu, found: f"finds {'a' if found else 'no'} request for vCPU{vcpu.index} to take a new root",
)
def kvm_test_reload_request(memory: Memory, vcpu: KvmVcpu) -> bool:
    """Is the vCPU requested to put its roots, or the obsolete ones of them (kvm_test_request)? It stays so."""
    pending: int = memory.load(vcpu, KvmVcpu.requests)
    return bool(pending & (1 << KvmRequest.MMU_RELOAD | 1 << KvmRequest.MMU_FREE_OBSOLETE_ROOTS))


def kvm_reload_remote_mmus(kvm: Kvm) -> None:
    """Make all vCPUs put their roots and load new ones (up to v5.17)."""
    if kvm.design.obeys(RELOAD_REQUEST):
        kvm_make_all_cpus_request(kvm, KvmRequest.MMU_RELOAD)


def kvm_free_obsolete_remote_roots(kvm: Kvm) -> None:
    """Make all vCPUs put those of their roots that are obsolete (v5.18 on)."""
    if kvm.design.obeys(RELOAD_REQUEST):
        kvm_make_all_cpus_request(kvm, KvmRequest.MMU_FREE_OBSOLETE_ROOTS)
