"""Reading and writing SPTEs: the only operations by which KVM changes its page tables.

Each write keeps the ghost state with it and checks four properties where the value changes:

* I3: a present leaf never maps another pfn directly; it is zapped (and flushed) first.
* I4: a frozen entry is changed only by the task that froze it.
* I8: nothing is installed under an invalid root after its zapper has passed.
* I11: a write that does not look overwrites no A, D or W bit of a leaf that was set since the writer has looked.

A table is a `KvmMmuPage`; an entry of it is named by the gfn that it leads to and its level, as a kernel
developer would, and lives in `spt[index_of(gfn, level)]`. There, 0 stands for the design's non-present value, so
that a new table need not be filled. (kernel tdp_iter.h and tdp_mmu.c, v6.12)
"""

from __future__ import annotations

from interleaf.hw.ept import VMX_EPT_WRITABLE_MASK
from interleaf.hw.page_table import index_of
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.mm.page import note_mapped, note_unmapped
from interleaf.runtime import Memory, Value, Violation, operation, quiet
from interleaf.runtime.cells import Cell
from interleaf.runtime.objects import Read, read_cell

from . import ghost
from .ghost import note
from .spte import is_present_leaf, is_removed_spte, is_shadow_present_pte, show_spte, spte_to_pfn
from .work import spte_changed

quiet(__file__)


class _ReadSpte(Read):
    """READ_ONCE(*sptep)"""

    name = "kvm_tdp_mmu_read_spte"

    def __init__(self, cell: Cell, kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int) -> None:
        super().__init__(cell, True)
        self.entry = (kvm, sp, gfn, level)

    def run(self, memory: Memory) -> Value:
        # the address of a table that is found here depends on the entry, so what was written to it before is seen
        found = super().run(memory)
        memory.order(self.cell, acquire=True)
        return found

    def text(self, result: Value) -> str:
        kvm, sp, gfn, level = self.entry
        found = "?" if result is None else show_spte(kvm.masks, result, level)
        return f"{sp.name}: SPTE of gfn {gfn:#x}, level {level}, is {found}"


def kvm_tdp_mmu_read_spte(kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int) -> int:
    """Read an entry (READ_ONCE). In an RCU reader, mmu_lock held."""
    return int(read_cell(_cell(sp, gfn, level), _ReadSpte, kvm, sp, gfn, level)) or kvm.masks.nonpresent


def _cell(sp: KvmMmuPage, gfn: int, level: int) -> Cell:
    return KvmMmuPage.spt.element(sp, index_of(gfn, level))


def _words_cmpxchg(
    kvm: Kvm, root: KvmMmuPage, sp: KvmMmuPage, gfn: int, level: int, old: int, new: int, seen: int | None
) -> str:
    if seen is None or seen == old:
        return _words(kvm, sp, gfn, level, old, new)
    masks = kvm.masks
    return (
        f"{sp.name}: SPTE of gfn {gfn:#x}, level {level}, is {show_spte(masks, seen, level)} now and not "
        f"{show_spte(masks, old, level)}: it does not become {show_spte(masks, new, level)}"
    )


def _words(kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int, old: int | None, new: int) -> str:
    """`old` is None where the operation violates a property before it knows."""
    before = "" if old is None else f"{show_spte(kvm.masks, old, level)} "
    return f"{sp.name}: SPTE of gfn {gfn:#x}, level {level}: {before}-> {show_spte(kvm.masks, new, level)}"


@operation(focus=lambda kvm, root, sp, gfn, level, old, new: _cell(sp, gfn, level), words=_words_cmpxchg)
def cmpxchg_spte(
    memory: Memory, kvm: Kvm, root: KvmMmuPage | None, sp: KvmMmuPage, gfn: int, level: int, old: int, new: int
) -> int:
    """Write `new` if the entry is still `old` (try_cmpxchg64); returns what it was. mmu_lock held for read."""
    cell = _cell(sp, gfn, level)
    seen: int = memory.load_cell(cell) or kvm.masks.nonpresent
    if seen == old:
        _change(memory, kvm, root, sp, gfn, level, old, new)
    return seen


@operation(
    focus=lambda kvm, root, sp, gfn, level, new: _cell(sp, gfn, level),
    words=lambda kvm, root, sp, gfn, level, new, old: _words(kvm, sp, gfn, level, old, new),
)
def xchg_spte(memory: Memory, kvm: Kvm, root: KvmMmuPage | None, sp: KvmMmuPage, gfn: int, level: int, new: int) -> int:
    """Write `new` whatever the entry is (xchg); returns what it was."""
    old: int = memory.load_cell(_cell(sp, gfn, level)) or kvm.masks.nonpresent
    _change(memory, kvm, root, sp, gfn, level, old, new)
    return old


@operation(
    focus=lambda kvm, root, sp, gfn, level, new, seen=None: _cell(sp, gfn, level),
    words=lambda kvm, root, sp, gfn, level, new, *_: (
        f"{sp.name}: SPTE of gfn {gfn:#x}, level {level} = {show_spte(kvm.masks, new, level)}"
    ),
)
def write_spte(
    memory: Memory,
    kvm: Kvm,
    root: KvmMmuPage | None,
    sp: KvmMmuPage,
    gfn: int,
    level: int,
    new: int,
    seen: int | None = None,
) -> None:
    """Write `new` without looking (WRITE_ONCE); `seen`: a leaf that the writer takes the entry to be."""
    old = memory.peek(_cell(sp, gfn, level)) or kvm.masks.nonpresent
    if seen is not None and is_present_leaf(seen, level):
        _check_overwritten(memory, kvm, sp, gfn, level, seen, old & ~new)
    _change(memory, kvm, root, sp, gfn, level, old, new)


@operation(
    focus=lambda kvm, root, sp, gfn, level, mask: _cell(sp, gfn, level),
    words=lambda kvm, root, sp, gfn, level, mask, old: _words(
        kvm, sp, gfn, level, old, 0 if old is None else old & ~mask
    ),
)
def clear_spte_bits(
    memory: Memory, kvm: Kvm, root: KvmMmuPage | None, sp: KvmMmuPage, gfn: int, level: int, mask: int
) -> int:
    """Clear the bits of `mask`, whatever else the entry is (LOCK AND); returns what it was."""
    old: int = memory.load_cell(_cell(sp, gfn, level)) or kvm.masks.nonpresent
    _change(memory, kvm, root, sp, gfn, level, old, old & ~mask)
    return old


def _change(
    memory: Memory, kvm: Kvm, root: KvmMmuPage | None, sp: KvmMmuPage, gfn: int, level: int, old: int, new: int
) -> None:
    """Store `new` over `old`. Without `root`, the table is already disconnected from its root."""
    cell = _cell(sp, gfn, level)
    if old != new:
        index = index_of(gfn, level)
        _check_frozen(memory, kvm, sp, gfn, level, old, new)
        spte_changed(memory, kvm, sp, gfn, level, old, new)
        if is_shadow_present_pte(new):
            _check_install(memory, kvm, root, gfn, level, old, new)
            if is_present_leaf(new, level):
                note_mapped(memory, spte_to_pfn(new), (sp, index))
        elif is_shadow_present_pte(old):
            _count_zapped(memory)
        if is_present_leaf(old, level) and not (is_present_leaf(new, level) and spte_to_pfn(new) == spte_to_pfn(old)):
            note_unmapped(memory, spte_to_pfn(old), (sp, index))
    if is_shadow_present_pte(new) and not is_present_leaf(new, level):
        memory.order(cell, release=True)
    memory.store_cell(cell, 0 if new == kvm.masks.nonpresent else new)


def _check_frozen(memory: Memory, kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int, old: int, new: int) -> None:
    freezer = ghost.frozen_by.element(sp, index_of(gfn, level))
    task = memory.world.tasks[memory.task]
    if is_removed_spte(kvm.masks, old):
        memory.exercise("I4")
        owner = memory.look(freezer)
        if owner is not task:
            message = (
                f"{task.name} changes the SPTE of gfn {gfn:#x}, level {level}, to {show_spte(kvm.masks, new, level)}, "
                f"but {owner.name} has frozen it: only the task that freezes an SPTE may change it"
            )
            memory.violate(Violation("I4", message, object=sp.name))
        note(memory, freezer, None)
    if is_removed_spte(kvm.masks, new):
        note(memory, freezer, task)


def _check_install(memory: Memory, kvm: Kvm, root: KvmMmuPage | None, gfn: int, level: int, old: int, new: int) -> None:
    if is_present_leaf(old, level) and is_present_leaf(new, level):
        memory.exercise("I3")
        if spte_to_pfn(old) != spte_to_pfn(new):
            message = (
                f"the SPTE of gfn {gfn:#x}, level {level}, changes from pfn {spte_to_pfn(old):#x} to pfn "
                f"{spte_to_pfn(new):#x} without being zapped and flushed in between"
            )
            memory.violate(Violation("I3", message))
    if root is not None:
        memory.exercise("I8")
        if memory.look(ghost.zapped.cell(root)):
            message = (
                f"the SPTE of gfn {gfn:#x}, level {level}, becomes {show_spte(kvm.masks, new, level)} under "
                f"{root.name}, which is invalid and has been zapped already: nobody will zap it"
            )
            memory.violate(Violation("I8", message, object=root.name))


def _check_overwritten(memory: Memory, kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int, seen: int, cleared: int) -> None:
    """`cleared`: bits that the entry had, and that the write clears."""
    memory.exercise("I11")
    masks = kvm.masks
    named = (("A", masks.accessed), ("D", masks.dirty), ("W", VMX_EPT_WRITABLE_MASK))
    lost = ", ".join(name for name, bit in named if cleared & ~seen & bit)
    if lost:
        message = (
            f"the SPTE of gfn {gfn:#x}, level {level}, is overwritten by a task that has seen it as "
            f"{show_spte(masks, seen, level)}; it was given {lost} since, of which nobody is told"
        )
        memory.violate(Violation("I11", message, object=sp.name))


def _count_zapped(memory: Memory) -> None:
    counter = ghost.torn_down.cell(memory.world.tasks[memory.task])
    count = memory.look(counter)
    if count is not None:
        note(memory, counter, count + 1)
