"""A plan as the text of a scenario file, which `interleaf check` runs like any other."""

from __future__ import annotations

import types

from interleaf.hw.page_table import PG_LEVEL_2M, pages_per_entry
from interleaf.scenarios import Scenario
from interleaf.scenarios.scenario import scenarios_of

from .actions import imports_of
from .plans import PLATFORMS, Call, Plan, TaskPlan

NAME = "random_scenario"
TITLE = "A random scenario"

_MOVES = "kvm_move_memslot"


def text_of(plan: Plan, note: str = "") -> str:
    """The scenario file; `note` goes into its head."""
    tasks = [line for task in plan.tasks for line in ("", "", *_task(task, plan))]
    body = [f"def {NAME}(design: Design) -> None:", f'    """{_told(plan)}."""']
    setup = [f"make_vm({', '.join(_arguments(plan))})", *(_call(call, plan) for call in plan.history)]
    spawns = [f'{task.name} = spawn(_{task.name}, kvm, name="{task.name}")' for task in plan.tasks]
    ends = f"destroy_after(kvm, {', '.join(task.name for task in plan.tasks)})"
    body += [f"    {line}" for line in (f"kvm = {setup[0]}", *setup[1:], *spawns, ends)]
    used = imports_of("\n".join([*tasks, *setup, *spawns, ends, "Design scenario"]))
    imports = [f"from {module} import {', '.join(names)}" for module, names in used.items()]
    head = [f'"""{note or "A random scenario."}"""', "", *imports, *tasks, "", "", f'@scenario("{TITLE}")']
    return "\n".join([*head, *body]) + "\n"


def load(text: str) -> Scenario:
    """The scenario of such a text."""
    module = types.ModuleType(NAME)
    exec(compile(text, f"<{NAME}>", "exec"), module.__dict__)
    return next(iter(scenarios_of(module).values()))


def _arguments(plan: Plan) -> list[str]:
    given = {"vcpus": (plan.vcpus, 1), "pages": (plan.pages, 1), "dummies": (int(plan.dummy), 0)}
    arguments = ["design", *(f"{name}={value}" for name, (value, default) in given.items() if value != default)]
    if any(_MOVES in call.action.call for call in plan.calls):
        arguments.append("spare_gfns=1")
    if plan.far:
        arguments.append("base_gfn=FAR_GFN")
    if plan.huge:
        arguments.append("huge=True")
    if plan.option:
        arguments.append(f"params=KvmParams({plan.option})")
    if plan.platform != PLATFORMS[0]:
        arguments.append(f"platform={plan.platform}")
    return arguments


def _task(task: TaskPlan, plan: Plan) -> list[str]:
    return [f"def _{task.name}(kvm: Kvm) -> None:", *(f"    {_call(call, plan)}" for call in task.calls)]


def _call(call: Call, plan: Plan) -> str:
    start = "HUGE_HVA" if plan.huge else "GUEST_HVA"
    return call.action.call.format(
        vcpu=f"kvm.vcpus[{call.vcpu}]",
        gfn=f"kvm.named_gfns[{call.page}]",
        hva=f"{start} + {call.page}",
        next=f"{start} + {(call.page + 1) % plan.pages}",
        base="kvm.named_gfns[0]",
        start=start,
        npages=pages_per_entry(PG_LEVEL_2M) if plan.huge else plan.pages,
    )


def _told(plan: Plan) -> str:
    """What happens, in a line."""
    before = f"After {', '.join(map(str, plan.history))}: " if plan.history else ""
    return before + "; ".join(f"{task.name}: {', '.join(map(str, task.calls))}" for task in plan.tasks)
