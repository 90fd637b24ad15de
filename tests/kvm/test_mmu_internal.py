"""The numbers of what page faults result in."""

from __future__ import annotations

from interleaf.kvm.mmu_internal import RetPf


def test_page_fault_results_are_numbered_as_the_tracepoints_print_them() -> None:
    assert [result.name for result in RetPf] == [
        "CONTINUE",
        "RETRY",
        "EMULATE",
        "WRITE_PROTECTED",
        "INVALID",
        "FIXED",
        "SPURIOUS",
    ]
