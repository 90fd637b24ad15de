"""What is told, and what things are called."""

from __future__ import annotations

from interleaf.report.narration import Life, Narration, Stack
from interleaf.report.selection import Selection, short_names
from tests.report.findings import narration, stale_fault


def born(*names: str, levels: dict[str, int] | None = None) -> Narration:
    stack = Stack("setup", ())
    return Narration(lives={name: Life(stack) for name in names}, levels=levels or {})


def test_objects_have_short_names() -> None:
    told = born(
        "Kvm0",
        "KvmVcpu1",
        "vcpu0:KvmMmuPage0",
        "vcpu0:KvmMmuPage1",
        "KvmMmuPage0",
        "Page0",
        levels={"vcpu0:KvmMmuPage0": 4, "vcpu0:KvmMmuPage1": 1, "KvmMmuPage0": 4},
    )
    shorten = short_names(told)
    assert shorten("vcpu0:KvmMmuPage0") == "root A"
    assert shorten("KvmMmuPage0.tdp_mmu_root_count - 1") == "root B.tdp_mmu_root_count - 1"
    assert shorten("takes KvmMmuPage0.link off its list") == "takes root B off its list"
    assert shorten("entry 3 of vcpu0:KvmMmuPage1 maps Page0") == "entry 3 of table 1 maps page 1"
    assert shorten("takes Kvm0.mmu_lock for writing") == "takes mmu_lock for writing"
    assert shorten("Kvm0 is destroyed") == "kvm is destroyed"
    assert shorten("KvmVcpu1.requests") == "vCPU1.requests"


def test_names_are_not_cut_out_of_longer_ones() -> None:
    shorten = short_names(born("Page0", "KvmMmuPage1", levels={"KvmMmuPage1": 1}))
    assert shorten("Page01 HostPage0 KvmMmuPage1 KvmMmuPage12") == "Page01 HostPage0 table 1 KvmMmuPage12"


def test_two_machines_keep_their_names() -> None:
    shorten = short_names(born("Kvm0", "Kvm1"))
    assert shorten("takes Kvm1.mmu_lock") == "takes Kvm1.mmu_lock"


def test_many_roots_have_letters() -> None:
    names = [f"KvmMmuPage{number}" for number in range(28)]
    shorten = short_names(born(*names, levels=dict.fromkeys(names, 4)))
    assert shorten("KvmMmuPage25 KvmMmuPage26 KvmMmuPage27") == "root Z root AA root AB"


def test_locks_sptes_and_the_violation_are_told() -> None:
    _, told = stale_fault()
    selection = Selection(told)
    chosen = [operation for operation in told.told if selection.matters(operation) and operation.step >= 0]
    texts = [operation.text for operation in chosen]
    assert any(text.endswith("mmu_lock for writing") for text in texts)
    assert any("non-present -> pfn 0x1000" in text for text in texts)
    assert not any("non-present -> table" in text for text in texts)
    assert chosen[-1].violations
    assert len(chosen) < len(told.told) / 3


def test_everything_shared_is_told_of_a_model_without_a_machine() -> None:
    told = narration("abba", "deadlock")
    selection = Selection(told)
    locks = [operation.operation for operation in told.told if selection.matters(operation)]
    assert locks.count("spin_lock") >= 2
