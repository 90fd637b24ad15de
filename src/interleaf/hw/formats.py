"""What the page walk has to know of the format of the page tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from . import ept, npt
from .access import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    Access,
    Fault,
)
from .platform import Paging, Platform


@dataclass(frozen=True, slots=True)
class EntryFormat:
    """A format of page-table entries, as one processor reads them."""

    permissions: Callable[[int], int]
    """Of an entry: a mask of `Access`, 0 if it is not present."""
    malformed: Callable[[int, int, int], bool]
    """(entry, level, maxphyaddr): does the entry break the rules of the format?"""
    accessed: int
    """The bit that is set in each entry on the way of an access; 0: none."""
    dirty: int
    """The bit that is set in the leaf of a write; 0: none."""
    user_errors: int
    """What the error code of a violation says about who accessed: see PFERR_USER_MASK."""
    violation: Fault
    malformation: Fault


@functools.cache
def entry_format(platform: Platform) -> EntryFormat:
    """The format of the page tables of a machine."""
    if platform.paging is Paging.EPT:
        return EntryFormat(
            ept.permissions,
            ept.is_misconfigured,
            accessed=ept.VMX_EPT_ACCESS_BIT if platform.ad_bits else 0,
            dirty=ept.VMX_EPT_DIRTY_BIT if platform.ad_bits else 0,
            user_errors=0,
            violation=Fault.VIOLATION,
            malformation=Fault.MISCONFIG,
        )
    return EntryFormat(
        npt.permissions,
        npt.has_reserved_bits,
        accessed=npt.PT_ACCESSED_MASK,
        dirty=npt.PT_DIRTY_MASK,
        user_errors=PFERR_USER_MASK,
        violation=Fault.NESTED_PAGE_FAULT,
        malformation=Fault.NESTED_PAGE_FAULT,
    )


def violation_error(form: EntryFormat, access: Access, present: bool) -> int:
    """The error code of an access that the entries on its way do not allow; `present`: they allow something."""
    error = PFERR_GUEST_FINAL_MASK | form.user_errors
    if access is Access.WRITE:
        error |= PFERR_WRITE_MASK
    elif access is Access.EXEC:
        error |= PFERR_FETCH_MASK
    else:
        error |= PFERR_USER_MASK
    return error | PFERR_PRESENT_MASK if present else error


def malformation_error(form: EntryFormat, access: Access) -> int:
    """The error code of an access on whose way an entry is malformed. An EPT misconfiguration has none, and KVM
    takes it as a reserved bit alone."""
    if form.malformation is Fault.MISCONFIG:
        return PFERR_RSVD_MASK
    return violation_error(form, access, True) | PFERR_RSVD_MASK
