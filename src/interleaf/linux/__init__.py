"""The kernel's building blocks on the runtime, under the kernel's names: one module, one primitive.

Each module says which kernel rule its primitive stands for, and enforces it. Whatever breaks a rule is a
`Violation`; the names of the rules:

* `lockdep`                 lock order, recursion, unbalanced unlocks, held-lock assertions, freeing a held lock;
* `held-at-end`             a task that ends with a lock held, or as a reader (from the runtime);
* `sleeping-while-atomic`   sleeping under a spinlock or rwlock, in an RCU reader or in an RCU callback;
* `suspicious-rcu-usage`    an RCU pointer followed outside a reader, unbalanced readers, a callback queued twice;
* `refcount`                increment from zero, underflow, saturation;
* `list-corruption`         what CONFIG_DEBUG_LIST checks, and following a poisoned list pointer;
* `workqueue`               work queued on a work queue that is being drained, or without INIT_WORK;
* `use-after-free`, `double-free`   the lives of objects (from the runtime);
* `WARN`, `BUG`             the model's own WARN_ON and BUG_ON.

The functions here are building blocks: an operation's place in the source is that of the model code that
called them.
"""

from pathlib import Path

from interleaf.runtime import quiet

quiet(str(Path(__file__).parent))
