package node

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/history"
)

// The operators end the epoch. A majority that still runs does not stand in the
// way of a recovery then, and one node that is left running is all it takes: every
// server is stopped with proof, no share is needed, and no fork accepted.
func TestPlannedStopFromMemory(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	before, _ := l.keyOf(l.client(l.endpoints()...), 0)
	l.stop()
	finals := l.awaitFinals()
	x := l.claimant("d")
	for _, n := range l.nodes {
		if s, err := x.look(n); err != nil || !s.a.report.Ended {
			t.Errorf("a look at node %s of an epoch that has ended: %v", n.slot, err)
		}
	}
	alive := l.nodes[1]
	dead := l.lose(alive)
	r := l.fromSurvivors(dead, []*running{alive}, func(_ *RecoveryReport, s *api.RecoveryStatement) {
		for i := range s.Old {
			s.Old[i].Fate = api.FateStopped
		}
	})
	r.Finals = finals
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	if v := first.machine.View(); v.Epoch != 2 || v.Ended {
		t.Errorf("epoch %d, ended %t", v.Epoch, v.Ended)
	}
	if k, _ := l.keyOf(l.client(first.APIAddr()), 1); !bytes.Equal(k, before) {
		t.Error("another key after the stop")
	}
	l.isFenced(alive)
}

// The host fills all disks, and then two of the machines are gone. The third
// has served nothing since, and its memory is what the cluster goes on from.
func TestSurvivorWithAFullDisk(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	full := new(atomic.Bool)
	l.archive = func(dir string, id raftstore.ServerID) (raftstore.Archive, error) {
		a, err := file.Create(dir, id)
		return fullDisk{a, full}, err
	}
	l.found("a", "b", "c")
	before, reply := l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	alive := l.leader()
	full.Store(true)
	if _, err := alive.propose(t.Context(), &state.RaiseLevel{Epoch: 1, Level: state.Level}); err == nil {
		t.Fatal("written to a full disk")
	}
	poll(t, "its store fails", func() bool { return alive.store.Load().Err() != nil })
	dead := l.lose(alive)
	r := l.fromSurvivors(nil, []*running{alive}, nil)
	r.Receipts = []string{l.write("receipt.json", reply.Receipt)}
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	if k, _ := l.keyOf(l.client(first.APIAddr()), 1); !bytes.Equal(k, before) {
		t.Error("another key")
	}
	if err := alive.readiness(t.Context()); err == nil || !strings.Contains(err.Error(), "for a recovery") {
		t.Errorf("readiness: %v", err)
	}
}

// told is a channel on which somebody has said something, and no more comes.
type told struct {
	net.Conn
	io.Reader
}

func (c told) Read(b []byte) (int, error) { return c.Reader.Read(b) }
func (told) SetDeadline(time.Time) error  { return nil }
func (told) Write(b []byte) (int, error)  { return len(b), nil }

// Whoever speaks recover/1 is attested, and may still be broken: what is not whole
// and in order is refused, within bounds.
func FuzzSurvivorMessages(f *testing.F) {
	var out bytes.Buffer
	w := sink{&out}
	if err := sendRecords(w, []raftstore.Record{{Kind: raftstore.RecordLog, Index: 1, Term: 1, Data: []byte{1}}, {Kind: raftstore.RecordLog, Index: 2, Term: 1}}); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(out.Bytes()))
	f.Add(out.Bytes()[:out.Len()-6])
	out.Reset()
	for _, m := range []any{surviveRequest{Version: 1, Statement: []byte{0x80}, Approvals: []api.Approval{{Key: []byte{1}}}}, survivorStopped{Secrets: []byte{1}}, survivorHead{Stopped: true}} {
		if err := send(w, kindSurvive, m); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := told{Reader: bytes.NewReader(raw)}
		if h, err := history.Collect(receiveRecords(c), raftstore.Chain{Epoch: 1}); err == nil && h.Complete() != nil {
			t.Fatal("half a history is taken")
		}
		var req surviveRequest
		if expect(told{Reader: bytes.NewReader(raw)}, kindSurvive, &req) == nil {
			if s, err := api.ParseRecovery(req.Statement); err == nil && s.Check(s.ClusterID, &api.Operators{Threshold: 1, Keys: [][]byte{make([]byte, 32)}}, req.Approvals) == nil {
				t.Fatal("approvals of nobody are believed")
			}
		}
		var head survivorHead
		_ = answered(told{Reader: bytes.NewReader(raw)}, kindHead, &head)
		var stopped survivorStopped
		_ = answered(told{Reader: bytes.NewReader(raw)}, kindStopped, &stopped)
	})
}

// sink is a channel that keeps what is said.
type sink struct{ *bytes.Buffer }

func (sink) Close() error                     { return nil }
func (sink) LocalAddr() net.Addr              { return nil }
func (sink) RemoteAddr() net.Addr             { return nil }
func (sink) SetDeadline(time.Time) error      { return nil }
func (sink) SetReadDeadline(time.Time) error  { return nil }
func (sink) SetWriteDeadline(time.Time) error { return nil }
