"""How the kernels since 5.12 print the events of KVM's MMU, and reading such a text.

A *template* is the text with `{field:kind}` where a value stands:

    d   a decimal number           x   a hexadecimal one, with or without 0x; also a pointer
    l   a level, 1 to 5            t   a flag printed as a number
    s   a word, or nothing         r   the rest of the line

A field called _ is not kept. Text in square brackets may be missing. Where kernels differ, an event has several
templates, newest first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from . import records
from .records import Record

Parse: TypeAlias = Callable[[bytes], Record | None]
"""Reads the text of an event; None if it is not printed as expected."""


class Unfit(Exception):
    """A template does not print all that a record must have."""


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _true(value: bytes) -> bool:
    return int(value) != 0


KINDS: Mapping[str, tuple[str, Callable[[bytes], Any]]] = {
    "d": (r"-?[0-9]{1,20}", int),
    "x": (r"(?:0x)?[0-9a-fA-F]{1,16}", partial(int, base=16)),
    "l": (r"[1-5]", int),
    "s": (r"\S*", _text),
    "t": (r"[0-9]{1,20}", _true),
    "r": (r".*", _text),
}

_HOLE = re.compile(r"\{(\w+):([a-z])\}|\[([^\]]*)\]|(\s+)")


def compile_template(template: str, record: type[Any]) -> Parse:
    """The reading of one template into `record`. Raises Unfit."""
    names: list[str] = []
    pattern = _pattern(template, names)
    missing = [name for name in record._fields if name not in names and name not in OPTIONAL]
    if missing:
        raise Unfit(f"{record.__name__} needs {', '.join(missing)}")
    kinds = dict(_fields(template))
    match = re.compile(pattern.encode() + rb"[\s\0]*\Z", re.DOTALL).match
    converters = [KINDS[kinds[name]][1] for name in names]
    places = [names.index(name) if name in names else None for name in record._fields]
    in_order = places == list(range(len(names))) and "[" not in template
    build: Callable[[type[Any], list[Any]], Record] = tuple.__new__

    def parse(text: bytes) -> Record | None:
        found = match(text)
        if found is None:
            return None
        if in_order:  # nearly always, and twice as fast
            return build(record, [convert(value) for convert, value in zip(converters, found.groups(), strict=True)])
        values = [
            None if value is None else convert(value) for convert, value in zip(converters, found.groups(), strict=True)
        ]
        return build(record, [None if place is None else values[place] for place in places])

    return parse


def _fields(template: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind in re.findall(r"\{(\w+):([a-z])\}", template) if name != "_"]


def _pattern(template: str, names: list[str]) -> str:
    """The regular expression of a template; `names` receives the names of its groups, in order."""
    parts, at = [], 0
    for hole in _HOLE.finditer(template):
        parts.append(re.escape(template[at : hole.start()]))
        at = hole.end()
        name, kind, optional, _blank = hole.groups()
        if name is not None and kind not in KINDS:
            raise Unfit(f"there is no kind of value {kind!r}")
        if name == "_":
            parts.append(f"(?:{KINDS[kind][0]})")
        elif name is not None:
            if name in names:
                raise Unfit(f"{name} is printed twice")
            names.append(name)
            parts.append(f"({KINDS[kind][0]})")
        elif optional is not None:
            parts.append(f"(?:{_pattern(optional, names)})?")
        else:
            parts.append(r"[\s\0]+")  # kernels put a NUL behind a page's description
    parts.append(re.escape(template[at:]))
    return "".join(parts)


OPTIONAL = frozenset({"vcpu_id", "guest_rip", "rip", "mmu_valid_gen", "ad_disabled", "created"})
"""Fields that are None where they are not printed."""

TEMPLATES: Mapping[str, tuple[type[Any], tuple[str, ...]]] = {
    "kvm_tdp_mmu_spte_changed": (
        records.KvmTdpMmuSpteChanged,
        ("as id {as_id:d} gfn {gfn:x} level {level:l} old_spte {old_spte:x} new_spte {new_spte:x}",),
    ),
    "kvm_mmu_spte_requested": (records.KvmMmuSpteRequested, ("gfn {gfn:x} pfn {pfn:x} level {level:l}",)),
    "kvm_mmu_set_spte": (
        records.KvmMmuSetSpte,
        ("gfn {gfn:x} spte {spte:x} ({access:s}) level {level:l} at {sptep:x}",),
    ),
    "kvm_mmu_zap_all_fast": (
        records.KvmMmuZapAllFast,
        ("kvm-mmu-valid-gen {mmu_valid_gen:d} used_pages {mmu_used_pages:x}",),
    ),
    "fast_page_fault": (
        records.FastPageFault,
        (
            (
                "vcpu {vcpu_id:d} gva {cr2_or_gpa:x} error_code {error_code:s} sptep {sptep:x} old {old_spte:x} "
                "new {new_spte:x} spurious {spurious:t} fixed {fixed:t}"
            ),
        ),
    ),
    "kvm_mmu_split_huge_page": (
        records.KvmMmuSplitHugePage,
        ("gfn {gfn:x} spte {spte:x} level {level:l} errno {errno:d}",),
    ),
    "mark_mmio_spte": (records.MarkMmioSpte, ("sptep:{sptep:x} gfn {gfn:x} access {access:x} gen {gen:x}",)),
    "check_mmio_spte": (
        records.CheckMmioSpte,
        ("spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {valid:t}",),
    ),
    "handle_mmio_page_fault": (records.HandleMmioPageFault, ("addr:{addr:x} gfn {gfn:x} access {access:x}",)),
    "kvm_mmu_pagetable_walk": (records.KvmMmuPagetableWalk, ("addr {addr:x} pferr {pferr:x}[ {_:r}]",)),
    "kvm_mmu_paging_element": (records.KvmMmuPagingElement, ("pte {pte:x} level {level:l}",)),
    "kvm_mmu_walker_error": (records.KvmMmuWalkerError, ("pferr {pferr:x}[ {_:r}]",)),
    "kvm_mmu_set_accessed_bit": (records.KvmMmuSetBit, ("gpa {gpa:x}",)),
    "kvm_mmu_set_dirty_bit": (records.KvmMmuSetBit, ("gpa {gpa:x}",)),
    "kvm_page_fault": (
        records.KvmPageFault,
        (
            "vcpu {vcpu_id:d} rip {guest_rip:x} address {fault_address:x} error_code {error_code:x}",
            "address {fault_address:x} error_code {error_code:x}",
        ),
    ),
    "kvm_entry": (records.KvmEntry, ("vcpu {vcpu_id:d}, rip {rip:x}{_:r}", "vcpu {vcpu_id:d}{_:r}")),
    "kvm_exit": (
        records.KvmExit,
        (
            "vcpu {vcpu_id:d} reason {exit_reason:s} rip {guest_rip:x} info1 {info1:x} info2 {info2:x}{_:r}",
            "vcpu {vcpu_id:d} reason {exit_reason:s} {_:s} rip {guest_rip:x} info1 {info1:x} info2 {info2:x}{_:r}",
            "[vcpu {vcpu_id:d} ]reason {exit_reason:s} rip {guest_rip:x} info {info1:x} {info2:x}{_:r}",
        ),
    ),
    "kvm_userspace_exit": (records.KvmUserspaceExit, ("reason {reason:s} ({errno:d})",)),
    "kvm_mmio": (records.KvmMmio, ("mmio {type:s} len {len:d} gpa {gpa:x} val {val:x}",)),
    "kvm_unmap_hva_range": (records.HvaRange, ("mmu notifier unmap range: {start:x} -- {end:x}",)),
    "kvm_age_hva": (records.HvaRange, ("mmu notifier age hva: {start:x} -- {end:x}",)),
    "kvm_test_age_hva": (records.Hva, ("mmu notifier test age hva: {hva:x}",)),
    "kvm_set_spte_hva": (records.Hva, ("mmu notifier set pte hva: {hva:x}",)),
    "kvm_dirty_ring_push": (
        records.KvmDirtyRingPush,
        (
            (
                "ring {ring:d}: dirty {dirty_index:x} reset {reset_index:x} slot {slot:d} offset {offset:x} "
                "(used {used:d})"
            ),
        ),
    ),
    "kvm_dirty_ring_reset": (
        records.KvmDirtyRingReset,
        ("ring {ring:d}: dirty {dirty_index:x} reset {reset_index:x} (used {used:d})",),
    ),
    "kvm_dirty_ring_exit": (records.KvmDirtyRingExit, ("vcpu {vcpu_id:d}",)),
    "kvm_try_async_get_page": (records.KvmAsyncGetPage, ("gva = {gva:x}, gfn = {gfn:x}",)),
    "kvm_async_pf_repeated_fault": (records.KvmAsyncGetPage, ("gva = {gva:x}, gfn = {gfn:x}",)),
    "kvm_async_pf_not_present": (records.KvmAsyncPf, ("token {token:x} gva {gva:x}",)),
    "kvm_async_pf_ready": (records.KvmAsyncPf, ("token {token:x} gva {gva:x}",)),
    "kvm_async_pf_completed": (records.KvmAsyncPfCompleted, ("gva {gva:x} address {address:x}",)),
}
"""Event -> its record, and the templates of the kernels and of trace-cmd's plugin, newest first."""


def _spte_changed(text: bytes) -> Record | None:
    """kvm_tdp_mmu_spte_changed, the event that traces consist of: three times as fast as its template."""
    words = text.split()
    if len(words) != 11 or len(text) > LONGEST:
        return None
    first, second, as_id, third, gfn, fourth, level, fifth, old_spte, sixth, new_spte = words
    if (
        first != b"as"
        or second != b"id"
        or third != b"gfn"
        or fourth != b"level"
        or fifth != b"old_spte"
        or sixth != b"new_spte"
    ):
        return None
    try:
        return _SPTE_CHANGED(
            records.KvmTdpMmuSpteChanged,
            (_AS_IDS[as_id], int(gfn, 16), _LEVELS[level], int(old_spte, 16), int(new_spte, 16)),
        )
    except (KeyError, ValueError):
        return None


LONGEST = 128
"""No text of kvm_tdp_mmu_spte_changed has more bytes."""

_AS_IDS = {b"0": 0, b"1": 1}
_LEVELS = {b"1": 1, b"2": 2, b"3": 3, b"4": 4, b"5": 5}
_SPTE_CHANGED: Callable[[type[Any], tuple[int, ...]], Record] = tuple.__new__

_PAGE = re.compile(
    rb"sp gen (?P<gen>\d{1,3}) gfn (?P<gfn>[0-9a-f]{1,16}) l(?P<level>[0-5]) \d-byte q(?P<quadrant>\d)"
    rb"(?P<direct> direct)? (?P<access>[-w][-u][-x])(?P<invalid> invalid)? !?nxe (?P<ad>!?)ad "
    rb"root (?P<root>\d{1,10}) (?P<sync>sync|unsync)[\s\0]*(?P<created>new|existing)?[\s\0]*\Z"
)
_PAGE_OF_PLUGIN = re.compile(
    rb"(?:(?P<created>new|existing) )?sp gfn (?P<gfn>[0-9a-f]{1,16}) (?P<level>[0-5]) q(?P<quadrant>\d)"
    rb"(?P<direct> direct)? (?P<access>[-w][-u][-x])(?P<invalid> invalid)? !?pae !?nxe !?wp(?: smep)?(?: smap)?"
    rb"(?: smm)? +root (?P<root>\d{1,10}),? *(?P<sync>sync|unsync)[\s\0]*\Z"
)


def _page(text: bytes) -> Record | None:
    """A page's description, as the kernel prints it or as trace-cmd's plugin for KVM does."""
    found = _PAGE.match(text) or _PAGE_OF_PLUGIN.match(text)
    if found is None:
        return None
    known = found.groupdict()
    return records.KvmMmuPage(
        None if known.get("gen") is None else int(known["gen"]),
        int(known["gfn"], 16),
        int(known["level"]),
        int(known["quadrant"]),
        known["direct"] is not None,
        known["access"].decode(),
        known["invalid"] is not None,
        None if known.get("ad") is None else known["ad"] == b"!",
        int(known["root"]),
        known["sync"] == b"unsync",
        None if known["created"] is None else known["created"] == b"new",
    )


_AGED = re.compile(rb"hva ([0-9a-f]{1,16}) gfn ([0-9a-f]{1,16}) level ([1-5]) (YOUNG|OLD)\s*\Z")


def _aged(text: bytes) -> Record | None:
    found = _AGED.match(text)
    if found is None:
        return None
    return records.KvmAgePage(int(found[1], 16), int(found[2], 16), int(found[3]), found[4] == b"YOUNG")


def either(parsers: Sequence[Parse]) -> Parse:
    """Reads with the first of the parsers that can."""
    if len(parsers) == 1:
        return parsers[0]

    def parse(text: bytes) -> Record | None:
        for one in parsers:
            record = one(text)
            if record is not None:
                return record
        return None

    return parse


def known_parsers() -> dict[bytes, Parse]:
    """Event -> the reading of its text, for all events that are known."""
    parsers = {
        name.encode(): either([compile_template(template, record) for template in templates])
        for name, (record, templates) in TEMPLATES.items()
    }
    for name in ("kvm_mmu_get_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_sync_page", "kvm_mmu_unsync_page"):
        parsers[name.encode()] = _page
    parsers[b"kvm_age_page"] = _aged
    parsers[b"kvm_tdp_mmu_spte_changed"] = _spte_changed
    return parsers
