"""Which operations of a story matter, and what things are called in it.

An execution has hundreds of operations, of which the reader wants to see some twenty: who takes and drops
mmu_lock and slots_lock, what happens to roots and to leaf SPTEs, requests, flushes, notifiers, pages that come and
go, and everything about the object that the violation is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from interleaf.hw.page_table import PG_LEVEL_4K, ROOT_LEVEL
from interleaf.kvm.tdp.spte import is_shadow_present_pte
from interleaf.linux.lockdep import lock
from interleaf.runtime.memory import FREED

from .narration import Change, Narration, Told

LOCKS = ("mmu_lock", "slots_lock")
"""Locks whose taking and releasing is always told."""

ABOUT_LOCKS = frozenset({"deadlock", "livelock", "starvation", "lockdep", "sleeping-while-atomic", "I14"})
"""Properties that are about locks: every lock is told."""

ALWAYS = frozenset(
    {
        "call_rcu",
        "kvm_flush_remote_tlbs",
        "kvm_flush_remote_tlbs_range",
        "kvm_make_all_cpus_request",
        "queue_work",
        "synchronize_rcu",
        "synchronize_srcu",
        "synchronize_srcu_expedited",
    }
)
"""Operations that are always told."""

ROLE = "KvmMmuPage.role"


def _is_freed(_before: Any, after: Any) -> bool:
    return bool(after == FREED)


def becomes_invalid(before: Any, after: Any) -> bool:
    """Does a root with one role, and now another, become unusable?"""
    return bool(after.invalid and not before.invalid)


def _is_used_up(_before: Any, after: Any) -> bool:
    return bool(after <= 0)


def _always(_before: Any, _after: Any) -> bool:
    return True


CRUCIAL: Mapping[str, Callable[[Any, Any], bool]] = {
    "Cpu.tlb": _always,
    "Kvm.life": _is_freed,
    "Kvm.memslots": _always,
    "Kvm.mmu_invalidate_in_progress": _always,
    "Kvm.tdp_mmu_roots.next": _always,
    "KvmMmuPage.life": _is_freed,
    ROLE: becomes_invalid,
    "KvmMmuPage.tdp_mmu_root_count.refs": _is_used_up,
    "KvmVcpu.mmu_root": _always,
    "KvmVcpu.requests": _always,
    "Page.life": _is_freed,
}
"""Changes that are always told: field, and which values before and after."""


class Selection:
    """What of a narration is told."""

    def __init__(self, narration: Narration) -> None:
        violation = narration.violation
        self._levels = narration.levels
        self._object = violation.object if violation is not None else ""
        self._all_locks = violation is not None and violation.rule in ABOUT_LOCKS
        # a story without a VM is of somebody's own model: all that it shares matters
        self._everything = not any(name.startswith("Kvm") for name in narration.lives)

    def matters(self, told: Told) -> bool:
        """Is the operation itself told? (What the model says before it always is.)"""
        if told.violations or told.chosen or told.operation in ALWAYS:
            return True
        if isinstance(told.subject, lock) and (
            self._all_locks or self._everything or told.subject.name.endswith(LOCKS)
        ):
            return True
        if self._object and any(change.cell.owner.root.name == self._object for change in told.changes):
            return True
        if self._everything:
            return bool(told.changes) or told.subject is not None
        return any(self._is_crucial(change) for change in told.changes)

    def _is_crucial(self, change: Change) -> bool:
        field = change.cell.domain.name
        if field == "KvmMmuPage.spt[]":
            leaf = self._levels.get(change.cell.owner.name) == PG_LEVEL_4K
            was, now = is_shadow_present_pte(change.before), is_shadow_present_pte(change.after)
            return was or (leaf and now)
        wanted = CRUCIAL.get(field)
        return wanted is not None and wanted(change.before, change.after)


def short_names(narration: Narration) -> Callable[[str], str]:
    """A function that puts short names for objects into a text: root A, table 1, page 1, mmu_lock."""
    aliases: dict[str, str] = {}
    counts = {"root": 0, "table": 0, "page": 0}
    machines = [name for name in narration.lives if re.fullmatch(r"(.*:)?Kvm\d+", name)]
    for name in narration.lives:
        level = narration.levels.get(name)
        kind = "root" if level == ROOT_LEVEL else "table" if level is not None else ""
        if re.fullmatch(r"(.*:)?Page\d+", name):
            kind = "page"
        if kind:
            counts[kind] += 1
            aliases[name] = f"root {_letter(counts[kind])}" if kind == "root" else f"{kind} {counts[kind]}"
        elif found := re.fullmatch(r"KvmVcpu(\d+)", name):
            aliases[name] = f"vCPU{found[1]}"
    if len(machines) == 1:
        aliases[machines[0]] = "kvm"
    if not aliases:
        return lambda text: text
    known = "|".join(re.escape(name) for name in sorted(aliases, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w:>])({known})(?!\w)")

    def shorten(text: str) -> str:
        text = pattern.sub(lambda match: aliases[match[1]], text)
        text = re.sub(r"\bkvm\.(?=\w)", "", text)
        return re.sub(r"\b(root [A-Z]+|table \d+)\.link\b", r"\1", text)

    return shorten


def _letter(number: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
