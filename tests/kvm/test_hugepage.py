"""How large a page a fault maps, and what becomes of what is mapped there already."""

from __future__ import annotations

import pytest

from interleaf.designs import V6_1, V6_12
from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.hw.platform import EPT, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_vm_set_slot_flags
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KvmModule, KvmParams
from interleaf.kvm.memslots import kvm_memslots
from interleaf.kvm.tdp.spte import is_executable_pte, is_last_spte, is_present_leaf, is_shadow_present_pte
from interleaf.kvm.vcpu import execute, kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.vm import kvm_put_kvm
from interleaf.runtime import the
from interleaf.scenarios.stage import make_vm
from tests.kvm.huge import entry
from tests.kvm.tdp.stage import run_alone


def _level(design: Design, params: KvmParams, what: str, platform: Platform = EPT) -> int:
    kvm = make_vm(design, pages=2, huge=True, params=params, platform=platform)
    if what == "logged":
        kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    elif what == "disallowed":
        kvm_memslots(kvm).slots[0].arch.disallow_lpage[PG_LEVEL_2M, 0] = 1
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(1))
    large = is_last_spte(entry(kvm, 1, PG_LEVEL_2M), PG_LEVEL_2M)
    kvm_put_kvm(kvm)
    return PG_LEVEL_2M if large else PG_LEVEL_4K


@pytest.mark.parametrize(
    ("params", "what", "level"),
    [
        (KvmParams(), "", PG_LEVEL_2M),
        (KvmParams(max_level=PG_LEVEL_4K), "", PG_LEVEL_4K),
        (KvmParams(), "logged", PG_LEVEL_4K),
        (KvmParams(), "disallowed", PG_LEVEL_4K),
    ],
)
@pytest.mark.parametrize("platform", [EPT, NPT], ids=lambda platform: platform.name)
def test_a_fault_maps_as_large_a_page_as_it_may(params: KvmParams, what: str, level: int, platform: Platform) -> None:
    assert run_alone(_level, V6_12, params, what, platform)[0] == level


def test_a_memslot_that_is_smaller_than_a_huge_page_has_none() -> None:
    def program() -> bool:
        kvm = make_vm(V6_12, pages=2)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(1))
        return is_present_leaf(entry(kvm, 1, PG_LEVEL_2M), PG_LEVEL_2M)

    assert not run_alone(program)[0]


def _execute(design: Design) -> tuple[bool, ...]:
    """What maps gfns 0 and 1 after a read, and after the execution, of gfn 0, with huge pages not executable."""
    kvm = make_vm(design, pages=2, huge=True)
    the(KvmModule).nx_huge_pages = True
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
    huge = entry(kvm, 0, PG_LEVEL_2M)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], execute(0))
    small, other = (entry(kvm, gfn, PG_LEVEL_4K) for gfn in kvm.named_gfns)
    return (
        is_last_spte(huge, PG_LEVEL_2M),
        is_executable_pte(kvm.masks, huge),
        is_executable_pte(kvm.masks, small),
        is_shadow_present_pte(other),
    )


@pytest.mark.parametrize(
    ("design", "split"),
    [(V6_12, True), (V6_12.without("split-on-fault"), False), (V6_1, False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_execution_splits_a_huge_page_or_zaps_it(design: Design, split: bool) -> None:
    assert run_alone(_execute, design)[0] == (True, False, True, split)
