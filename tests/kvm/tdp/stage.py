"""A VM with pages at given gfns, and tasks that run in the order that a test says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

from interleaf.hw.platform import EPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.vm import kvm_create_vm, kvm_vm_ioctl_create_vcpu
from interleaf.mm.mm import mm_alloc, mmap
from interleaf.runtime import Array, Execution, Object, Plain, Step, Value, Violation, World, spawn, the
from interleaf.runtime.objects import Field, singleton

T = TypeVar("T")


class Result(Object):
    """What the only task of `run_alone` returns."""

    value: Plain[Value] = Plain(None)


class Stage:
    """One execution."""

    def __init__(self, setup: Callable[[], object]) -> None:
        self.execution = Execution(World(), setup, narrate=True)
        self.steps: list[Step] = []

    @property
    def violations(self) -> list[Violation]:
        return [violation for step in self.steps for violation in step.violations]

    @property
    def rules(self) -> set[str]:
        return {violation.rule for violation in self.violations}

    @property
    def story(self) -> list[str]:
        events = [event for step in self.steps for event in step.events]
        said = ((*(note.text for note in event.notes), f"{event.task} {event.text}") for event in events)
        return [line for lines in said for line in lines]

    def until(self, name: str, operation: str, function: str, contended: bool = False) -> bool:
        """Run a task until it has done `operation` in `function`; False if it ended, or met a fatal violation, before.

        `contended`: whoever may give a lock up finds that somebody wants it.
        """
        while (step := self._step(name, contended)) is not None:
            if any(event.operation == operation and event.site[2] == function for event in step.events):
                return True
        return False

    def finish(self, name: str, contended: bool = False) -> None:
        """Run a task to its end, or to a fatal violation."""
        while self._step(name, contended) is not None:
            pass

    def finish_all(self) -> None:
        """Run all tasks to their ends, each as far as it can go before the next."""
        before = -1
        while before != len(self.steps):
            before = len(self.steps)
            for task in self.execution.unfinished:
                while task in self.execution.unfinished and not self._dead():
                    step = self.execution.step(task)
                    if step is None:
                        break
                    self.steps.append(step)

    def peek(self, obj: Object, field: Field[Value]) -> Value:
        return self.execution.memory.peek(field.cell(obj))

    def element(self, obj: Object, array: Array[Value], index: Value) -> Value:
        return self.execution.memory.peek(array.element(obj, index))

    def _dead(self) -> bool:
        return bool(self.steps) and self.steps[-1].fatal

    def _step(self, name: str, contended: bool) -> Step | None:
        found = [task for task in self.execution.unfinished if task.name == name]
        if not found or self._dead():
            return None
        step = self.execution.step(found[0], itertools.repeat(int(contended)))
        assert step is not None, f"{name} waits in {self.execution.pending[found[0].index].name}"
        self.steps.append(step)
        return step


def make_vm(design: Design, gfns: tuple[int, ...], vcpus: int = 1, platform: Platform = EPT) -> Kvm:
    """A VM whose memory is at `gfns` only; memslot 0 covers them, and the page of gfn n is at hva n."""
    mm = mm_alloc(1)
    first, last = gfns[0], gfns[-1]
    for gfn in gfns:
        mmap(mm, gfn, 1)
    kvm = kvm_create_vm(design, mm, gfns, platform)
    kvm_create_memslot(kvm, 0, first, last - first + 1, first)
    for _ in range(vcpus):
        kvm_vm_ioctl_create_vcpu(kvm)
    return kvm


def populate(kvm: Kvm) -> None:
    """Every vCPU has written every page."""
    for vcpu in kvm.vcpus:
        kvm_arch_vcpu_ioctl_run(vcpu, *(write(gfn) for gfn in kvm.named_gfns))


def run_alone(function: Callable[..., T], *arguments: Value) -> tuple[T, Stage]:
    """Run `function(*arguments)` as the only task; returns what it returned, and the stage."""

    def setup() -> None:
        spawn(_store, function, arguments, name="test")

    stage = Stage(setup)
    stage.finish_all()
    assert not stage.violations, stage.violations
    result = stage.peek(singleton(stage.execution.world, Result), Result.value)
    return result, stage


def traced(function: Callable[..., object], *arguments: Value) -> list[object]:
    """Run `function(*arguments)` as the only task; returns what it has traced."""
    world, records = World(), list[object]()
    world.listener = lambda task, record: records.append(record) if task.name == "test" else None
    run = Execution(world, lambda: spawn(function, *arguments, name="test"))
    while run.unfinished:
        step = run.step(run.unfinished[0])
        assert step is not None
        assert not step.violations, step.violations
    return records


def _store(function: Callable[..., Value], arguments: tuple[Value, ...]) -> None:
    the(Result).value = function(*arguments)
