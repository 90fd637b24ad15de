"""Each rule that the building blocks enforce is broken by some program of the corpus."""

from __future__ import annotations

import re

import interleaf.linux
from tests.corpus.test_twins import PROGRAMS


def test_each_rule_of_the_building_blocks_is_broken_by_a_program() -> None:
    named = [line for line in (interleaf.linux.__doc__ or "").splitlines() if line.startswith("* ")]
    rules = {rule for line in named for rule in re.findall(r"`([\w-]+)`", line)}
    assert {"lockdep", "double-free", "workqueue"} <= rules
    assert rules <= {rule for program in PROGRAMS for rule in program.rules}
