"""Whether what a patch says about itself is true: the answers of searches, turned into one word for each claim.

The searches are ordinary checks of ordinary requests. A word is given only where all searches that decide a claim
looked at everything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interleaf.check import Cell, Finding, Request
from interleaf.explore.verdict import Status
from interleaf.properties.claims import Claim, Trial
from interleaf.worker import Result


class Word(enum.StrEnum):
    """What is known of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    VACUOUS = "vacuous"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer on one claim."""

    claim: Claim
    word: Word | None
    """None if a search did not come to its end."""
    detail: str
    """What breaks and where, or why nothing could; if there is no word, why not."""
    states: int = 0
    """How many states of the programs that decide it there are."""
    finding: Finding | None = None
    """What shows that the claim fails, if that is a violation."""


def requests_of(claims: Sequence[Claim], seed: int = 1) -> list[Request]:
    """The checks that decide `claims`, each once."""
    trials = dict.fromkeys(trial for claim in claims for trial in claim.trials)
    return [Request(trial.scenario, trial.design, seed=seed) for trial in trials]


def decide(claims: Sequence[Claim], results: Sequence[Result]) -> list[Decision]:
    """The answers on `claims`; `results` are those of `requests_of`, in any order."""
    known = {Trial(result.request.scenario, result.request.design): result for result in results}
    return [_decide(claim, known) for claim in claims]


def _decide(claim: Claim, results: Mapping[Trial, Result]) -> Decision:
    cells: dict[Trial, Cell] = {}
    for trial in claim.trials:
        result = results.get(trial)
        cell = result.cell if result is not None and not result.error else None
        if cell is None or not cell.verdict.exhaustive:
            why = "" if result is None else result.error or result.stopped
            why = why or ("it was not searched" if cell is None else cell.verdict.reason)
            return Decision(claim, None, f"{trial}: {why}")
        cells[trial] = cell
    states = sum(cells[trial].states for trial in claim.trials)
    missing = [name for name in claim.exercised if not any(_exercised(cells[trial], name) for trial in claim.posted)]
    if missing:
        detail = claim.vacuous or f"nothing exercises {', '.join(missing)} {_places(claim.posted)}"
        return Decision(claim, Word.VACUOUS, detail, states)
    shown = _telling(claim, claim.posted, cells)
    if shown is not None:
        detail = _what_breaks(claim, claim.posted, cells, shown)
        if claim.remedy:
            again = _telling(claim, claim.remedy, cells)
            what = "nothing breaks" if again is None else f"{again.property} as well"
            detail += f"; {what} {_places(claim.remedy)}"
        return Decision(claim, Word.FAILS, detail, states, shown)
    nothing = f"nothing breaks {_places(claim.posted)}"
    if not claim.changed:
        return Decision(claim, Word.HOLDS, nothing, states)
    shown = _telling(claim, claim.changed, cells)
    if shown is None:
        nothing = f"nothing breaks {_places(claim.changed)}"
        if claim.needed:
            return Decision(claim, Word.FAILS, f"not needed: {nothing}", states)
        return Decision(claim, Word.VACUOUS, f"{nothing} either, so the searches could not have shown it", states)
    if claim.needed:
        return Decision(claim, Word.HOLDS, _what_breaks(claim, claim.changed, cells, shown), states)
    return Decision(claim, Word.HOLDS, f"{nothing}; but {shown.property} {_places(claim.changed)}", states)


def _exercised(cell: Cell, name: str) -> bool:
    return dict(cell.verdict.properties).get(name) in (Status.HOLDS, Status.VIOLATED)


def _telling(claim: Claim, trials: Sequence[Trial], cells: Mapping[Trial, Cell]) -> Finding | None:
    """The finding that tells most: of the first of the rules, and with the shortest story."""
    found = [finding for trial in trials for finding in cells[trial].findings if finding.property in claim.rules]
    return min(found, key=lambda finding: (claim.rules.index(finding.property), *_length(finding)), default=None)


def _length(finding: Finding) -> tuple[float, int]:
    preemptions = float("inf") if finding.preemptions is None else finding.preemptions
    return preemptions, len(finding.schedule)


def _what_breaks(claim: Claim, trials: Sequence[Trial], cells: Mapping[Trial, Cell], shown: Finding) -> str:
    found = {finding.property for trial in trials for finding in cells[trial].findings}
    names = [rule for rule in claim.rules if rule in found]
    place = _places((Trial(shown.scenario, shown.design),))
    return f"{', '.join(names)} {place} ({shown.schedule[-1].task}: {shown.message})"


def _places(trials: Sequence[Trial]) -> str:
    """The scenarios, with how the design differs from the one that is claimed about."""
    designs: dict[str, list[str]] = {}
    for trial in trials:
        designs.setdefault(trial.design.partition(" ")[2], []).append(trial.scenario)
    return "; ".join(f"{changes} in {', '.join(names)}".strip() for changes, names in designs.items())
