"""What a plan says is what its scenario file does."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from interleaf import designs
from interleaf.fuzz.actions import ACTIONS, ALIVE, BY_NAME, SLOT_ENDS, Action, Facts, Lane
from interleaf.fuzz.plans import OPTIONS, PLATFORMS, Call, Plan, TaskPlan, plans
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


def before(action: Action) -> Iterator[Action]:
    """What has to be done first, so that this can be done."""
    for fact in action.needs:
        yield from (other for other in ACTIONS if fact in other.gives)
    if Facts.MEMORY in action.lacks:
        yield BY_NAME["delete memslot 0"]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_each_action_can_be_done(action: Action) -> None:
    option = next((option for option, facts in OPTIONS.items() if facts and facts in action.needs), "")
    earlier = tuple(Call(other) for other in before(action) if not other.gives & Facts.MEMORY)
    plan = Plan(
        (TaskPlan("task", (*earlier, Call(action))),),
        (Call(BY_NAME["write"]), Call(BY_NAME["read"], 1)),
        pages=2,
        huge=Facts.HUGE in action.needs,
        option=option,
    )
    execution = run(plan)
    assert not [step.violations for step in execution.steps if step.violations]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_and_option_can_be_used(platform: str, option: str) -> None:
    tasks = tuple(TaskPlan(f"vcpu{index}", (Call(BY_NAME["write"], 1, index),)) for index in range(2))
    execution = run(Plan(tasks, vcpus=2, pages=2, far=True, option=option, platform=platform))
    assert {step.task.name for step in execution.steps} >= {"vcpu0", "vcpu1", "destroy"}


@given(plans())
@settings(max_examples=60, deadline=None, suppress_health_check=tuple(HealthCheck))
def test_each_plan_does_only_what_is_possible_where_it_is_done(plan: Plan) -> None:
    assert load(text_of(plan)).name == "random-scenario"
    assert len({task.name for task in plan.tasks}) == len(plan.tasks)
    lanes = {call.action.lane for task in plan.tasks for call in task.calls}
    assert Lane.EXIT not in lanes or not lanes & ALIVE
    facts = Facts.MEMORY | OPTIONS[plan.option]
    facts |= Facts.DUMMY if plan.dummy else Facts.NONE
    slots = [call for task in plan.tasks for call in task.calls if call.action.lane is Lane.SLOTS]
    for call in (*(call for call in plan.history if call.action.lane is Lane.SLOTS), *slots):
        needs = call.action.needs & (SLOT_ENDS | Facts.DUMMY | Facts.SMM_MEMORY | Facts.MANUAL | Facts.RING)
        assert needs in facts
        assert not call.action.lacks & facts
        facts = (facts | call.action.gives) & ~call.action.takes


def test_a_history_is_written_down_and_happens() -> None:
    names = ("switch nx_huge_pages on", "write", "enter L2", "log dirty pages", "zap a gfn range")
    history = tuple(Call(BY_NAME[name], 1) for name in names)
    plan = Plan((TaskPlan("vcpu0", (Call(BY_NAME["read"], 1),)),), history, pages=2, huge=True)
    run(plan)
    text = text_of(plan)
    order = ["set_nx_huge_pages(True)", "write(kvm.n", "enter_l2()", "kvm_vm_set_slot_flags(kvm, 0,", "kvm_zap_gfn_ra"]
    positions = [text.index(word, text.index("make_vm(design")) for word in order]
    assert positions == sorted(positions)
