/*
 * Recovery from live survivors (recover/1 of kds/node). One epoch of three servers is
 * played in detail: terms, uncommitted entries, what reaches whom. Enclaves look at the
 * memory of those that live, operators sign, survivors stop and hand over the roots, and a
 * later epoch begins, while the host cuts off, delays, kills, rolls disks back and begins
 * other recoveries.
 *
 * Each step says which function of kds/node it stands for. What is abstracted, what is
 * bounded and what is left out is said in README.md. Each rule that a switch M_... can break
 * is marked "rule:".
 */

#ifndef MAXT
#define MAXT 2	/* terms 1..MAXT of epoch 1, at most 3 */
#endif
#ifndef MAXN
#define MAXN 2	/* entries in a log of epoch 1, at most 2 */
#endif
#ifndef NM
#define NM 1	/* recovering enclaves, one key each, at most 2: one that was restarted, or its clone, is another */
#endif
#ifndef NE
#define NE 3	/* epochs, at most 3 */
#endif
#define NO 3	/* operators */

#define BIT(s) (1 << (s))
#define HAS(mask, s) (((mask) >> (s)) & 1)
#define AT(m, i) ((m) * 3 + (i))
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/* A log of epoch 1 is the terms of its entries, two bits each: 0 is empty, t one entry, t + 4 * u two. A term has one leader, so
   place and term say which entry it is (store.pml). */
#define NONE 99	/* no log */
#define FIRST(l) ((l) & 3)
#define SECOND(l) ((l) >> 2)
#define LEN(l) ((l) == 0 -> 0 : (SECOND(l) == 0 -> 1 : 2))
#define LAST(l) (SECOND(l) == 0 -> FIRST(l) : SECOND(l))
#define HOLDS(l, p) ((p) == 0 || (l) == (p) || (SECOND(p) == 0 && FIRST(l) == (p)))	/* p is the beginning of l */
#define ORDER(l) ((l) == NONE -> 0 : 4 * LAST(l) + LEN(l))	/* who would win an election */
#ifdef M_LONGEST_WINS
#define AGE(l) ((l) == NONE -> 0 : 4 * LEN(l) + LAST(l))
#else
#define AGE(l) ORDER(l)	/* rule: the newest has the last entry of the highest term, and then the highest index (history.order) */
#endif

/* fenced: stopForGood has raised the fence, and the store still runs; stopped: Shutdown is through. A server that has stopped, or is
   dead, cannot be told from one that takes no step, until somebody looks: it becomes stopped, or dead, then. */
mtype = { up, fenced, stopped, dead };
mtype state[3];	/* of the servers of epoch 1 */
byte log[3];	/* in their memory */
byte term[3];
byte leader[4];	/* of term t, as server + 1 */
byte acked;	/* what clients of epoch 1 have been told is written: the beginning of a log */
#ifdef M_HEAD_IS_APPLIED
byte known[3];	/* what a server knows to be committed */
#define MEMORY(i) known[i]
#else
#define MEMORY(i) log[i]	/* rule: all that it holds, and not what it knows to be committed (Node.head, Store.Export) */
#endif
byte forEpoch[3], forEnclave[3];	/* the statement that a survivor was stopped for (fenced.statement): epoch, and enclave + 1 */
byte gave;	/* servers that have handed over their roots */

/* looking: it has been refused, and reports again; reported: people decide; signed: it acts on a statement; serving: its epoch is open, and it
   is the only server there; gone: it has ended, which, too, is as if it took no step until somebody has seen to it. */
mtype = { idle, looking, reported, signed, serving, gone };
mtype phase[NM];	/* of enclave m */
byte seen[NM * 3];	/* the log that enclave m has read from server i, NONE if that is not known (survivor.a) */
byte proof[NM];	/* the servers that it takes for stopped (survivor.stopped) */
byte disk[NM], diskOf[NM];	/* the archive that it has opened, NONE before, and whose it is */
bit roots[NM];	/* it holds the roots */
/* The statement in its hands (api.RecoveryStatement): source server, or 3 for the archive; the source's log; the new epoch; whom it
   calls stopped; whether it accepts in words that an old server goes on, and that entries are lost. */
byte source[NM], head[NM], epoch[NM], stops[NM];
bit fork[NM], loss[NM];
bit behind[NM];	/* the archive was opened after this statement was signed */

byte opmax[NO];	/* the highest epoch each operator has signed (KEY.epochs) */
byte signedFor;	/* enclaves for which a statement was signed */
byte opened, loose;	/* epochs above 1 that have begun, and those whose statement accepts a fork in words */
byte client = 1;	/* the highest epoch that our client has seen */

bool one_history = true;	/* what epoch 1 acknowledges it never takes back: the model of it is sound */
bool witnessed_survives = true;	/* no epoch begins below a receipt or checkpoint that is there to be read */
bool stopped_loses_nothing = true;	/* with a majority stopped, and no word of a loss, the new epoch has every acknowledged write */
bool shown_survives = true;	/* no epoch begins below what its enclave has read, or what a survivor that it counts as stopped holds, unless the operators saw that and accepted the loss in words */
bool no_silent_fork = true;	/* an epoch acknowledges after one that does not continue it has begun only if that one's statement says so */
bool epochs_never_reused = true;
bool stopped_for_good = true;	/* who has handed over takes and makes no entry, votes for nobody and acknowledges nothing */
bool secrets_only_to_named = true;	/* roots leave a survivor only for an enclave that enough operators have named */
bool clients_never_go_back = true;
bool unreachable = true;

#ifdef ALIVE_ONLY	/* neither shares nor archives, which makes a smaller model of two */
#define SHARES false
#define DISKS false
#else
#define SHARES true
#define DISKS true
#endif
#ifdef LOSSES_ONLY	/* to see what else a broken rule costs */
#define FORKS false
#define OUTRUN false
#else
#define FORKS true
#define OUTRUN true
#endif

#ifdef GOAL
bit rolled;	/* an archive was opened that lacks what was acknowledged, and the epoch began all the same */
#endif
hidden byte h1, h2, h3;

/* ---- the old epoch ---- */

#ifdef M_SERVES_AFTERWARDS
#define RUNS(i) (state[i] != dead)
#else
#define RUNS(i) (state[i] == up || state[i] == fenced)	/* rule: nothing leaves a store that has stopped (Store.Shutdown) */
#endif

inline acts(i)
{
	if
	:: HAS(gave, i) -> stopped_for_good = false; assert(stopped_for_good)
	:: else
	fi
}

/* One more entry of the leader's log, in place of what is in its way, comes to server f: AppendEntries, as late as you like. The
   leader may be dead by now, and has not gone on to a later term. */
inline replicate(l, f)
{
	acts(f);
	term[f] = term[l];
	if
	:: log[l] != 0 && FIRST(log[f]) != FIRST(log[l]) -> log[f] = FIRST(log[l])
	:: else ->
		if
		:: SECOND(log[l]) != 0 && log[f] != log[l] -> log[f] = log[l]
		:: else
		fi
	fi
}

/* Leader l tells a client what is written: all up to the newest entry of its own term that a majority has. One that is dead or stopped
   by now may have answered before. A fenced server's API answers nobody, but until its transport is closed it answers other members,
   which answer their clients (serveforward). */
#define ANSWERS(l) (state[l] != fenced || state[0] == up || state[1] == up || state[2] == up)
inline acknowledge(l)
{
	h1 = 0;
	if
	:: LAST(log[l]) == term[l] && HOLDS(log[0], log[l]) + HOLDS(log[1], log[l]) + HOLDS(log[2], log[l]) >= 2 -> h1 = log[l]
	:: else ->
		if
		:: FIRST(log[l]) == term[l] && (FIRST(log[0]) == term[l]) + (FIRST(log[1]) == term[l]) + (FIRST(log[2]) == term[l]) >= 2 -> h1 = FIRST(log[l])
		:: else
		fi
	fi;
	if
	:: h1 != 0 ->
		printf("server %d acknowledges %d\n", l, h1);
		acts(l);
		if
		:: FORKS && (opened & ~loose) -> no_silent_fork = false; assert(no_silent_fork)
		:: else
		fi;
		if
		:: HOLDS(h1, acked) -> acked = h1
		:: else ->
			if
			:: !HOLDS(acked, h1) -> one_history = false; assert(one_history)
			:: else
			fi
		fi;
#ifdef M_HEAD_IS_APPLIED
		known[l] = h1;
#endif
#ifdef CLIENT
		answer(1);
#endif
		skip
	:: else
	fi
}

/* Our client takes an answer of epoch e. */
#ifdef M_CLIENT_FORGETS
#define TAKES(e) true
#else
#define TAKES(e) ((e) >= client)	/* rule: never below the highest epoch seen (Client.met) */
#endif
inline answer(e)
{
	if
	:: TAKES(e) ->
		if
		:: e < client -> clients_never_go_back = false; assert(clients_never_go_back)
		:: else -> client = e
		fi
	:: else
	fi
}

/* ---- what an enclave compares ---- */

/* Receipts and checkpoints (witnesses.check). Which come to light is a choice whenever an epoch is about to open: none, all that epoch 1 has
   acknowledged, or one of a later epoch, which no history of epoch 1 holds. */
#define NO_RECEIPT 0
#define OF_THE_EPOCH 1
#define OF_A_LATER 2
#define WITNESSED(l, w) ((w) == NO_RECEIPT || (w) == OF_THE_EPOCH && HOLDS(l, acked))
#ifdef M_RECEIPTS_NOT_READ_AGAIN
#define CHECKED(l, w) true
#else
#define CHECKED(l, w) WITNESSED(l, w)	/* rule: read again before the epoch opens (judge) */
#endif

#define SEEN(m, i) seen[AT(m, i)]
/* An archive whose server answers says nothing beyond it (gather). */
#define DISK(m) (disk[m] != NONE && seen[AT(m, diskOf[m])] == NONE -> disk[m] : NONE)
#define CANDIDATE(m, i) ((i) < 3 -> seen[AT(m, (i) % 3)] : DISK(m))	/* for the source: a survivor, or 3 for the archive */
#ifdef M_ONE_WORD_SUFFICES	/* what the source says is the newest */
#define IS_NEWEST(m, l) true
#else
/* rule: the source is the newest of all that was read (recovery.leaves, checkLoss) */
#define IS_NEWEST(m, l) (AGE(l) >= MAX(MAX(AGE(SEEN(m, 0)), AGE(SEEN(m, 1))), MAX(AGE(SEEN(m, 2)), AGE(DISK(m)))))
#endif
#ifdef M_FORK_MEANS_LOSS
#define ACCEPTED(m) (fork[m] || loss[m])
#define FORK_MEANS_LOSS true
#else
#define FORK_MEANS_LOSS false
#define ACCEPTED(m) loss[m]	/* rule: that a lost server may go on are other words than that entries are lost (checkLoss) */
#endif
#ifdef M_WORDS_COVER_WHAT_WAS_CLOSED
#define LOSS_ACCEPTED(m) ACCEPTED(m)
#else
#define LOSS_ACCEPTED(m) (ACCEPTED(m) && !behind[m])	/* rule: a loss is accepted by who has seen it, and not of what was opened later */
#endif

/* ---- the operators ---- */

#ifdef M_THRESHOLD_OF_ONE
#define SIGNERS_A 1
#define SIGNERS_B 2
#else
#define SIGNERS_A 3	/* rule: more than half of the operators sign (RecoveryStatement.Check), as masks; a third pair differs by names only */
#define SIGNERS_B 6
#endif
#ifdef M_OPERATOR_FORGETS
#define SIGNS(o, n) true
#else
#define SIGNS(o, n) ((n) > opmax[o])	/* rule: an operator signs an epoch once, and never a lower one (epochMemory.allow) */
#endif
#define ALL_SIGN(o, n) ((!HAS(o, 0) || SIGNS(0, n)) && (!HAS(o, 1) || SIGNS(1, n)) && (!HAS(o, 2) || SIGNS(2, n)))
#define CAN_SIGN (ALL_SIGN(SIGNERS_A, NE) || NM > 1 && ALL_SIGN(SIGNERS_B, NE))

/* ---- the recovering enclave: report ---- */

inline drop(m)	/* the statement */
{
	source[m] = 0; head[m] = 0; epoch[m] = 0; stops[m] = 0; fork[m] = 0; loss[m] = 0; behind[m] = 0
}

inline forget(m)	/* what enclave m knows and holds */
{
	seen[AT(m, 0)] = NONE; seen[AT(m, 1)] = NONE; seen[AT(m, 2)] = NONE;
	proof[m] = 0; disk[m] = NONE; diskOf[m] = 0; roots[m] = 0;
	drop(m)
}

/* openApproved goes round: a new report asks all again, but for those that are stopped for good. */
#ifdef ONE_REPORT	/* each enclave has one, which makes a smaller model of two */
#define GOES_ON false
#else
#define GOES_ON CAN_SIGN
#endif
inline again(m)
{
	if
	:: GOES_ON ->
		phase[m] = looking;
		drop(m);
		h1 = 0;
		do
		:: h1 < 3 ->
			if
			:: !HAS(proof[m], h1) -> seen[AT(m, h1)] = NONE
			:: else
			fi;
			h1++
		:: else -> break
		od
	:: else -> forget(m); phase[m] = gone	/* within the bounds nothing comes after it */
	fi
}

/* The enclave reads a survivor's whole log (visit, Node.oneSurvival). */
inline read(m, i)
{
	d_step {
		seen[AT(m, i)] = MEMORY(i);
#ifdef M_FENCE_IS_PROOF
		if
		:: state[i] != up -> proof[m] = proof[m] | BIT(i)
		:: else
		fi;
#else
		if
		:: state[i] == stopped -> proof[m] = proof[m] | BIT(i)	/* rule: the stop is proved when the store has stopped, and not only the fence is up */
		:: else
		fi;
#endif
#ifdef M_STOPPED_BY_ADDRESS	/* rule: what was proved is of a server, and not of an address, which the host may lead to another */
		if
		:: !HAS(proof[m], i) ->
			h1 = 0;
			do
			:: h1 < 3 && !(h1 != i && HAS(proof[m], h1) && SEEN(m, h1) == NONE) -> h1++
			:: else -> break
			od;
			if
			:: h1 < 3 -> proof[m] = (proof[m] & ~BIT(h1)) | BIT(i)
			:: else
			fi
		:: else
		fi;
#endif
		skip
	}
}

/* It reaches survivor i, or does not, as the host likes (visitAll). Shutdown may be through by now. */
#define ASKED(m, i) (state[i] != dead && !(SEEN(m, i) != NONE && HAS(proof[m], i)))
inline visit(m, i)
{
	if
	:: ASKED(m, i) && state[i] == fenced -> state[i] = stopped; read(m, i)
	:: ASKED(m, i) -> read(m, i)
	:: true
	fi
}

/* Rollback: archives are opened once, when the roots are there (openArchives), and the host has put any earlier state of any disk there,
   or none. */
inline open_archives(m)
{
	if
	:: DISKS && roots[m] && disk[m] == NONE ->
		if
		:: i = 0
		:: i = 1
		:: i = 2
		:: i = 3
		fi;
		if
		:: i < 3 && SEEN(m, i) == NONE ->
			if
			:: disk[m] = log[i]
			:: SECOND(log[i]) != 0 -> disk[m] = FIRST(log[i])
			:: log[i] != 0 -> disk[m] = 0
			fi;
			diskOf[m] = i; behind[m] = (phase[m] == signed)
		:: else
		fi;
		i = 0
	:: else
	fi
}

/* Operators o sign what enclave m has shown them: epoch n from server i, or from the archive, with words of a fork (b), or of a loss (c), or none; and the
   enclave looks at that (recoverApproveFlags.statement, judge). They tell the truth: who is called destroyed is dead from here on. */
inline sign(m, i, n, b, c, o)
{
	h1 = CANDIDATE(m, i);
	source[m] = i; head[m] = h1; epoch[m] = n; fork[m] = b; loss[m] = c;
	phase[m] = signed;
	stops[m] = (SEEN(m, 0) != NONE) + 2 * (SEEN(m, 1) != NONE) + 4 * (SEEN(m, 2) != NONE);
	h3 = 0;
	do
	:: h3 < 3 ->
#ifndef M_FORK_NOT_NAMED
		if	/* rule: who does not answer is destroyed, else the fork is accepted in words (checkFates, checkFate) */
		:: !b && SEEN(m, h3) == NONE -> state[h3] = dead
		:: else
		fi;
#endif
		if
		:: HAS(o, h3) && opmax[h3] < n -> opmax[h3] = n
		:: else
		fi;
		h3++
	:: else -> break
	od;
#if NM > 1
#ifndef M_EARLIER_ENCLAVE_UNNAMED
	if	/* rule: an enclave for which was signed before is destroyed, too, or the fork is accepted in words */
	:: !b && HAS(signedFor, 1 - m) -> forget(1 - m); phase[1 - m] = gone
	:: else
	fi;
#endif
#endif
	signedFor = signedFor | BIT(m)
}

/* ---- the survivor ---- */

#ifdef M_STATEMENT_WITHOUT_KEY
#define SAME(m, i) (epoch[m] == forEpoch[i])
#else
#define SAME(m, i) (epoch[m] == forEpoch[i] && forEnclave[i] == m + 1)	/* rule: the statement names the key of the enclave (checkRecovery) */
#endif
#ifdef M_TWO_STATEMENTS
#define ALLOWED(m, i) true
#else
#define ALLOWED(m, i) (epoch[m] > forEpoch[i] || SAME(m, i))	/* rule: one statement, or one of a higher epoch (fenced.allow) */
#endif
/* rule: the source is asked last (stopSurvivors) */
#define IN_TURN(m, i) (source[m] != i || (stops[m] & ~BIT(i) & ~proof[m]) == 0)

/* Node.surrender up to the fence. That it reaches no majority is no condition here: the host cuts it off for that moment. */
inline fence(m, i)
{
	forEpoch[i] = epoch[m]; forEnclave[i] = m + 1;
	if
	:: state[i] == up -> state[i] = fenced
	:: else
	fi
}

/* The rest of it, and what the enclave makes of the answer (askToStop). */
inline stop(m, i)
{
#ifndef M_ANSWERS_BEFORE_IT_STOPPED
	state[i] = stopped;	/* rule: the fence, then the store, then the answer (stopForGood) */
#endif
	if
	:: source[m] != i ->
		proof[m] = proof[m] | BIT(i);
#ifndef M_SECOND_NOT_COMPARED
		if
		:: MEMORY(i) != SEEN(m, i) ->	/* rule: one that went on since the report is looked at again (errMoved) */
			again(m);
			seen[AT(m, i)] = NONE	/* until it is visited again */
		:: else
		fi;
#endif
		skip
	:: else ->
#ifdef M_HEAD_NOT_COMPARED_AGAIN
		h1 = 1;
#else
		h1 = (MEMORY(i) == head[m]);	/* rule: it gives nothing if its head after the stop is not the one that was signed */
#endif
		if
		:: h1 ->
			printf("survivor %d hands over to enclave %d\n", i, m);
			proof[m] = proof[m] | BIT(i);
			roots[m] = 1;
			gave = gave | BIT(i);
			if
			:: !HAS(signedFor, m) -> secrets_only_to_named = false; assert(secrets_only_to_named)
			:: else
			fi
		:: else -> again(m)
		fi
	fi
}

/* ---- the recovering enclave: the new epoch ---- */

/* All is judged again, and the epoch begins (judge, open), or the statement is refused. */
inline begin(m, w)
{
	if
	:: CHECKED(head[m], w) && (LOSS_ACCEPTED(m) || IS_NEWEST(m, head[m])) ->
		printf("enclave %d: epoch %d begins with %d of server %d\n", m, epoch[m], head[m], source[m]);
		if
		:: HAS(opened, epoch[m]) -> epochs_never_reused = false; assert(epochs_never_reused)
		:: else
		fi;
		if
		:: !WITNESSED(head[m], w) -> witnessed_survives = false; assert(witnessed_survives)
		:: else
		fi;
		if
		:: !loss[m] && HAS(stops[m], 0) + HAS(stops[m], 1) + HAS(stops[m], 2) >= 2 && !HOLDS(head[m], acked) ->
			stopped_loses_nothing = false; assert(stopped_loses_nothing)
		:: else
		fi;
		h1 = ((behind[m] || !loss[m]) && ORDER(DISK(m)) > ORDER(head[m]));
		h2 = 0;
		do
		:: h2 < 3 ->
			if
			:: !loss[m] && (ORDER(SEEN(m, h2)) > ORDER(head[m]) || HAS(stops[m], h2) && ORDER(log[h2]) > ORDER(head[m])) -> h1 = 1
			:: else
			fi;
			h2++
		:: else -> break
		od;
		if
		:: OUTRUN && h1 -> shown_survives = false; assert(shown_survives)
		:: else
		fi;
#ifdef GOAL
		rolled = (DISK(m) != NONE && acked != 0 && !HOLDS(DISK(m), acked));
#endif
		h1 = epoch[m];
		opened = opened | BIT(h1);
		if
		:: fork[m] -> loose = loose | BIT(h1)
		:: else
		fi;
		forget(m);
		epoch[m] = h1;
		phase[m] = serving
	:: else -> again(m)
	fi
}

/* What a run with -DGOAL=... must reach. */
#define RECOVERED (opened != 0 && gave != 0 && loose == 0 && acked == 5)
#define NOT_KNOWN_AS_COMMITTED (opened != 0 && gave != 0 && loose == 0 && acked == 0 && log[0] != 0)
#define ASKED_TWICE (opened == BIT(3) && gave != 0 && loose == 0)
#define REPLACED (opened == BIT(2) + BIT(3) && loose == 0 && gave != 0)
#define ROLLED_BACK (rolled && loose == 0 && gave != 0)
#define FORKED (opened != 0 && loose == opened && gave != 0 && !HAS(gave, leader[1] - 1) && acked != 0)

/* ---- the steps, for servers i and j and enclave m ---- */

#define WRITE(i) /* a client writes; the leader has the entry first */ \
	:: d_step { RUNS(i) && leader[term[i]] == i + 1 && LEN(log[i]) < MAXN -> \
		acts(i); \
		log[i] = (log[i] == 0 -> term[i] : FIRST(log[i]) + 4 * term[i]) }
#define REPLICATE(i, j) \
	:: d_step { leader[term[i]] == i + 1 && RUNS(j) && (term[j] < term[i] || term[j] == term[i] && !HOLDS(log[j], log[i])) -> replicate(i, j); skip }
#define ACKNOWLEDGE(i) \
	:: d_step { RUNS(i) && leader[term[i]] == i + 1 && log[i] != 0 && ANSWERS(i) -> acknowledge(i); skip }
#ifdef M_STALE_LOG_WINS
#define VOTES(i, j) true
#else
#define VOTES(i, j) (ORDER(log[i]) >= ORDER(log[j]))	/* rule: no vote for an older log */
#endif
#define ELECT(i, j, t) /* candidate i, voter j */ \
	:: d_step { t <= MAXT && RUNS(i) && RUNS(j) && leader[t] == 0 && term[i] < t && term[j] < t && VOTES(i, j) -> \
		acts(i); acts(j); \
		leader[t] = i + 1; term[i] = t; term[j] = t }
#define SERVER(i, j, k) \
	WRITE(i) REPLICATE(i, j) REPLICATE(i, k) ACKNOWLEDGE(i) ELECT(i, j, 2) ELECT(i, k, 2) ELECT(i, j, 3) ELECT(i, k, 3)

/* That all looks of a report are of one instant is as good as any: who changes between a look and its stop is looked at again. Shares come
   before the first report, or never. */
#define REPORT(m) \
	:: atomic { (phase[m] == idle || phase[m] == looking) && CAN_SIGN -> \
		if \
		:: SHARES && phase[m] == idle -> roots[m] = 1 \
		:: true \
		fi; \
		visit(m, 0); visit(m, 1); visit(m, 2); \
		open_archives(m); \
		phase[m] = (CANDIDATE(m, 0) != NONE || CANDIDATE(m, 1) != NONE || CANDIDATE(m, 2) != NONE || CANDIDATE(m, 3) != NONE -> reported : looking) }
#define SIGN(m) \
	:: atomic { phase[m] == reported -> \
		if \
		:: CANDIDATE(m, 0) != NONE -> i = 0 \
		:: CANDIDATE(m, 1) != NONE -> i = 1 \
		:: CANDIDATE(m, 2) != NONE -> i = 2 \
		:: CANDIDATE(m, 3) != NONE -> i = 3 \
		fi; \
		if \
		:: n = 2 \
		:: NE > 2 -> n = 3 \
		fi; \
		if \
		:: b = 1 \
		:: b = 0 \
		fi; \
		if \
		:: !IS_NEWEST(m, CANDIDATE(m, i)) || DISKS && disk[m] == NONE -> c = 1 \
		:: IS_NEWEST(m, CANDIDATE(m, i)) || FORK_MEANS_LOSS && b -> c = 0 \
		fi; \
		if \
		:: o = SIGNERS_A \
		:: NM > 1 -> o = SIGNERS_B \
		fi; \
		d_step { \
			if \
			:: ALL_SIGN(o, n) -> sign(m, i, n, b, c, o) \
			:: else \
			fi; \
			i = 0; n = 0; b = 0; c = 0; o = 0 } }
#define FENCE(m, i) \
	:: d_step { phase[m] == signed && HAS(stops[m], i) && state[i] != dead && !SAME(m, i) && ALLOWED(m, i) && \
		(source[m] != i || MEMORY(i) == head[m]) && IN_TURN(m, i) && (!HAS(proof[m], i) || source[m] == i && !roots[m]) -> fence(m, i); skip }
#define ANSWER(m, i) \
	:: d_step { phase[m] == signed && HAS(stops[m], i) && state[i] != dead && SAME(m, i) && IN_TURN(m, i) && \
		(!HAS(proof[m], i) || source[m] == i && !roots[m]) -> stop(m, i); skip }
#define BEGIN(m) \
	:: atomic { phase[m] == signed && roots[m] && (stops[m] & ~proof[m]) == 0 -> \
		open_archives(m); \
		if \
		:: w = NO_RECEIPT \
		:: w = OF_THE_EPOCH \
		:: opened != 0 -> w = OF_A_LATER \
		fi; \
		d_step { begin(m, w); w = 0 } }
#define REFUSED(m) /* or there was no answer: it reports again */ \
	:: d_step { phase[m] == reported || phase[m] == signed -> again(m); skip }
#define LATER_ACKNOWLEDGES(m) /* a later epoch, while one that is later still has begun */ \
	:: d_step { FORKS && phase[m] == serving && ((opened & ~loose) >> (epoch[m] + 1)) -> no_silent_fork = false; assert(no_silent_fork) }
#ifdef CLIENT
#define ASK(m) :: d_step { phase[m] == serving && TAKES(epoch[m]) -> answer(epoch[m]); skip }
#else
#define ASK(m)
#endif
#define WITH(m, i) FENCE(m, i) ANSWER(m, i)
#define ENCLAVE(m) REPORT(m) SIGN(m) WITH(m, 0) WITH(m, 1) WITH(m, 2) BEGIN(m) REFUSED(m) LATER_ACKNOWLEDGES(m) ASK(m)

active proctype world()
{
	byte i, n, o, w;
	bit b, c;

	d_step {
		do
		:: i < 3 -> state[i] = up; term[i] = 1; i++
		:: else -> break
		od;
		i = 0;
		leader[1] = 1;	/* server 0, as good as any */
		do
		:: n < NM -> phase[n] = idle; forget(n); n++
		:: else -> break
		od;
		n = 0
	};

	do
	SERVER(0, 1, 2)
	SERVER(1, 0, 2)
	SERVER(2, 0, 1)
	ENCLAVE(0)
#if NM > 1
	ENCLAVE(1)
#endif
#ifdef M_STATEMENT_WITHOUT_KEY
	/* another enclave, that has read the same, uses the statement */
	:: d_step { phase[0] == signed && phase[NM - 1] == idle && source[0] < 3 ->
		phase[NM - 1] = signed; source[NM - 1] = source[0]; head[NM - 1] = head[0]; epoch[NM - 1] = epoch[0];
		seen[AT(NM - 1, source[0])] = head[0]; stops[NM - 1] = BIT(source[0]); fork[NM - 1] = fork[0]; loss[NM - 1] = loss[0] }
#endif
#ifdef GOAL
	/* not vacuous: such a state is reached, which is what the run must say */
	:: d_step { (GOAL) -> unreachable = false; assert(unreachable) }
#endif
	od
}
