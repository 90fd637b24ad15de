"""What an EPT violation says of an access."""

import pytest

from interleaf.ftrace.access import error_code_of, qualification_of
from interleaf.ftrace.records import KvmPageFault
from interleaf.hw.access import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from interleaf.hw.platform import EPT, NPT


@pytest.mark.parametrize(
    ("qualification", "code"),
    [
        (0x181, PFERR_USER_MASK),
        (0x182, PFERR_WRITE_MASK),
        (0x184, PFERR_FETCH_MASK),
        (0x18A, PFERR_WRITE_MASK | PFERR_PRESENT_MASK),
        (0x1AA, PFERR_WRITE_MASK | PFERR_PRESENT_MASK),
    ],
)
def test_a_qualification_is_an_error_code(qualification: int, code: int) -> None:
    assert error_code_of(KvmPageFault(0, 0, 0, qualification), EPT) == code | PFERR_GUEST_FINAL_MASK
    if not qualification & 0x20:
        assert qualification_of(code) == qualification


def test_an_error_code_of_amd_is_one() -> None:
    assert error_code_of(KvmPageFault(0, 0, 0, 0x100000006), NPT) == 0x100000006
