"""Inline checks of the root life cycle: references (I5), one root a role (I6), and walks of the list of roots.

Called beside the real operations in `roots.py` and in designs; none of it exists in a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

from interleaf.hw.frames import is_allocated
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.linux.list import objects_on
from interleaf.linux.refcount import refcount_t
from interleaf.linux.rwlock import forget
from interleaf.runtime import Memory, Task, Violation, operation

from . import ghost
from .ghost import VCPU, Holder, note


def roots_on_list(memory: Memory, kvm: Kvm) -> Iterator[KvmMmuPage]:
    """Inside an operation: the roots on `kvm.tdp_mmu_roots`."""
    return objects_on(memory, kvm.tdp_mmu_roots, KvmMmuPage)


@operation(marked=False, words=lambda root, *_: f"has a reference on {root.name}")
def takes_reference(memory: Memory, root: KvmMmuPage, holder: Holder | None = None) -> None:
    """`holder` (if not given: the running task) has just taken a reference on `root`."""
    _set_holders(memory, root, (*_holders(memory, root), holder or _me(memory)))


@operation(marked=False, words=lambda root, _: f"is about to put a reference on {root.name}")
def gives_back(memory: Memory, root: KvmMmuPage) -> bool:
    """The running task is about to put a reference on `root`: its own, or else a vCPU's.

    I5: each reference is given back once, and as long as somebody has one, the count says so. Returns whether it
    is a vCPU's reference on an invalid root.
    """
    memory.exercise("I5")
    holders = _holders(memory, root)
    me = _me(memory)
    holder = me if me in holders else VCPU
    if holder not in holders:
        known = ", ".join(holders) or "nobody"
        message = f"{me} puts a reference on {root.name} that it does not have: those who have one are {known}"
        memory.violate(Violation("I5", message, object=root.name))
    count = memory.look(refcount_t.refs.cell(root.tdp_mmu_root_count))
    if count < len(holders):
        message = f"{root.name} has a reference count of {count}, but {', '.join(holders)} hold references on it"
        memory.violate(Violation("I5", message, object=root.name))
    left = list(holders)
    left.remove(holder)
    _set_holders(memory, root, tuple(left))
    return holder == VCPU and bool(memory.look(KvmMmuPage.role.cell(root)).invalid)


@operation(
    marked=False,
    words=lambda root, giver, taker, _: f"a reference on {root.name} goes from {giver or 'it'} to {taker or 'it'}",
)
def hands_over(memory: Memory, root: KvmMmuPage, giver: Holder | None, taker: Holder | None) -> None:
    """A reference on `root` changes hands, with the count as it is; None stands for the running task."""
    holders = list(_holders(memory, root))
    giver = giver or _me(memory)
    memory.exercise("I5")
    if giver not in holders:
        message = f"{giver} hands a reference on {root.name} over that it does not have"
        memory.violate(Violation("I5", message, object=root.name))
    holders.remove(giver)
    _set_holders(memory, root, (*holders, taker or _me(memory)))


@operation(marked=False, words=lambda kvm, root, _: f"has got {root.name} for a vCPU")
def root_loaded(memory: Memory, kvm: Kvm, root: KvmMmuPage) -> None:
    """The running task has got a vCPU a root, which it may have made. I6: it is the only valid one of its role."""
    holders = list(_holders(memory, root))
    if _me(memory) in holders:
        holders.remove(_me(memory))
    _set_holders(memory, root, (*holders, VCPU))
    if memory.look(ghost.born.cell(root)) is None:
        note(memory, ghost.born.cell(root), memory.look(ghost.invalidations.cell(kvm)))
    memory.exercise("I6")
    word = memory.look(KvmMmuPage.role.cell(root)).word
    for other in roots_on_list(memory, kvm):
        if other is not root and memory.look(KvmMmuPage.role.cell(other)).word == word:
            message = f"{root.name} and {other.name} are on the list of roots, both valid and of the same role"
            memory.violate(Violation("I6", message, object=root.name))


@operation(marked=False)
def invalidation_begins(memory: Memory, kvm: Kvm) -> None:
    """All roots are about to be invalidated."""
    note(memory, ghost.invalidations.cell(kvm), memory.look(ghost.invalidations.cell(kvm)) + 1)


@operation(marked=False)
def root_invalidated(memory: Memory, kvm: Kvm, root: KvmMmuPage) -> None:
    """`root` has just been made invalid."""
    note(memory, ghost.died.cell(root), memory.look(ghost.invalidations.cell(kvm)))


@operation(marked=False)
def root_zapped(memory: Memory, kvm: Kvm, root: KvmMmuPage) -> None:
    """A walk has just zapped all of `root`: if the root is invalid, nothing may be installed from here on.

    What the walk has changed counts no further, so that states in which it had more or less to change become equal.
    """
    forget(memory, kvm.mmu_lock)
    if memory.look(KvmMmuPage.role.cell(root)).invalid:
        note(memory, ghost.zapped.cell(root), True)


@operation(marked=False, words=lambda kvm, _: "begins a walk over the roots")
def walk_begins(memory: Memory, kvm: Kvm) -> None:
    """The running task begins to walk the roots."""
    valid = tuple(root for root in roots_on_list(memory, kvm) if not memory.look(KvmMmuPage.role.cell(root)).invalid)
    note(memory, ghost.owed.cell(_task(memory)), valid)


@operation(marked=False, words=lambda kvm, prev, _: f"looks for the root after {prev.name}")
def walk_goes_on(memory: Memory, kvm: Kvm, prev: KvmMmuPage) -> None:
    """The walk leaves `prev`, on which it has a reference. I5: if `prev` is valid, it is on the list."""
    memory.exercise("I5")
    if not memory.look(KvmMmuPage.role.cell(prev)).invalid and prev not in roots_on_list(memory, kvm):
        message = f"{prev.name} is valid and {_me(memory)} holds a reference on it, but it is not on the list of roots"
        memory.violate(Violation("I5", message, object=prev.name))


@operation(
    marked=False,
    words=lambda root, _: (
        f"comes to {root.name}" if root is not None else "comes to the end of its walk over the roots"
    ),
)
def walk_reaches(memory: Memory, root: KvmMmuPage | None) -> None:
    """The walk comes to `root`, or to the end of the list.

    Property "walk-misses-no-valid-root": at the end, no root has been left out that was valid all the time.
    """
    walker = _task(memory)
    owed = memory.look(ghost.owed.cell(walker))
    if root is not None:
        note(memory, ghost.owed.cell(walker), tuple(other for other in owed if other is not root))
        return
    note(memory, ghost.owed.cell(walker), ())
    memory.exercise("walk-misses-no-valid-root")
    for missed in owed:
        if (
            is_allocated(memory, missed)
            and not memory.look(KvmMmuPage.role.cell(missed)).invalid
            and memory.look(refcount_t.refs.cell(missed.tdp_mmu_root_count))
        ):
            message = f"{_me(memory)} has walked all roots, but not {missed.name}, which has been valid all the time"
            memory.violate(Violation("walk-misses-no-valid-root", message, object=missed.name))


@operation(marked=False)
def walk_ends(memory: Memory) -> None:
    """The walk is left early, on purpose."""
    note(memory, ghost.owed.cell(_task(memory)), ())


@operation(marked=False, words=lambda kvm, prev, _: "starts its walk over the roots again")
def walk_restarts(memory: Memory, kvm: Kvm, prev: KvmMmuPage) -> None:
    """The walk is about to start again at the head of the list, because `prev` has become invalid.

    Property "walk-restart-sees-only-new-roots": all roots there were added after that invalidation.
    """
    name = "walk-restart-sees-only-new-roots"
    died = memory.look(ghost.died.cell(prev))
    for root in roots_on_list(memory, kvm):
        memory.exercise(name)
        born = memory.look(ghost.born.cell(root))
        if born is not None and born < died:
            message = (
                f"{_me(memory)} starts its walk again because {prev.name} has become invalid, but {root.name} is on "
                "the list since before that invalidation: it may be visited twice"
            )
            memory.violate(Violation(name, message, object=root.name))


@operation(marked=False)
def teardown_begins(memory: Memory) -> None:
    """The running task begins to put a vCPU's reference."""
    note(memory, ghost.torn_down.cell(_task(memory)), 0)


@operation(marked=False)
def teardown_ends(memory: Memory) -> int:
    """The put is done; returns how many SPTEs it has zapped."""
    cell = ghost.torn_down.cell(_task(memory))
    count: int = memory.look(cell) or 0
    note(memory, cell, None)
    return count


@operation(marked=False)
def page_linked(memory: Memory, kvm: Kvm) -> None:
    """A table below a root has been linked: it counts (atomic64_inc of kvm->arch.tdp_mmu_pages)."""
    _count_page(memory, kvm, 1)


@operation(marked=False)
def page_unlinked(memory: Memory, kvm: Kvm) -> None:
    """A table below a root has been unlinked (atomic64_dec of kvm->arch.tdp_mmu_pages)."""
    _count_page(memory, kvm, -1)


@operation(marked=False)
def pages_left(memory: Memory, kvm: Kvm) -> int:
    """How many tables below roots are linked (atomic64_read of kvm->arch.tdp_mmu_pages)."""
    cell = ghost.pages.cell(kvm)
    note(memory, cell, memory.look(cell))
    return int(memory.look(cell))


def _count_page(memory: Memory, kvm: Kvm, by: int) -> None:
    # counting up and down commutes, so it is a read; whoever looks at the count writes it
    cell = ghost.pages.cell(kvm)
    memory.set(cell, memory.look(cell) + by)


def _holders(memory: Memory, root: KvmMmuPage) -> tuple[Holder, ...]:
    return memory.look(ghost.holders.cell(root))  # type: ignore[no-any-return]


def _set_holders(memory: Memory, root: KvmMmuPage, holders: tuple[Holder, ...]) -> None:
    note(memory, ghost.holders.cell(root), tuple(sorted(holders)))


def _task(memory: Memory) -> Task:
    return memory.world.tasks[memory.task]  # type: ignore[no-any-return]


def _me(memory: Memory) -> Holder:
    return _task(memory).name
