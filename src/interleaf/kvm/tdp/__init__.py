"""The TDP MMU: KVM's owner of two-dimensional page tables.

The parts, in reading order:

* `spte`        what the bits of an SPTE mean, and how SPTEs are made;
* `entries`     reading and writing SPTEs, with the checks of I3, I4 and I8;
* `iter`        the walk over the entries of a root, which survives yields;
* `changed`     changing an SPTE, and what follows from that;
* `map`         mapping a page for a fault;
* `zap`         zapping a root, or the leafs of a range, with yields;
* `roots`       the life of a root;
* `unmap`       zapping in all roots;
* `wrprot`      write-protecting a memslot;
* `tdp_mmu`     the interface for everybody else, which does what the VM's design says;
* `ghost`, `references`   what the model remembers and checks beside, and no kernel has.

The functions are those of v6.12; what other kernels do otherwise is in `interleaf.designs`.
"""
