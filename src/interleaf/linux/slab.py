"""Allocating and freeing (mm/slab.h, include/linux/slab.h): a class stands for its cache.

The runtime knows each object's life: a use after the free, and freeing twice, are fatal violations. Freeing an
object with a lock in it that the running task holds is one of `lockdep` ("held lock freed").
"""

from __future__ import annotations

import enum
from typing import TypeVar

from interleaf.runtime import Memory, Object, Violation, new
from interleaf.runtime.carrier import perform
from interleaf.runtime.objects import Free
from interleaf.runtime.values import Value

from .lockdep import might_sleep, place
from .rcu import call_rcu, frees_only

T = TypeVar("T", bound=Object)


class gfp_t(enum.Enum):
    """May an allocation sleep?"""

    GFP_KERNEL = "may sleep"
    GFP_ATOMIC = "must not sleep"


GFP_KERNEL = gfp_t.GFP_KERNEL
GFP_ATOMIC = gfp_t.GFP_ATOMIC


class _Kfree(Free):
    name = "kfree"

    def run(self, memory: Memory) -> None:
        for cell, _exclusive in memory.held[memory.task].locks:
            if cell.owner.root is self.obj:
                task = memory.world.tasks[memory.task]
                message = f"held lock freed: {task} frees {self.obj} in {place(self.site)} and holds {cell.owner}"
                memory.violate(Violation("lockdep", message, True, self.obj.name))
        super().run(memory)


def kmem_cache_alloc(cls: type[T], gfp: gfp_t = GFP_ATOMIC, **values: Value) -> T:
    """Allocate an object of `cls`, with initial values by name, the rest zero (its declared defaults).

    With GFP_KERNEL the caller must be allowed to sleep. Allocation does not fail; a model whose subject is a
    failing allocation chooses that itself.
    """
    if gfp is GFP_KERNEL:
        might_sleep()
    return new(cls, **values)


def kmem_cache_free(obj: Object) -> None:
    """Free an object: from here on every access to it is a use-after-free."""
    perform(_Kfree(obj))


@frees_only
def kfree(obj: Object) -> None:
    """Free an object: from here on every access to it is a use-after-free."""
    perform(_Kfree(obj))


def kfree_rcu(obj: Object) -> None:
    """Free an object after a grace period; does not wait."""
    call_rcu(kfree, obj)
