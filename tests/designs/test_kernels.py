"""Each kernel has one design, or none."""

from itertools import pairwise

import pytest

from interleaf.designs import load
from interleaf.designs.kernels import KERNELS, V6_6, design_of


@pytest.mark.parametrize(
    ("release", "design"),
    [
        ("5.12.19", None),
        ("5.15.0-91-generic", "v5.13"),
        ("6.0.1", "v5.18"),
        ("6.1.0-56-amd64", "v6.1"),
        ("6.6.30", V6_6),
        ("6.8.12", None),
        ("6.12.117+deb13-amd64", "v6.12"),
        ("6.18", "v6.18"),
        ("7.0", None),
        ("mine", None),
    ],
)
def test_a_release_has_a_design(release: str, design: str | None) -> None:
    assert design_of(release) == design


def test_kernels_are_in_order_and_their_designs_can_be_loaded() -> None:
    for older, newer in pairwise(KERNELS):
        assert older.first <= older.last < newer.first
    assert len({load(kernels.design).name for kernels in KERNELS}) == len(KERNELS)
