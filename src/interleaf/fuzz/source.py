"""A plan as the text of a scenario file, which `interleaf check` runs like any other."""

from __future__ import annotations

import types
from collections import defaultdict

from interleaf.scenarios import Scenario
from interleaf.scenarios.scenario import scenarios_of

from .actions import Lane
from .plans import PLATFORMS, Call, Plan, TaskPlan

NAME = "random_scenario"

_ALWAYS = (
    ("interleaf.kvm.design", "Design"),
    ("interleaf.kvm.kvm_host", "Kvm"),
    ("interleaf.runtime", "spawn"),
    ("interleaf.scenarios", "destroy_after"),
    ("interleaf.scenarios", "make_vm"),
    ("interleaf.scenarios", "scenario"),
)


def text_of(plan: Plan, note: str = "") -> str:
    """The scenario file; `note` goes into its head."""
    imports: dict[str, set[str]] = defaultdict(set)
    for module, name in (*_ALWAYS, *_imports(plan)):
        imports[module].add(name)
    lines = [f'"""{note or "A random scenario."}"""', ""]
    lines += [f"from {module} import {', '.join(sorted(imports[module]))}" for module in sorted(imports)]
    for task in plan.tasks:
        lines += ["", "", *_task(task, plan)]
    lines += ["", "", f'@scenario("Random: {_told(plan)}")', f"def {NAME}(design: Design) -> None:"]
    lines.append(f'    """{_told(plan).capitalize()}."""')
    lines.append(f"    kvm = make_vm({', '.join(_arguments(plan))})")
    lines += [f"    {line}" for _, _, line in _history(plan)]
    for task in plan.tasks:
        lines.append(f'    {task.name} = spawn(_{task.name}, kvm, name="{task.name}")')
    lines.append(f"    destroy_after(kvm, {', '.join(task.name for task in plan.tasks)})")
    return "\n".join(lines) + "\n"


def load(text: str) -> Scenario:
    """The scenario of such a text."""
    module = types.ModuleType(NAME)
    exec(compile(text, f"<{NAME}>", "exec"), module.__dict__)
    return next(iter(scenarios_of(module).values()))


def _imports(plan: Plan) -> list[tuple[str, str]]:
    found = [wanted for task in plan.tasks for call in task.calls for wanted in call.action.imports]
    for module, names, _ in _history(plan):
        found += [(module, name) for name in names]
    if any("{hva}" in call.action.call for task in plan.tasks for call in task.calls):
        found.append(("interleaf.scenarios", _hva(plan)))
    if plan.manual:
        found.append(("interleaf.kvm.kvm_host", "KvmParams"))
    if plan.far:
        found.append(("interleaf.scenarios", "FAR_GFN"))
    if plan.platform != PLATFORMS[0]:
        found.append(("interleaf.hw.platform", plan.platform))
    return found


def _history(plan: Plan) -> list[tuple[str, tuple[str, ...], str]]:
    """What has happened before the tasks begin: where it comes from, its names, and the line."""
    last = f"kvm.named_gfns[{plan.pages - 1}]"
    possible = (
        (plan.nx, "interleaf.kvm.zap", ("set_nx_huge_pages",), "set_nx_huge_pages(True)"),
        (plan.populated, "interleaf.scenarios", ("populate",), "populate(kvm)"),
        (
            plan.logged,
            "interleaf.kvm.dirty_log",
            ("kvm_vm_set_slot_flags",),
            "kvm_vm_set_slot_flags(kvm, 0, 1)  # KVM_MEM_LOG_DIRTY_PAGES",
        ),
        (plan.zapped, "interleaf.kvm.zap", ("kvm_zap_gfn_range",), f"kvm_zap_gfn_range(kvm, {last}, {last} + 1)"),
    )
    return [(module, names, line) for wanted, module, names, line in possible if wanted]


def _arguments(plan: Plan) -> list[str]:
    given = {"vcpus": (plan.vcpus, 1), "pages": (plan.pages, 1), "dummies": (int(plan.dummy), 0)}
    arguments = ["design", *(f"{name}={value}" for name, (value, default) in given.items() if value != default)]
    if plan.far:
        arguments.append("base_gfn=FAR_GFN")
    if plan.huge:
        arguments.append("huge=True")
    if plan.manual:
        arguments.append("params=KvmParams(manual_protect=True)")
    if plan.platform != PLATFORMS[0]:
        arguments.append(f"platform={plan.platform}")
    return arguments


def _task(task: TaskPlan, plan: Plan) -> list[str]:
    lines = [f"def _{task.name}(kvm: Kvm) -> None:"]
    if task.lane is Lane.VCPU:
        lines.append(f"    vcpu = kvm.vcpus[{task.vcpu}]")
    lines += [f"    {_call(call, plan)}" for call in task.calls]
    return lines


def _call(call: Call, plan: Plan) -> str:
    return call.action.call.format(gfn=f"kvm.named_gfns[{call.page}]", hva=f"{_hva(plan)} + {call.page}")


def _hva(plan: Plan) -> str:
    return "HUGE_HVA" if plan.huge else "GUEST_HVA"


def _told(plan: Plan) -> str:
    """What happens, in a line."""
    return "; ".join(f"{task.name}: {', '.join(_words(call) for call in task.calls)}" for task in plan.tasks)


def _words(call: Call) -> str:
    about = f" page {call.page}" if "{" in call.action.call else ""
    return f"{call.action.name}{about}"
