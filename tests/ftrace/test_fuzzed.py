"""What a fuzzer has found worth keeping is put through everything, each time."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.ftrace.carried import trace_of
from tests.ftrace.everything import put_through

KEPT = sorted((Path(__file__).parent / "fuzzed").iterdir())


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_what_a_fuzzer_made_up_is_put_through(file: Path) -> None:
    put_through(file)


def test_the_corpus_has_traces_and_what_is_none(tmp_path: Path) -> None:
    assert {put_through(file, show=False) for file in KEPT} == {True, False}
    whole = tmp_path / "trace"
    whole.write_bytes(gzip.decompress(trace_of("6.12/runA/w09_mmio").read_bytes()))
    assert put_through(whole)
