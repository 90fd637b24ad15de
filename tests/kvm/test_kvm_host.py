"""The layout of roles, by which roots are told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interleaf.kvm.kvm_host import KvmMmuPageRole

ROOT = KvmMmuPageRole()


def test_the_word_of_a_root_is_the_kernels() -> None:
    # level 4, direct, access wux, efer_nx
    assert ROOT.word == 4 | 1 << 7 | 7 << 8 | 1 << 12 | 1 << 13


@pytest.mark.parametrize(
    ("other", "bit"),
    [
        (replace(ROOT, invalid=True), 1 << 11),
        (replace(ROOT, ad_disabled=True), 1 << 16),
        (replace(ROOT, guest_mode=True), 1 << 17),
        (replace(ROOT, smm=1), 1 << 24),
    ],
)
def test_each_difference_shows_in_the_word(other: KvmMmuPageRole, bit: int) -> None:
    assert other.word == ROOT.word | bit


def test_an_invalid_root_never_matches_a_valid_one() -> None:
    assert ROOT.invalidated().word != ROOT.word
    assert ROOT.invalidated().invalidated() == ROOT.invalidated()


def test_a_child_is_one_level_down() -> None:
    assert ROOT.child() == replace(ROOT, level=3)
