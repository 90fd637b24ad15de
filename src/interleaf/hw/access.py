"""What a guest can do with a page, and how the processor says that it may not.

Permissions are masks of the values of `Access`, whatever the format of the page tables. Error codes are those of an
x86 page fault, which AMD's nested page fault has too, with two bits more; an EPT violation says the same in its exit
qualification. (Intel SDM volume 3, "EPT violations"; AMD APM volume 2, "Nested table walk")
"""

from __future__ import annotations

import enum


class Access(enum.Enum):
    """What the guest does with a page."""

    READ = 1
    WRITE = 2
    EXEC = 4

    @property
    def verb(self) -> str:
        """As in "vCPU0 writes gfn 0"."""
        return {"READ": "reads", "WRITE": "writes", "EXEC": "executes"}[self.name]


ALL_ACCESS = Access.READ.value | Access.WRITE.value | Access.EXEC.value

PFERR_PRESENT_MASK = 1 << 0
"""The access is forbidden by a present entry."""
PFERR_WRITE_MASK = 1 << 1
PFERR_USER_MASK = 1 << 2
"""AMD: always, because a nested walk is done as a user. Intel, as KVM translates it: the access is a read."""
PFERR_RSVD_MASK = 1 << 3
"""An entry has a bit set that is reserved."""
PFERR_FETCH_MASK = 1 << 4
PFERR_GUEST_FINAL_MASK = 1 << 32
"""It was the access itself that faulted, not one to the guest's own page tables."""


class Fault(enum.Enum):
    """Why a translation ends in a VM exit."""

    VIOLATION = "EPT violation"
    MISCONFIG = "EPT misconfiguration"
    NESTED_PAGE_FAULT = "nested page fault"
    """AMD's only kind; a reserved bit is told from a missing permission by the error code."""
