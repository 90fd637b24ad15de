"""What a plan says is what its scenario file does."""

import pytest
from hypothesis import HealthCheck, given, settings

from interleaf import designs
from interleaf.fuzz.actions import ACTIONS, Action, Lane, Slots
from interleaf.fuzz.plans import PLATFORMS, Call, Plan, TaskPlan, plans
from interleaf.fuzz.source import load, text_of
from interleaf.runtime import Execution, World


def run(plan: Plan) -> Execution:
    """One execution of the plan's scenario: each task runs as long as it can."""
    design = designs.load("v6.12")
    scenario = load(text_of(plan))
    execution = Execution(World(), lambda: scenario.setup(design))
    while tasks := execution.unfinished:
        stepped = [task for task in tasks if execution.step(task) is not None]
        assert stepped, "all tasks wait"
    execution.close()
    return execution


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_each_action_can_be_done(action: Action) -> None:
    before = tuple(Call(other, 0) for other in ACTIONS if other.gives and other.gives in action.needs)
    task = TaskPlan(action.lane, 0, (*before, Call(action, 0)))
    execution = run(
        Plan((task,), populated=True, dummy=Slots.DUMMY in action.needs, manual=Slots.MANUAL in action.needs)
    )
    assert not [step.violations for step in execution.steps if step.violations]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_can_be_used(platform: str) -> None:
    write = next(action for action in ACTIONS if action.name == "write")
    tasks = tuple(TaskPlan(Lane.VCPU, index, (Call(write, 1),)) for index in range(2))
    execution = run(Plan(tasks, vcpus=2, pages=2, far=True, platform=platform))
    assert {step.task.name for step in execution.steps} >= {"vcpu0", "vcpu1", "destroy"}


@given(plans())
@settings(max_examples=40, deadline=None, suppress_health_check=tuple(HealthCheck))
def test_all_plans_can_be_written_down(plan: Plan) -> None:
    scenario = load(text_of(plan))
    assert scenario.name == "random-scenario"
    for task in plan.tasks:
        assert task.name in text_of(plan)


def test_a_history_is_written_down_and_happens() -> None:
    read = next(action for action in ACTIONS if action.name == "read")
    task = TaskPlan(Lane.VCPU, 0, (Call(read, 1),))
    plan = Plan((task,), pages=2, populated=True, logged=True, zapped=True, nx=True, huge=True)
    run(plan)
    text = text_of(plan)
    order = ["set_nx_huge_pages(True)", "populate(kvm)", "kvm_vm_set_slot_flags(kvm, 0, 1)", "kvm_zap_gfn_range(kvm,"]
    positions = [text.index(f"    {line}") for line in order]
    assert positions == sorted(positions)
