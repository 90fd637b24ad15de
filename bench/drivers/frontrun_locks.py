"""The lock benchmark in frontrun: real threads, a real lock, under its scheduler.

Arguments: tasks, rounds, `safe` or `racy`, strategy (`dpor` or `random`), executions at most. Prints one line of
JSON. The safe program is explored up to the limit; the racy one up to the first failure.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import frontrun  # type: ignore[import-not-found]


class Counters:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.c = [0, 0]


def task(number: int, rounds: int, racy: bool) -> Callable[[Counters], None]:
    def work(counters: Counters) -> None:
        for i in range(rounds):
            which = (number + i) & 1
            if racy and i == rounds - 1:
                v = counters.c[which]
                counters.c[which] = v + 1
            else:
                with counters.lock:
                    v = counters.c[which]
                    counters.c[which] = v + 1

    return work


def main(tasks: int, rounds: int, racy: bool, strategy: str, executions: int) -> None:
    options: dict[str, Any] = {"strategy": strategy, "detect_io": False, "reproduce_on_failure": 0}
    if strategy == "dpor":
        options |= {"max_executions": executions, "preemption_bound": None, "stop_on_first": racy}
    else:
        options |= {"max_attempts": executions, "seed": 1}
    began = time.perf_counter()
    result = frontrun.explore(
        setup=Counters,
        workers=[task(number, rounds, racy and number == tasks - 1) for number in range(tasks)],
        invariant=lambda counters: sum(counters.c) == tasks * rounds,
        **options,
    )
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "version": importlib.metadata.version("frontrun"),
                "executions": result.num_explored,
                "errors": int(not result.property_holds),
                "seconds": seconds,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "racy", sys.argv[4], int(sys.argv[5]))
