"""What no kernel has mended is found, and is no part of the library."""

from __future__ import annotations

import functools

import pytest

from interleaf.designs import load
from interleaf.explore.states import StateSearch
from interleaf.scenarios import library, of_unfixed


@pytest.mark.parametrize("design", ["v5.13", "v6.18"])
def test_a_memslot_update_starves_in_a_storm_of_notifiers(design: str) -> None:
    storm = of_unfixed()["memslot-delete-in-notifier-storm"]
    search = StateSearch(functools.partial(storm.setup, load(design)))
    try:
        outcome = search.run()
    finally:
        search.close()
    assert outcome.exhaustive
    assert {found.violation.rule for found in outcome.found} == {"starvation"}
    assert all("memslot retries for ever" in found.violation.message for found in outcome.found)


def test_the_library_does_not_have_them() -> None:
    assert not of_unfixed().keys() & library().keys()
