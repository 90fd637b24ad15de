"""Check one scenario on one design: search, verdict, shortest stories.

This is where the halves of the project meet: a scenario and a design make a program, the engines of `explore`
search it, and what they find is retold with as few preemptions as possible. The same request always gives the
same answer, in whatever process and beside whatever other requests it is run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeAlias

from interleaf import bugs, scenarios
from interleaf.explore.bounded import BoundedSearch, shortest
from interleaf.explore.hunt import Hunt
from interleaf.explore.machine import Machine
from interleaf.explore.outcome import Bounds, Found, Outcome, Progress, Stopped
from interleaf.explore.states import StateSearch
from interleaf.explore.steps import StepSearch
from interleaf.explore.verdict import BY_STATES_ONLY, Status, Subject, Verdict, judge
from interleaf.kvm.design import Design
from interleaf.kvm.tdp.work import CHANGED, TORN_DOWN
from interleaf.properties import MADE_OF, NAMES
from interleaf.runtime import ModelError, Schedule
from interleaf.runtime.cells import SETUP
from interleaf.scenarios import Scenario

Search: TypeAlias = StateSearch | StepSearch | BoundedSearch | Hunt

ENGINES = ("states", "steps", "both", "hunt")

STORY_PREEMPTIONS = 3
STORY_STATES = 6_000
"""How far a shorter story is looked for; beyond, the one that the search found is told."""

HUNT_EXECUTIONS = 2_000
"""A hunt without bounds of its own."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to check, and how."""

    scenario: str
    """Name in the library, or path/file.py or path/file.py:name."""
    design: str
    """Name in the library, or path/file.py:Name, with changes (see `designs.changed`)."""
    dropped: tuple[str, ...] = ()
    """Rules of the design that are left out."""
    engine: str = "states"
    bounds: Bounds = field(default_factory=Bounds)
    seed: int = 1
    parameters: tuple[tuple[str, int], ...] = ()
    """Parameters of the scenario that are not its defaults."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A violated property and the schedule that shows it.

    `schedule` is replayable with the scenario, design, dropped rules and parameters given here.
    """

    property: str
    message: str
    scenario: str
    design: str
    dropped: tuple[str, ...]
    parameters: tuple[tuple[str, int], ...]
    schedule: Schedule
    preemptions: int | None
    """The fewest preemptions that show it; None if that is not known."""
    executions: int
    """After how many executions the search found it."""
    object: str
    """Name of the object that was freed or corrupted, if there is one."""
    digest: str
    """Of the model, the scenario and the design: a replay of something else is told apart by it."""
    race: bool = False
    """It is that two steps are not ordered, and not what comes of it."""


@dataclass(frozen=True, slots=True)
class Work:
    """The most that a task was seen to do between two yield points with mmu_lock held, in one walk over one root."""

    task: str
    changed: int
    """SPTEs."""
    torn_down: int
    """Those of them that it zapped."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario checked on one design."""

    request: Request
    scenario: str
    design: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    states: int
    transitions: int
    executions: int
    depth: int
    seconds: float
    work: tuple[Work, ...] = ()
    """Of each task that changes SPTEs, by name. Where the search has not looked at everything, there may be more."""


def program(request: Request) -> tuple[Scenario, Design, Callable[[], object]]:
    """The scenario, the design and the set-up function of a request. Raises ModelError for what is not there."""
    scenario = scenarios.load(request.scenario)
    design = bugs.load(request.design)
    for name in request.dropped:
        design = design.without(name)
    return scenario, design, functools.partial(scenario.setup, design, **dict(request.parameters))


def check(request: Request, progress: Callable[[Progress], None] | None = None) -> Cell:
    """Search, judge, and find the shortest stories. Raises ModelError if the model or the request is at fault."""
    scenario, design, setup = program(request)
    digest = digest_of(request)
    with contextlib.ExitStack() as cleanup:
        searches = _searches(request, setup, progress)
        for search in searches:
            cleanup.callback(search.close)
        outcomes = [search.run() for search in searches]
        main = outcomes[0]
        if main.executions and not main.transitions and not main.found:
            raise ModelError("the set-up spawns no task, so nothing was checked: start those that race with spawn().")
        subject = Subject(scenario.name, design.name, digest)
        verdict = judge(subject, outcomes, NAMES, request.bounds, request.seed, MADE_OF)
        merged = Outcome("all")
        for outcome in outcomes:
            for found in outcome.found:
                merged.add(found)
        # what the proof has learned of the program, the search for its shortest stories need not find out again
        learned = searches[0].machine if isinstance(searches[0], StateSearch) else None
        findings = tuple(_retell(request, scenario, design, digest, merged.found, learned))
    return Cell(
        request,
        scenario.name,
        design.name,
        verdict,
        findings,
        main.states,
        main.transitions,
        main.executions,
        main.depth,
        sum(outcome.seconds for outcome in outcomes),
        _work(outcomes),
    )


def _work(outcomes: Sequence[Outcome]) -> tuple[Work, ...]:
    """What the tasks have done at most. The set-up is no task that anybody waits for."""
    measured: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        for (name, task), most in outcome.measured.items():
            of_task = measured.setdefault(task, {})
            of_task[name] = max(most, of_task.get(name, 0))
    measured.pop(SETUP, None)
    return tuple(Work(task, most[CHANGED], most[TORN_DOWN]) for task, most in sorted(measured.items()))


def _searches(
    request: Request, setup: Callable[[], object], progress: Callable[[Progress], None] | None
) -> list[Search]:
    bounds = request.bounds
    searches: list[Search] = []
    if request.engine not in ENGINES:
        raise ModelError(f"there is no engine {request.engine!r}; there are {', '.join(ENGINES)}.")
    if request.engine == "hunt":
        if bounds.preemptions is not None:
            raise ModelError("a hunt cannot honour a bound on preemptions: leave it out, or use another engine.")
        if bounds.executions is None and bounds.seconds is None:
            bounds = replace(bounds, executions=HUNT_EXECUTIONS)
        searches.append(Hunt(setup, bounds, request.seed, progress=progress))
    elif bounds.preemptions is not None:
        if request.engine != "states":
            raise ModelError(f"the engine {request.engine!r} cannot honour a bound on preemptions: use 'states'.")
        searches.append(BoundedSearch(setup, bounds, progress=progress))
    else:
        if request.engine in ("states", "both"):
            searches.append(StateSearch(setup, bounds=bounds, seed=request.seed, progress=progress))
        if request.engine in ("steps", "both"):
            searches.append(StepSearch(setup, bounds=bounds, progress=progress))
    return searches


def _retell(
    request: Request, scenario: Scenario, design: Design, digest: str, found: list[Found], learned: Machine | None
) -> list[Finding]:
    """The findings, each with the shortest story that can be found for it.

    First the parameters of the scenario are lowered as far as all of them still show, then the preemptions. Whoever
    ends this early has the findings with the shortest stories until then.
    """
    retold = [one.signature for one in found if not one.race and one.violation.rule not in BY_STATES_ONLY]
    parameters = request.parameters
    stories: dict[tuple[str, str], tuple[Found, int]] = {}
    with contextlib.suppress(Stopped):
        stories = _stories(scenario, design, parameters, retold, learned)
        for parameter in scenario.parameters:
            given = dict(parameters)
            if given.get(parameter.name, parameter.default) <= parameter.minimum or len(retold) < len(found):
                continue
            fewer = tuple(sorted((given | {parameter.name: parameter.minimum}).items()))
            smaller = _stories(scenario, design, fewer, retold)
            if smaller.keys() == set(retold):
                parameters, stories = fewer, smaller
    if parameters != request.parameters:
        digest = digest_of(replace(request, parameters=parameters))
    findings = []
    for one in found:
        story, preemptions = stories.get(one.signature, (one, None))
        violation = one.violation
        findings.append(
            Finding(
                violation.rule,
                violation.message,
                request.scenario,
                request.design,
                request.dropped,
                parameters,
                story.schedule,
                preemptions,
                one.executions,
                violation.object,
                digest,
                one.race,
            )
        )
    return findings


def _stories(
    scenario: Scenario,
    design: Design,
    parameters: tuple[tuple[str, int], ...],
    wanted: list[tuple[str, str]],
    learned: Machine | None = None,
) -> dict[tuple[str, str], tuple[Found, int]]:
    setup = functools.partial(scenario.setup, design, **dict(parameters))
    return shortest(setup, wanted, preemptions=STORY_PREEMPTIONS, states=STORY_STATES, machine=learned)


def digest_of(request: Request) -> str:
    """A digest of all code that a verdict depends on: the model, the library, and the user's own files."""
    digest = hashlib.sha256()
    for folder in ("runtime", "linux", "hw", "mm", "kvm", "designs", "properties", "scenarios", "bugs"):
        for path, text in _sources(resources.files("interleaf") / folder, folder):
            digest.update(f"{path}\0".encode())
            digest.update(text)
    for file in files_of(request):
        digest.update(file.read_bytes())
    digest.update(repr((request.dropped, request.parameters)).encode())
    return digest.hexdigest()[:16]


def files_of(request: Request) -> list[Path]:
    """The user's own files that a request names: the scenario, the design, and those that functions are taken from."""
    specs = (request.scenario, *request.design.replace("=", " ").split())
    files = (Path(spec.partition(":")[0]) for spec in specs)
    return [file for file in files if file.suffix == ".py"]


def _sources(folder: Traversable, name: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found.extend(_sources(entry, f"{name}/{entry.name}"))
        elif entry.name.endswith(".py"):
            found.append((f"{name}/{entry.name}", entry.read_bytes()))
    return found


__all__ = ["Cell", "Finding", "Request", "Status", "check", "digest_of", "files_of", "program"]
