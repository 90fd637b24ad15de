"""The claims of a patch: a table for people, a list for programs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interleaf.claims import Decision, Word

from .document import Json

WORD_STYLES = {Word.HOLDS: "green", Word.FAILS: "bold red", Word.VACUOUS: "yellow"}

CLAIM_WIDTH = 44


def table(decisions: Sequence[Decision]) -> Table:
    """A row for each claim that is decided: number, claim, verdict, and what it rests on."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    shown.add_column("", width=3)
    shown.add_column("claim", width=CLAIM_WIDTH)
    shown.add_column("verdict", width=7)
    shown.add_column("detail", min_width=24, overflow="fold")
    for decision in decisions:
        if decision.word is not None:
            word = Text(decision.word, style=WORD_STYLES[decision.word])
            shown.add_row(decision.claim.label, decision.claim.text, word, decision.detail)
    return shown


def print_claims(console: Console, decisions: Sequence[Decision]) -> None:
    """The table, and below it the claims that are not decided, with the reason."""
    console.print(table(decisions))
    words = [decision.word for decision in decisions]
    totals = [f"{word}: {words.count(word)}" for word in Word if word in words]
    console.print(Text(f"\n{', '.join(totals) or 'none decided'} (every interleaving was looked at)"))
    for decision in decisions:
        if decision.word is None:
            text = f"claim {decision.claim.label} is not decided: {decision.detail}"
            console.print(Text(text, style="yellow"), soft_wrap=True)


def claim_entry(decision: Decision, finding: int | None) -> Json:
    """One claim; `finding` is the position of what refutes it in the list of findings, from 1 on."""
    claim = decision.claim
    return {
        "number": claim.number,
        "part": claim.part,
        "claim": claim.text,
        "verdict": None if decision.word is None else str(decision.word),
        "detail": decision.detail,
        "reason": claim.reason,
        "source": claim.source,
        "rules": list(claim.rules),
        "exercised": list(claim.exercised),
        "posted": [[trial.scenario, trial.design] for trial in claim.posted],
        "changed": [[trial.scenario, trial.design] for trial in claim.changed],
        "remedy": [[trial.scenario, trial.design] for trial in claim.remedy],
        "states": decision.states,
        "finding": finding,
    }
