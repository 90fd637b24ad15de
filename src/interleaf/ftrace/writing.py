"""A run of the model as a trace: the file that ftrace would have written of it.

Each task of the model is a thread with a pid and a CPU of its own. The clock is logical: a step of the run takes one
microsecond, so that the events of one step have the same time. The flags say nothing of interrupts and preemption,
which the model does not have.
"""

from __future__ import annotations

from collections.abc import Callable

from interleaf.runtime import Execution, Schedule, Task, World

from .printing import printed
from .tasks import RECOVERY, WORKER

FIRST_PID = 1000

TURN = 200
"""Steps after which a task that has not ended must let the others run."""

COMM = 15
"""Letters of a thread's name that the kernel keeps."""

THREADS = {"nx-recovery": RECOVERY, "work:": f"{WORKER}u2:0"}
"""How the kernel calls threads that it starts itself, by how the model does."""

HEADER = """\
# tracer: nop
#
# entries-in-buffer/entries-written: {events}/{events}   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def trace_of(setup: Callable[[], object], schedule: Schedule | None) -> str:
    """The trace of one run: by `schedule`, or with each task going on as far as it can, in the order of their making.

    Raises ModelError if the model does not follow the schedule, StepLimit if it does not come to an end.
    """
    run = run_of(setup, schedule)
    run.close()
    return run.text()


def run_of(setup: Callable[[], object], schedule: Schedule | None) -> Written:
    """The run itself, to be closed by the caller. Raises as `trace_of`."""
    run = Written(World(), setup)
    try:
        if schedule is None:
            run.go_on()
        else:
            for _step in run.replay(schedule):
                pass
    except BaseException:
        run.close()
        raise
    return run


class Written(Execution):
    """An execution that writes its trace."""

    def __init__(self, world: World, setup: Callable[[], object]) -> None:
        self._lines: list[str] = []
        world.listener = self._write
        super().__init__(world, setup)

    def go_on(self) -> None:
        """Run all tasks until none can go on, or one has violated what ends an execution."""
        waiting: set[int] = set()
        while tasks := [task for task in self.unfinished if task.index not in waiting]:
            for task in tasks:
                for _ in range(TURN):
                    step = self.step(task) if task.index in self.pending else None
                    if step is None:
                        waiting.add(task.index)
                        break
                    waiting.clear()
                    if step.fatal:
                        return

    def text(self) -> str:
        """The whole file."""
        return HEADER.format(events=len(self._lines), cpus=len(self.world.tasks)) + "".join(self._lines)

    def _write(self, task: Task, record: object) -> None:
        pid, time = FIRST_PID + task.index, len(self.steps)
        comm = next((kernel for mine, kernel in THREADS.items() if str(task).startswith(mine)), str(task)[:COMM])
        seconds, microseconds = divmod(time, 1_000_000)
        place = f"{comm:>16}-{pid:<7d} [{task.index:03d}] ..... {seconds:5d}.{microseconds:06d}"
        self._lines += [f"{place}: {name}: {text}\n" for name, text in printed(record, self.memory)]
