"""Requests reach every vCPU, and are taken once."""

from __future__ import annotations

from interleaf.designs import V6_12
from interleaf.kvm.kvm_host import KvmRequest
from interleaf.kvm.request import kvm_check_requests, kvm_free_obsolete_remote_roots, kvm_reload_remote_mmus
from tests.kvm.tdp.stage import make_vm, run_alone

RELOAD, FREE = 1 << KvmRequest.MMU_RELOAD, 1 << KvmRequest.MMU_FREE_OBSOLETE_ROOTS


def test_a_request_reaches_all_vcpus_and_is_taken_once() -> None:
    def program() -> tuple[int, ...]:
        kvm = make_vm(V6_12, (0,), vcpus=2)
        first, second = kvm.vcpus
        kvm_reload_remote_mmus(kvm)
        taken = kvm_check_requests(first)
        kvm_free_obsolete_remote_roots(kvm)
        return taken, kvm_check_requests(first), kvm_check_requests(first), kvm_check_requests(second)

    result, _stage = run_alone(program)
    assert result == (RELOAD, FREE, 0, RELOAD | FREE)
