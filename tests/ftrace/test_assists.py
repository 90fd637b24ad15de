"""What the processor is said to have done to an entry."""

from types import SimpleNamespace
from typing import cast

import pytest

from interleaf.ftrace import records
from interleaf.ftrace.assists import Assists
from interleaf.ftrace.drive import Driver, Reaction
from interleaf.ftrace.matching import Rule
from interleaf.ftrace.spte import NPT
from interleaf.kvm import trace as model
from interleaf.runtime import Task

USED, UNUSED, NONE = 0x200E67, 0x200E27, 1 << 63


@pytest.mark.parametrize(("tables", "fits"), [([NONE, USED], True), ([NONE], False), ([NONE, UNUSED], False)])
def test_a_zapped_entry_was_used_if_its_like_in_another_table_is_said_to_be(tables: list[int], fits: bool) -> None:
    driver = SimpleNamespace(tables_at=lambda _level, _gfn: tables, entry=lambda table, _index: table)
    said = records.KvmTdpMmuSpteChanged(0, 5, 1, USED, NONE)
    event = records.Event(1, 0, records.Task("vcpu0", 2, None, 0, ""), "kvm_tdp_mmu_spte_changed", said)
    reaction, rules = Reaction(cast("Task", None), model.SpteChanged(0, 5, 1, UNUSED, NONE)), list[Rule]()
    found = Assists(cast("Driver", driver), NPT).of_other_table(event, reaction, rules)
    assert found.record == model.SpteChanged(0, 5, 1, USED if fits else UNUSED, NONE)
    assert rules == [Rule.AD_BITS] * fits
