"""The command `interleaf check --claims`: search, decide the claims, show them, and write them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from interleaf.arguments import Refused
from interleaf.campaign import run
from interleaf.checking import (
    HOLDS,
    INCOMPLETE,
    UNUSABLE,
    VIOLATED,
    Outputs,
    Told,
    expect_writable,
    print_stories,
    retold,
    write,
)
from interleaf.claims import Decision, Word, decide, requests_of
from interleaf.properties.claims import CLAIMS
from interleaf.report.claims import claim_entry, print_claims
from interleaf.report.matrix import Matrix, console_for


def expect_no_others(given: Sequence[str]) -> None:
    """Raise Refused if anything was `given` that the claims decide for themselves."""
    if given:
        raise Refused(f"--claims says itself what to search, and searches all of it: leave {', '.join(given)} out.")


def check_claims(workers: int | None, seed: int | None, outputs: Outputs) -> int:
    """Decide all claims, show and write the answers; returns the exit code. Raises Refused."""
    expect_writable(outputs)
    requests = requests_of(CLAIMS, 1 if seed is None else seed)
    with Matrix(requests, console_for(stderr=True)) as matrix:
        results = run(requests, workers=workers, listener=matrix)
    decisions = decide(CLAIMS, results)
    told: list[Told] = []
    entries = []
    for decision in decisions:
        if decision.finding is not None:
            told.append(retold(decision.finding, ()))
        entries.append(claim_entry(decision, len(told) if decision.finding is not None else None))
    write(results, told, outputs, claims=entries)
    console = console_for(stderr=outputs.json_alone)
    print_claims(console, decisions)
    for result in results:
        if result.error:
            console.print(Text(f"error: {result.error}", style="yellow"), soft_wrap=True)
    print_stories(console, told, outputs)
    if any(result.error for result in results):
        return UNUSABLE
    return exit_code(decisions)


def exit_code(decisions: Sequence[Decision]) -> int:
    """What the command returns: a claim that fails counts most, then one that is not decided."""
    words = [decision.word for decision in decisions]
    if Word.FAILS in words:
        return VIOLATED
    return INCOMPLETE if None in words else HOLDS
