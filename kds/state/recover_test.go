package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// plan is a recovery that can still be spoilt.
type plan struct {
	t         testing.TB
	source    View
	snapshot  []byte
	statement api.RecoveryStatement
	keys      []ed25519.PrivateKey
	level     uint64
}

// recovery plans to go on from a machine in epoch 2.
func recovery(t testing.TB, m *Machine) *plan {
	t.Helper()
	v := m.View()
	p := &plan{t: t, source: v, snapshot: snap(t, m), keys: operatorKeys[:1], level: Level}
	p.statement = api.RecoveryStatement{
		Label: api.RecoveryLabel, ClusterID: v.ClusterID, Epoch: v.Epoch + 1, Generation: v.Generation + 1, Enclave: [32]byte{0xee},
		Source: api.RecoverySource{Epoch: v.Epoch, ServerID: v.Members[0].ServerID, Applied: v.Applied, Term: 3, Chain: [32]byte{5},
			StateSHA256: sha256.Sum256(p.snapshot), LogSize: v.Log.Size, LogRoot: v.Log.Root, NodePolicy: v.NodePolicy},
	}
	for _, member := range v.Members {
		p.statement.Old = append(p.statement.Old, api.OldServer{Slot: member.Slot, ServerID: member.ServerID, Fate: api.FateDestroyed})
	}
	slices.SortFunc(p.statement.Old, func(a, b api.OldServer) int { return bytes.Compare(a.ServerID[:], b.ServerID[:]) })
	return p
}

// entry signs the statement as it is, sound or not.
func (p *plan) entry() *Recover {
	p.t.Helper()
	raw, err := api.MarshalCanonical(p.statement)
	if err != nil {
		p.t.Fatal(err)
	}
	return &Recover{Level: p.level, Manifest: p.source.Manifest, IdentityKey: p.source.IdentityKey, Statement: raw,
		Approvals: api.Approve(raw, p.keys...), Size: uint64(len(p.snapshot)), SHA256: p.statement.Source.StateSHA256}
}

func (p *plan) parts(size int) (out []Entry) {
	for at := 0; at < len(p.snapshot); at += size {
		out = append(out, &RecoverPart{Offset: uint64(at), Data: p.snapshot[at:min(at+size, len(p.snapshot))]})
	}
	return out
}

// open applies the whole recovery and returns the last result.
func (p *plan) open(m *Machine, size int) (last any) {
	p.t.Helper()
	for _, e := range append([]Entry{p.entry()}, p.parts(size)...) {
		last = m.Apply(m.View().Applied+1, encode(p.t, e))
		if _, bad := last.(error); bad {
			return last
		}
	}
	return last
}

// lived is a cluster that has seen something of everything.
func lived(t testing.TB) *Machine {
	g := genesisOf(t, board)
	g.RecoveryKey = []byte("public half")
	m := run(t, g, put(1), admit(), joining("b", 2, 2), joining("c", 3, 3), release(1), release(1))
	next := joining("b", 5, 2)
	next.Incarnation = 2
	if err, bad := m.Apply(m.View().Applied+1, encode(t, next)).(error); bad {
		t.Fatal(err)
	}
	for _, b := range []api.AdminBody{
		&api.RemoveSlot{Slot: "c"}, &api.Ticket{Slot: "d", ServerID: [32]byte{4}, PlatformID: [32]byte{4}},
		&api.NodePolicyChange{Parent: 1, Constraints: []string{"C:bb"}},
	} {
		raw := statement(t, m, b)
		if err, bad := m.Apply(m.View().Applied+1, encode(t, &Operate{Statement: raw, Approvals: api.Approve(raw, operatorKeys[:2]...)})).(error); bad {
			t.Fatal(err)
		}
	}
	return m
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	source := lived(t)
	old := source.View()
	for _, size := range []int{1 << 16, 300, 1} {
		p := recovery(t, source)
		p.keys = operatorKeys[:2]
		m := New()
		if got := p.open(m, size); got != (Recovered{old.ClusterID, 2, 2}) {
			t.Fatalf("parts of %d bytes: %v", size, got)
		}
		v := m.View()
		leaf, err := firstLeaf(old.ClusterID, 2, old.Log)
		if err != nil {
			t.Fatal(err)
		}
		log, _ := source.d.log.append(leaf)
		if v.Epoch != 2 || v.Generation != 2 || v.Ended || v.Recovering || v.Log != (Head{old.Log.Size + 1, log.root()}) ||
			v.Sequence != old.Sequence || v.NodePolicy != 2 || !slices.Equal(v.NodePolicyText, old.NodePolicyText) ||
			len(v.Members) != 2 || len(v.Tickets) != 0 || !slices.Equal(v.Removed, old.Removed) || !v.TimeFloor.Equal(old.TimeFloor) ||
			string(v.RecoveryKey) != "public half" || v.Members[0].Admitted != 0 {
			t.Fatalf("after the recovery: %+v", v)
		}
		raw, err := api.NewAdmin(v.ClusterID, 1, v.Sequence+1, &api.Stop{})
		if err != nil {
			t.Fatal(err)
		}
		founded := func() {
			rejected(t, "an entry of the old epoch", m, release(1), ErrEpoch)
			rejected(t, "a statement of the old epoch", m, &Operate{Statement: raw, Approvals: api.Approve(raw, operatorKeys[:2]...)}, ErrEpoch)
		}
		rejected(t, "another recovery", m, p.entry(), ErrFounded)
		rejected(t, "a genesis", m, genesis(t), ErrFounded)
		rejected(t, "a part too many", m, &RecoverPart{Data: []byte{1}}, ErrRecovery)
		// The recovering boot comes in by the operators' signature, on any machine; nobody else does.
		founder := joining("z", 0xee, 0xee)
		founder.Epoch, founder.NodePolicy = 2, 2
		other := joining("z", 0xed, 0xee)
		other.Epoch, other.NodePolicy = 2, 2
		if size == 300 { // by a slot of its own platform, too
			founder.Slot, founder.PlatformID, founder.Incarnation = "a", admit().PlatformID, 2
		}
		// A second enclave that runs the same statement gets nowhere, not even in a slot of its own machine.
		rejected(t, "another boot", m, other, ErrFounder)
		rejoin := joining("a", 0xed, admit().PlatformID[0])
		rejoin.Epoch, rejoin.NodePolicy, rejoin.Incarnation = 2, 2, 2
		rejected(t, "another boot of a slot's own machine", m, rejoin, ErrFounder)
		early := release(1)
		early.Epoch, early.NodePolicy = 2, 2
		rejected(t, "a release before the founder", m, early, ErrFounder)
		newer := put(4)
		newer.Epoch = 2
		if err, bad := m.Apply(m.View().Applied+1, encode(t, newer)).(error); bad {
			t.Fatal(err)
		}
		founder.CollateralVersion, other.CollateralVersion = 2, 2
		rejected(t, "the founder, before the new root", m, founder, ErrUncommitted)
		if got := next(t, m, commit(2, 1, 2)); got != (Committed{2}) {
			t.Fatalf("the roots: %v", got)
		}
		if got, ok := m.Apply(m.View().Applied+1, encode(t, founder)).(Admitted); !ok {
			t.Fatalf("the founder: %v", got)
		}
		if m.d.founding {
			t.Error("the founder's right is not used up")
		}
		founded()
		m.d.opened = api.MaxOpenSlots
		other.Slot, other.PlatformID = "y", [32]byte{0xdd}
		rejected(t, "another boot afterwards", m, other, ErrTicket)
		restored := New()
		if err := restored.Restore(bytes.NewReader(snap(t, m))); err != nil || !reflect.DeepEqual(restored.View(), m.View()) {
			t.Errorf("restored: %v", err)
		}
	}
}

// A new epoch can be lost, too, and a stopped epoch continued.
func TestRecoveryOfARecovery(t *testing.T) {
	t.Parallel()
	first := run(t, genesis(t), put(1), admit(), release(1))
	operate(t, first, &api.Stop{})
	second := New()
	p := recovery(t, first)
	p.statement.Old[0].Fate = api.FateStopped
	if got := p.open(second, MaxPart); got != (Recovered{first.View().ClusterID, 2, 2}) {
		t.Fatal(got)
	}
	if second.View().Ended {
		t.Error("the new epoch has ended already")
	}
	founder := joining("a", 0xee, admit().PlatformID[0])
	founder.Epoch, founder.Incarnation = 2, 2
	if err, bad := next(t, second, commit(2, 1, 2)).(error); bad {
		t.Fatal(err)
	}
	if err, bad := second.Apply(second.View().Applied+1, encode(t, founder)).(error); bad {
		t.Fatal(err)
	}
	e := release(1)
	e.Epoch = 2
	if err, bad := second.Apply(second.View().Applied+1, encode(t, e)).(error); bad {
		t.Fatal(err)
	}
	third := New()
	p = recovery(t, second)
	p.statement.Enclave = [32]byte{0xef}
	p.statement.Generation = 2 // whose root other enclaves have, or had
	if err, _ := p.open(third, MaxPart).(error); !errors.Is(err, ErrRecovery) {
		t.Errorf("a generation that exists: %v", err)
	}
	p.statement.Epoch, p.statement.Generation = 7, 4 // numbers that were signed and never opened, or lost
	if got := p.open(third, MaxPart); got != (Recovered{first.View().ClusterID, 7, 4}) {
		t.Fatal(got)
	}
}

func TestRecoveryAttacks(t *testing.T) {
	t.Parallel()
	source := lived(t)
	foreign := genesis(t)
	foreign.IdentityKey = operatorKeys[1].Public().(ed25519.PublicKey)
	other := run(t, foreign, put(1), admit())
	rolledBack := run(t, genesisOf(t, board), put(1), admit(), joining("b", 2, 2))
	begun := New()
	half := recovery(t, source)
	half.keys = operatorKeys[:2]
	begun.Apply(1, encode(t, half.entry()))

	rehash := func(p *plan) { p.statement.Source.StateSHA256 = sha256.Sum256(p.snapshot) }
	atOnce := map[string]func(*plan){
		"signed by one": func(p *plan) { p.keys = operatorKeys[:1] },
		"signed by strangers": func(p *plan) {
			p.keys = []ed25519.PrivateKey{operatorKeys[0], ed25519.NewKeyFromSeed(make([]byte, 32))}
		},
		"another cluster":        func(p *plan) { p.statement.ClusterID = api.ID{1} },
		"another label":          func(p *plan) { p.statement.Label = api.AdminLabel },
		"the same epoch":         func(p *plan) { p.statement.Epoch = 1 },
		"epoch zero":             func(p *plan) { p.statement.Epoch, p.statement.Source.Epoch = 0, 0 },
		"an old epoch":           func(p *plan) { p.statement.Source.Epoch = 5 },
		"generation one":         func(p *plan) { p.statement.Generation = 1 },
		"no enclave":             func(p *plan) { p.statement.Enclave = api.ID{} },
		"no old servers":         func(p *plan) { p.statement.Old = nil },
		"lost without the words": func(p *plan) { p.statement.Old[0].Fate = api.FateLost },
		"other words":            func(p *plan) { p.statement.Accept = "ok" },
		"an unknown fate":        func(p *plan) { p.statement.Old[0].Fate = "asleep" },
		"unsorted old servers":   func(p *plan) { slices.Reverse(p.statement.Old) },
		"an old server twice":    func(p *plan) { p.statement.Old[1] = p.statement.Old[0] },
		"an old server recovers": func(p *plan) { p.statement.Enclave = p.statement.Old[0].ServerID },
	}
	for name, spoil := range atOnce {
		p := recovery(t, source)
		p.keys = operatorKeys[:2]
		spoil(p)
		rejected(t, name, New(), p.entry(), ErrRecovery)
	}

	atTheEnd := map[string]func(*plan){
		"another state": func(p *plan) { p.snapshot = snap(t, rolledBack) },
		"a state that fits but for its hash": func(p *plan) {
			var s rootsSnapshot
			if err := api.UnmarshalCanonical(p.snapshot, MaxState, &s); err != nil {
				t.Fatal(err)
			}
			s.State.Members[0].RaftAddr = "h:9"
			raw, err := api.MarshalCanonical(s)
			if err != nil {
				t.Fatal(err)
			}
			p.snapshot = raw
		},
		"a former boot recovers":  func(p *plan) { p.statement.Enclave = [32]byte{2} },
		"a flipped bit":           func(p *plan) { p.snapshot = bytes.Clone(p.snapshot); p.snapshot[len(p.snapshot)/2] ^= 1 },
		"another cluster's state": func(p *plan) { p.snapshot = snap(t, other); rehash(p) },
		"another cluster's, in all that it says": func(p *plan) {
			alien := recovery(t, other)
			p.snapshot, p.statement.Source, p.statement.Old = alien.snapshot, alien.statement.Source, alien.statement.Old
		},
		"an empty state":           func(p *plan) { p.snapshot = snap(t, New()); rehash(p) },
		"a half recovered state":   func(p *plan) { p.snapshot = snap(t, begun); rehash(p) },
		"no state":                 func(p *plan) { p.snapshot = []byte("rubbish"); rehash(p) },
		"a rolled back state":      func(p *plan) { p.snapshot = snap(t, rolledBack); rehash(p) }, // with the head of the newer one
		"an index beyond":          func(p *plan) { p.statement.Source.Applied-- },
		"another log root":         func(p *plan) { p.statement.Source.LogRoot[0] ^= 1 },
		"another log size":         func(p *plan) { p.statement.Source.LogSize++ },
		"another node policy":      func(p *plan) { p.statement.Source.NodePolicy-- },
		"another source epoch":     func(p *plan) { p.statement.Source.Epoch, p.statement.Epoch = 2, 3 },
		"a server that is missing": func(p *plan) { p.statement.Old = p.statement.Old[:1] },
		"a server in another slot": func(p *plan) { p.statement.Old[1].Slot = "x" },
		"a removed boot recovers":  func(p *plan) { p.statement.Enclave = [32]byte{3} },
	}
	for name, spoil := range atTheEnd {
		p := recovery(t, source)
		p.keys = operatorKeys[:2]
		spoil(p)
		m := New()
		if err, _ := p.open(m, 300).(error); !errors.Is(err, ErrRecovery) {
			t.Errorf("%s: %v", name, err)
		}
		if v := m.View(); !v.ClusterID.IsZero() || v.Recovering || m.Halted() != nil || v.Level != 0 {
			t.Errorf("%s: something is left: %+v", name, v)
		}
		good := recovery(t, source)
		good.keys = operatorKeys[:2]
		if err, bad := good.open(m, 300).(error); bad {
			t.Errorf("%s: the good one afterwards: %v", name, err)
		}
	}
	p := recovery(t, source)
	p.keys, p.statement.Accept = operatorKeys[:2], api.Accept(true, false)
	p.statement.Old[0].Fate = api.FateLost
	if err, bad := p.open(New(), MaxPart).(error); bad {
		t.Errorf("lost, with the words: %v", err)
	}
	e := p.entry()
	e.SHA256[0] ^= 1
	rejected(t, "the entry names another state", New(), e, ErrRecovery)
	e = p.entry()
	e.Manifest = other.View().Manifest
	rejected(t, "the entry has another manifest", New(), e, ErrRecovery)
	for name, e := range map[string]*Recover{
		"level 1": {Level: 1}, "empty": {Level: 2}, "huge": {Level: 2, Statement: []byte{1}, Size: MaxState + 1, SHA256: [32]byte{1}},
	} {
		if _, err := Encode(e); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// More than half must sign, whatever the manifest's threshold is.
func TestRecoveryNeedsMoreThanHalf(t *testing.T) {
	t.Parallel()
	m := run(t, genesisOf(t, func(m *api.Manifest) { board(m); m.Operators.Threshold = 1 }), put(1), admit())
	p := recovery(t, m)
	rejected(t, "one of three", New(), p.entry(), ErrRecovery)
	p.keys = operatorKeys[:2]
	if err, bad := p.open(New(), MaxPart).(error); bad {
		t.Errorf("two of three: %v", err)
	}
	m = run(t, genesisOf(t, func(m *api.Manifest) {
		board(m)
		m.Operators.Threshold, m.Operators.Keys = 1, m.Operators.Keys[:2]
	}), put(1), admit())
	for _, k := range operatorKeys {
		p = recovery(t, m)
		p.keys = []ed25519.PrivateKey{k}
		rejected(t, "one of two", New(), p.entry(), ErrRecovery)
	}
}

func TestRecoveryParts(t *testing.T) {
	t.Parallel()
	source := lived(t)
	p := recovery(t, source)
	p.keys = operatorKeys[:2]
	m := New()
	rejected(t, "a part before the beginning", m, &RecoverPart{Data: []byte{1}}, ErrRecovery)
	if got := m.Apply(m.View().Applied+1, encode(t, p.entry())); got != (Recovering{}) {
		t.Fatal(got)
	}
	if v := m.View(); !v.Recovering || !v.ClusterID.IsZero() || v.Epoch != 0 {
		t.Errorf("while recovering: %+v", v)
	}
	parts := p.parts(300)
	if got := m.Apply(m.View().Applied+1, encode(t, parts[0])); got != (Recovering{300}) {
		t.Fatal(got)
	}
	stop := statement(t, source, &api.Stop{})
	for name, c := range map[string]struct {
		e    Entry
		want error
	}{
		"the first again":         {parts[0], ErrRecovery},
		"out of order":            {parts[2], ErrRecovery},
		"overlapping":             {&RecoverPart{Offset: 299, Data: p.snapshot[299:500]}, ErrRecovery},
		"with a gap":              {&RecoverPart{Offset: 301, Data: p.snapshot[301:500]}, ErrRecovery},
		"beyond the end":          {&RecoverPart{Offset: 300, Data: append(bytes.Clone(p.snapshot[300:]), 0)}, ErrRecovery},
		"an offset far out":       {&RecoverPart{Offset: 1 << 63, Data: []byte{1}}, ErrRecovery},
		"a second recovery":       {p.entry(), ErrRecovering},
		"a genesis":               {genesis(t), ErrRecovering},
		"an admission":            {admit(), ErrRecovering},
		"collateral":              {put(1), ErrRecovering},
		"a release":               {release(1), ErrRecovering},
		"an operators' statement": {&Operate{Statement: stop, Approvals: api.Approve(stop, operatorKeys[:2]...)}, ErrRecovering},
	} {
		rejected(t, name, m, c.e, c.want)
	}
	for name, e := range map[string]*RecoverPart{"empty": {}, "oversized": {Data: make([]byte, MaxPart+1)}} {
		if _, err := Encode(e); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A snapshot in the middle, restored elsewhere, goes on.
	frozen, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	want := snap(t, m)
	other := New()
	if err := other.Restore(bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	for i, e := range parts[1:] {
		a, b := m.Apply(m.View().Applied+1, encode(t, e)), other.Apply(other.View().Applied+1, encode(t, e))
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("part %d: %v and %v", i, a, b)
		}
	}
	if !bytes.Equal(snap(t, m), snap(t, other)) || m.View().Epoch != 2 {
		t.Error("two machines differ after the recovery")
	}
	var got bytes.Buffer
	if _, err := frozen.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the snapshot in the middle moved: %v", err)
	}
}

// What a snapshot of a recovery under way cannot be is refused.
func TestRestoreOfARecovery(t *testing.T) {
	t.Parallel()
	p := recovery(t, lived(t))
	p.keys = operatorKeys[:2]
	m := New()
	m.Apply(1, encode(t, p.entry()))
	m.Apply(2, encode(t, p.parts(300)[0]))
	var good snapshot
	if err := api.UnmarshalCanonical(snap(t, m), MaxSnapshot, &good); err != nil {
		t.Fatal(err)
	}
	forged := recovery(t, lived(t))
	for name, change := range map[string]func(*snapshot){
		"complete":       func(s *snapshot) { s.Received = p.snapshot },
		"not announced":  func(s *snapshot) { s.Recover = nil },
		"another entry":  func(s *snapshot) { s.Recover = encode(t, put(1)) },
		"no entry":       func(s *snapshot) { s.Recover = []byte{1} },
		"not signed":     func(s *snapshot) { s.Recover = encode(t, forged.entry()) },
		"with an epoch":  func(s *snapshot) { s.Epoch = 1 },
		"with a cluster": func(s *snapshot) { s.Manifest, s.IdentityKey = p.source.Manifest, p.source.IdentityKey },
		"with a member":  func(s *snapshot) { s.Members = p.source.Members },
	} {
		s := good
		change(&s)
		raw, err := api.MarshalCanonical(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := New().Restore(bytes.NewReader(raw)); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Freezing costs the same however much there is to freeze, and what was frozen
// stays: every snapshot of a history, written at its end, is what it was. Not
// parallel, for it counts allocations.
func TestSnapshotsAreCopyOnWrite(t *testing.T) {
	m := run(t, genesis(t), put(1), admit())
	cost := func() float64 {
		return testing.AllocsPerRun(20, func() {
			if _, err := m.Snapshot(); err != nil {
				t.Error(err)
			}
		})
	}
	small := cost()
	type kept struct {
		w    io.WriterTo
		want []byte
	}
	var all []kept
	for i := range MaxCollateralSets {
		e := put(uint64(i%7) + 1)
		e.Key.FMSPC[4], e.Key.FMSPC[5] = byte(i*37>>8), byte(i*37) // in no order
		m.Apply(m.View().Applied+1, encode(t, e))
		m.Apply(m.View().Applied+1, encode(t, release(1)))
		if i%50 == 0 {
			w, err := m.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, kept{w, snap(t, m)})
			next := joining(fmt.Sprintf("s%d", i/50%9), byte(i/50)+50, byte(i/50%9)+50)
			next.Incarnation = uint64(i/450) + 1
			m.Apply(m.View().Applied+1, encode(t, next))
			operate(t, m, &api.NodePolicyChange{Parent: m.View().NodePolicy, Constraints: []string{fmt.Sprint("C:", i)}})
		}
	}
	if big := cost(); big != small || m.d.collateral.n < MaxCollateralSets-1 {
		t.Errorf("freezing %d sets takes %v allocations, one set %v", m.d.collateral.n, big, small)
	}
	if len(all) < 10 {
		t.Fatalf("only %d snapshots were taken", len(all))
	}
	for i, k := range all {
		var got bytes.Buffer
		if _, err := k.w.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), k.want) {
			t.Errorf("snapshot %d moved: %v", i, err)
		}
	}
}
