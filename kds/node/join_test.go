package node

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// dialJoin opens join/1 to a member as an attested node that may then misbehave.
func dialJoin(t testing.TB, n *Node, member *running) *ratls.Conn {
	t.Helper()
	raw, err := net.Dial("tcp", member.PeerAddr())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ratls.Client(t.Context(), raw, &ratls.Config{Protocols: []string{protocolJoin}, ClusterID: n.cfg.ClusterID, Epoch: 1,
		Key: n.boot.key, Attest: n.proveJoiner, Verify: n.verifyMember})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// An admission that breaks off after the grant leaves the joiner outside the
// configuration, and is taken up again by the same boot.
func TestInterruptedAdmissionIsResumed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	n, err := New(s.config("b", s.launch("machine-b", nodeImage)))
	if err != nil {
		t.Fatal(err)
	}
	c := dialJoin(t, n, a)
	if err := send(c, kindRequest, joinRequest{Version: 1, Slot: "b", RaftAddr: n.peerAddr, APIAddr: n.apiAddr, Level: state.Level}); err != nil {
		t.Fatal(err)
	}
	var g joinGrant
	if err := expect(c, kindGrant, &g); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if members, _ := a.store.Load().Members(); len(members) != 1 {
		t.Fatalf("a joiner that acknowledged nothing is in the configuration: %v", members)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Node: n, slot: "b", done: make(chan error, 1), stop: cancel}
	go func() { r.done <- n.Run(ctx) }()
	t.Cleanup(func() { n.Close(); cancel() })
	s.awaitReady(r)
	for _, m := range a.machine.View().Members {
		if m.Slot == "b" && m.Incarnation != 1 {
			t.Errorf("the same boot was admitted again as incarnation %d", m.Incarnation)
		}
	}
}

// An attested joiner that speaks nonsense gets nothing and harms nobody.
func TestMalformedJoinRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	n, err := New(s.config("b", s.launch("machine-b", nodeImage)))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	frame := func(k kind, body []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		return append(append(b, byte(k)), body...)
	}
	good, err := api.MarshalCanonical(joinRequest{Version: 1, Slot: "b", RaftAddr: "x:1", APIAddr: "x:2", Level: state.Level})
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"oversized":     append(binary.BigEndian.AppendUint32(nil, maxMessage+1), byte(kindRequest)),
		"another kind":  frame(kindAck, good),
		"trailing byte": frame(kindRequest, append(good[:len(good):len(good)], 0)),
		"empty":         frame(kindRequest, nil),
		"not CBOR":      frame(kindRequest, []byte("request")),
	} {
		c := dialJoin(t, n, a)
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(raw); err != nil {
			t.Fatal(err)
		}
		if k, body, err := receive(c); err == nil {
			t.Errorf("%s: answered with kind %d, %d bytes", name, k, len(body))
		}
	}
	for name, req := range map[string]joinRequest{
		"another version": {Version: 2, Slot: "b", RaftAddr: "x:1", APIAddr: "x:2", Level: state.Level},
		"bad slot":        {Version: 1, Slot: "../b", RaftAddr: "x:1", APIAddr: "x:2", Level: state.Level},
		"bad address":     {Version: 1, Slot: "b", RaftAddr: "x 1", APIAddr: "x:2", Level: state.Level},
		"no address":      {Version: 1, Slot: "b", RaftAddr: "x:1", Level: state.Level},
		"no level":        {Version: 1, Slot: "b", RaftAddr: "x:1", APIAddr: "x:2"},
	} {
		c := dialJoin(t, n, a)
		if err := send(c, kindRequest, req); err != nil {
			t.Fatal(err)
		}
		var g joinGrant
		if r, ok := errors.AsType[*RefusedError](expect(c, kindGrant, &g)); !ok || r.Retry {
			t.Errorf("%s: not refused for good", name)
		}
	}
	if slots := a.machine.View().Members; len(slots) != 1 {
		t.Errorf("%d slots", len(slots))
	}
}

// A cluster takes MaxSlots slots and no more, however many genuine enclaves a host runs.
func TestSlotsAreBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	for i := range MaxSlots - 1 { // admitted, never finished: the slots are taken all the same
		slot := "s" + string(rune('0'+i))
		n, err := New(s.config(slot, s.launch("machine-"+slot, nodeImage)))
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		c := dialJoin(t, n, a)
		if err := send(c, kindRequest, joinRequest{Version: 1, Slot: slot, RaftAddr: "127.0.0.1:1", APIAddr: "127.0.0.1:1", Level: state.Level}); err != nil {
			t.Fatal(err)
		}
		var g joinGrant
		err = expect(c, kindGrant, &g)
		for r, ok := errors.AsType[*RefusedError](err); ok && r.Retry; r, ok = errors.AsType[*RefusedError](err) {
			c = dialJoin(t, n, a) // the one before may still be winding up
			send(c, kindRequest, joinRequest{Version: 1, Slot: slot, RaftAddr: "127.0.0.1:1", APIAddr: "127.0.0.1:1", Level: state.Level})
			err = expect(c, kindGrant, &g)
		}
		if err != nil {
			t.Fatalf("slot %s: %v", slot, err)
		}
		c.Close()
	}
	poll(t, "the last admission is over", func() bool { return len(a.admitSem) == 0 })
	if err := s.refused(s.config("one-more", s.launch("machine-more", nodeImage))); err == nil {
		t.Error("one more slot was given")
	}
}

func FuzzJoinMessages(f *testing.F) {
	seed := func(v any) {
		b, err := api.MarshalCanonical(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(joinRequest{Version: 1, Slot: "a", RaftAddr: "x:1", APIAddr: "x:2", Level: state.Level})
	seed(joinGrant{Statement: []byte{1}, Secrets: []byte{2}})
	seed(joinRefusal{Text: "no"})
	seed(joinIndex{Index: 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		var req joinRequest
		var g joinGrant
		var i joinIndex
		for _, v := range []any{&req, &g, &i} {
			clone := append([]byte(nil), b...)
			if decode(kindGrant, clone, kindGrant, v) == nil {
				again, err := api.MarshalCanonical(v)
				if err != nil || string(again) != string(b) {
					t.Fatalf("two encodings of one message: %x, %x", b, again)
				}
			}
		}
		if err := decode(kindRefusal, append([]byte(nil), b...), kindGrant, &g); err == nil {
			t.Fatal("a refusal passed as a grant")
		}
	})
}
