/*
 * One boot = one server: consensus, admission, rejoin, reads and hostile disks
 * within one epoch. Recovery between epochs is in recovery.pml.
 *
 * What is abstracted, what is bounded and what is left out is said in README.md.
 * Each rule of the design that a switch M_... can break is marked "rule:".
 */

#ifndef NS
#define NS 4	/* servers, that is boots: 0..2 vote from the start, 3 and 4 are later boots */
#endif
#ifndef MAXT
#define MAXT 2	/* terms */
#endif
#ifndef MAXL
#define MAXL 8	/* entries of a log */
#endif
#ifndef WRITES
#define WRITES 1	/* entries of clients */
#endif
#ifndef SLOT3
#define SLOT3 2	/* the slot that boot 3 claims */
#endif
#ifndef SLOT4
#define SLOT4 2
#endif
#ifdef SURGE	/* four voters, as in the middle of an upgrade that adds before it removes; boot 3 has a slot of its own */
#define VOTERS0 15
#define SLOT_OF(s) (s)
#else
#define VOTERS0 7
#define SLOT_OF(s) ((s) < 3 -> (s) : ((s) == 3 -> SLOT3 : SLOT4))
#endif
#ifndef CLAIMANTS
#define CLAIMANTS 24	/* the boots that ask to join, as a mask */
#endif

#ifndef CANDIDATES
#define CANDIDATES 31	/* who may campaign, as a mask */
#endif

/* An entry is term*32 + what. */
#define NOOP 1
#define WRITE 2
#define ADMIT(j, inc) (3 + ((j) - 3) * 2 + ((inc) - 2))	/* incarnations 2 and 3 of the slot; 3..6 */
#define ADDN(j) (4 + (j))	/* nonvoter; 7, 8 */
#define ADDV(j) (6 + (j))	/* voter; 9, 10 */
#define REM(s) (11 + (s))	/* 11..15 */
#define SWAP(j) (13 + (j))	/* only in a mutation; 16, 17 */
#define WHAT(x) ((x) & 31)
#define TERM(x) ((x) >> 5)
#define HAS(mask, s) (((mask) >> (s)) & 1)
#define BIT(s) (1 << (s))
#define POP(m) (((m) & 1) + (((m) >> 1) & 1) + (((m) >> 2) & 1) + (((m) >> 3) & 1) + (((m) >> 4) & 1))
#define LASTTERM(s) (size[s] == 0 -> 0 : TERM(log[s].e[size[s] - 1]))
#define NEWER(a, b) (LASTTERM(a) > LASTTERM(b) || (LASTTERM(a) == LASTTERM(b) && size[a] >= size[b]))

#define NOBODY 15

typedef Log { byte e[MAXL] };

Log log[NS];
byte size[NS], term[NS], commit[NS];	/* commit is kept for a leader and is 0 until it has committed in its own term */
byte V[NS], N[NS], ci[NS];	/* voters, nonvoters and index of the last configuration in the log, committed or not */
bit voted[NS], lead[NS];
byte roots = VOTERS0;	/* who holds the root secrets */
byte writes = WRITES;

/* One admission at a time per leader: joiner, stage, index of the configuration it is based on, what is to be removed. */
mtype = { idle, admitting, granted, adding, removing };
byte aj[NS], apv[NS], arm[NS], ahas[NS];	/* ahas: applied at the end of an earlier leadership */
bit adone[NS];	/* the future of the last proposal has resolved */
mtype ast[NS] = idle;

/* Ghosts: what has ever been committed, by any leader; terms that had a leader; the last term with a commit. */
byte G[MAXL], glen, gterm;
byte ldr;

#ifdef READS
byte rd = NS, rterm, rg0, ridx, racks;
bit rdone, rstarted;
#ifdef FOLLOWER_READS
bit rasked;
#endif
#endif

#ifdef DISK
Log dlog;	/* what the host copied from some server's disk, at any time */
byte dof = NS, dsize, dterm, fromdisk;
bit dvoted, dused;
#endif

#ifdef M_ADDRESS
bit dwiped;
#endif
#ifdef SURGE
bit removed;
#endif

/* The invariants of DESIGN.md, section 6. Each is true until it is broken. */
bool one_leader_per_term = true;
bool leader_completeness = true;	/* an acknowledged write is never lost */
bool state_machine_safety = true;	/* equal index, equal entry, on all servers and for ever */
bool secrets_only_to_admitted = true;
bool members_hold_roots = true;
bool one_voter_per_slot = true;	/* two claimants of a slot: one admitted */
bool linearizable_reads = true;
bool disk_is_powerless = true;	/* no vote, ack or campaign under an identity from disk */

/* What a run with -DGOAL=... must reach. */
#define REJOINED (lead[3] && commit[3] > 0)	/* the later boot leads and commits */
#define RESTARTED_TWICE (lead[4] && commit[4] > 0 && (V[4] == 25 || V[4] == 19))	/* two boots later: 0, 3 and 4, or 0, 1 and 4, vote */
#define READ rdone
#define ROLLED_BACK (dused && REJOINED)
#define GROWN (removed && POP(V[1]) == 4 && HAS(V[1], 4) && lead[1] && commit[1] >= ci[1] && ci[1] > 0)
bool unreachable = true;

hidden byte h1, h2, h3, h4, h5, h6, h7, h8;	/* scratch inside one d_step, never state */

/* h1 = length of the common prefix of two logs; uses nothing else. */
inline prefix(a, b)
{
	h1 = 0;
	do
	:: h1 < size[a] && h1 < size[b] && log[a].e[h1] == log[b].e[h1] -> h1++
	:: else -> break
	od
}

/* Configuration of a log: the last one in it, whether committed or not. */
inline configure(s)
{
	V[s] = VOTERS0; N[s] = 0; ci[s] = 0; h1 = 0;
	do
	:: h1 < size[s] ->
		h2 = WHAT(log[s].e[h1]);
		if
		:: h2 == ADDN(3) || h2 == ADDN(4) -> h2 = h2 - 4; N[s] = N[s] | (BIT(h2) & ~V[s]); ci[s] = h1 + 1
		:: h2 == ADDV(3) || h2 == ADDV(4) -> h2 = h2 - 6; V[s] = V[s] | BIT(h2); N[s] = N[s] & ~BIT(h2); ci[s] = h1 + 1
		:: h2 >= REM(0) && h2 <= REM(4) -> h2 = h2 - 11; V[s] = V[s] & ~BIT(h2); N[s] = N[s] & ~BIT(h2); ci[s] = h1 + 1
		:: h2 == SWAP(3) || h2 == SWAP(4) -> h2 = h2 - 13;
			V[s] = (V[s] & ~BIT(SLOT_OF(h2))) | BIT(h2); N[s] = N[s] & ~BIT(h2); ci[s] = h1 + 1
		:: else
		fi;
		h1++
	:: else -> break
	od
}

#ifdef M_INCARNATION_UNCHECKED
#define NEXT(inc, old) true
#else
#define NEXT(inc, old) ((inc) == (old) + 1)	/* rule: Apply takes the next incarnation of the slot and no other */
#endif

/* Holder h3 and incarnation h4 of slot h7 after the first n entries of s's log: the newest admission supersedes. */
inline holder(s, n)
{
	h3 = (HAS(VOTERS0, h7) -> h7 : NOBODY); h4 = 1; h1 = 0;
	do
	:: h1 < n ->
		h2 = WHAT(log[s].e[h1]);
		if
		:: h2 >= ADMIT(3, 2) && h2 <= ADMIT(4, 3) && SLOT_OF(3 + (h2 - 3) / 2) == h7 && NEXT(2 + (h2 - 3) % 2, h4) ->
			h3 = 3 + (h2 - 3) / 2; h4++
		:: else
		fi;
		h1++
	:: else -> break
	od
}

/* The ghost takes what leader l has committed and compares what it had. */
inline record(l)
{
	h1 = 0;
	do
	:: h1 < commit[l] ->
		if
		:: h1 >= glen -> G[h1] = log[l].e[h1]; glen = h1 + 1; gterm = (term[l] > gterm -> term[l] : gterm)
		:: else ->
			if
			:: G[h1] != log[l].e[h1] -> state_machine_safety = false; assert(state_machine_safety)
			:: else
			fi
		fi;
		h1++
	:: else -> break
	od
}

#ifdef M_NONVOTER_ACKS
#define ACKERS(l) (V[l] | N[l])
#else
#define ACKERS(l) V[l]	/* rule: only acks of voters count */
#endif
#ifdef M_COMMIT_OLD_TERM
#define OWN(l, i) true
#else
#define OWN(l, i) (TERM(log[l].e[(i) - 1]) == term[l])	/* rule: commit only by an entry of the own term */
#endif

/* Leader l commits as far as a majority of the voters of its newest configuration holds its log, in its term.
   It does so at once: a later commit only makes less count as acknowledged. */
inline advance(l)
{
	h8 = 0; h4 = size[l];	/* h8: new commit index; candidates downwards */
	do
	:: h8 == 0 && h4 > commit[l] && OWN(l, h4) ->
		h5 = 0; h6 = 0;
		do
		:: h6 < NS ->
			if
			:: HAS(ACKERS(l), h6) && term[h6] == term[l] ->
				prefix(l, h6);
				if
				:: h1 >= h4 -> h5++
				:: else
				fi
			:: else
			fi;
			h6++
		:: else -> break
		od;
		if
		:: h5 >= POP(V[l]) / 2 + 1 -> h8 = h4
		:: else -> h4--
		fi
	:: else -> break
	od;
	if
	:: h8 > 0 -> commit[l] = h8; printf("leader %d, term %d: commits to %d\n", l, term[l], h8); record(l)
	:: else
	fi;
	if
	:: ast[l] != idle && apv[l] <= commit[l] -> adone[l] = 1
	:: else
	fi
}

inline endadmission(l) { ast[l] = idle; aj[l] = 0; apv[l] = 0; arm[l] = 0; ahas[l] = 0; adone[l] = 0 }

/* Server s is in a higher term now. A leader's unresolved proposals fail; what its admission waits for otherwise stays. */
inline stepdown(s)
{
	if
	:: lead[s] ->
		lead[s] = 0;
		if
		:: ast[s] != idle && ast[s] != granted && !adone[s] -> endadmission(s)
		:: ast[s] != idle && (ast[s] == granted || adone[s]) && commit[s] > ahas[s] -> ahas[s] = commit[s]
		:: else
		fi;
		commit[s] = 0
	:: else
	fi
}

inline append(l, what)
{
	log[l].e[size[l]] = term[l] * 32 + (what); size[l]++;
	configure(l);
	printf("leader %d, term %d: appends %d at %d; voters %d, nonvoters %d\n", l, term[l], what, size[l], V[l], N[l]);
	/* at most one voter per slot, in every configuration that any leader ever proposes */
	h1 = 3;
	do
	:: h1 < NS ->
		h2 = 0;
		do
		:: h2 < h1 ->
			if
			:: HAS(V[l], h1) && HAS(V[l], h2) && SLOT_OF(h1) == SLOT_OF(h2) -> one_voter_per_slot = false; assert(one_voter_per_slot)
			:: else
			fi;
			h2++
		:: else -> break
		od;
		h1++
	:: else -> break
	od;
	if
	:: (V[l] | N[l]) & ~roots -> members_hold_roots = false; assert(members_hold_roots)
	:: else
	fi;
	advance(l)
}

/* rule: a change waits until the newest configuration is committed and the leader has committed in its term */
#ifdef M_UNCOMMITTED_CHANGE
#define RESOLVED(l) true
#define STABLE(l) (commit[l] > 0)
#else
#define RESOLVED(l) adone[l]
#ifdef M_CHANGE_BEFORE_TERM_COMMIT
#define STABLE(l) (glen >= ci[l])	/* that is: known to be committed, by whomever */
#else
#define STABLE(l) (commit[l] > 0 && commit[l] >= ci[l])
#endif
#endif
#ifdef M_NO_PREVINDEX
#define BASED(l) true
#else
#define BASED(l) (ci[l] == apv[l])	/* rule: a change names the configuration it is based on */
#endif
#ifdef M_VOTER_BEFORE_REMOVAL
#define REMOVED_FIRST(l) true
#else
#define REMOVED_FIRST(l) (arm[l] == 0)
#endif

#ifdef M_NONVOTER_VOTES
#define ELECTORS(c) (V[c] | N[c])
#else
#define ELECTORS(c) V[c]	/* rule: only votes of voters count */
#endif
#ifdef M_NONVOTER_CAMPAIGNS
#define MAY_CAMPAIGN(c) (HAS(V[c] | N[c], c) && HAS(CANDIDATES, c))
#else
#define MAY_CAMPAIGN(c) (HAS(V[c], c) && HAS(CANDIDATES, c))
#endif
#ifdef M_STALE_LOG_WINS
#define UP_TO_DATE(c, v) true
#else
#define UP_TO_DATE(c, v) NEWER(c, v)	/* rule: the vote goes to a log at least as new */
#endif
#ifdef M_TWO_VOTES
#define FREE(v, t) (term[v] <= (t))
#else
#define FREE(v, t) (term[v] < (t) || (term[v] == (t) && !voted[v]))	/* rule: one vote per term */
#endif

/* Candidate c wins term t with the votes of q. Lost elections change nothing that waiting does not. */
inline elect(c, t, q)
{
	h7 = 0;
	do
	:: h7 < NS ->
		if
		:: HAS(q, h7) -> stepdown(h7); term[h7] = t; voted[h7] = 1
		:: else
		fi;
		h7++
	:: else -> break
	od;
#ifdef DISK
#ifndef M_ANY_IDENTITY
	if
	:: q & fromdisk -> disk_is_powerless = false; assert(disk_is_powerless)
	:: else
	fi;
#endif
#endif
#ifndef SKIP_TERM_CHECK	/* to see what else breaks */
	if
	:: HAS(ldr, t) -> one_leader_per_term = false; assert(one_leader_per_term)
	:: else
	fi;
#endif
	ldr = ldr | BIT(t);
	printf("server %d: leader of term %d by the votes of %d\n", c, t, q);
	lead[c] = 1; commit[c] = 0;
	if
	:: t > gterm ->	/* all that is committed was committed in lower terms */
		h1 = 0;
		do
		:: h1 < glen ->
			if
			:: h1 >= size[c] || log[c].e[h1] != G[h1] -> leader_completeness = false; assert(leader_completeness)
			:: else
			fi;
			h1++
		:: else -> break
		od
	:: else
	fi;
#ifndef NO_NOOP
	append(c, NOOP)
#endif
}

/* Server f applies what l says is committed, as far as n. */
inline apply(l, f, n)
{
	h2 = 0;
	do
	:: h2 < n && h2 < commit[l] ->
		if
		:: log[f].e[h2] != G[h2] -> state_machine_safety = false; assert(state_machine_safety)
		:: else
		fi;
		h2++
	:: else -> break
	od
}

/* Leader l's next entries reach server f, which answers. One entry per step: batches, delays, duplicates and losses are
   all among the interleavings of such steps. */
inline replicate(l, f)
{
	if
	:: term[f] < term[l] -> stepdown(f); term[f] = term[l]; voted[f] = 0
	:: else
	fi;
#ifdef M_NO_CLAMP
	apply(l, f, size[f]);	/* by a message without entries that comes first */
#endif
	prefix(l, f);
	printf("leader %d, term %d: server %d holds %d entries of it\n", l, term[l], f, (h1 < size[l] -> h1 + 1 : h1));
	if
	:: h1 < size[l] ->
		log[f].e[h1] = log[l].e[h1];
		h2 = h1 + 1; size[f] = h2; h1 = h2;	/* a conflicting suffix goes */
		do
		:: h2 < MAXL -> log[f].e[h2] = 0; h2++
		:: else -> break
		od;
		h5 = h1; configure(f); h1 = h5
	:: else
	fi;
#ifndef M_NO_CLAMP
	apply(l, f, h1);	/* rule: f commits no further than what was matched, h1 */
#endif
	advance(l)
}

/* The members that no slot names any more, at leader l: h5. */
inline superseded(l)
{
	h5 = 0; h6 = 0; h8 = (commit[l] > ahas[l] -> commit[l] : ahas[l]);
	do
	:: h6 < NS ->
		if
		:: HAS(V[l] | N[l], h6) ->
			h7 = SLOT_OF(h6); holder(l, h8);
			if
			:: h3 != h6 -> h5 = h5 | BIT(h6)
			:: else
			fi
		:: else
		fi;
		h6++
	:: else -> break
	od
}

/* h5 = 1 if the admission of j is in the committed log. */
inline isadmitted(j)
{
	h1 = 0; h5 = 0;
	do
	:: h1 < glen ->
		if
		:: WHAT(G[h1]) >= ADMIT(j, 2) && WHAT(G[h1]) <= ADMIT(j, 3) -> h5 = 1
		:: else
		fi;
		h1++
	:: else -> break
	od
}

inline grant(l)
{
#ifndef M_MEMBER_BEFORE_ROOTS	/* rule: who is in a configuration has acknowledged the roots */
	isadmitted(aj[l]);
	if
	:: h5 == 0 -> secrets_only_to_admitted = false; assert(secrets_only_to_admitted)
	:: else
	fi;
	roots = roots | BIT(aj[l]);
	printf("leader %d: grants the roots to boot %d\n", l, aj[l])
#else
	skip
#endif
}

#ifdef M_ROOTS_BEFORE_COMMIT
#define ADMITTED(l) true
#else
#define ADMITTED(l) adone[l]	/* rule: Admit is committed before the roots leave */
#endif

/* Leader l takes up the request of boot j. Its own state is current: it has committed in its term. */
inline start(l, j)
{
	h7 = SLOT_OF(j); holder(l, commit[l]);
	if
	:: h3 == l	/* its own slot: it hands over leadership instead, that is, it stops for a while */
	:: h3 == j -> aj[l] = j; ast[l] = granted; apv[l] = 0; grant(l)	/* taken up again after an interruption */
	:: h3 != l && h3 != j && h4 < 3 && size[l] < MAXL ->
		h5 = h4 + 1;
		aj[l] = j; ast[l] = admitting; apv[l] = size[l] + 1;
		append(l, ADMIT(j, h5))
	:: else
	fi
}

/* h5 = 1 if boot j was removed from a configuration that l has applied: then its identity is out for ever. */
inline wasremoved(l, j)
{
	h1 = 0; h5 = 0;
#ifndef M_REMOVED_RETURNS	/* rule: AddNonvoter and AddVoter refuse an identity that was removed */
	do
	:: h1 < commit[l] ->
		if
		:: WHAT(log[l].e[h1]) == REM(j) -> h5 = 1
		:: else
		fi;
		h1++
	:: else -> break
	od
#endif
}

/* The next step of the admission at l. Nothing of it is kept by a later leader. */
inline proceed(l)
{
	if
	:: ast[l] == admitting && ADMITTED(l) ->
		h7 = SLOT_OF(aj[l]); h8 = apv[l]; holder(l, h8);
		if
		:: h3 != aj[l] -> endadmission(l)	/* Apply rejected it */
		:: else -> grant(l); ast[l] = granted; adone[l] = 0; apv[l] = 0
		fi
	:: ast[l] == granted && lead[l] && STABLE(l) && size[l] < MAXL && !HAS(V[l], aj[l]) ->
		wasremoved(l, aj[l]);
		if
		:: h5 -> endadmission(l)
		:: else -> ast[l] = adding; apv[l] = size[l] + 1; adone[l] = 0; append(l, ADDN(aj[l]))
		fi
	:: ast[l] == adding && adone[l] ->
		prefix(l, aj[l]);
		if
		:: h1 < apv[l]	/* not caught up */
		:: h1 >= apv[l] && !BASED(l) -> endadmission(l)
		:: else ->
			superseded(l); arm[l] = h5; ast[l] = removing;
#ifdef HOLDER_PROMOTED	/* a rule the code does not have: who has been superseded itself is not promoted */
			if
			:: HAS(arm[l], aj[l]) -> endadmission(l)
			:: else
			fi
#endif
		fi
	:: ast[l] == removing && RESOLVED(l) && lead[l] && STABLE(l) && size[l] < MAXL ->
		if
		:: !BASED(l) -> endadmission(l)
#ifdef M_SWAP
		:: BASED(l) -> h5 = aj[l]; endadmission(l); append(l, SWAP(h5))
#else
		:: BASED(l) && !REMOVED_FIRST(l) ->
			h5 = 0;
			do
			:: !HAS(arm[l], h5) -> h5++
			:: else -> break
			od;
			arm[l] = arm[l] & ~BIT(h5); apv[l] = size[l] + 1; adone[l] = 0;
			append(l, REM(h5))
		:: BASED(l) && REMOVED_FIRST(l) ->
			wasremoved(l, aj[l]);
			if
			:: h5 -> endadmission(l)
			:: else -> h5 = aj[l]; endadmission(l); append(l, ADDV(h5))
			fi
#endif
		fi
	:: else
	fi
}

/* Consensus state of server s is gone: what a process that ends leaves in memory. */
inline forget(s)
{
	stepdown(s); endadmission(s);
	size[s] = 0; term[s] = 0; voted[s] = 0; h1 = 0;
	do
	:: h1 < MAXL -> log[s].e[h1] = 0; h1++
	:: else -> break
	od;
	configure(s)
}

#ifdef DISK
inline rollback()
{
	dused = 1;
	printf("a copy of server %d's disk is booted: term %d, %d entries\n", dof, dterm, dsize);
#ifdef M_RESUME
	forget(dof);
	size[dof] = dsize; term[dof] = dterm; voted[dof] = dvoted; h1 = 0;
	do
	:: h1 < MAXL -> log[dof].e[h1] = dlog.e[h1]; h1++
	:: else -> break
	od;
	configure(dof);
	fromdisk = fromdisk | BIT(dof);
#else
	/* rule: Open reads nothing. The machine is whatever boot comes next, a new server with a new key; the old
	   server, if it lives, goes on as it is, and if not never speaks again. There is nothing else to do here. */
	skip;
#endif
	h1 = 0;
	do
	:: h1 < MAXL -> dlog.e[h1] = 0; h1++
	:: else -> break
	od;
	dof = NS; dsize = 0; dterm = 0; dvoted = 0
}
#endif

#ifdef M_READ_BY_NONVOTERS
#define READERS(l) (V[l] | N[l])
#else
#define READERS(l) V[l]	/* rule: acks of voters of the newest configuration */
#endif
#ifdef M_READ_BEFORE_TERM_COMMIT
#define READABLE(l) true
#else
#define READABLE(l) (commit[l] > 0)	/* rule: the leader has committed in its term */
#endif
#ifdef FOLLOWER_READS
#define READ_BEGINS rstarted = 1; ridx = commit[l]
#ifdef M_READ_JOINS_ROUND
#define ASKED true
#else
#define ASKED rasked	/* rule: a round answers those only who asked before it began */
#endif
#elif defined(M_READ_BY_OLD_ACKS)
#define READ_BEGINS skip
#define ASKED true
#else
#define ASKED true
#define READ_BEGINS rstarted = 1; rg0 = glen; ridx = commit[l]	/* rule: acks to messages sent after the read began */
#endif

/* Can leader l still tell f anything? */
#define MEMBER(l, f) HAS(V[l] | N[l], f)

active proctype world()
{
	byte l, f, t, q;

	d_step {
		/* Genesis is over: three voters, one leader, one committed entry. */
		do
		:: l < NS ->
			V[l] = VOTERS0;
			if
			:: HAS(VOTERS0, l) -> term[l] = 1; voted[l] = 1; size[l] = 1; log[l].e[0] = 32 + NOOP
			:: else
			fi;
			l++
		:: else -> break
		od;
		lead[0] = 1; commit[0] = 1; G[0] = 32 + NOOP; glen = 1; gterm = 1; ldr = BIT(1);
#ifdef SURGE
		/* The fifth server is a nonvoter that has caught up. */
		l = 0; roots = 31; aj[0] = 4; ast[0] = removing; apv[0] = 3; adone[0] = 1;
		do
		:: l < NS -> term[l] = 1; size[l] = 3; log[l].e[0] = 32 + NOOP; log[l].e[1] = 32 + ADMIT(4, 2); log[l].e[2] = 32 + ADDN(4); configure(l); l++
		:: else -> break
		od;
		glen = 3; G[1] = log[0].e[1]; G[2] = log[0].e[2]; commit[0] = 3;
#endif
#ifdef INTERRUPTED
		/* The admission of boot 3 is committed; the leader has not gone on yet. */
		l = 0; aj[0] = 3; ast[0] = admitting; apv[0] = 2; adone[0] = 1;
		do
		:: l < 3 -> size[l] = 2; log[l].e[1] = 32 + ADMIT(3, 2); l++
		:: else -> break
		od;
		glen = 2; G[1] = log[0].e[1]; commit[0] = 2;
#endif
		l = 0
	};

	do
	/* replication */
	:: atomic {
		do
		:: l < NS - 1 -> l++
		:: lead[l] -> break
		:: l == NS - 1 && !lead[l] -> break
		od;
		do
		:: f < NS - 1 -> f++
		:: break
		od;
		skip;
		d_step {
			if
			:: lead[l] && l != f && MEMBER(l, f) && term[f] <= term[l] -> replicate(l, f)
			:: else
			fi;
			l = 0; f = 0
		}
	   }

	/* election */
	:: atomic {
		do
		:: l < NS - 1 -> l++
		:: MAY_CAMPAIGN(l) -> break
		:: l == NS - 1 && !MAY_CAMPAIGN(l) -> break
		od;
		t = term[l] + 1;
		do
		:: t < MAXT && HAS(ldr, t) -> t++
		:: break
		od;
		if
		:: MAY_CAMPAIGN(l) && t <= MAXT && size[l] < MAXL ->
			q = BIT(l); f = 0;
			do
			:: f < NS && POP(q) < POP(V[l]) / 2 + 1 && f != l && HAS(ELECTORS(l), f) && FREE(f, t) && UP_TO_DATE(l, f) -> q = q | BIT(f); f++
			:: f < NS -> f++
			:: f == NS -> break
			od;
			skip;
			d_step {
				if
				:: POP(q) == POP(V[l]) / 2 + 1 -> elect(l, t, q)
				:: else
				fi;
				l = 0; f = 0; t = 0; q = 0
			}
		:: else -> d_step { l = 0; f = 0; t = 0; q = 0 }
		fi
	   }

	/* a client writes */
	:: atomic {
		writes > 0 ->
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		skip;
		d_step {
			if
			:: lead[l] && size[l] < MAXL -> writes--; append(l, WRITE)
			:: else
			fi;
			l = 0
		}
	   }

	/* a boot asks leader l to be admitted; the older boot of its slot may be dead, alive or a clone */
	:: atomic {
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		f = 3;
		do
		:: f < NS - 1 -> f++
		:: break
		od;
		skip;
		d_step {
			if
			:: f < NS && HAS(CLAIMANTS, f) && lead[l] && commit[l] > 0 && ast[l] == idle && l != f && !HAS(V[l], f) -> start(l, f)
			:: else
			fi;
			l = 0; f = 0
		}
	   }

#ifdef SURGE
	/* operators have the old voter of an upgrade removed, once */
	:: atomic {
		!removed ->
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		do
		:: f < NS - 1 -> f++
		:: break
		od;
		d_step {
			if
			:: lead[l] && HAS(V[l], f) && STABLE(l) && size[l] < MAXL -> removed = 1; append(l, REM(f))
			:: else
			fi;
			l = 0; f = 0
		}
	   }
#endif

#ifdef FOLLOWER_READS
	/* a client asks a follower, which asks the leader for an index; the question may take any time to arrive */
	:: d_step { !rasked -> rasked = 1; rg0 = glen }
#endif
#ifdef READS
	/* a linearizable read at leader l */
	:: atomic {
		!rstarted ->
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		d_step {
			if
			:: rd == NS && lead[l] && READABLE(l) && ASKED -> rd = l; rterm = term[l]; racks = BIT(l); READ_BEGINS
			:: else
			fi;
			l = 0
		}
	   }
	/* a round trip that began after the read did; its reply may be late or lost */
	:: atomic {
		rd < NS && !rdone ->
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		d_step {
			if
			:: lead[rd] && term[rd] == rterm && MEMBER(rd, l) && term[l] == rterm -> racks = racks | BIT(l)
			:: else
			fi;
			l = 0
		}
	   }
#ifdef M_READ_BY_OLD_ACKS
	:: d_step { rd < NS && !rstarted -> rstarted = 1; rg0 = glen; ridx = commit[rd] }
#endif
	:: d_step {
#ifdef FOLLOWER_READS
		rasked &&
#endif
		rd < NS && rstarted && !rdone && lead[rd] && term[rd] == rterm && POP(racks & READERS(rd)) >= POP(V[rd]) / 2 + 1 ->
		rdone = 1;
		if
		:: ridx < rg0 -> linearizable_reads = false; assert(linearizable_reads)
		:: else
		fi;
		racks = 0; rg0 = 0; ridx = 0; rterm = 0
	   }
#endif

#ifdef DISK
	/* the host copies a disk, at any time */
	:: atomic {
		dof == NS && !dused ->
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		d_step {
			dof = l; dsize = size[l]; dterm = term[l]; dvoted = voted[l]; h1 = 0;
			do
			:: h1 < MAXL -> dlog.e[h1] = log[l].e[h1]; h1++
			:: else -> break
			od;
			l = 0
		}
	   }
	/* Rollback: it boots a machine of that slot on the copy, while the older boot is dead, alive or rejoining */
	:: d_step { dof < NS && !dused -> rollback() }
#endif
#ifdef M_ADDRESS
	/* a wiped machine comes back at its address and is taken for the member that was there */
	:: atomic {
		!dwiped ->
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		d_step {
			dwiped = 1; forget(l); l = 0
		}
	   }
#endif

#ifdef GOAL
	/* not vacuous: such a state is reached, which is what the run must say */
	:: d_step { (GOAL) -> unreachable = false; assert(unreachable) }
#endif

	/* an admission goes on */
	:: atomic {
		do
		:: l < NS - 1 -> l++
		:: break
		od;
		skip;
		d_step {
			if
			:: ast[l] != idle -> proceed(l)
			:: else
			fi;
			l = 0
		}
	   }
	od
}
