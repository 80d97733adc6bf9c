package api

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
)

func operatorsOf(threshold uint64, seeds ...byte) (*Operators, []ed25519.PrivateKey) {
	o := &Operators{Threshold: threshold}
	var keys []ed25519.PrivateKey
	for _, b := range seeds {
		keys = append(keys, signer(b).PrivateKey)
		o.Keys = append(o.Keys, signer(b).Public())
	}
	slices.SortFunc(o.Keys, bytes.Compare)
	return o, keys
}

func TestApprovals(t *testing.T) {
	t.Parallel()
	o, keys := operatorsOf(2, 1, 2, 3)
	msg := []byte("a statement")
	if err := o.Check(msg, Approve(msg, keys[2], keys[0])); err != nil {
		t.Errorf("two of three: %v", err)
	}
	if err := o.Check(msg, Approve(msg, keys...)); err != nil {
		t.Errorf("all of them: %v", err)
	}
	// What comes from several hands, with rubbish in it, is put in order.
	wrong := Approve([]byte("another"), keys[1])
	gathered := o.Collect(msg, Approve(msg, keys[2]), wrong, nil, Approve(msg, signer(7).PrivateKey), Approve(msg, keys[0], keys[2]))
	if err := o.Check(msg, gathered); err != nil || len(gathered) != 2 {
		t.Errorf("gathered %d: %v", len(gathered), err)
	}
	reversed := slices.Clone(gathered)
	slices.Reverse(reversed)
	for name, list := range map[string][]Approval{
		"none": nil, "one": Approve(msg, keys[0]), "reversed": reversed,
		"twice the same": append(Approve(msg, keys[0]), Approve(msg, keys[0])...), "a stranger": Approve(msg, keys[0], signer(7).PrivateKey),
		"another message": Approve([]byte("another"), keys...), "no keys": make([]Approval, 2), "too many": make([]Approval, 4),
	} {
		if err := o.Check(msg, list); !errors.Is(err, ErrApprovals) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Operators{}).Check(msg, nil); !errors.Is(err, ErrApprovals) {
		t.Errorf("nobody approves nothing: %v", err)
	}
	// The file that operators pass on keeps its form.
	raw, err := json.Marshal(gathered)
	if err != nil {
		t.Fatal(err)
	}
	var back []Approval
	if err := DecodeJSON(raw, 4096, &back); err != nil || o.Check(msg, back) != nil || !strings.HasPrefix(string(raw), `[{"key":"`) {
		t.Errorf("%s: %v", raw, err)
	}
}

func TestAdminRoundTrip(t *testing.T) {
	t.Parallel()
	for _, body := range []AdminBody{
		&NodePolicyChange{Parent: 1, Constraints: []string{"C:aa", "C:bb"}}, &Ticket{Slot: "a", ServerID: ID{1}, PlatformID: ID{2}},
		&RemoveSlot{Slot: "a"}, &Stop{},
	} {
		raw, err := NewAdmin(ID{1}, 2, 3, body)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseAdmin(raw)
		if err != nil || s.Kind != body.AdminKind() || s.ClusterID != (ID{1}) || s.Epoch != 2 || s.Sequence != 3 {
			t.Fatalf("%s: %+v, %v", body.AdminKind(), s, err)
		}
		got, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		again, err := NewAdmin(ID{1}, 2, 3, got)
		if err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%s does not round-trip: %v", body.AdminKind(), err)
		}
		for i := range raw {
			if _, err := ParseAdmin(raw[:i]); err == nil {
				t.Fatalf("%s, cut at %d, is read", s.Kind, i)
			}
		}
	}
	for name, body := range map[string]AdminBody{
		"policy without a parent": &NodePolicyChange{Constraints: []string{"C:aa"}}, "policy without constraints": &NodePolicyChange{Parent: 1},
		"ticket for nobody": &Ticket{Slot: "a", PlatformID: ID{2}}, "ticket for any machine": &Ticket{Slot: "a", ServerID: ID{2}},
		"ticket for no slot": &Ticket{ServerID: ID{1}, PlatformID: ID{2}}, "removal of nothing": &RemoveSlot{},
	} {
		if _, err := NewAdmin(ID{1}, 1, 1, body); !errors.Is(err, ErrAdmin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func() ([]byte, error){
		"no cluster":  func() ([]byte, error) { return NewAdmin(ID{}, 1, 1, &Stop{}) },
		"no epoch":    func() ([]byte, error) { return NewAdmin(ID{1}, 0, 1, &Stop{}) },
		"no sequence": func() ([]byte, error) { return NewAdmin(ID{1}, 1, 0, &Stop{}) },
	} {
		if _, err := f(); !errors.Is(err, ErrAdmin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := &NodePolicyChange{Parent: 1}
	for i := range 20 {
		long.Constraints = append(long.Constraints, strings.Repeat(string('a'+rune(i)), MaxConstraint))
	}
	if _, err := NewAdmin(ID{1}, 1, 1, long); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a long policy: %v", err)
	}
}

func testRecovery() *RecoveryStatement {
	return &RecoveryStatement{Label: RecoveryLabel, ClusterID: ID{1}, Epoch: 2, Generation: 2, Enclave: ID{9},
		Source: RecoverySource{Epoch: 1, ServerID: ID{3}, Applied: 4, Term: 5, Chain: ID{6}, StateSHA256: ID{7}, LogSize: 8, LogRoot: ID{8}, NodePolicy: 1},
		Old:    []OldServer{{Slot: "a", ServerID: ID{3}, Fate: FateStopped}, {Slot: "b", ServerID: ID{4}, Fate: FateDestroyed}}}
}

func TestRecoveryStatement(t *testing.T) {
	t.Parallel()
	s := testRecovery()
	raw, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseRecovery(raw)
	if err != nil || !back.Names("a", ID{3}) || back.Names("b", ID{3}) || back.Names("c", ID{5}) {
		t.Fatalf("%+v, %v", back, err)
	}
	o, keys := operatorsOf(2, 1, 2, 3)
	if err := s.Check(ID{1}, o, Approve(raw, keys[:2]...)); err != nil {
		t.Errorf("two of three: %v", err)
	}
	if err := s.Check(ID{2}, o, Approve(raw, keys[:2]...)); !errors.Is(err, ErrRecovery) {
		t.Errorf("another cluster: %v", err)
	}
	o.Threshold = 1
	if err := s.Check(ID{1}, o, Approve(raw, keys[0])); !errors.Is(err, ErrRecovery) {
		t.Errorf("one of three, whose threshold is one: %v", err)
	}
	for name, change := range map[string]func(*RecoveryStatement){
		"label": func(s *RecoveryStatement) { s.Label = AdminLabel }, "cluster": func(s *RecoveryStatement) { s.ClusterID = ID{} },
		"epoch": func(s *RecoveryStatement) { s.Epoch = 1 }, "an epoch that nobody finds": func(s *RecoveryStatement) { s.Epoch = MaxEpoch + 1 }, "generation": func(s *RecoveryStatement) { s.Generation = 1 },
		"enclave": func(s *RecoveryStatement) { s.Enclave = ID{} }, "state": func(s *RecoveryStatement) { s.Source.StateSHA256 = ID{} },
		"index": func(s *RecoveryStatement) { s.Source.Applied = 0 }, "nobody": func(s *RecoveryStatement) { s.Old = nil },
		"unsorted": func(s *RecoveryStatement) { slices.Reverse(s.Old) }, "twice": func(s *RecoveryStatement) { s.Old[1] = s.Old[0] },
		"too many": func(s *RecoveryStatement) { s.Old = make([]OldServer, MaxOldServers+1) }, "no slot": func(s *RecoveryStatement) { s.Old[0].Slot = "" },
		"fate": func(s *RecoveryStatement) { s.Old[0].Fate = "" }, "lost": func(s *RecoveryStatement) { s.Old[0].Fate = FateLost },
		"itself": func(s *RecoveryStatement) { s.Enclave = ID{4} }, "words": func(s *RecoveryStatement) { s.Accept = "yes" },
		"more than the words":                  func(s *RecoveryStatement) { s.Accept = AcceptServersSentence + " And more. " + AcceptEntriesSentence },
		"the words twice":                      func(s *RecoveryStatement) { s.Accept = AcceptServersSentence + " " + AcceptServersSentence },
		"in another order":                     func(s *RecoveryStatement) { s.Accept = AcceptEntriesSentence + " " + AcceptServersSentence },
		"lost, and words about something else": func(s *RecoveryStatement) { s.Old[0].Fate, s.Accept = FateLost, AcceptEntriesSentence },
	} {
		s := testRecovery()
		change(s)
		if _, err := s.Marshal(); !errors.Is(err, ErrRecovery) {
			t.Errorf("%s: Marshal: %v", name, err)
		}
		raw, err := MarshalCanonical(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRecovery(raw); !errors.Is(err, ErrRecovery) {
			t.Errorf("%s: ParseRecovery: %v", name, err)
		}
	}
	s.Old[0].Fate = FateLost
	for _, entries := range []bool{false, true} {
		s.Accept = Accept(true, entries)
		if _, err := s.Marshal(); err != nil || !s.AcceptsServers() || s.AcceptsEntries() != entries {
			t.Errorf("lost, in words: %v", err)
		}
	}
}

func TestFinalCheckpoint(t *testing.T) {
	t.Parallel()
	c := FinalCheckpoint{ClusterID: ID{1}, Epoch: 1, ServerID: ID{2}, Applied: 3, Chain: ID{4}, StateSHA256: ID{5}, LogSize: 6, LogRoot: ID{7}}
	f, err := SignFinal(signer(1), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(signer(1).Public(), ID{1}); err != nil {
		t.Error(err)
	}
	if err := f.Verify(signer(2).Public(), ID{1}); !errors.Is(err, ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	if err := f.Verify(signer(1).Public(), ID{2}); !errors.Is(err, ErrRecovery) {
		t.Errorf("another cluster: %v", err)
	}
	for name, change := range map[string]func(*FinalCheckpoint){
		"epoch": func(c *FinalCheckpoint) { c.Epoch++ }, "server": func(c *FinalCheckpoint) { c.ServerID[0]++ }, "index": func(c *FinalCheckpoint) { c.Applied++ },
		"chain": func(c *FinalCheckpoint) { c.Chain[0]++ }, "state": func(c *FinalCheckpoint) { c.StateSHA256[0]++ },
		"log size": func(c *FinalCheckpoint) { c.LogSize++ }, "log root": func(c *FinalCheckpoint) { c.LogRoot[0]++ },
	} {
		forged := *f
		change(&forged.Checkpoint)
		if err := forged.Verify(signer(1).Public(), ID{1}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := SignFinal(signer(1), FinalCheckpoint{}); !errors.Is(err, ErrRecovery) {
		t.Errorf("an empty one: %v", err)
	}
}

func FuzzParseAdmin(f *testing.F) {
	for _, body := range []AdminBody{&Stop{}, &RemoveSlot{Slot: "a"}, &Ticket{Slot: "a", ServerID: ID{1}, PlatformID: ID{2}}, &NodePolicyChange{Parent: 1, Constraints: []string{"C:aa"}}} {
		raw, err := NewAdmin(ID{1}, 1, 1, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseAdmin(raw)
		if err != nil {
			return
		}
		if again, err := s.Marshal(); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x reads as %x: %v", raw, again, err)
		}
		body, err := s.Open()
		if err != nil {
			return
		}
		if again, err := NewAdmin(s.ClusterID, s.Epoch, s.Sequence, body); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x is made again as %x: %v", raw, again, err)
		}
	})
}

func FuzzParseRecovery(f *testing.F) {
	raw, err := testRecovery().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseRecovery(raw)
		if err != nil {
			return
		}
		if again, err := s.Marshal(); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x reads as %x: %v", raw, again, err)
		}
	})
}
