"""What kind of access a fault is about: the error code of kvm_page_fault, whichever processor has made it."""

from __future__ import annotations

from interleaf.hw.access import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from interleaf.hw.platform import Paging, Platform

from .records import KvmPageFault

EPT_VIOLATION_ACC_READ, EPT_VIOLATION_ACC_WRITE, EPT_VIOLATION_ACC_INSTR = 1, 2, 4
EPT_VIOLATION_RWX = 7 << 3
"""What the entry allows."""
EPT_VIOLATION_READABLE = 1 << 3
EPT_VIOLATION_GVA_TRANSLATED = 3 << 7
"""The guest's address is known, and it was the access itself that faulted."""


def error_code_of(record: KvmPageFault, platform: Platform) -> int:
    """The error code as KVM's MMU gets it. On Intel's processors the event has the exit qualification instead
    (handle_ept_violation)."""
    if platform.paging is Paging.NPT:
        return record.error_code
    code, found = record.error_code, 0
    for bit, meaning in (
        (EPT_VIOLATION_ACC_READ, PFERR_USER_MASK),
        (EPT_VIOLATION_ACC_WRITE, PFERR_WRITE_MASK),
        (EPT_VIOLATION_ACC_INSTR, PFERR_FETCH_MASK),
        (EPT_VIOLATION_RWX, PFERR_PRESENT_MASK),
        (EPT_VIOLATION_GVA_TRANSLATED, PFERR_GUEST_FINAL_MASK),
    ):
        found |= meaning if code & bit else 0
    return found


def qualification_of(error_code: int) -> int:
    """The other way round, as far as an error code tells it."""
    present = EPT_VIOLATION_READABLE if error_code & PFERR_PRESENT_MASK else 0
    if error_code & PFERR_FETCH_MASK:
        return EPT_VIOLATION_GVA_TRANSLATED | present | EPT_VIOLATION_ACC_INSTR
    written = error_code & PFERR_WRITE_MASK
    return EPT_VIOLATION_GVA_TRANSLATED | present | (EPT_VIOLATION_ACC_WRITE if written else EPT_VIOLATION_ACC_READ)
