package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// archiveServer starts claviger-archive and returns where it listens.
func (w *world) archiveServer(listen string) (p *process, address string) {
	w.t.Helper()
	text := fmt.Sprintf("listen: %s\ndata: archives\narchive: bolt\n", listen)
	if err := os.WriteFile(filepath.Join(w.dir, "archive.yaml"), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	p = w.start("msg=ready", "claviger-archive", "archive.yaml")
	m := regexp.MustCompile(`listen=(\S+)`).FindStringSubmatch(p.tail())
	if m == nil {
		w.t.Fatalf("no address in:\n%s", p.tail())
	}
	return p, m[1]
}

// configure replaces the archive line of a node's configuration.
func (w *world) configure(slot, archive string) {
	w.t.Helper()
	name := filepath.Join(w.dir, slot+".yaml")
	raw, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	if !strings.Contains(string(raw), "\narchive: bolt ") {
		w.t.Fatalf("%s has no archive: bolt", name)
	}
	text := strings.Replace(string(raw), "\narchive: bolt ", "\n"+archive+" ", 1)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// archives asks an archive server for the server ids it has.
func (w *world) archives(address string) (ids []string) {
	w.t.Helper()
	r := w.run("claviger-archive", "list", "--json", address)
	var list []struct{ Server string }
	if err := json.Unmarshal([]byte(r.stdout), &list); r.code != 0 || err != nil {
		w.t.Fatalf("claviger-archive list: exit code %d, %v: %s%s", r.code, err, r.stdout, r.stderr)
	}
	for _, l := range list {
		ids = append(ids, l.Server)
	}
	return ids
}

// ready asks a node's admin listener.
func (w *world) ready(slot string) (code int, body string) {
	w.t.Helper()
	res, err := http.Get("http://" + configured(w.t, filepath.Join(w.dir, slot+".yaml"), "admin: ") + "/readyz")
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

// failing waits until n of the nodes say that their stores have failed, and checks that their processes, with the roots,
// are alive.
func (w *world) failing(n int, slots ...string) {
	w.t.Helper()
	var failed []string
	for limit := time.Now().Add(60 * time.Second); len(failed) < n; time.Sleep(50 * time.Millisecond) {
		said := map[string]string{}
		for _, slot := range slots {
			code, body := w.ready(slot)
			if said[slot] = body; code == http.StatusServiceUnavailable && strings.Contains(body, "keeps its roots") && !slices.Contains(failed, slot) {
				failed = append(failed, slot)
			}
		}
		if time.Now().After(limit) {
			w.t.Fatalf("%d nodes have failed, want %d: readyz says %v", len(failed), n, said)
		}
		w.run(deriveArgs("laptop", "--timeout", "2s")...) // something to write, which may be refused
	}
	for _, slot := range failed {
		w.outlives(slot)
	}
}

func (w *world) outlives(slot string) {
	w.t.Helper()
	if err := w.nodes[slot].cmd.Process.Signal(syscall.Signal(0)); err != nil {
		w.t.Errorf("the process of node %s is gone, and its roots with it: %v", slot, err)
	}
	if log := w.nodes[slot].tail(); !strings.Contains(log, "THE STORE HAS FAILED") || !strings.Contains(log, "archive/remote") {
		w.t.Errorf("the log of node %s does not say why:\n%s", slot, log)
	}
}

// TestArchiveServer: three nodes keep their archives with one claviger-archive in raft-boltdb. It works through a failover;
// kill -9 of the server stops every node cleanly, and what was archived is there afterwards.
func TestArchiveServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server, address := w.archiveServer("127.0.0.1:0")
	for _, slot := range []string{"a", "b", "c"} {
		w.configure(slot, "archive: remote\narchive_server: "+address)
	}
	w.node("a", "--genesis")
	w.node("b")
	w.node("c")
	leader := w.awaitVoters(3)
	first := w.key("laptop")
	if ids := w.archives(address); len(ids) != 3 {
		t.Errorf("archives of three boots: %v", ids)
	}
	w.nodes[leader].kill()
	w.node(leader)
	w.awaitVoters(3)
	if again := w.key("laptop"); again != first {
		t.Error("the key changed with the leader")
	}
	ids := w.archives(address)
	if len(ids) != 4 {
		t.Errorf("archives of four boots: %v", ids)
	}

	server.kill()
	// The last of them may never find out: without a majority it has nothing to write. It serves nothing either.
	w.failing(2, "a", "b", "c")
	for slot := range w.nodes {
		if code, body := w.ready(slot); code == http.StatusOK {
			t.Errorf("node %s is ready without a majority: %s", slot, body)
		}
	}
	if r := w.run(deriveArgs("laptop", "--timeout", "3s")...); r.code != 1 || r.stdout != "" {
		t.Errorf("without archives a key was released: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	for slot, p := range w.nodes {
		if code := p.stop(t); code != 0 {
			t.Errorf("node %s stopped with exit code %d:\n%s", slot, code, p.tail())
		}
	}

	again, address := w.archiveServer(address)
	if after := w.archives(address); len(after) != len(ids) {
		t.Errorf("archives after kill -9: %v, before it: %v", after, ids)
	}
	for _, text := range ids {
		id, err := raftstore.ParseServerID(text)
		if err != nil {
			t.Fatal(err)
		}
		n, size := 0, 0
		for r, err := range remote.Records(t.Context(), address, remote.Name{Attempt: 1, Server: id}, remote.Options{}) {
			if err != nil {
				t.Fatalf("archive %s after %d records: %v", text, n, err)
			}
			n, size = n+1, size+len(r)
		}
		if n < 10 {
			t.Errorf("archive %s has %d records", text, n)
		}
		t.Logf("archive %.12s: %d sealed records, %d bytes", text, n, size)
	}
	if code := again.stop(t); code != 0 {
		t.Errorf("claviger-archive stopped with exit code %d:\n%s", code, again.tail())
	}
}

// TestArchiveServerOfAMinority: the node whose archive server is killed stops serving and keeps its roots; the majority on
// disks of its own does not notice. One of them has relaxed fsync, and says what that risks.
func TestArchiveServerOfAMinority(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server, address := w.archiveServer("127.0.0.1:0")
	w.configure("a", "archive: file\nfsync: relaxed")
	w.configure("b", "archive: file")
	w.configure("c", "archive: remote\narchive_server: "+address)
	w.node("a", "--genesis")
	if log := w.nodes["a"].tail(); !strings.Contains(log, "fsync is relaxed") {
		t.Errorf("node a does not say that fsync is relaxed:\n%s", log)
	}
	w.node("b")
	w.node("c")
	w.awaitVoters(3)
	first := w.key("laptop")
	server.kill()
	w.failing(1, "c")
	if again := w.key("laptop"); again != first {
		t.Error("the key changed")
	}
	for _, slot := range []string{"a", "b"} {
		if code, body := w.ready(slot); code != http.StatusOK {
			t.Errorf("node %s, whose archive is sound, is not ready: %d %s", slot, code, body)
		}
	}
}
