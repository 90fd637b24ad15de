"""Giving up the CPU (kernel/sched/core.c).

The scheduler may run any task at any scheduling point anyway, so cond_resched() adds no behaviour of its own:
what remains of it is the rule that it must not be called in atomic context.
"""

from __future__ import annotations

from interleaf.runtime import choose

from .lockdep import might_sleep


def need_resched() -> bool:
    """Does the scheduler want the CPU back? A choice of the environment: both answers are explored."""
    return bool(choose(2, "need_resched"))


def cond_resched() -> None:
    """Let others run; not under a spinlock or rwlock, nor in an RCU reader."""
    might_sleep()
