"""Flushes of the vCPUs' TLBs."""

from __future__ import annotations

from collections.abc import Callable

from interleaf.designs import V6_12
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.tlb import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_range, kvm_flush_tlb_current
from interleaf.runtime import Value
from tests.kvm.tdp.stage import make_vm, populate, run_alone


def _left(flush: Callable[[Kvm], None]) -> Value:
    """What is left in the TLBs of two vCPUs that have written gfns 0 and 1."""
    kvm = make_vm(V6_12, (0, 1), vcpus=2)
    populate(kvm)
    flush(kvm)
    return tuple(tuple(sorted(entry.gfn for entry in vcpu.cpu.tlb)) for vcpu in kvm.vcpus)


def _none(kvm: Kvm) -> None:
    pass


def _all(kvm: Kvm) -> None:
    kvm_flush_remote_tlbs(kvm)


def _range(kvm: Kvm) -> None:
    kvm_flush_remote_tlbs_range(kvm, 1, 1)


def _current(kvm: Kvm) -> None:
    kvm_flush_tlb_current(kvm.vcpus[0])


def test_populating_fills_the_tlbs() -> None:
    assert run_alone(_left, _none)[0] == ((0, 1), (0, 1))


def test_a_remote_flush_empties_all_tlbs() -> None:
    assert run_alone(_left, _all)[0] == ((), ())


def test_a_ranged_flush_leaves_the_rest() -> None:
    assert run_alone(_left, _range)[0] == ((0,), (0,))


def test_a_vcpu_flushes_its_own() -> None:
    assert run_alone(_left, _current)[0] == ((), (0, 1))
