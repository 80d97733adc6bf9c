package node

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// fullDisk is an archive whose disk can be filled.
type fullDisk struct {
	raftstore.Archive
	full *atomic.Bool
}

func (d fullDisk) Sync() error {
	if d.full.Load() {
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return d.Archive.Sync()
}

func onDisk(cfg *Config) *atomic.Bool {
	full := new(atomic.Bool)
	cfg.Archive = func(dir string, id raftstore.ServerID) (raftstore.Archive, error) {
		a, err := file.Create(dir, id)
		return fullDisk{a, full}, err
	}
	return full
}

func readyz(t *testing.T, n *running) (int, string) {
	t.Helper()
	res, err := http.Get("http://" + n.AdminAddr() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// The attack: the host fills the disks of a majority. The nodes must stop
// serving and must not end: their memory is where the roots are.
func TestFullDisksEndServiceAndNotTheRoots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var disks []*atomic.Bool
	for i, slot := range []string{"a", "b", "c"} {
		cfg := s.config(slot, s.launch("machine-"+slot, nodeImage))
		disks = append(disks, onDisk(&cfg))
		if i == 0 {
			s.genesis(&cfg)
		}
		n := s.run(cfg)
		s.awaitReady(n)
	}
	for _, d := range disks[:2] {
		d.Store(true)
	}
	for _, n := range s.nodes[:2] {
		// Any term or entry makes it write; a leader cut off from the rest campaigns.
		for n.store.Load().Err() == nil {
			s.nodes[0].store.Load().Propose(t.Context(), []byte{0xff})
			s.nodes[2].store.Load().Propose(t.Context(), []byte{0xff})
			select {
			case <-n.store.Load().Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
		if ae, ok := errors.AsType[*raftstore.ArchiveError](n.store.Load().Err()); !ok || !errors.Is(ae, syscall.ENOSPC) {
			t.Fatalf("the store's reason: %v", n.store.Load().Err())
		}
		<-n.store.Load().Done()
	}
	for _, n := range s.nodes[:2] {
		select {
		case err := <-n.done:
			t.Fatalf("the process of node %s has ended, and its roots with it: %v", n.slot, err)
		default:
		}
		if code, body := readyz(t, n); code == http.StatusOK || !strings.Contains(body, "keeps its roots") {
			t.Errorf("readiness of a failed node: %d %q", code, body)
		}
		if err := (replica{n.store.Load()}).SafeRead(t.Context()); err == nil {
			t.Error("a failed node answered a read")
		}
		if _, err := n.secrets.Reveal(); err != nil {
			t.Errorf("the roots are gone: %v", err)
		}
		n.stop() // what is left to the operator
		if err := <-n.done; err != nil {
			t.Errorf("an ordinary stop of a failed node: %v", err)
		}
	}
}
