"""What the roots of a VM look like at one moment of an execution.

Everything is read with `Memory.peek`, which leaves no trace in the execution.
"""

from __future__ import annotations

from dataclasses import dataclass

from interleaf.hw.frames import PAGE_TABLE_PFN_BASE
from interleaf.hw.page_table import entries_for, gfn_round_for_level, pages_per_entry
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tdp.spte import is_last_spte, is_shadow_present_pte, spte_to_pfn
from interleaf.linux.list import list_head
from interleaf.linux.refcount import refcount_t
from interleaf.runtime import Memory, World
from interleaf.runtime.memory import ALIVE


@dataclass(frozen=True, slots=True)
class Root:
    """The root of one set of page tables, as the reader of a story wants to see it."""

    name: str
    invalid: bool
    references: int
    listed: bool
    """Can it be reached from `Kvm.tdp_mmu_roots`?"""
    mapped: tuple[tuple[int, int], ...]
    """(gfn, pfn) of each present leaf SPTE under it."""


def machines(world: World) -> list[Kvm]:
    """The VMs that there have been."""
    return [found for found in world.objects.values() if isinstance(found, Kvm)]


def roots(memory: Memory) -> tuple[Root, ...]:
    """The roots of all VMs that are alive, in the order of their names."""
    found = []
    for kvm in machines(memory.world):
        if not _alive(memory, kvm):
            continue
        listed = _listed(memory, kvm)
        for page in _pages(memory):
            role = memory.peek(KvmMmuPage.role.cell(page))
            if role.level == kvm.platform.levels and _alive(memory, page):
                references = memory.peek(refcount_t.refs.cell(page.tdp_mmu_root_count))
                mapped = tuple(_mapped(memory, kvm, page, kvm.platform.levels, 0))
                found.append(Root(page.name, role.invalid, references, page in listed, mapped))
    return tuple(found)


def _pages(memory: Memory) -> list[KvmMmuPage]:
    pages = [found for (kind, _), found in memory.world.serials.items() if kind is KvmMmuPage]
    return [page for page in pages if isinstance(page, KvmMmuPage)]


def _alive(memory: Memory, thing: Kvm | KvmMmuPage) -> bool:
    return thing.life is not None and memory.peek(thing.life) == ALIVE


def _listed(memory: Memory, kvm: Kvm) -> set[object]:
    """The objects on the list of roots; a list that is corrupt ends where it makes no sense any more."""
    found: set[object] = set()
    head = kvm.tdp_mmu_roots
    entry = memory.peek(list_head.next.cell(head))
    while isinstance(entry, list_head) and entry is not head and entry.root not in found:
        found.add(entry.root)
        entry = memory.peek(list_head.next.cell(entry))
    return found


def _mapped(memory: Memory, kvm: Kvm, table: KvmMmuPage, level: int, base: int) -> list[tuple[int, int]]:
    found = []
    for index in entries_for(kvm.gfns, gfn_round_for_level(base, level + 1), level):
        spte = memory.peek(KvmMmuPage.spt.element(table, index))
        if not is_shadow_present_pte(spte):
            continue
        gfn = base + index * pages_per_entry(level)
        if is_last_spte(spte, level):
            found.append((gfn, spte_to_pfn(spte)))
        else:
            child = memory.world.serials.get((KvmMmuPage, spte_to_pfn(spte) - PAGE_TABLE_PFN_BASE))
            if isinstance(child, KvmMmuPage) and _alive(memory, child):
                found.extend(_mapped(memory, kvm, child, level - 1, gfn))
    return found
