"""Is a reaction of the model what an event says? And by which rule, where the two cannot be equal.

Frames of page tables are the host's decision: a table of the model stands for the frame in which the trace has it, from
the event that links it (or loads it, for a root) until it is freed, and every other value that names the frame must
agree.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from interleaf.kvm import trace as model
from interleaf.kvm.mmu_internal import RetPf

from . import records
from .drive import Reaction
from .spte import NON_PRESENT, PFN_MASK, pfn_of, points_to_table

CROWDED = 1024
"""Frames from which on those are looked for whose table has been freed."""


class Rule(enum.StrEnum):
    """Why something is right although the trace and the model do not say the same."""

    TABLE_FRAME = "the host chose the frame of a page table"
    HOST_PAGE = "the host chose the frame and the level of a page, and whether it may be written"
    AD_BITS = "the CPU set A or D bits"
    UNNAMED = "what the trace does not name was done to KVM, as its reactions show"
    ORDER = "two CPUs' events stand in an order that their operations explain"


class Frames:
    """Which frame of the trace each table of the model has. `is_table`: is there still a table in that frame of the
    model?"""

    def __init__(self, note: Callable[..., None], is_table: Callable[[int], bool]) -> None:
        """`note(undo, *arguments)` is told how a change can be undone."""
        self._note = note
        self.real: dict[int, int] = {}
        """pfn in the model -> pfn in the trace."""
        self._is_table = is_table
        self._crowded = CROWDED

    def bind(self, mine: int, real: int) -> bool:
        """From now on the model's table `mine` is the frame `real`; False if it is another one already."""
        known = self.real.get(mine)
        if known is None:
            if len(self.real) >= self._crowded:
                self._note(setattr, self, "real", self.real)
                self.real = {table: frame for table, frame in self.real.items() if self._is_table(table)}
                self._crowded = CROWDED + 2 * len(self.real)
            self._note(self.real.pop, mine)
            self.real[mine] = real
        return known is None or known == real

    def spte(self, value: int, level: int) -> int:
        """An entry of the model as the trace would have it."""
        if not points_to_table(value, level):
            return value
        real = self.real.get(pfn_of(value))
        return value if real is None else (value & ~PFN_MASK) | real << 12

    def address(self, address: int) -> int:
        """An address in a table."""
        real = self.real.get(address >> 12)
        return address if real is None else real << 12 | address & 0xFFF


def kind_of(record: object) -> type | None:
    """The record of the model that an event's record must be answered with; None for what is no reaction."""
    return _ANSWERS.get(type(record))


def mismatch(event: records.Event, reaction: Reaction, frames: Frames, rules: list[Rule]) -> str | None:
    """What is wrong with the reaction; None if it is what the event says. `rules`: those that were needed are added."""
    said, mine = event.record, reaction.record
    match said, mine:
        case records.KvmTdpMmuSpteChanged(), model.SpteChanged():
            return _changed(said, mine, frames, rules)
        case records.KvmMmuSpteRequested(), model.SpteRequested():
            rules.append(Rule.HOST_PAGE)
            return _differ((said.gfn, said.pfn, said.level), (mine.gfn, mine.pfn, mine.level))
        case records.KvmMmuSetSpte(), model.SetSpte():
            expected = mine.gfn, frames.spte(mine.spte, mine.level), mine.level, frames.address(mine.sptep)
            return _differ((said.gfn, said.spte, said.level, said.sptep), expected)
        case records.KvmMmuPage(), model.GetPage() if event.name == "kvm_mmu_get_page":
            return _differ((said.gfn, said.level), reaction.table)
        case records.KvmMmuPage(), model.PrepareZapPage() if event.name == "kvm_mmu_prepare_zap_page":
            return _differ((said.gfn, said.level), reaction.table)
        case records.KvmMmuZapAllFast(), model.ZapAllFast():
            return _differ(said.mmu_valid_gen, mine.mmu_valid_gen)
        case records.FastPageFault(), model.FastPageFault():
            wanted = said.vcpu_id, said.cr2_or_gpa >> 12, said.old_spte, said.fixed, said.spurious
            found = mine.vcpu_id, mine.gpa >> 12, mine.old_spte, mine.ret is RetPf.FIXED, mine.ret is RetPf.SPURIOUS
            if said.fixed and said.new_spte != mine.new_spte:
                return f"the model makes {mine.new_spte:x} of the entry"
            return _differ(wanted, found)
        case records.KvmMmuSplitHugePage(), model.SplitHugePage():
            return _differ((said.gfn, said.spte, said.level, said.errno), tuple(mine))
        case records.MarkMmioSpte(), model.MarkMmioSpte():
            return _differ((said.gfn, said.access, said.gen), (mine.gfn, mine.access, mine.generation))
        case records.CheckMmioSpte(), model.CheckMmioSpte():
            return _differ(tuple(said), (mine.spte, mine.kvm_gen, mine.spte_gen, mine.valid))
        case records.HandleMmioPageFault(), model.HandleMmioPageFault():
            return _differ((said.gfn, said.access), (mine.gfn, mine.access))
    return f"the model does something else: {show(reaction, frames)}"


def _changed(
    said: records.KvmTdpMmuSpteChanged, mine: model.SpteChanged, frames: Frames, rules: list[Rule]
) -> str | None:
    if tuple(said[:3]) != tuple(mine[:3]):
        return f"the model changes another entry: gfn {mine.gfn:x}, level {mine.level}"
    if points_to_table(mine.new_spte, mine.level) and points_to_table(said.new_spte, said.level):
        rules.append(Rule.TABLE_FRAME)
        if not frames.bind(pfn_of(mine.new_spte), pfn_of(said.new_spte)):
            return f"the model links a table that was frame {frames.real[pfn_of(mine.new_spte)]:x} before"
    old, new = frames.spte(mine.old_spte, mine.level), frames.spte(mine.new_spte, mine.level)
    if (old, new) != (said.old_spte, said.new_spte):
        if {old, new} & NON_PRESENT != {said.old_spte, said.new_spte} & NON_PRESENT:
            return (
                f"the model changes it from {old:x} to {new:x}: the design has another non-present value "
                "(shadow_nonpresent_value), or leaves another value in between"
            )
        return f"the model changes it from {old:x} to {new:x}"
    return None


def _differ(said: object, mine: object) -> str | None:
    return None if said == mine else f"the trace says {_numbers(said)}, the model {_numbers(mine)}"


def _numbers(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_numbers, value))
    return f"{value:x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show(reaction: Reaction, frames: Frames) -> str:
    """A reaction of the model for people."""
    mine = reaction.record
    name = type(mine).__name__
    if isinstance(mine, model.SpteChanged):
        old, new = frames.spte(mine.old_spte, mine.level), frames.spte(mine.new_spte, mine.level)
        return f"{name} gfn {mine.gfn:x} level {mine.level} old_spte {old:x} new_spte {new:x}"
    if reaction.table is not None:
        return f"{name} gfn {reaction.table[0]:x} level {reaction.table[1]}"
    assert isinstance(mine, tuple)
    fields = getattr(mine, "_fields", ())
    return f"{name} " + " ".join(f"{key} {_numbers(value)}" for key, value in zip(fields, mine, strict=True))


_ANSWERS: dict[type, type] = {
    records.KvmTdpMmuSpteChanged: model.SpteChanged,
    records.KvmMmuSpteRequested: model.SpteRequested,
    records.KvmMmuSetSpte: model.SetSpte,
    records.KvmMmuPage: model.GetPage,
    records.KvmMmuZapAllFast: model.ZapAllFast,
    records.FastPageFault: model.FastPageFault,
    records.KvmMmuSplitHugePage: model.SplitHugePage,
    records.MarkMmioSpte: model.MarkMmioSpte,
    records.CheckMmioSpte: model.CheckMmioSpte,
    records.HandleMmioPageFault: model.HandleMmioPageFault,
}
