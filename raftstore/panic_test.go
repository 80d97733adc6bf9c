package raftstore

import (
	"io"
	"testing"
	"testing/synctest"
)

// fragileMachine panics where it is told to.
type fragileMachine struct {
	listMachine
	capture, write, restore bool
}

func (m *fragileMachine) Snapshot() (io.WriterTo, error) {
	if m.capture {
		panic("no snapshot")
	}
	return m, nil
}

func (m *fragileMachine) WriteTo(w io.Writer) (int64, error) {
	if m.write {
		panic("no bytes")
	}
	return listSnapshot(m.list()).WriteTo(w)
}

func (m *fragileMachine) Restore(r io.Reader) error {
	if m.restore {
		panic("no state")
	}
	return m.listMachine.Restore(r)
}

// A machine that panics ends its own service and never the process, whose memory holds the roots.
func TestPanicsOfTheMachineEndNoProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		m, late := &fragileMachine{}, &fragileMachine{restore: true}
		net.machines["a"], net.machines["late"] = m, late
		a := net.cluster(t, "a")[0]
		propose(t, a, "before")
		for name, panics := range map[string]*bool{"captured": &m.capture, "written": &m.write} {
			*panics = true
			if err := a.Compact(t.Context()); err == nil || a.Halted() {
				t.Errorf("a state that cannot be %s: error %v, halted %v", name, err, a.Halted())
			}
			*panics = false
		}
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		for _, e := range entries("more", 5) {
			propose(t, a, e)
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := net.start(t, "late")
		_, prev := a.Members()
		if _, err := a.AddNonvoter(t.Context(), b.id, b.addr, prev); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server that cannot restore is halted", b.Halted)
		if b.AppliedIndex() != 0 || b.Err() != nil {
			t.Errorf("it counts as having applied %d, and says %v", b.AppliedIndex(), b.Err())
		}
	})
}
