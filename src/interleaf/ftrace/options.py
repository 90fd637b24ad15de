"""What a trace says of the machine and of how its VMs were made, in a first look at all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import EPT, NPT, Platform
from interleaf.kvm.kvm_host import KvmParams

from . import records
from .spte import EPT as EPT_LAYOUT
from .spte import layout_of, points_to_table
from .stimuli import marker_of

RING_SIZE = 1 << 16
"""Entries of a dirty ring whose size the trace does not tell."""


@dataclass(frozen=True, slots=True)
class Options:
    """The machine, and its VMs in the order of their making."""

    platform: Platform
    vms: tuple[KvmParams, ...]


def options_of(events: Iterable[records.Event], chosen: KvmParams) -> Options:
    """Look through a trace; `chosen` holds for each VM of which it does not say otherwise.

    The format of the page tables shows in the first entry that points to a table.
    """
    found: list[KvmParams] = []
    platform: Platform | None = None
    ring = False
    for event in events:
        record = event.record
        if isinstance(record, records.KvmTdpMmuSpteChanged):
            if platform is None and record.level > PG_LEVEL_4K and points_to_table(record.new_spte, record.level):
                platform = EPT if layout_of(record.new_spte) is EPT_LAYOUT else NPT
            continue
        marker = marker_of(event)
        if marker is None:
            continue
        if marker.word == "VM_CREATE" and "ncpu" in marker.values:
            found.append(replace(chosen, dirty_ring_size=RING_SIZE if ring else 0))
            ring = False
        elif marker.word == "ENABLE_DIRTY_RING":
            ring = True
        elif found:
            found[-1] = _told(found[-1], marker.word, marker.text)
    return Options(platform or NPT, tuple(found))


def _told(params: KvmParams, word: str, text: str) -> KvmParams:
    """What a driver's mark says of the VM."""
    if word == "DISABLE_QUIRK_SLOT_ZAP_ALL":
        return replace(params, slot_zap_all=False)
    if word == "CLEAR_DONE":
        return replace(params, manual_protect=True)
    if word == "STEP" and "initially all set" in text:
        return replace(params, manual_protect=True, initially_all_set=True)
    if word == "STEP" and "lazy" in text:
        return replace(params, eager_page_split=False)
    return params
