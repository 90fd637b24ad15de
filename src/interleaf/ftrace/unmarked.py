"""What a thread must be doing that reacts although the trace has not told of anything that was done to KVM.

Not every request to KVM has an event or a probe: a dirty log that is read or cleared, a write to nx_huge_pages, a vCPU
that enters system management mode. What is done then shows in the reactions themselves, of which those that follow are
looked at, too, up to where the thread begins something else. A page that is zapped without a cause is no such case:
that is what a comparison is there to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from interleaf.hw.access import PFERR_RSVD_MASK
from interleaf.hw.page_table import PG_LEVEL_4K, pages_per_entry
from interleaf.kvm.kvm_host import KvmMmuPage, KvmVcpu
from interleaf.kvm.tdp.spte import get_mmio_spte_gfn

from . import records
from .drive import Driver, Thread
from .lookups import Flow
from .programs import Command
from .spte import PFN_SHIFT, Change, change, is_leaf
from .stimuli import Slots, is_stimulus
from .tasks import RECOVERY

NEAR = 64
"""Events in which a vCPU that has a root is looked for to enter the guest."""

PROTECTS = frozenset({Change.PROTECT, Change.ADJUST})


class Unmarked:
    """Guesses what a thread is doing. `ahead` are the events that come next; `nx_huge_pages`: see `Options`."""

    def __init__(
        self, driver: Driver, slots: Slots, ahead: Iterable[records.Event], nx_huge_pages: tuple[bool, ...]
    ) -> None:
        self._driver = driver
        self._slots = slots
        self._ahead = ahead
        self._nx = nx_huge_pages
        self._zaps = 0
        """How often everything was zapped."""
        self.zapper: Thread | None = None
        """The thread of the model that has begun so last."""
        self._zapping: Command | None = None
        """What it was doing then."""

    def keep(self) -> Callable[[], None]:
        """What is so far; to call the answer brings it back."""
        zaps, zapper, zapping = self._zaps, self.zapper, self._zapping

        def bring_back() -> None:
            self._zaps, self.zapper, self._zapping = zaps, zapper, zapping

        return bring_back

    def everything_zapped(self, thread: Thread) -> None:
        """A thread of the model has made all roots invalid, or ought to have, and begins to zap them."""
        self._zaps += 1
        self.zapper, self._zapping = thread, self._driver.command(thread)

    def _is_zapping(self) -> bool:
        """Is that thread still about it? What it does later has nothing to do with that."""
        zapping = self._zapping
        return self.zapper is not None and zapping is not None and self._driver.command(self.zapper) is zapping

    def nx_huge_pages(self, later: int = 0) -> bool:
        """Are huge pages not executable on the host: now, or after so many zaps of everything more?"""
        return self._nx[min(self._zaps + later, len(self._nx) - 1)]

    def command(self, flow: Flow, event: records.Event) -> Command:
        """What an idle thread must be doing that reacts by `event`. While everything is being zapped, that is why a
        vCPU gets a new root, in whichever order the two have acted."""
        driver = self._driver
        kvm, vcpu = driver.kvm, driver.vcpu(flow.vcpu or 0)
        assert kvm is not None
        match event.record:
            case records.KvmMmuSpteRequested(gfn=gfn):
                return "prefault", vcpu, gfn, 1
            case records.FastPageFault(cr2_or_gpa=gpa):
                return "prefault", vcpu, gpa >> PFN_SHIFT, 1
            case records.KvmMmuZapAllFast():
                return "write nx_huge_pages", self.nx_huge_pages(1)
            case records.CheckMmioSpte(spte=spte):
                return "fault", vcpu, get_mmio_spte_gfn(kvm.masks, spte), PFERR_RSVD_MASK
            case records.HandleMmioPageFault(gfn=gfn):
                return "fault", vcpu, gfn, PFERR_RSVD_MASK
            case records.KvmMmuPage(level=level) if level == driver.platform.levels and not driver.must_prepare(vcpu):
                here, as_id = driver.as_id(flow.vcpu or 0), self.as_id_after(event)
                if as_id is not None and as_id != here:
                    return self.mode(vcpu, as_id)
                if self._is_zapping():
                    return "enter", vcpu
                return self.mode(vcpu, here)
            case records.KvmTdpMmuSpteChanged() | records.KvmMmuSplitHugePage() | records.KvmMmuPage():
                if event.task.comm == RECOVERY:
                    return "recover NX huge page", kvm
                return self._logged(event) or ("enter", vcpu)
        return "enter", vcpu

    def mode(self, vcpu: KvmVcpu, as_id: int) -> Command:
        """The vCPU goes into the address space `as_id`, or, if that is where it is, into its guest or back."""
        role = self._driver.memory.peek(KvmVcpu.root_role.cell(vcpu))
        return "change mode", vcpu, as_id, role.guest_mode != (as_id == role.as_id)

    def switched(self, vcpu: KvmVcpu, root: KvmMmuPage) -> Command:
        """The vCPU loads a root that is there."""
        role = self._driver.memory.peek(KvmMmuPage.role.cell(root))
        return "change mode", vcpu, role.as_id, role.guest_mode

    def vcpu_after(self, event: records.Event, usual: int | None) -> int | None:
        """The vCPU that the event's thread enters next: one thread may run several."""
        for later in islice(self._ahead, NEAR):
            if later.task.pid == event.task.pid:
                if isinstance(later.record, records.KvmEntry):
                    return later.record.vcpu_id
                if isinstance(later.record, records.Mark | records.KvmUserspaceExit):
                    break
        return usual

    def as_id_of_fault(self, event: records.Event) -> int | None:
        """The address space of a fault, as far as its reactions show it."""
        for later in self._ahead:
            if later.task.pid == event.task.pid:
                if isinstance(later.record, records.KvmTdpMmuSpteChanged):
                    return later.record.as_id
                if is_stimulus(later):
                    break
        return None

    def as_id_after(self, event: records.Event) -> int | None:
        """The address space of the first entry that the vCPU's thread changes next; None if it changes none before
        something else is done to it."""
        for later in self._ahead:
            if later.task.pid != event.task.pid:
                continue
            record = later.record
            if isinstance(record, records.KvmTdpMmuSpteChanged):
                return record.as_id
            if isinstance(record, records.KvmUserspaceExit | records.Mark | records.HvaRange):
                break
        return None

    def _rest(self, event: records.Event) -> Iterator[records.Event]:
        """The event, and those of its thread that follow before it begins something else."""
        yield event
        for later in self._ahead:
            if later.task.pid == event.task.pid:
                if is_stimulus(later):
                    return
                yield later

    def _logged(self, event: records.Event) -> Command | None:
        """Pages of a slot are protected because its dirty log is read or cleared."""
        kvm = self._driver.kvm
        assert kvm is not None
        gfns: dict[int, None] = {}
        where = None
        for each in self._rest(event):
            record = each.record
            if not isinstance(record, records.KvmTdpMmuSpteChanged):
                continue
            kind = change(record.old_spte, record.new_spte, record.level)
            if kind is Change.SPLIT and record.level > PG_LEVEL_4K:
                continue
            slot = self._slots.logged_slot_of(record.gfn, record.as_id)
            if kind not in PROTECTS or not is_leaf(record.new_spte, record.level) or slot is None:
                break
            if where is not None and slot is not where:
                break
            where = slot
            if record.level == PG_LEVEL_4K:
                gfns[record.gfn] = None
            else:
                gfns |= dict.fromkeys(range(record.gfn, record.gfn + pages_per_entry(record.level)))
        if where is None:
            return None
        if kvm.params.dirty_ring_size:
            return "reset dirty rings", kvm
        return "clear pages", kvm, where.id, tuple(sorted(gfns)), where.as_id
