"""Memslot changes as KVM takes them, or refuses them."""

import pytest

from interleaf.ftrace.stimuli import Request, SlotChange, Slots

MIB = 1 << 20
FIRST = SlotChange(0, 0, MIB, 0x7F0000000000, 0)


@pytest.mark.parametrize(
    ("change", "request_"),
    [
        (FIRST, Request.NOTHING),
        (FIRST._replace(size=0), Request.DELETE),
        (FIRST._replace(gpa=MIB), Request.MOVE),
        (FIRST._replace(flags=1), Request.FLAGS),
        (FIRST._replace(flags=2), Request.NOTHING),
        (FIRST._replace(size=2 * MIB), Request.NOTHING),
        (FIRST._replace(hva=MIB), Request.NOTHING),
        (FIRST._replace(slot=1), Request.NOTHING),
        (FIRST._replace(slot=1, gpa=MIB), Request.CREATE),
        (FIRST._replace(slot=1 << 16), Request.CREATE),
        (FIRST._replace(slot=1, size=0), Request.NOTHING),
    ],
)
def test_what_a_change_amounts_to(change: SlotChange, request_: Request) -> None:
    slots = Slots()
    assert slots.change(FIRST) is Request.CREATE
    assert slots.change(change) is request_
    assert (slots.slots.get(change.slot) == change) == (request_ in (Request.CREATE, Request.MOVE, Request.FLAGS)) or (
        change == FIRST
    )


def test_each_address_space_has_its_slots() -> None:
    slots = Slots()
    mine = FIRST._replace(slot=1 << 16 | 3, gpa=MIB)
    slots.change(FIRST)
    slots.change(mine)
    assert (mine.as_id, mine.id) == (1, 3)
    assert slots.slot_of(0x10, 0) == FIRST
    assert slots.slot_of(0x10, 1) is None
    assert slots.slot_of(0x100, 0) is None
    assert slots.slot_of(0x100, 1) == mine
    assert slots.hvas(0xF0, 0x110) == [range(0x7F00000F0, 0x7F0000100), range(0x7F0000000, 0x7F0000010)]
