/* The lock benchmark: T tasks, each K times: take the lock, v = c[(id+i)&1], c[(id+i)&1] = v+1, give it back.
 *
 * Written as an expert would: no dead variables, no state for loop bookkeeping.
 * -DWHOLE   a whole critical section is one step; the author vouches for it that nobody else looks in between.
 * -DRACY    the last task skips the lock in its last round.
 */
#ifndef T
#define T 3
#endif
#ifndef K
#define K 4
#endif

#define mine c[(_pid + i) & 1]

bit locked;
byte c[2];
byte ended;

active [T] proctype task() {
	byte i, v;
	do
#ifdef RACY
	:: _pid == T - 1 && i == K - 1 ->
		v = mine;
		d_step { mine = v + 1; v = 0; i++ }
#define MAY (!(_pid == T - 1 && i == K - 1))
#else
#define MAY (i < K)
#endif
#ifdef WHOLE
	:: d_step { MAY && i < K && !locked -> mine = mine + 1; i++ }
#else
	:: d_step { MAY && i < K && !locked -> locked = 1 };
		v = mine;
		d_step { mine = v + 1; v = 0 };
		d_step { locked = 0; i++ }
#endif
	:: d_step {
		i == K ->
		i = 0;
		ended++;
		if
		:: ended == T -> assert(c[0] + c[1] == T * K)
		:: else
		fi
	   };
	   break
	od
}
