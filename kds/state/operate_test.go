package state

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// operatorKeys are three people; the manifests of the tests need one or two.
var operatorKeys = func() (keys []ed25519.PrivateKey) {
	for i := range 3 {
		keys = append(keys, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1, byte(i)}, 16)))
	}
	return keys
}()

// statement encodes the next statement for a machine.
func statement(t testing.TB, m *Machine, body api.AdminBody) []byte {
	t.Helper()
	v := m.View()
	raw, err := api.NewAdmin(v.ClusterID, v.Epoch, v.Sequence+1, body)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// signed is an entry with the signatures that the manifest of the tests needs.
func signed(raw []byte) *Operate {
	return &Operate{Statement: raw, Approvals: api.Approve(raw, operatorKeys[0])}
}

// operate applies a statement of the operators.
func operate(t testing.TB, m *Machine, body api.AdminBody) {
	t.Helper()
	if err, bad := m.Apply(m.View().Applied+1, encode(t, signed(statement(t, m, body)))).(error); bad {
		t.Fatalf("%s: %v", body.AdminKind(), err)
	}
}

// rejected applies an entry that must be refused for want and change nothing
// but the index.
func rejected(t testing.TB, name string, m *Machine, e Entry, want error) {
	t.Helper()
	before := m.View()
	err, _ := m.Apply(before.Applied+1, encode(t, e)).(error)
	if _, ok := errors.AsType[*Rejected](err); !ok || !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", name, err, want)
	}
	after := m.View()
	before.Applied++
	if !reflect.DeepEqual(before, after) {
		t.Errorf("%s: a rejected entry changed the state:\n%+v\n%+v", name, before, after)
	}
}

// board is a cluster whose statements need two of three operators.
func board(m *api.Manifest) {
	m.Operators = api.Operators{Threshold: 2}
	for _, k := range operatorKeys {
		m.Operators.Keys = append(m.Operators.Keys, k.Public().(ed25519.PublicKey))
	}
	slices.SortFunc(m.Operators.Keys, bytes.Compare)
}

func TestStatementsTakeEffect(t *testing.T) {
	t.Parallel()
	second := admit()
	second.Slot, second.ServerID, second.PlatformID = "b", [32]byte{2}, [32]byte{8}
	m := run(t, genesisOf(t, board), put(1), admit(), second)
	do := func(body api.AdminBody) any {
		raw := statement(t, m, body)
		return m.Apply(m.View().Applied+1, encode(t, &Operate{Statement: raw, Approvals: api.Approve(raw, operatorKeys[2], operatorKeys[0])}))
	}
	if v := m.View(); v.NodePolicy != 1 || !slices.Equal(v.NodePolicyText, []string{"C:aa"}) || v.Sequence != 0 || v.Level != Level {
		t.Fatalf("at first: %+v", v)
	}
	if got := do(&api.NodePolicyChange{Parent: 1, Constraints: []string{"C:bb", "C:cc"}}); got != (Operated{1, "node-policy"}) {
		t.Fatalf("node policy: %v", got)
	}
	if v := m.View(); v.NodePolicy != 2 || !slices.Equal(v.NodePolicyText, []string{"C:bb", "C:cc"}) || v.Sequence != 1 {
		t.Errorf("after the change of the node policy: %+v", v)
	}
	rejected(t, "decided under the old policy", m, release(1), ErrNodePolicy)
	if got := do(&api.Ticket{Slot: "b", ServerID: [32]byte{3}, PlatformID: [32]byte{7}}); got != (Operated{2, "ticket"}) {
		t.Fatalf("ticket: %v", got)
	}
	if got := do(&api.RemoveSlot{Slot: "b"}); got != (Operated{3, "remove"}) {
		t.Fatalf("remove: %v", got)
	}
	if v := m.View(); len(v.Members) != 1 || v.Members[0].Slot != "a" || len(v.Tickets) != 0 || !slices.Equal(v.Removed, [][32]byte{{2}}) {
		t.Errorf("after the removal: %+v", v)
	}
	if got := do(&api.Stop{}); got != (Operated{4, "stop"}) || !m.View().Ended {
		t.Fatalf("stop: %v", got)
	}
	raw := statement(t, m, &api.Ticket{Slot: "c", ServerID: [32]byte{3}, PlatformID: [32]byte{7}})
	for name, e := range map[string]Entry{
		"a release": release(1), "an admission": admit(), "collateral": put(9), "a level": &RaiseLevel{Epoch: 1, Level: Level},
		"a ticket": &Operate{Statement: raw, Approvals: api.Approve(raw, operatorKeys[0], operatorKeys[1])},
	} {
		rejected(t, name+" after the end", m, e, ErrEnded)
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snap(t, m))); err != nil || !reflect.DeepEqual(restored.View(), m.View()) {
		t.Errorf("restored: %v\n%+v\n%+v", err, restored.View(), m.View())
	}
}

// malleable adds the group order to S: the same equation, another signature.
func malleable(signature []byte) []byte {
	order, _ := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	out, carry := bytes.Clone(signature), 0
	for i := range 32 {
		sum := int(out[32+i]) + int(order[i]) + carry
		out[32+i], carry = byte(sum), sum>>8
	}
	return out
}

func TestStatementAttacks(t *testing.T) {
	t.Parallel()
	second := admit()
	second.Slot, second.ServerID, second.PlatformID = "b", [32]byte{2}, [32]byte{8}
	m := run(t, genesisOf(t, board), put(1), admit(), second)
	two := func(raw []byte) []api.Approval { return api.Approve(raw, operatorKeys[0], operatorKeys[1]) }
	used := statement(t, m, &api.RemoveSlot{Slot: "b"})
	if err, bad := next(t, m, &Operate{Statement: used, Approvals: two(used)}).(error); bad {
		t.Fatal(err)
	}
	id := m.View().ClusterID
	policy := &api.NodePolicyChange{Parent: 1, Constraints: []string{"C:bb"}}
	good := statement(t, m, policy)
	admin := func(change func(*api.AdminStatement)) []byte {
		s, err := api.ParseAdmin(good)
		if err != nil {
			t.Fatal(err)
		}
		change(s)
		raw, err := api.MarshalCanonical(s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	body := func(v any) []byte {
		raw, err := api.MarshalCanonical(v)
		if err != nil {
			t.Fatal(err)
		}
		return admin(func(s *api.AdminStatement) { s.Body = raw })
	}
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{99}, 32))
	bad := two(good)
	bad[1].Signature = bytes.Clone(bad[1].Signature)
	bad[1].Signature[3] ^= 1
	other := two(good)
	other[0].Signature = malleable(other[0].Signature)
	reversed := two(good)
	slices.Reverse(reversed)
	one := api.Approve(good, operatorKeys[0])
	long := append([]byte{good[0], 0x78, byte(len(api.AdminLabel))}, good[2:]...) // the label's length in two bytes
	ticket := func(change func(*api.Ticket)) []byte {
		b := &api.Ticket{Slot: "c", ServerID: [32]byte{5}, PlatformID: [32]byte{5}}
		change(b)
		return statement(t, m, b)
	}
	cases := map[string]struct {
		raw  []byte
		by   []api.Approval
		want error
	}{
		"replayed":                {used, two(used), ErrSequence},
		"a sequence ahead":        {admin(func(s *api.AdminStatement) { s.Sequence++ }), nil, ErrSequence},
		"another epoch":           {admin(func(s *api.AdminStatement) { s.Epoch = 2 }), nil, ErrEpoch},
		"another cluster":         {admin(func(s *api.AdminStatement) { s.ClusterID = api.ID{9} }), nil, ErrStatement},
		"another label":           {admin(func(s *api.AdminStatement) { s.Label = api.RecoveryLabel }), nil, ErrStatement},
		"an unknown kind":         {admin(func(s *api.AdminStatement) { s.Kind = "reboot" }), nil, api.ErrAdmin},
		"a body of another kind":  {admin(func(s *api.AdminStatement) { s.Kind = api.AdminTicket }), nil, api.ErrAdmin},
		"a body with a tail":      {admin(func(s *api.AdminStatement) { s.Body = append(s.Body, 0) }), nil, api.ErrAdmin},
		"no body":                 {admin(func(s *api.AdminStatement) { s.Body = nil }), nil, api.ErrAdmin},
		"another spelling":        {long, nil, api.ErrNotCanonical},
		"a trailing byte":         {append(bytes.Clone(good), 0), nil, api.ErrMalformed},
		"cut":                     {good[:len(good)-1], nil, api.ErrMalformed},
		"signed by one":           {good, one, api.ErrApprovals},
		"by one, twice":           {good, append(slices.Clone(one), one...), api.ErrApprovals},
		"by one and a stranger":   {good, api.Approve(good, operatorKeys[0], stranger), api.ErrApprovals},
		"by two and a stranger":   {good, api.Approve(good, operatorKeys[0], operatorKeys[1], stranger), api.ErrApprovals},
		"by too many":             {good, api.Approve(good, append(slices.Clone(operatorKeys), stranger)...), api.ErrApprovals},
		"unsorted":                {good, reversed, api.ErrApprovals},
		"for another statement":   {good, two(used), api.ErrSignature},
		"a changed signature":     {good, bad, api.ErrSignature},
		"a malleable signature":   {good, other, api.ErrSignature},
		"the identity key's":      {good, []api.Approval{{Key: identity, Signature: make([]byte, 64)}}, api.ErrApprovals},
		"policy of another time":  {body(&api.NodePolicyChange{Parent: 2, Constraints: []string{"C:bb"}}), nil, ErrNodePolicy},
		"policy, unsorted":        {body(&api.NodePolicyChange{Parent: 1, Constraints: []string{"C:bb", "C:aa"}}), nil, api.ErrNodePolicy},
		"policy, empty":           {body(&api.NodePolicyChange{Parent: 1}), nil, api.ErrNodePolicy},
		"policy, long":            {body(&api.NodePolicyChange{Parent: 1, Constraints: []string{strings.Repeat("x", api.MaxConstraint+1)}}), nil, api.ErrNodePolicy},
		"removal of no slot":      {statement(t, m, &api.RemoveSlot{Slot: "c"}), nil, ErrSlot},
		"removal of the last":     {statement(t, m, &api.RemoveSlot{Slot: "a"}), nil, ErrLastSlot},
		"ticket for a member":     {ticket(func(b *api.Ticket) { b.ServerID = [32]byte{1} }), nil, ErrServerID},
		"ticket for who left":     {ticket(func(b *api.Ticket) { b.ServerID = [32]byte{2} }), nil, ErrRemoved},
		"ticket for a second one": {ticket(func(b *api.Ticket) { b.PlatformID = [32]byte{9} }), nil, ErrOneSlot},
	}
	if _, err := api.NewAdmin(id, 1, 2, &api.Ticket{Slot: "c"}); !errors.Is(err, api.ErrAdmin) {
		t.Errorf("a ticket for nobody: %v", err)
	}
	for name, c := range cases {
		if c.by == nil {
			c.by = two(c.raw)
		}
		rejected(t, name, m, &Operate{Statement: c.raw, Approvals: c.by}, c.want)
	}
	// What was refused so far has not used the sequence up.
	if got := m.Apply(m.View().Applied+1, encode(t, &Operate{Statement: good, Approvals: two(good)})); got != (Operated{2, "node-policy"}) {
		t.Fatalf("the good one: %v", got)
	}
	rejected(t, "the good one again", m, &Operate{Statement: good, Approvals: two(good)}, ErrSequence)
	for name, e := range map[string]*Operate{
		"no approvals": {Statement: good}, "no statement": {Approvals: one}, "long": {Statement: make([]byte, api.MaxAdmin+1), Approvals: one},
		"short key": {Statement: good, Approvals: []api.Approval{{Key: []byte{1}, Signature: make([]byte, 64)}}},
	} {
		if _, err := Encode(e); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// joining is an Admit for a new slot.
func joining(slot string, server, platform byte) *Admit {
	e := admit()
	e.Slot, e.ServerID, e.PlatformID = slot, [32]byte{server}, [32]byte{platform}
	return e
}

func TestTickets(t *testing.T) {
	t.Parallel()
	closed := func(m *api.Manifest) { m.OpenSlots = 0 }
	m := run(t, genesisOf(t, closed), put(1), admit()) // the founder needs none
	accepted := func(name string, e *Admit) {
		t.Helper()
		if got, ok := m.Apply(m.View().Applied+1, encode(t, e)).(Admitted); !ok || got.Member.ServerID != e.ServerID {
			t.Fatalf("%s: %v", name, got)
		}
	}
	rejected(t, "no ticket", m, joining("b", 2, 2), ErrTicket)
	operate(t, m, &api.Ticket{Slot: "b", ServerID: [32]byte{2}, PlatformID: [32]byte{2}})
	rejected(t, "another slot", m, joining("c", 2, 2), ErrTicket)
	rejected(t, "another platform", m, joining("b", 2, 3), ErrTicket)
	rejected(t, "another boot", m, joining("b", 3, 2), ErrTicket)
	if len(m.View().Tickets) != 1 {
		t.Fatal("a refused admission used the ticket up")
	}
	accepted("with its ticket", joining("b", 2, 2))
	if len(m.View().Tickets) != 0 {
		t.Fatal("the ticket was not used up")
	}
	rejoin := joining("b", 4, 2)
	rejoin.Incarnation = 2
	accepted("its platform rejoins without one", rejoin)

	// Another machine takes the slot over, and then the old one has no right to it.
	moved := joining("b", 5, 6)
	moved.Incarnation = 3
	rejected(t, "another machine without a ticket", m, moved, ErrTicket)
	operate(t, m, &api.Ticket{Slot: "b", ServerID: [32]byte{5}, PlatformID: [32]byte{6}})
	accepted("another machine with one", moved)
	back := joining("b", 7, 2)
	back.Incarnation = 4
	rejected(t, "the old machine comes back", m, back, ErrPlatform)

	// Who was removed returns with a new boot and a new ticket only.
	operate(t, m, &api.RemoveSlot{Slot: "b"})
	rejected(t, "a removed boot", m, joining("b", 5, 6), ErrRemoved)
	rejected(t, "a former boot of a removed slot", m, joining("c", 2, 2), ErrRemoved)
	rejected(t, "the machine's next boot", m, joining("b", 8, 6), ErrTicket)
	operate(t, m, &api.Ticket{Slot: "c", ServerID: [32]byte{8}, PlatformID: [32]byte{6}})
	accepted("with a ticket", joining("c", 8, 6))

	// A later ticket for a boot replaces the earlier, and the oldest give way.
	operate(t, m, &api.Ticket{Slot: "d", ServerID: [32]byte{9}, PlatformID: [32]byte{10}})
	operate(t, m, &api.Ticket{Slot: "e", ServerID: [32]byte{9}, PlatformID: [32]byte{10}})
	rejected(t, "a replaced ticket", m, joining("d", 9, 10), ErrTicket)
	for i := range MaxTickets {
		operate(t, m, &api.Ticket{Slot: "f", ServerID: [32]byte{20, byte(i)}, PlatformID: [32]byte{21}})
	}
	if len(m.View().Tickets) != MaxTickets {
		t.Errorf("%d tickets are kept", len(m.View().Tickets))
	}
	rejected(t, "the oldest ticket", m, joining("e", 9, 10), ErrTicket)
	restored := New()
	if err := restored.Restore(bytes.NewReader(snap(t, m))); err != nil || !bytes.Equal(snap(t, restored), snap(t, m)) {
		t.Errorf("restored: %v", err)
	}
}

// Open slots are given once, and not to machines that the operators removed.
func TestOpenSlots(t *testing.T) {
	t.Parallel()
	m := run(t, genesisOf(t, func(m *api.Manifest) { m.OpenSlots = 3 }), put(1), admit(), joining("b", 2, 2))
	operate(t, m, &api.RemoveSlot{Slot: "b"})
	rejected(t, "a removed machine in an open slot", m, joining("c", 3, 2), ErrTicket)
	for i := range byte(2) {
		if err, bad := m.Apply(m.View().Applied+1, encode(t, joining(string('c'+rune(i)), 10+i, 10+i))).(error); bad {
			t.Fatal(err)
		}
	}
	rejected(t, "one too many", m, joining("e", 20, 20), ErrTicket)
	operate(t, m, &api.RemoveSlot{Slot: "c"})
	rejected(t, "a removal opens no slot", m, joining("e", 20, 20), ErrTicket)
}

func TestRemovedAreBounded(t *testing.T) {
	t.Parallel()
	m := run(t, genesisOf(t, func(m *api.Manifest) { m.OpenSlots = 0 }), put(1), admit())
	for i := range MaxRemoved + 5 {
		e := joining("b", 2, 3)
		e.ServerID[1], e.ServerID[2], e.PlatformID[1], e.PlatformID[2] = byte(i), byte(i>>8), byte(i), byte(i>>8)
		operate(t, m, &api.Ticket{Slot: "b", ServerID: e.ServerID, PlatformID: e.PlatformID})
		if err, bad := m.Apply(m.View().Applied+1, encode(t, e)).(error); bad {
			t.Fatal(err)
		}
		operate(t, m, &api.RemoveSlot{Slot: "b"})
	}
	if n := len(m.View().Removed); n != MaxRemoved {
		t.Errorf("%d removed boots are kept", n)
	}
	if err := New().Restore(bytes.NewReader(snap(t, m))); err != nil {
		t.Error(err)
	}
}

func TestLevels(t *testing.T) {
	t.Parallel()
	low := genesis(t)
	low.Level = 1
	old := joining("b", 2, 2)
	old.Level = 1
	start := []Entry{low, put(1), admit(), old}

	m := run(t, start...)
	raw := statement(t, m, &api.Stop{})
	rejected(t, "a statement below its level", m, signed(raw), ErrLevel)
	rejected(t, "a level below its level", m, &RaiseLevel{Epoch: 1, Level: 2}, ErrLevel) // the kind came with level 2

	m = run(t, genesis(t), put(1), admit())
	rejected(t, "an old build joins", m, old, ErrLevel)
	rejected(t, "another epoch", m, &RaiseLevel{Epoch: 2, Level: 2}, ErrEpoch)
	rejected(t, "the present level", m, &RaiseLevel{Epoch: 1, Level: Level}, ErrLevel)
	if _, err := Encode(&RaiseLevel{Epoch: 1, Level: Level + 1}); !errors.Is(err, ErrKind) {
		t.Errorf("this build proposes a level that it does not know: %v", err)
	}

	// A later build, of level 3, raises it. This build halts only if the entry is accepted.
	raise, err := encodeAny(&RaiseLevel{Epoch: 1, Level: Level + 1})
	if err != nil {
		t.Fatal(err)
	}
	if err, _ := m.Apply(m.View().Applied+1, raise).(error); !errors.Is(err, ErrLevel) || m.Halted() != nil {
		t.Fatalf("a member does not know the level: %v", err)
	}
	newer := admit()
	newer.Level, newer.Incarnation, newer.ServerID = Level+1, 2, [32]byte{7}
	if err, bad := next(t, m, newer).(error); bad {
		t.Fatal(err)
	}
	later := NewAt(Level + 1)
	if err := later.Restore(bytes.NewReader(snap(t, m))); err != nil {
		t.Fatal(err)
	}
	before := snap(t, m)
	if got := later.Apply(m.View().Applied+1, raise); got != (Raised{Level + 1}) {
		t.Fatalf("the later build: %v", got)
	}
	if err, _ := m.Apply(m.View().Applied+1, raise).(error); !errors.Is(err, ErrHalted) || !errors.Is(err, ErrKind) {
		t.Fatalf("this build: %v", err)
	}
	m.halted = nil // look past the halt
	if !bytes.Equal(before, snap(t, m)) {
		t.Error("halting changed the state")
	}
	p := recovery(t, later) // by a build of before, or one that pretends
	back := NewAt(Level + 1)
	if err, _ := p.open(back, MaxPart).(error); !errors.Is(err, ErrRecovery) {
		t.Errorf("a recovery lowers the level: %v", err)
	}
	if err := New().Restore(bytes.NewReader(snap(t, later))); !errors.Is(err, ErrSnapshot) || !errors.Is(err, ErrKind) {
		t.Errorf("a snapshot of a later level: %v", err)
	}
}

// encodeAny is Encode without the bounds of this build.
func encodeAny(e Entry) ([]byte, error) {
	body, err := api.MarshalCanonical(e)
	if err != nil {
		return nil, err
	}
	return api.MarshalCanonical(envelope{Kind: e.kind(), Body: body})
}

// A build of level 1 halts at what it does not know, and keeps what it had.
func TestOlderBuildHalts(t *testing.T) {
	t.Parallel()
	low := genesis(t)
	low.Level = 1
	for name, e := range map[string]Entry{
		"raise":   &RaiseLevel{Epoch: 1, Level: 2},
		"operate": signed(statement(t, run(t, genesis(t)), &api.Stop{})),
		"recover": recovery(t, run(t, genesis(t), put(1), admit())).entry(),
		"part":    &RecoverPart{Data: []byte{1}},
	} {
		m := NewAt(1)
		if err, bad := m.Apply(1, encode(t, low)).(error); bad {
			t.Fatal(err)
		}
		before := m.View()
		if err, _ := m.Apply(2, encode(t, e)).(error); !errors.Is(err, ErrHalted) || !errors.Is(err, ErrKind) || m.Halted() == nil {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(before, m.View()) {
			t.Errorf("%s: state changed", name)
		}
	}
	m := NewAt(1)
	if err, _ := m.Apply(1, encode(t, genesis(t))).(error); !errors.Is(err, ErrHalted) {
		t.Errorf("genesis of a later level: %v", err)
	}
}
