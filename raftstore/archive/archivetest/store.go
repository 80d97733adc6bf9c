package archivetest

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

// storeFault is a fault of one server's disk, how a store meets it and what it calls it.
type storeFault struct {
	name   string
	rules  []Rule            // refused on the thread of the archive, or
	breaks func(root string) // something else goes wrong
	errno  syscall.Errno
	ops    []string
	trim   bool // it is met when the store takes a snapshot
}

// Stores runs three stores with archives of the kind and breaks the disk of one,
// the leader's and a follower's. More are further faults, by name.
func Stores(t *testing.T, k Kind, more map[string]func(root string)) {
	faults := []storeFault{
		{name: "disk full", rules: writesFail(syscall.ENOSPC), errno: syscall.ENOSPC, ops: []string{"append", "sync"}},
		{name: "write error", rules: writesFail(syscall.EIO), errno: syscall.EIO, ops: []string{"append", "sync"}},
		{name: "fsync error", rules: syncsFail(syscall.EIO), errno: syscall.EIO, ops: []string{"sync"}},
		{name: "disk full at a snapshot", rules: writesFail(syscall.ENOSPC), errno: syscall.ENOSPC, ops: []string{"append", "sync", "cut"}, trim: true},
	}
	for name, f := range more {
		faults = append(faults, storeFault{name: name, breaks: f, ops: []string{"append", "sync", "cut"}})
	}
	for _, f := range faults {
		for role, victim := range map[string]int{"leader": 0, "follower": 1} {
			t.Run(f.name+", "+role, func(t *testing.T) {
				t.Parallel()
				storeWithFault(t, k, f, victim)
			})
		}
	}
}

func storeWithFault(t *testing.T, k Kind, f storeFault, which int) {
	boots := []boot{{name: "a"}, {name: "b", key: 1}, {name: "c", key: 2}}
	var th *thread
	if f.breaks == nil {
		th = newThread(t)
		boots[which].place = th.Place
	}
	_, servers := found(t, k, boots...)
	victim := servers[which]
	rest := slices.DeleteFunc(slices.Clone(servers), func(s *server) bool { return s == victim })
	before := acknowledge(t, servers, "before", 15)
	eventually(t, "the victim has what was acknowledged", func() bool { return victim.has(before) })
	if th != nil {
		if err := th.Refuse(f.rules); err != nil {
			t.Fatal(err)
		}
	} else {
		f.breaks(victim.root)
	}
	if f.trim {
		if err := victim.Compact(t.Context()); err == nil {
			t.Error("a snapshot was taken that could not be archived")
		}
	}
	during := acknowledge(t, servers, "during", 5)
	victim.stoppedBy(t, k, f)
	after := acknowledge(t, rest, "after", 10)
	want := slices.Concat(before, during, after)
	for _, s := range rest {
		eventually(t, "the others have all that was acknowledged", func() bool { return s.has(want) })
		if s.Err() != nil {
			t.Errorf("a store with a sound disk has failed: %v", s.Err())
		}
	}
	victim.recoverable(t, k, before)
}

// stoppedBy checks that the store stops by itself, says why and answers nothing.
func (s *server) stoppedBy(t *testing.T, k Kind, f storeFault) {
	t.Helper()
	<-s.Done()
	failure, ok := errors.AsType[*raftstore.ArchiveError](s.Err())
	if !ok || !slices.Contains(f.ops, failure.Op) {
		t.Fatalf("the reason is %v, want a failed %v", s.Err(), f.ops)
	}
	if f.errno != 0 && !errors.Is(failure, f.errno) && (!k.Distant || f.errno == syscall.ENOSPC) {
		t.Errorf("the reason of the disk is lost: %v", failure)
	}
	if _, _, err := s.Propose(t.Context(), []byte("x")); !errors.Is(err, raftstore.ErrStopped) {
		t.Errorf("the stopped store answers a proposal with %v", err)
	}
	if err := s.SafeRead(t.Context()); err == nil {
		t.Error("the stopped store answers a read")
	}
}

// recoverable checks what a recovery finds on the broken disk: genuine records in
// order, among them all that was acknowledged while the disk was sound.
func (s *server) recoverable(t *testing.T, k Kind, acknowledged []string) {
	t.Helper()
	read, err := k.read(t, imageOf(t, s.root), s.boot.id())
	if err != nil {
		t.Logf("the archive ends with: %v", err)
	}
	o := judge(t, s.truth(t), read, err)
	at := 0
	for _, r := range o.records {
		if r.Kind == raftstore.RecordLog && r.Type == 0 && at < len(acknowledged) && string(r.Data) == acknowledged[at] {
			at++
		}
	}
	if at != len(acknowledged) {
		t.Fatalf("%d of %d acknowledged entries are in the archive", at, len(acknowledged))
	}
}
