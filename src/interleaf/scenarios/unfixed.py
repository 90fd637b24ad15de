"""Scenarios that violate a property on every kernel, because no kernel has it mended: not in the matrix."""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.mm.mm_types import Mm
from interleaf.mm.unmap import madvise_dontneed
from interleaf.runtime import again, checkpoint, routine, spawn

from .scenario import scenario
from .stage import GUEST_HVA, make_vm

ELSEWHERE = GUEST_HVA - 0x10
"""Memory of the process that is in no memslot."""


@routine
def _give_back_again_and_again(mm: Mm, start: int) -> None:
    while True:
        checkpoint()
        madvise_dontneed(mm, start, 1)
        if not again("gives pages back once more"):
            return


@scenario("A memslot is deleted in a storm of notifiers")
def memslot_delete_in_notifier_storm(design: Design) -> None:
    """Two threads give pages back again and again, at addresses that are in no memslot. Before the set of memslots is
    replaced, no notifier may be between its start and its end; if the notifiers overlap, or come at the wrong moments,
    that is never so, and the deletion waits for ever. Known since 52ac8b358b0c (v5.15), and not mended.
    """
    kvm = make_vm(design, dummies=1)
    for index, name in enumerate(("storm", "storm2")):
        spawn(_give_back_again_and_again, kvm.mm, ELSEWHERE + index, name=name)
    spawn(kvm_delete_memslot, kvm, 1, name="memslot")
