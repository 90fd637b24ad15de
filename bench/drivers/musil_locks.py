"""The lock benchmark as a musil model: a state is plain tuples, an action is one task's next step.

Arguments: tasks, rounds, `safe` or `racy`. Prints one line of JSON.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import resource
import sys
import time

from musil import Action, Model, check  # type: ignore[import-not-found]

IDLE, LOCKED, READ, WRITTEN = range(4)

# (holder of the lock or -1, the counters, and of each task: where it is, its round, the value it has read)
State = tuple[int, tuple[int, int], tuple[tuple[int, int, int], ...]]


def moved(state: State, task: int, local: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    locals_ = state[2]
    return (*locals_[:task], local, *locals_[task + 1 :])


def counted(state: State, which: int, value: int) -> tuple[int, int]:
    return (value, state[1][1]) if which == 0 else (state[1][0], value)


def enabled(task: int, rounds: int, racy: bool, state: State) -> bool:
    at, i, _ = state[2][task]
    if at != IDLE:
        return True
    return i < rounds and (state[0] < 0 or (racy and i == rounds - 1))


def apply(task: int, rounds: int, racy: bool, state: State) -> State:
    at, i, v = state[2][task]
    which = (task + i) & 1
    unlocked = racy and i == rounds - 1
    if at == IDLE and not unlocked:
        return (task, state[1], moved(state, task, (LOCKED, i, 0)))
    if at in (IDLE, LOCKED):
        return (state[0], state[1], moved(state, task, (READ, i, state[1][which])))
    if at == READ and not unlocked:
        return (state[0], counted(state, which, v + 1), moved(state, task, (WRITTEN, i, 0)))
    if at == READ:
        return (state[0], counted(state, which, v + 1), moved(state, task, (IDLE, i + 1, 0)))
    return (-1, state[1], moved(state, task, (IDLE, i + 1, 0)))


def ended(tasks: int, rounds: int, state: State) -> bool:
    return all(state[2][task][1] == rounds for task in range(tasks))


def model(tasks: int, rounds: int, racy: bool) -> Model[State]:
    last = tasks - 1
    return Model(
        init=[(-1, (0, 0), ((IDLE, 0, 0),) * tasks)],
        actions=[
            Action(
                f"task{task}",
                functools.partial(enabled, task, rounds, racy and task == last),
                functools.partial(apply, task, rounds, racy and task == last),
            )
            for task in range(tasks)
        ],
        invariants={"sum": lambda state: not ended(tasks, rounds, state) or sum(state[1]) == tasks * rounds},
        terminal=functools.partial(ended, tasks, rounds),
    )


def main(tasks: int, rounds: int, racy: bool) -> None:
    program = model(tasks, rounds, racy)
    began = time.perf_counter()
    result = check(program, max_states=10_000_000)
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "version": importlib.metadata.version("musil"),
                "states": result.states_explored,
                "errors": int(not result.ok),
                "seconds": seconds,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "racy")
