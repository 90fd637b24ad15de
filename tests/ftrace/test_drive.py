"""What the driven model keeps does not depend on how long it has been driven."""

import gc
import gzip
from collections import Counter
from pathlib import Path

import pytest

from interleaf.designs import load
from interleaf.ftrace import drive, matching
from interleaf.ftrace.compare import Comparison
from interleaf.ftrace.follow import LiveDriver
from interleaf.ftrace.options import options_of
from interleaf.ftrace.parameters import Parameters
from interleaf.ftrace.reader import Trace
from interleaf.kvm.kvm_host import KvmMmuPage
from interleaf.runtime import Object, live
from interleaf.runtime.cells import Cell
from tests.ftrace.carried import trace_of

FEW = 4
"""Freed objects, frames and places that are kept here, instead of the many that would hide what grows."""


def _kept(path: Path, name: str, times: int) -> tuple[Counter[str], Comparison]:
    """What is there of the model after a trace that makes and destroys a VM, so many times in a row."""
    path.write_bytes(gzip.decompress(trace_of(name).read_bytes()) * times)
    options = options_of(Trace(path), Parameters())
    comparison = Comparison(LiveDriver(load("v" + name.partition("/")[0]), options.platform), options, {})
    result = comparison.run(Trace(path))
    assert result.divergent == 0
    assert result.events > 100 * times
    while gc.collect():  # what one collection frees can let go of more
        pass
    world = comparison.driver.world
    there = [each for each in gc.get_objects() if isinstance(each, Object | Cell)]
    mine = [each for each in there if (each.owner if isinstance(each, Cell) else each).world is world]
    counts = Counter("cell" if isinstance(each, Cell) else type(each).__name__ for each in mine)
    counts["tables' places"] = len(comparison.driver.tables)
    counts["tasks"] = len(world.tasks)
    return counts, comparison


@pytest.mark.parametrize("name", ["6.12/icount/w06b_dirty_manual", "6.1/icount/w06b_dirty_manual"])
def test_nothing_of_a_vm_that_is_gone_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUARANTINE", FEW)
    monkeypatch.setattr(live, "HOLDS", 1)
    monkeypatch.setattr(matching, "CROWDED", FEW)
    monkeypatch.setattr(drive, "CROWDED", FEW)
    short, _ = _kept(tmp_path / "short", name, 3)
    long, comparison = _kept(tmp_path / "long", name, 9)
    assert long == short
    assert long[KvmMmuPage.__name__] <= FEW
    assert len(comparison.frames.real) <= 4 * FEW
