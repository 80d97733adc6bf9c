/*
 * Recovery: a new epoch from an archive, while an old majority may live on
 * behind a partition. One epoch's consensus is taken from store.pml: here it is
 * a list of committed entries that a majority of three servers holds.
 *
 * What is abstracted, what is bounded and what is left out is said in README.md.
 * Each rule of the design that a switch M_... can break is marked "rule:".
 */

#ifndef NE
#define NE 3	/* epochs 1..NE */
#endif
#ifndef MAXN
#define MAXN 3	/* entries committed in one history */
#endif
#ifndef NM
#define NM 2	/* recoveries under way at once: enclaves, one key each */
#endif
#define NO 3	/* operators */
#ifdef M_THRESHOLD_OF_ONE
#define SIGNERS_A 1
#define SIGNERS_B 2
#define SIGNERS_C 4
#else
#ifdef ALL_SIGN	/* three of three, which makes a smaller model */
#define SIGNERS_A 7
#define SIGNERS_B 7
#define SIGNERS_C 7
#else
#define SIGNERS_A 3	/* rule: more than half of the operators sign, as masks */
#define SIGNERS_B 5
#define SIGNERS_C 6
#endif
#endif

#define AT(e, i) ((e) * 3 + (i))
#define BIT(s) (1 << (s))
#define HAS(mask, s) (((mask) >> (s)) & 1)
#define UP(e) ((state[AT(e, 0)] == up) + (state[AT(e, 1)] == up) + (state[AT(e, 2)] == up))
#define STOPPED(e) ((state[AT(e, 0)] == stopped) + (state[AT(e, 1)] == stopped) + (state[AT(e, 2)] == stopped))
#define MAX(a, b) ((a) > (b) -> (a) : (b))
/* The newest entry on any archive of the epoch. The host may show any earlier state of it. */
#define NEWEST(e) MAX(have[AT(e, 0)], MAX(have[AT(e, 1)], have[AT(e, 2)]))
/* The newest head that servers of the epoch have signed when they were stopped. */
#define HEAD(e, i) (state[AT(e, i)] == stopped -> have[AT(e, i)] : 0)
#define FINAL(e) MAX(HEAD(e, 0), MAX(HEAD(e, 1), HEAD(e, 2)))

mtype = { none, up, dead, stopped };	/* stopped: with a signed final checkpoint */
mtype state[12];	/* of server i of epoch e, at AT(e, i) */
byte have[12];	/* how many entries it holds, in its memory and archive */
byte parent[4], base[4], count[4];	/* where an epoch comes from, how much it took over, how much it has committed */
byte opened = BIT(1);	/* epochs that serve or have served */
byte loose;	/* epochs whose manifest accepts a fork in words */

byte we = 1, wx;	/* the newest checkpoint that the witness has cosigned */
byte seen;	/* the highest epoch a client has seen */
byte opmax[NO];	/* the highest epoch each operator has signed */

/* A recovery: the enclave shows archive (me, mx) for epoch mn; whether the fork is accepted. */
byte me[NM], mx[NM], mn[NM];
bit mloose[NM];

bool epochs_never_reused = true;
bool witnessed_survives = true;	/* no epoch begins below a cosigned checkpoint */
bool planned_stop_loses_nothing = true;
bool no_silent_fork = true;	/* an old epoch commits after a new one only if the manifest said so */
bool clients_never_go_back = true;
bool majority_of_the_epoch_holds = true;	/* an acknowledged entry is held by a majority of its own epoch's servers */
bool unreachable = true;

hidden byte h1, h2, h3;

/* h1 = 1 if the first x entries of epoch e contain the first wx of epoch we. */
inline contains(e, x)
{
	h1 = e; h2 = x;
	do
	:: h1 > we -> h2 = (h2 < base[h1] -> h2 : base[h1]); h1 = parent[h1]
	:: else -> break
	od;
	/* of an older epoch, or of another branch, only what both took over from their common ancestor can be contained */
	h3 = we;
	do
	:: h1 != h3 && h1 > h3 -> h2 = (h2 < base[h1] -> h2 : base[h1]); h1 = parent[h1]
	:: h1 != h3 && h3 > h1 -> h2 = (h2 < base[h3] -> h2 : base[h3]); h3 = parent[h3]
	:: else -> break
	od;
	h1 = (h2 >= wx && (h3 == we || wx <= h2))
}

#ifdef M_EPOCH_UNCHECKED	/* a server of the older epoch answers in the newer */
#define OUTSIDER(e) (e > 1 && UP(parent[e]) > 0)
#else
#define OUTSIDER(e) false	/* rule: a channel and a statement are of one epoch */
#endif

/* Epoch e commits one entry: servers i and j hold it. */
inline commit(e, i, j)
{
	count[e]++;
	have[AT(e, i)] = count[e];
	if
	:: i != j -> have[AT(e, j)] = count[e]
	:: else
	fi;
	if
	:: (have[AT(e, 0)] == count[e]) + (have[AT(e, 1)] == count[e]) + (have[AT(e, 2)] == count[e]) < 2 ->
		majority_of_the_epoch_holds = false; assert(majority_of_the_epoch_holds)
	:: else
	fi;
	if
	:: e == NE -> h1 = 0;	/* nobody recovers from the last epoch: who lags in it does not matter */
		do
		:: h1 < 3 -> have[AT(e, h1)] = count[e]; h1++
		:: else -> break
		od
	:: else
	fi;
	h1 = 2;
	do
	:: h1 <= NE ->
		if
		:: HAS(opened, h1) && parent[h1] == e && !HAS(loose, h1) -> no_silent_fork = false; assert(no_silent_fork)
		:: else
		fi;
		h1++
	:: else -> break
	od;
	printf("epoch %d: entry %d on servers %d and %d\n", e, count[e], i, j)
}

/* The client takes the answer of epoch e. */
#ifdef M_CLIENT_FORGETS
#define TAKES(e) true
#else
#define TAKES(e) (e >= seen)	/* rule: never below the highest epoch seen */
#endif
inline answer(e)
{
	if
	:: e < seen -> clients_never_go_back = false; assert(clients_never_go_back)
	:: else -> seen = e
	fi
}

#ifdef M_BELOW_CHECKPOINT
#define CHECKED_FIRST false
#define CHECKED_LAST false
#else
#define CHECKED_FIRST true
#ifdef M_CHECKED_ONLY_WHEN_SHOWN
#define CHECKED_LAST false
#else
#define CHECKED_LAST true	/* rule: the witness is asked again when the epoch opens */
#endif
#endif
#ifdef M_FINAL_IGNORED
#define ABOVE_FINAL(e, x) true
#else
#define ABOVE_FINAL(e, x) (x >= FINAL(e))	/* rule: refused below the head of any server stopped with proof */
#endif
#ifdef M_FORK_NOT_NAMED
#define MUST_ACCEPT(e) false
#else
#define MUST_ACCEPT(e) (UP(e) > 0)	/* rule: a manifest names each old server as stopped or destroyed, or accepts the fork */
#endif
#ifdef M_OPERATOR_FORGETS
#define SIGNS(o, n) true
#else
#define SIGNS(o, n) (n > opmax[o])	/* rule: an operator signs an epoch once, and never a lower one */
#endif

/* Recovery m opens its epoch. */
inline open(m)
{
	h1 = 1;
	if
	:: CHECKED_LAST -> contains(me[m], mx[m])
	:: else
	fi;
	if
	:: h1 && ABOVE_FINAL(me[m], mx[m]) && (mloose[m] || !MUST_ACCEPT(me[m])) ->
		printf("recovery %d: epoch %d begins with %d entries of epoch %d\n", m, mn[m], mx[m], me[m]);
		if
		:: HAS(opened, mn[m]) -> epochs_never_reused = false; assert(epochs_never_reused)
		:: else
		fi;
		contains(me[m], mx[m]);
		if
		:: !h1 -> witnessed_survives = false; assert(witnessed_survives)
		:: else
		fi;
		if
		:: STOPPED(me[m]) >= 2 && mx[m] < count[me[m]] -> planned_stop_loses_nothing = false; assert(planned_stop_loses_nothing)
		:: else
		fi;
		h1 = mn[m];
		opened = opened | BIT(h1); parent[h1] = me[m]; base[h1] = mx[m]; count[h1] = mx[m];
		if
		:: mloose[m] -> loose = loose | BIT(h1)
		:: else
		fi;
		h2 = 0;
		do
		:: h2 < 3 -> state[AT(h1, h2)] = up; have[AT(h1, h2)] = mx[m]; h2++
		:: else -> break
		od
	:: else
	fi;
#ifndef M_MANIFEST_WITHOUT_KEY
	/* rule: the manifest names the key of the enclave that showed the archive; no other enclave can use it, nor this one again */
	me[m] = 0; mx[m] = 0; mn[m] = 0; mloose[m] = 0
#endif
}

/* What a run with -DGOAL=... must reach. */
#define RECOVERED_TWICE (opened == 14 && parent[3] == 2 && count[3] > base[3])
#define FORKED (HAS(opened, 2) && HAS(loose, 2) && count[1] > base[2] && count[2] > base[2])
#define STOPPED_AND_RECOVERED (HAS(opened, 2) && !HAS(loose, 2) && STOPPED(1) >= 2 && base[2] == 2)

active proctype world()
{
	byte e, i, j, c, x, o;

	d_step {
		do
		:: i < 3 -> state[AT(1, i)] = up; i++
		:: else -> break
		od;
		i = 0
	};

	do
	/* some client writes, perhaps one that is partitioned with an old majority */
	:: atomic {
		e = 1;
		do
		:: e < NE -> e++
		:: break
		od;
		do
		:: i < 2 -> i++
		:: break
		od;
		do
		:: j < 2 -> j++
		:: break
		od;
		skip;
		d_step {
			if
			:: HAS(opened, e) && count[e] < MAXN && state[AT(e, i)] == up && state[AT(e, j)] == up && (i < j || i == j && OUTSIDER(e)) ->
				commit(e, i, j)
			:: else
			fi;
			e = 0; i = 0; j = 0
		}
	   }

#ifndef NO_CLIENT
	/* our client asks */
	:: atomic {
		e = 1;
		do
		:: e < NE -> e++
		:: break
		od;
		skip;
		d_step {
			if
			:: HAS(opened, e) && UP(e) >= 2 && TAKES(e) -> answer(e)
			:: else
			fi;
			e = 0
		}
	   }
#endif

	/* the witness cosigns a checkpoint that extends the last one; it may hear of it late */
	:: atomic {
		e = 1;
		do
		:: e < NE -> e++
		:: break
		od;
		do
		:: x < MAXN -> x++
		:: break
		od;
		d_step {
			if
			:: HAS(opened, e) && x <= count[e] && x >= base[e] && (e != we || x != wx) ->
				contains(e, x);
				if
				:: h1 -> we = e; wx = x
				:: else
				fi
			:: else
			fi;
			e = 0; x = 0
		}
	   }

	/* a server ends, or is stopped with a signed final checkpoint */
	:: atomic {
		e = 1;
		do
		:: e < NE - 1 -> e++
		:: break
		od;
		do
		:: i < 2 -> i++
		:: break
		od;
		if
		:: state[AT(e, i)] == up -> state[AT(e, i)] = dead
		:: state[AT(e, i)] == up -> state[AT(e, i)] = stopped
		:: else
		fi;
		e = 0; i = 0
	   }

	/* Rollback: a new enclave is shown an archive of some epoch in any earlier state and proposes an epoch, and enough
	   operators sign. Until it opens, all may change. */
	:: atomic {
		if
		:: i = 0
		:: NM > 1 -> i = NM - 1
		fi;
		e = 1;
		do
		:: e < NE - 1 -> e++
		:: break
		od;
		c = e + 1;
		do
		:: c < NE -> c++
		:: break
		od;
		do
		:: x < MAXN -> x++
		:: break
		od;
		if
		:: j = 0
		:: j = 1
		fi;
		if
		:: o = SIGNERS_A
		:: SIGNERS_B != SIGNERS_A -> o = SIGNERS_B
		:: SIGNERS_C != SIGNERS_A -> o = SIGNERS_C
		fi;
		d_step {
			if
			:: me[i] == 0 && HAS(opened, e) && x >= base[e] && x <= NEWEST(e) && (j || !MUST_ACCEPT(e)) ->
				h1 = 1;
				if
				:: CHECKED_FIRST -> contains(e, x)
				:: else
				fi;
				h2 = 0;
				do
				:: h2 < NO && (!HAS(o, h2) || SIGNS(h2, c)) -> h2++
				:: else -> break
				od;
				if
				:: h1 && h2 == NO && ABOVE_FINAL(e, x) ->
					me[i] = e; mx[i] = x; mn[i] = c; mloose[i] = j; h2 = 0;
					do
					:: h2 < NO ->
						if
						:: HAS(o, h2) && opmax[h2] < c -> opmax[h2] = c
						:: else
						fi;
						h2++
					:: else -> break
					od
				:: else
				fi
			:: else
			fi;
			e = 0; i = 0; j = 0; c = 0; x = 0; o = 0
		}
	   }

	/* an enclave with enough signatures opens the epoch, or is abandoned */
	:: atomic {
		if
		:: i = 0
		:: NM > 1 -> i = NM - 1
		fi;
		if
		:: me[i] != 0 -> d_step { open(i); i = 0 }
		:: me[i] != 0 -> d_step { me[i] = 0; mx[i] = 0; mn[i] = 0; mloose[i] = 0; i = 0 }
		:: else -> i = 0
		fi
	   }

#ifdef GOAL
	/* not vacuous: such a state is reached, which is what the run must say */
	:: d_step { (GOAL) -> unreachable = false; assert(unreachable) }
#endif
	od
}
