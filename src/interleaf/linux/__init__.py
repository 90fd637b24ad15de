"""The kernel's building blocks on the runtime: locks, RCU, refcounts, lists, slab, work queues, lockdep."""
