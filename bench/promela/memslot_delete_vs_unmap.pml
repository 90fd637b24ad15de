/* A memslot is deleted while the host unmaps its memory: the scenario memslot-delete-vs-unmap, one page.
 *
 * One statement here is one operation of the Python model: the same locks, the same reads and writes of SPTEs, the
 * same grace periods, the same three tasks and the same callbacks, after the same set-up (a vCPU has run and written
 * the page; it holds its root). Written as an expert would: bits and bytes, dead variables cleared, no loop
 * counters, d_step where an operation has several parts.
 *
 * -DOFF_LIST  the patch: an invalidated root leaves the list of roots (else as in v6.12)
 * -DWHOLE     critical sections are atomic; the author vouches for it that nobody else looks in between
 */
#ifdef WHOLE
#define SECTION atomic
#else
#define SECTION
#endif

/* who is who, as bits in sets of readers */
#define MEMSLOT 1
#define MUNMAP 2
#define DESTROY 4

/* an SPTE: not present, present, frozen. e[t] is the entry of table t that leads to gfn 0; e[3] is the leaf */
#define NONE 0
#define PRESENT 1
#define FROZEN 2
byte e[4] = PRESENT;
bit freed[4];                   /* tables; 0 is the root */
bit queued[4];                  /* a callback that frees table t waits for its grace period */
byte awaits[4];                 /* the readers it waits for */

bit on_list = 1, invalid, scheduled;
byte refs =
#ifdef OFF_LIST
	1;                      /* the vCPU's */
#else
	2;                      /* the vCPU's, and the TDP MMU's */
#endif

bit slots_lock, slots_arch_lock, mn_lock, pages_lock, kvm_lock;
bit writer;
byte readers;                   /* mmu_lock */
byte rcu, kvm_srcu, mm_srcu;    /* readers inside */
byte kvm_srcu_awaits, mm_srcu_awaits;

#define THERE 0
#define INVALID 1
#define GONE 2
byte slots = THERE;
byte invalidations;                    /* mn_active_invalidate_count */
byte in_progress;               /* mmu_invalidate_in_progress */
bit seq, valid_gen;             /* what nobody compares is one bit */
bit woken;                      /* mn_memslots_update_rcuwait */
bit reload;                     /* the request to the vCPU */
bit tlb = 1;                    /* the vCPU's TLB has the translation */
bit registered = 1;             /* the MMU notifier */

bit host_pte = 1, page_freed, dirty, accessed;
bit mapped = 1;                 /* some SPTE maps the page */
bit memslot_ended, munmap_ended;

inline lock(l)          { d_step { !l -> l = 1 } }
inline unlock(l)        { l = 0 }
inline read_lock()      { d_step { !writer -> readers++ } }
inline read_unlock()    { readers-- }
inline write_lock()     { d_step { !writer && !readers -> writer = 1 } }
inline write_unlock()   { writer = 0 }
inline enter(in, me)    { in = in | me }
inline leave(in, awaited, me) { d_step { in = in & ~me; awaited = awaited & ~me } }
inline rcu_read_lock(me) { rcu = rcu | me }
inline rcu_read_unlock(me) {
	d_step {
		rcu = rcu & ~me;
		awaits[0] = awaits[0] & ~me; awaits[1] = awaits[1] & ~me;
		awaits[2] = awaits[2] & ~me; awaits[3] = awaits[3] & ~me
	}
}
inline call_rcu(t)      { d_step { queued[t] = 1; awaits[t] = rcu } }
inline synchronize(in, awaited) { awaited = in; (awaited == 0) }

inline set_dirty()      { d_step { assert(!page_freed); dirty = 1 } }
inline set_accessed()   { d_step { assert(!page_freed); accessed = 1 } }

/* Read e[t] as tdp_iter does; leave for `out` if it is not present. */
#define look(t, out) \
	if \
	:: d_step { e[t] == PRESENT -> assert(!freed[t]) } \
	:: d_step { e[t] != PRESENT -> assert(!freed[t]) }; goto out \
	fi

/* swap the set of slots: slots_lock and slots_arch_lock are held, the latter is given back */
#define swap_slots(to, again, done) \
again:	woken = 0; \
	lock(mn_lock); \
	if \
	:: invalidations == 0 -> goto done \
	:: else -> unlock(mn_lock) \
	fi; \
	(woken); \
	goto again; \
done:	slots = to; \
	unlock(mn_lock); \
	unlock(slots_arch_lock); \
	synchronize(kvm_srcu, kvm_srcu_awaits)

/* the leaf is gone from its table: its dirty and accessed state goes to the page */
#define left_leaf() set_dirty(); set_accessed()

active proctype memslot() {
	lock(slots_lock);
	lock(slots_arch_lock);
	swap_slots(INVALID, wait1, swap1);
#ifdef OFF_LIST
	SECTION {
		write_lock();
		valid_gen = !valid_gen;
		d_step { assert(refs > 0); refs++ };
		on_list = 0;
		invalid = 1;
		reload = 1;
		write_unlock()
	};
	SECTION {
		read_lock();
		rcu_read_lock(MEMSLOT);
		look(0, zapped);
		d_step { assert(e[0] == PRESENT && !freed[0]); e[0] = FROZEN };
		d_step { assert(!freed[1]); e[1] = FROZEN };
		d_step { assert(!freed[2]); e[2] = FROZEN };
		if
		:: d_step { e[3] == PRESENT -> assert(!freed[3]); e[3] = FROZEN; mapped = 0 };
			left_leaf()
		:: d_step { e[3] != PRESENT -> assert(!freed[3]); e[3] = FROZEN }
		fi;
		tlb = 0;
		call_rcu(3);
		tlb = 0;
		call_rcu(2);
		tlb = 0;
		call_rcu(1);
		tlb = 0;
		e[0] = NONE;
zapped:		rcu_read_unlock(MEMSLOT);
		d_step { assert(refs > 1); refs-- };
		read_unlock()
	};
#else
	SECTION {
		write_lock();
		valid_gen = !valid_gen;
		scheduled = 1;
		invalid = 1;
		reload = 1;
		write_unlock()
	};
	SECTION {
		read_lock();
		rcu_read_lock(MEMSLOT);
		if
		:: on_list -> skip
		:: else -> rcu_read_unlock(MEMSLOT); goto walked
		fi;
		d_step { assert(refs > 0); refs++ };
		rcu_read_unlock(MEMSLOT);
		if
		:: scheduled -> scheduled = 0
		:: else -> goto next
		fi;
		assert(refs > 0);
		rcu_read_lock(MEMSLOT);
		/* entries of 4K */
		look(0, pass2); look(0, pass2); look(1, pass2); look(1, pass2); look(2, pass2); look(2, pass2);
		look(3, pass2);
		d_step { e[3] == PRESENT -> assert(!freed[3]); e[3] = NONE; mapped = 0 };
		left_leaf();
pass2:		look(0, pass3); look(0, pass3); look(1, pass3); look(1, pass3); look(2, pass3);
		d_step { e[2] == PRESENT -> assert(!freed[2]); e[2] = NONE };
		if
		:: d_step { e[3] == PRESENT -> assert(!freed[3]); e[3] = FROZEN; mapped = 0 };
			left_leaf()
		:: d_step { e[3] != PRESENT -> assert(!freed[3]); e[3] = FROZEN }
		fi;
		call_rcu(3);
pass3:		look(0, pass4); look(0, pass4); look(1, pass4);
		d_step { e[1] == PRESENT -> assert(!freed[1]); e[1] = NONE };
		d_step { assert(!freed[2] && e[2] == NONE); e[2] = FROZEN };
		call_rcu(2);
pass4:		look(0, passed);
		d_step { e[0] == PRESENT -> assert(!freed[0]); e[0] = NONE };
		d_step { assert(!freed[1] && e[1] == NONE); e[1] = FROZEN };
		call_rcu(1);
passed:		rcu_read_unlock(MEMSLOT);
		d_step { assert(refs > 1); refs-- };
next:		rcu_read_lock(MEMSLOT);
		assert(on_list && !freed[0]);
		rcu_read_unlock(MEMSLOT);
		d_step { assert(refs > 1); refs-- };
walked:		read_unlock()
	};
#endif
	lock(slots_arch_lock);
	swap_slots(GONE, wait2, swap2);
	unlock(slots_lock);
	memslot_ended = 1
}

active proctype munmap() {
	/* invalidate_range_start */
	enter(mm_srcu, MUNMAP);
	assert(registered);
	SECTION { lock(mn_lock); invalidations++; unlock(mn_lock) };
	enter(kvm_srcu, MUNMAP);
	if
	:: slots == GONE -> goto unmapped
	:: slots != GONE -> skip
	fi;
	SECTION {
		write_lock();
		in_progress++;
		rcu_read_lock(MUNMAP);
		if
		:: on_list -> assert(!freed[0])
		:: else -> rcu_read_unlock(MUNMAP); goto flushed
		fi;
#ifdef OFF_LIST
		assert(!invalid);
#endif
		d_step { assert(refs > 0); refs++ };
		rcu_read_unlock(MUNMAP);
		rcu_read_lock(MUNMAP);
		look(0, left); look(0, left); look(1, left); look(1, left); look(2, left); look(2, left);
		look(3, left);
		d_step { assert(!freed[3]); e[3] = NONE; mapped = 0 };
		left_leaf();
		rcu_read_unlock(MUNMAP);
		rcu_read_lock(MUNMAP);
		assert(on_list && !freed[0]);
		rcu_read_unlock(MUNMAP);
		d_step { assert(refs > 1); refs-- };
		tlb = 0;
		goto flushed;
left:		rcu_read_unlock(MUNMAP);
		rcu_read_lock(MUNMAP);
		assert(on_list && !freed[0]);
		rcu_read_unlock(MUNMAP);
		d_step { assert(refs > 1); refs-- };
flushed:	write_unlock()
	};
unmapped:
	leave(kvm_srcu, kvm_srcu_awaits, MUNMAP);
	leave(mm_srcu, mm_srcu_awaits, MUNMAP);
	/* the host takes the page back */
	d_step { assert(!mapped); host_pte = 0 };
	d_step { assert(!mapped); page_freed = 1 };
	/* invalidate_range_end */
	enter(mm_srcu, MUNMAP);
	assert(registered);
	enter(kvm_srcu, MUNMAP);
	if
	:: slots == GONE -> goto ended
	:: slots != GONE -> skip
	fi;
	SECTION { write_lock(); seq = !seq; in_progress--; write_unlock() };
ended:	leave(kvm_srcu, kvm_srcu_awaits, MUNMAP);
	SECTION { lock(mn_lock); invalidations--; unlock(mn_lock) };
	woken = 1;
	leave(mm_srcu, mm_srcu_awaits, MUNMAP);
	munmap_ended = 1
}

active proctype destroy() {
	(memslot_ended);
	(munmap_ended);
	d_step { memslot_ended = 0; munmap_ended = 0 };
	SECTION { lock(kvm_lock); unlock(kvm_lock) };
	/* the release notifier */
	assert(registered);
	enter(mm_srcu, DESTROY);
	enter(kvm_srcu, DESTROY);
	SECTION {
		write_lock();
		rcu_read_lock(DESTROY);
		if
		:: on_list ->
			d_step { assert(refs > 0); refs++ };
			rcu_read_unlock(DESTROY);
			assert(refs > 0);
			rcu_read_lock(DESTROY);
			assert(e[0] == NONE && !freed[0]);
			rcu_read_unlock(DESTROY);
			rcu_read_lock(DESTROY);
			assert(on_list);
			rcu_read_unlock(DESTROY);
			d_step { assert(refs > 1); refs-- }
		:: else -> rcu_read_unlock(DESTROY)
		fi;
		write_unlock()
	};
	leave(kvm_srcu, kvm_srcu_awaits, DESTROY);
	leave(mm_srcu, mm_srcu_awaits, DESTROY);
	registered = 0;
	synchronize(mm_srcu, mm_srcu_awaits);
	/* the vCPU puts its root, and that is the last reference */
#ifdef OFF_LIST
	SECTION {
		write_lock();
		d_step { assert(refs == 1 && !on_list); refs = 0 };
		rcu_read_lock(DESTROY);
		assert(e[0] == NONE && !freed[0]);
		rcu_read_unlock(DESTROY);
		call_rcu(0);
		write_unlock()
	};
#else
	SECTION {
		read_lock();
		d_step { assert(refs == 1 && on_list); refs = 0 };
		lock(pages_lock);
		on_list = 0;
		unlock(pages_lock);
		call_rcu(0);
		read_unlock()
	};
	SECTION { write_lock(); write_unlock() };
	SECTION { read_lock(); rcu_read_lock(DESTROY); assert(!on_list); rcu_read_unlock(DESTROY); read_unlock() };
#endif
	assert(!on_list);
	/* rcu_barrier */
	(!queued[0] && !queued[1] && !queued[2] && !queued[3]);
	assert(freed[0] && freed[1] && freed[2] && freed[3])
}

/* the RCU callbacks, one task each */
active [4] proctype callback() {
	d_step {
		queued[_pid - 3] && awaits[_pid - 3] == 0 ->
		assert(!freed[_pid - 3]);
		freed[_pid - 3] = 1;
		queued[_pid - 3] = 0
	}
}
