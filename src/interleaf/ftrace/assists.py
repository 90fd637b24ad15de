"""What the processor does to entries, as a trace shows it: A and D bits that it sets without an event."""

from __future__ import annotations

from interleaf.hw.page_table import index_of
from interleaf.kvm import trace as model
from interleaf.kvm.kvm_host import KvmMmuPage

from . import records
from .drive import Driver, Reaction, Thread
from .matching import Rule
from .spte import PRESENT, Layout


class Assists:
    """Sets in the model what the processor has set on the host."""

    def __init__(self, driver: Driver, layout: Layout) -> None:
        self._driver = driver
        self.volatile = layout.volatile
        """The A and D bits."""

    def before(self, event: records.Event) -> bool:
        """Let the hardware set the bits that an event shows to have been set before it; were there any?"""
        record, assist, volatile = event.record, self._driver.assist, self.volatile
        match record:
            case records.KvmTdpMmuSpteChanged():
                return assist(record.level, record.gfn, record.old_spte, volatile)
            case records.FastPageFault():
                gfn = record.cr2_or_gpa >> 12
                return any(assist(level, gfn, record.old_spte, volatile) for level in (1, 2, 3))
        return False

    def read_again(self, thread: Thread, event: records.Event, reaction: Reaction, rules: list[Rule]) -> Reaction:
        """kvm_mmu_set_spte does not tell what was written, but what is in the entry when the event is written; the
        processor may have set bits in between."""
        said, mine = event.record, reaction.record
        if not isinstance(said, records.KvmMmuSetSpte) or not isinstance(mine, model.SetSpte):
            return reaction
        sp, index = self._driver.table_of_pfn(mine.sptep >> 12), (mine.sptep & 0xFFF) >> 3
        if sp is None or not self._driver.alive(sp):
            return reaction
        self._driver.looked(thread, KvmMmuPage.spt.element(sp, index))
        now = self._driver.entry(sp, index)
        if now != said.spte and now & PRESENT and now | said.spte & self.volatile == said.spte:
            now = said.spte
            self._driver.set_entry(sp, index, now)
            rules.append(Rule.AD_BITS)
        return reaction._replace(record=mine._replace(spte=now)) if now == said.spte else reaction

    def of_other_table(self, event: records.Event, reaction: Reaction, rules: list[Rule]) -> Reaction:
        """Of several tables that map a gfn, that which is zapped may have been used, and not the one in which `before`
        has set the bits: the reaction, as it is then."""
        said, mine = event.record, reaction.record
        if not isinstance(said, records.KvmTdpMmuSpteChanged) or not isinstance(mine, model.SpteChanged):
            return reaction
        more = said.old_spte & self.volatile & ~mine.old_spte
        if not more or not said.old_spte & mine.old_spte & PRESENT or mine.new_spte & PRESENT:
            return reaction
        index = index_of(said.gfn, said.level)
        if all(self._driver.entry(sp, index) != said.old_spte for sp in self._driver.tables_at(said.level, said.gfn)):
            return reaction
        rules.append(Rule.AD_BITS)
        return reaction._replace(record=mine._replace(old_spte=mine.old_spte | more))
