"""Mutexes (kernel/locking/mutex.c): one holder, who may sleep; taking one may sleep; not recursive.

Only the task that took a mutex may release it.
"""

from __future__ import annotations

from interleaf.runtime import Memory
from interleaf.runtime.carrier import perform
from interleaf.runtime.memory import BLOCK
from interleaf.runtime.values import Value

from .lockdep import lock, may_sleep
from .spinlock import Acquire, Release, Try


class mutex(lock):
    """A mutex. All zero is unlocked, so an embedded one needs no initialisation."""


class _MutexLock(Acquire):
    name = "mutex_lock"

    def run(self, memory: Memory) -> Value:
        result = super().run(memory)
        if result is not BLOCK:
            may_sleep(memory, self.site)
        return result


class _MutexTrylock(Try):
    name = "mutex_trylock"


class _MutexUnlock(Release):
    name = "mutex_unlock"


def mutex_lock(taken: mutex) -> None:
    """Take a mutex; sleeps while another task holds it, so not in atomic context."""
    perform(_MutexLock(taken))


def mutex_trylock(tried: mutex) -> bool:
    """Take a mutex if it is free now; never sleeps, and adds nothing to the lock order."""
    return bool(perform(_MutexTrylock(tried)))


def mutex_unlock(released: mutex) -> None:
    """Give a mutex back. The running task must hold it."""
    perform(_MutexUnlock(released))
