package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/claviger/claviger/enclave/secret"
)

// counters are what a run has done, over all seeds and workers.
type counters struct {
	seeds, rounds, messages, acked, histories, operations atomic.Int64

	mu    sync.Mutex
	kinds map[string]int
}

func newCounters() *counters { return &counters{kinds: map[string]int{}} }

func (c *counters) count(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds[kind]++
}

func (c *counters) of(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kinds[kind]
}

func (c *counters) faults() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(c.kinds)) {
		fmt.Fprintf(&b, "\n    %-34s %d", k, c.kinds[k])
	}
	return b.String()
}

// dice is a source of randomness for goroutines of one bubble.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newDice(seed, stream uint64) *dice { return &dice{r: rand.New(rand.NewPCG(seed, stream))} }

// again begins another stream.
func (d *dice) again(seed, stream uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.r = rand.New(rand.NewPCG(seed, stream))
}

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

func (d *dice) upTo(max time.Duration) time.Duration { return time.Duration(d.n(int(max))) }

// world is one cluster under one seed.
type world struct {
	t        *testing.T
	seed     uint64
	mutation mutation
	stats    *counters
	net      *chaosNet
	dice     *dice
	start    time.Time
	voters   int
	history  *history
	ctx      context.Context // of everything that runs in the world; ends with it
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu         sync.Mutex
	boots      []*boot // all there ever were
	current    []*boot // the newest of each slot, dead or alive
	round      int
	trace      []string
	violations []string
	leaders    map[uint64]int      // term: number of the boot
	applied    map[uint64][32]byte // index: the entry
	chains     map[uint64][32]byte // index: running hash
	states     map[uint64][32]byte // index: the machine
	members    map[uint64][]Member
	placed     map[place][32]byte
	holders    map[place]int // boots that have the entry on disk
	acks       []ack
}

type ack struct {
	index uint64
	entry [32]byte
	text  string
}

// boot is one life of a server.
type boot struct {
	*Store
	w       *world
	number  int
	slot    int
	id      ServerID
	addr    string
	rate    string
	machine *chaosMachine
	disk    *chaosDisk
	key     secret.Key
	dead    atomic.Bool
	doomed  atomic.Bool // its disk is full: it ends at its next write
	roots   atomic.Bool // it was admitted by the cluster and has its secrets

	intended []Member // the configuration it is bringing about; under the world's mu
	until    time.Time

	opener  *Opener // follows its archive; in invariants
	opened  int
	votes   map[uint64]string
	highest uint64 // term on disk
	held    map[place]bool
	configs []storedConfig // of its log, in order
}

func newWorld(t *testing.T, seed uint64, m mutation, stats *counters) *world {
	w := &world{t: t, seed: seed, mutation: m, stats: stats, net: newChaosNet(seed, stats), dice: newDice(seed, 1),
		start: time.Now(), history: newHistory(), leaders: map[uint64]int{}, applied: map[uint64][32]byte{},
		chains: map[uint64][32]byte{}, states: map[uint64][32]byte{}, members: map[uint64][]Member{},
		placed: map[place][32]byte{}, holders: map[place]int{}}
	w.ctx, w.stop = context.WithCancel(context.Background())
	if w.voters = 3; w.dice.n(3) == 0 {
		w.voters = 5
	}
	w.current = make([]*boot, w.voters)
	w.net.spins = func() {
		w.noteServers()
		w.violate("%d messages at one instant: servers go on without a pause", maxBusy)
	}
	if m != sound {
		// Servers that have forgotten what they said can go on asking each other
		// without a pause; where every message takes its time, the clock moves on.
		w.net.begin(&hazard{match: everything, slow: 1, delay: 4 * time.Millisecond})
	}
	return w
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(format, args...)
}

func (w *world) noteLocked(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.3fs r%-3d ", time.Since(w.start).Seconds(), w.round)+fmt.Sprintf(format, args...))
}

// violate records a broken invariant; the first ones tell, the rest follow from them.
func (w *world) violate(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violateLocked(format, args...)
}

func (w *world) violateLocked(format string, args ...any) {
	if len(w.violations) < 20 {
		w.violations = append(w.violations, fmt.Sprintf(format, args...))
		w.noteLocked("VIOLATION "+format, args...)
	}
}

func (w *world) broken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violations) > 0
}

func (w *world) live() (list []*boot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.boots {
		if !b.dead.Load() {
			list = append(list, b)
		}
	}
	return list
}

func (w *world) byID(id ServerID) *boot {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	return w.net.boots[id]
}

func (w *world) newest(slot int) *boot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current[slot]
}

// clocks are the speeds of a server's clock: all its timers are this much
// longer. No safety decision may depend on them.
var clocks = []struct {
	name string
	rate float64
}{{"x1", 1}, {"x1", 1}, {"x2 slow", 2}, {"x4 slow", 4}, {"x2 fast", 0.5}}

// boot starts a server in a slot. It is a new one whatever the disk in its
// machine holds: nothing of that can be handed to Open.
func (w *world) boot(slot int, disk string) *boot {
	w.mu.Lock()
	number := len(w.boots)
	w.mu.Unlock()
	clock := clocks[w.dice.n(len(clocks))]
	if w.mutation == readsByVerifyLeader && w.dice.n(2) == 0 { // one that believes in its lease for long
		clock.name, clock.rate = "x8 slow", 8
	}
	key, err := secret.New(slices.Repeat([]byte{byte(number + 1)}, ArchiveKeySize))
	if err != nil {
		w.t.Fatal(err)
	}
	b := &boot{w: w, number: number, slot: slot, id: sha256.Sum256(fmt.Append(nil, "boot ", number)), rate: clock.name,
		addr: fmt.Sprintf("slot-%d:1", slot), machine: newChaosMachine(w, number), disk: newChaosDisk(w.stats), key: key,
		votes: map[uint64]string{}, held: map[place]bool{}}
	w.open(b, clock.rate)
	if b.opener, err = NewOpener(key, Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: b.id}); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.boots, w.current[slot] = append(w.boots, b), b
	w.noteLocked("boot %d in slot %d, clock %s, disk %s", number, slot, b.rate, disk)
	w.mu.Unlock()
	w.stats.count("boot, disk " + disk)
	w.net.mu.Lock()
	w.net.boots[b.id] = b
	w.net.mu.Unlock()
	w.work.Go(b.drive)
	return b
}

func (w *world) open(b *boot, rate float64) {
	scale := func(d time.Duration) time.Duration { return time.Duration(float64(d) * rate) }
	trailing := []uint64{0, 1, 3, 20}[w.dice.n(4)]
	cfg := Config{ID: b.id, Address: b.addr, ClusterID: [32]byte{1}, Epoch: 1, Machine: b.machine,
		Dialer: chaosDialer{w.net, b}, Archive: b.disk, ArchiveKey: b.key, Logger: testLogger(),
		Timeouts: Timeouts{Heartbeat: scale(200 * time.Millisecond), Election: scale(200 * time.Millisecond),
			Lease: scale(150 * time.Millisecond), Commit: scale(40 * time.Millisecond), RPC: scale(400 * time.Millisecond), Dial: scale(300 * time.Millisecond)},
		Compaction: Compaction{Threshold: uint64(5 + w.dice.n(40)), Trailing: max(trailing, 1), Interval: scale(500 * time.Millisecond)}}
	var err error
	if b.Store, err = open(cfg, w.mutation.between(w, b)); err != nil {
		w.t.Fatal(err)
	}
	if trailing == 0 { // a zero would be the default
		rc := b.raft.ReloadableConfig()
		rc.TrailingLogs = 0
		if err := b.raft.ReloadConfig(rc); err != nil {
			w.t.Fatal(err)
		}
	}
	b.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if s, ok := o.Data.(raft.RaftState); ok && s == raft.Leader {
			w.leads(b, o.Raft.CurrentTerm())
		}
		return false
	}))
}

// crash ends a server in the middle of whatever it does: from here on nothing
// of it reaches network or disk. What it had sent may still arrive.
func (w *world) crash(b *boot) {
	if b.dead.Swap(true) {
		return
	}
	b.disk.crash()
	quiet := w.dice.n(2) == 0
	w.net.sever(quiet, func(x, y *boot) bool { return x == b || y == b })
	w.note("boot %d of slot %d is off, quietly: %v", b.number, b.slot, quiet)
	w.work.Go(func() { b.Shutdown() })
}

// tolerable says whether the cluster survives the loss of b: in every
// configuration that may be in force, the last one committed and all that were
// appended behind it anywhere, a majority of the voters is alive then.
func (w *world) tolerable(b *boot) bool {
	var committed uint64
	var now []Member
	for _, l := range w.live() {
		if list, at := l.Members(); at > committed {
			committed, now = at, list
		}
	}
	configs := [][]Member{now}
	for _, l := range w.live() {
		configs = append(configs, l.appendedAfter(committed)...)
	}
	w.mu.Lock()
	for _, l := range w.boots {
		if l.intended != nil && time.Now().Before(l.until) {
			configs = append(configs, l.intended)
		}
	}
	w.mu.Unlock()
	for _, list := range configs {
		voters, alive := 0, 0
		for _, m := range list {
			if !m.Voter {
				continue
			}
			voters++
			if v := w.byID(m.ID); v != b && !v.dead.Load() && !v.doomed.Load() {
				alive++
			}
		}
		if alive <= voters/2 {
			return false
		}
	}
	return true
}

// intends notes a configuration that b is about to bring about; its outcome says
// whether that is over. Between the leader's look at who answers and the entry in
// its log, which may take as long as the host likes, the loss of a voter is
// already the loss of one of that configuration.
func (w *world) intends(b *boot, next []Member) (outcome func(error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.intended, b.until = next, time.Now().Add(time.Hour)
	return func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		b.until = time.Now()
		if err != nil {
			b.until = time.Now().Add(5 * time.Second)
		}
	}
}

// appendedAfter is the configurations in the log of b behind index.
func (b *boot) appendedAfter(index uint64) (list [][]Member) {
	b.logs.mu.RLock()
	defer b.logs.mu.RUnlock()
	for _, l := range b.logs.entries {
		if l.Index <= index || l.Type != raft.LogConfiguration {
			continue
		}
		m := newMembers(func(ServerID) {})
		m.update(l.Index, raft.DecodeConfiguration(l.Data))
		list = append(list, m.current)
	}
	return list
}

// claim is what a boot does to get its slot: it asks whoever it reaches until
// it is a voter or a newer boot has taken the slot.
func (w *world) claim(b *boot) {
	pause := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return w.ctx.Err() == nil && !b.dead.Load()
		case <-w.ctx.Done():
			return false
		}
	}
	d := newDice(w.seed, uint64(10000+b.number))
	for pause(time.Duration(5+d.n(30)) * time.Millisecond) {
		live := w.live()
		member := live[d.n(len(live))]
		if member == b || !member.IsLeader() || !w.net.reachable(b, member) {
			continue
		}
		switch slots := member.machine.slots(); {
		case slots[b.slot] == b.id:
			return // the rest is the leader's work
		case w.newest(b.slot) != b && d.n(4) > 0:
			continue // an older clone asks less often
		}
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		_, result, err := member.Propose(ctx, admitEntry(b.slot, b.id))
		cancel()
		if err == nil {
			if result == errSuperseded {
				w.note("boot %d has lost slot %d", b.number, b.slot)
				w.stats.count("claim of a superseded boot refused")
				return
			}
			w.note("boot %d is admitted to slot %d by boot %d", b.number, b.slot, member.number)
			return
		}
	}
}

// drive carries out admissions while this server leads. Every server runs it,
// so that after a change of leader two may be at work on one slot.
func (b *boot) drive() {
	w, d := b.w, newDice(b.w.seed, uint64(20000+b.number))
	for {
		select {
		case <-time.After(time.Duration(20+d.n(40)) * time.Millisecond):
		case <-w.ctx.Done():
			return
		case <-b.Done():
			return
		}
		if !b.IsLeader() {
			continue
		}
		if what, err := b.step(); what != "" {
			if err == nil {
				w.stats.count("admission: " + strings.Fields(what)[0])
			} else {
				w.stats.count("admission step interrupted")
			}
			w.note("boot %d leads and %s: %v", b.number, what, err)
		}
	}
}

// step makes the next change that admissions ask for, each one based on the
// configuration it was decided from.
func (b *boot) step() (string, error) {
	w := b.w
	list, at := b.Members()
	slots := b.machine.slots()
	holds := map[int]*Member{} // the admitted boot of a slot, as it is in the configuration
	var olds, strays []Member
	for _, m := range list {
		boot := w.byID(m.ID)
		switch {
		case slots[boot.slot] == m.ID:
			holds[boot.slot] = &m
		case m.Voter:
			olds = append(olds, m)
		default:
			strays = append(strays, m)
		}
	}
	for _, m := range strays {
		_, err := b.Remove(w.brief(), m.ID, at)
		return "drops the nonvoter of slot " + m.Address, err
	}
	oldOf := func(slot int) *Member {
		for _, m := range olds {
			if w.byID(m.ID).slot == slot {
				return &m
			}
		}
		return nil
	}
	voters := 0
	for _, m := range list {
		if m.Voter {
			voters++
		}
	}
	for slot := range w.voters { // first what was begun: a slot without a voter gets its own
		id, taken := slots[slot]
		m, old := holds[slot], oldOf(slot)
		if !taken || m == nil || m.Voter {
			continue
		}
		next := w.byID(id)
		if !w.net.reachable(b, next) || next.AppliedIndex() < at {
			continue
		}
		if old == nil {
			done := w.intends(b, append(slices.Clone(list), Member{ID: id, Voter: true}))
			_, err := b.AddVoter(w.brief(), id, next.addr, at)
			done(err)
			return fmt.Sprintf("promotes boot %d", next.number), err
		}
		if whole := len(slots); voters == whole && !w.ailing(list) { // one slot at a time is short of its voter
			done := w.intends(b, slices.DeleteFunc(slices.Clone(list), func(m Member) bool { return m.ID == old.ID }))
			_, err := b.Remove(w.brief(), old.ID, at)
			done(err)
			if errors.Is(err, ErrNoQuorum) && !errors.Is(err, ErrOutcomeUnknown) {
				w.stats.count("admission: removal refused")
				continue // another slot may be the one whose voter is down
			}
			return fmt.Sprintf("removes boot %d for boot %d", w.byID(old.ID).number, next.number), err
		}
	}
	for slot := range w.voters {
		id, taken := slots[slot]
		if !taken || holds[slot] != nil {
			continue
		}
		next := w.byID(id)
		if !w.net.reachable(b, next) || next.dead.Load() {
			continue
		}
		next.roots.Store(true)
		_, err := b.AddNonvoter(w.brief(), id, next.addr, at)
		return fmt.Sprintf("adds boot %d", next.number), err
	}
	return "", nil
}

// ailing says whether a voter's disk is full and it has not noticed: it answers,
// and will not store a change. To take a living voter out at that time is the
// loss of two, which no cluster of three survives and people must know.
func (w *world) ailing(list []Member) bool {
	return slices.ContainsFunc(list, func(m Member) bool {
		v := w.byID(m.ID)
		return m.Voter && v.doomed.Load() && !v.dead.Load()
	})
}

// brief is the time one step is given.
func (w *world) brief() context.Context {
	ctx, cancel := context.WithTimeout(w.ctx, time.Second)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// found begins a cluster and lets it grow to its size, without faults.
func (w *world) found() bool {
	first := w.boot(0, "wiped")
	first.roots.Store(true)
	if err := first.Genesis(); err != nil {
		w.violate("genesis: %v", err)
		return false
	}
	if !w.wait(20*time.Second, func() bool {
		_, _, err := first.Propose(w.ctx, admitEntry(0, first.id))
		return err == nil
	}) {
		w.violate("the founder does not lead")
		return false
	}
	for slot := 1; slot < w.voters; slot++ {
		b := w.boot(slot, "wiped")
		w.work.Go(func() { w.claim(b) })
	}
	return w.settled(60 * time.Second)
}

// wait polls by the world's clock.
func (w *world) wait(limit time.Duration, f func() bool) bool {
	for end := time.Now().Add(limit); ; {
		if f() {
			return true
		}
		if time.Now().After(end) || w.broken() {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const notWhole = "the cluster did not become whole"

// settled waits until the cluster is whole: the newest boot of every slot is a
// voter, a leader serves, and all have applied the same.
func (w *world) settled(limit time.Duration) bool {
	if w.mutation != sound {
		limit = min(limit, 10*time.Second) // the first that is not made whole is left
	}
	var missing string
	ok := w.wait(limit, func() bool {
		missing = ""
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		var leader *boot
		for _, b := range w.live() {
			if leader == nil && b.IsLeader() && b.SafeRead(ctx) == nil {
				leader = b
			}
		}
		if leader == nil {
			missing = "no leader that can read"
			return false
		}
		list, _ := leader.Members()
		slots := leader.machine.slots()
		at, _ := leader.Chain()
		for slot := range w.voters {
			id := slots[slot]
			i := slices.IndexFunc(list, func(m Member) bool { return m.ID == id && m.Voter })
			b := w.byID(id)
			if b == nil || i < 0 || b.dead.Load() {
				missing = fmt.Sprintf("slot %d has no living voter", slot)
				return false
			}
			if b.AppliedIndex() < at {
				missing = fmt.Sprintf("boot %d of slot %d has applied %d of %d; log to %d, commit %d, term %d", b.number, slot, b.AppliedIndex(), at, b.raft.LastIndex(), b.CommitIndex(), b.Term())
				return false
			}
		}
		if len(list) != w.voters {
			missing = fmt.Sprintf("%d members", len(list))
			return false
		}
		return true
	})
	if !ok && !w.broken() {
		w.noteServers()
		w.violate("%s in %v: %s", notWhole, limit, missing)
	}
	return ok
}

// noteServers writes down where everybody stands.
func (w *world) noteServers() {
	for _, b := range w.live() {
		list, at := b.Members()
		var who []string
		for _, m := range list {
			who = append(who, fmt.Sprintf("%d:%v", w.byID(m.ID).number, m.Voter))
		}
		first, _ := b.logs.FirstIndex()
		last, _ := b.logs.LastIndex()
		leader := -1
		if id, _, ok := b.Leader(); ok {
			leader = w.byID(id).number
		}
		conf := reflect.ValueOf(b.raft).Elem().FieldByName("configurations")
		w.note("  boot %d: configurations committed %d, latest %d", b.number, conf.FieldByName("committedIndex").Uint(), conf.FieldByName("latestIndex").Uint())
		w.note("  boot %d slot %d clock %s: %v, leader %d, term %d, says last %d, log %d to %d, commit %d, applied %d, configuration of %d: %v",
			b.number, b.slot, b.rate, b.raft.State(), leader, b.Term(), b.raft.LastIndex(), first, last, b.CommitIndex(), b.AppliedIndex(), at, who)
	}
}

// close ends the world and everything in it.
func (w *world) close() {
	w.stop()
	w.net.mu.Lock()
	w.net.hazards = nil
	w.net.mu.Unlock()
	for _, b := range w.live() {
		b.dead.Store(true)
		b.disk.crash()
		w.work.Go(func() { b.Shutdown() })
	}
	w.net.sever(false, func(*boot, *boot) bool { return true })
	// A server that does not stop would keep the bubble open for ever.
	stuck := time.AfterFunc(10*time.Minute, func() {
		for _, b := range w.boots {
			select {
			case <-b.Done():
			default:
				panic(fmt.Sprintf("seed %d: boot %d does not shut down; trace:\n%s", w.seed, b.number, strings.Join(w.trace, "\n")))
			}
		}
	})
	defer stuck.Stop()
	w.work.Wait()
	for _, b := range w.boots {
		<-b.Done()
	}
	time.Sleep(time.Minute) // what was to be delivered again finds nobody
}

// reached reports a fault of a store that is not of the disk's making.
func reached(err error) bool {
	return errors.Is(err, ErrTermFell) || errors.Is(err, ErrSecondVote)
}
