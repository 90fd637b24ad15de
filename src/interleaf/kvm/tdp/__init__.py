"""The TDP MMU: KVM's owner of two-dimensional page tables.

The parts, in reading order:

* `masks`, `spte`     which bits an SPTE has in each format, what they mean, and how SPTEs are made;
* `entries`           reading and writing SPTEs, with the checks of I3, I4, I8 and I11;
* `iter`, `lockless`  walks over the entries of a root: one that survives yields, one without mmu_lock;
* `changed`           changing an SPTE, and what follows from that;
* `link`, `map`       new tables, and mapping a page for a fault;
* `zap`, `unmap`      zapping a root, a table, or the leafs of a range, in one root and in all;
* `roots`             the life of a root;
* `wrprot`, `dirty`   protecting what maps a memslot, and clearing its dirty state;
* `split`, `collapse` huge pages to small ones, and back;
* `handle_gfn`, `age`, `change_pte`   the notifiers that zap nothing;
* `tdp_mmu`           the interface for everybody else, which does what the VM's design says;
* `ghost`, `references`, `work`   what the model remembers and checks beside, and no kernel has.

The functions are those of v6.12; what other kernels do otherwise is in `interleaf.designs`.
"""
