"""A scenario of one's own: guest memory is given back while a memslot is deleted.

    interleaf check examples/my_scenario.py --design off-list

The page is at 512 GiB, so that a walk over the entries of a root may give mmu_lock up before it comes to the page.
Everything up to the first `spawn` runs alone. From there on, every order of the tasks' steps is explored.
"""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.mm.unmap import madvise_dontneed
from interleaf.runtime import spawn
from interleaf.scenarios import FAR_GFN, GUEST_HVA, destroy_after, make_vm, populate, scenario


@scenario("A balloon gives pages back while a memslot is deleted")
def my_scenario(design: Design, *, pages: int = 1) -> None:
    """A balloon driver's host side gives guest memory back (MADV_DONTNEED) at the same time as a memslot is deleted.

    The deletion invalidates the root that maps the pages, and zaps it with mmu_lock given up now and then; the
    notifier of MADV_DONTNEED must find what is still mapped there, because the pages are freed when it returns.
    """
    kvm = make_vm(design, pages=pages, dummies=1, base_gfn=FAR_GFN)
    populate(kvm)
    balloon = spawn(madvise_dontneed, kvm.mm, GUEST_HVA, pages, name="balloon")
    memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
    destroy_after(kvm, balloon, memslot)
