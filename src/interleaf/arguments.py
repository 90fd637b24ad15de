"""From what the user typed to the requests to check; what can be seen to be wrong is refused before the search."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interleaf import bugs, designs, scenarios
from interleaf.check import ENGINES, Request
from interleaf.explore.outcome import Bounds
from interleaf.kvm.design import RULES, Design, functions
from interleaf.runtime import ModelError


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be different in each of the designs, done in this order."""

    with_: Sequence[str] = ()
    """Rules to follow."""
    swap: Sequence[str] = ()
    """FUNCTION=DESIGN: functions to take from other designs."""
    bugs: Sequence[str] = ()
    """Bugs of the catalogue to put back."""
    drop: Sequence[str] = ()
    """Rules to leave out."""

    @property
    def words(self) -> str:
        """All but `drop`, as they are written after a design."""
        named = (("with", self.with_), ("swap", self.swap), ("bug", self.bugs))
        return "".join(f" {word} {name}" for word, names in named for name in names)


class Refused(Exception):
    """What the user asked for cannot be done; the text says why."""


def requests_for(
    scenario_specs: Sequence[str],
    design_specs: Sequence[str],
    changes: Changes,
    engine: str,
    bounds: Bounds,
    seed: int | None,
    settings: Sequence[str],
) -> list[Request]:
    """The cells of the matrix, row by row. Raises Refused."""
    _expect_engine_honours(engine, bounds, seed)
    parameters = tuple(_setting(text) for text in settings)
    names = [name for name, _ in parameters]
    for name in names:
        if names.count(name) > 1:
            raise Refused(f"--set gives {name} more than one value.")
    try:
        rows = list(dict.fromkeys(scenario_specs)) or _scenarios_for(changes)
        columns = [f"{spec}{changes.words}" for spec in dict.fromkeys(design_specs) or _designs_for(changes)]
        for row in rows:
            _expect_scenario(row, parameters)
        for column in columns:
            _expect_design(column, changes.drop)
    except ModelError as error:
        raise Refused(str(error)) from error
    return [
        Request(row, column, tuple(changes.drop), engine, bounds, 1 if seed is None else seed, parameters)
        for row in rows
        for column in columns
    ]


def _scenarios_for(changes: Changes) -> list[str]:
    """All scenarios of the library; where bugs are put back, those that show them."""
    telling = [scenario for id in changes.bugs for scenario in _bug(id).scenarios]
    return list(dict.fromkeys(telling)) or list(scenarios.library())


def _designs_for(changes: Changes) -> list[str]:
    """The designs of the library in which the changes can be made; where bugs are put back, those that they are shown
    on."""
    if changes.bugs:
        return list(dict.fromkeys(_bug(id).design for id in changes.bugs))
    for name in (*changes.drop, *changes.with_):
        if name not in RULES:
            raise Refused(f"there is no rule {name!r}; {_near(name, sorted(RULES))}")
    library = designs.library()
    found = [
        name
        for name, design in library.items()
        if (design.rules | set(changes.with_)).issuperset(changes.drop)
        and design.rules.isdisjoint(changes.with_)
        and all(_differs(design, swap) for swap in changes.swap)
    ]
    if not found and not changes.with_ and not changes.swap:
        raise Refused(f"no design follows all of the rules {', '.join(changes.drop)}.")
    if not found:
        raise Refused(f"there is no design in which{changes.words} changes anything.")
    return found


def _differs(design: Design, swap: str) -> bool:
    """Would a function that is taken from another design be another one?"""
    function, equals, other = swap.partition("=")
    if not equals:
        raise Refused(f"--swap {swap}: expected FUNCTION=DESIGN, such as kvm_tdp_mmu_put_root=v5.18.")
    if function not in functions():
        raise Refused(f"designs have no function {function!r}; {_near(function, functions())}")
    return getattr(designs.named(other), function) is not getattr(design, function)


def _bug(id: str) -> bugs.Bug:
    library = bugs.library()
    if id not in library:
        raise Refused(f"there is no bug {id!r}; {_near(id.upper(), list(library))}")
    return library[id]


def _expect_engine_honours(engine: str, bounds: Bounds, seed: int | None) -> None:
    """An option that an engine cannot honour is an error, and no surprise afterwards."""
    if engine not in ENGINES:
        raise Refused(f"there is no engine {engine!r}; {_near(engine, ENGINES)}")
    if bounds.seconds is not None and not math.isfinite(bounds.seconds):
        raise Refused(f"--seconds {bounds.seconds}: leave it out for no bound on the time.")
    bounded = bounds.preemptions is not None
    impossible = {
        "--preemptions": bounded and engine != "states",
        "--states": bounds.states is not None and engine != "states",
        "--seed": seed is not None and (bounded or engine == "steps"),
    }
    for option, wrong in impossible.items():
        if wrong:
            how = f"--preemptions {bounds.preemptions}" if option == "--seed" and bounded else f"--engine {engine}"
            raise Refused(f"{option} cannot be honoured with {how}: leave one of them out.")


def _expect_scenario(spec: str, parameters: Sequence[tuple[str, int]]) -> None:
    """What can be said of a scenario without running the user's code."""
    file = spec.partition(":")[0]
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise Refused(f"there is no scenario file {file!r}.")
        return
    found = scenarios.load(spec)
    known = {parameter.name: parameter for parameter in found.parameters}
    for name, value in parameters:
        if name not in known:
            raise Refused(f"the scenario {spec} has no parameter {name!r}; {_near(name, list(known))}")
        if value < known[name].minimum:
            raise Refused(f"{name} of the scenario {spec} must be at least {known[name].minimum}, not {value}.")


def _expect_design(spec: str, dropped: Sequence[str]) -> None:
    file = spec.partition(" ")[0].rpartition(":")[0]
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise Refused(f"there is no design file {file!r}.")
        return
    design = bugs.load(spec)
    for rule in dropped:
        design = design.without(rule)


def _setting(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise Refused(f"--set {text}: expected NAME=NUMBER, such as --set pages=2.")
    try:
        return name, int(value)
    except ValueError:
        raise Refused(f"--set {text}: {value!r} is no whole number.") from None


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known) or 'none'}."
