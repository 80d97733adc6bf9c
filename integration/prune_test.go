package integration

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore/archive/remote"
)

// TestPrune: nodes that restart leave archives behind, on files, in databases and with an archive server. What the leader
// does not know as the archive of a boot in a slot goes, once it has rested and when it is asked for; nothing else does. What
// is left is enough to recover from: the same key, after every node has died at once.
func TestPrune(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, address := w.archiveServer("127.0.0.1:0")
	w.configure("a", "archive: file")
	w.configure("c", "archive: remote\narchive_server: "+address)
	w.node("a", "--genesis")
	w.node("b")
	w.node("c")
	w.awaitVoters(3)
	first := w.key("laptop")
	stores := []string{"data/a", "data/b", "archives"}
	ended := map[string][]string{}
	for _, dir := range stores {
		ended[dir] = w.archivesIn(dir)
	}
	for _, slot := range []string{"a", "b", "c"} {
		w.nodes[slot].kill()
		w.node(slot)
		w.awaitVoters(3)
	}
	link := w.decoys(stores[0])

	for _, dir := range stores {
		both := w.archivesIn(dir)
		if r := w.prune(dir, "--delete"); r.Ended != 0 || len(r.Archives) != 2 || !slices.Equal(w.archivesIn(dir), both) {
			t.Errorf("%s: what was written to just now was pruned: %+v", dir, r)
		}
		if r := w.prune(dir, "--idle", "0s"); r.Ended != 1 || r.Bytes == 0 || r.Deleted || !slices.Equal(w.archivesIn(dir), both) {
			t.Errorf("%s: nothing was to be deleted yet: %+v", dir, r)
		}
		r := w.prune(dir, "--idle", "0s", "--delete")
		left := w.archivesIn(dir)
		if r.Ended != 1 || !r.Deleted || len(left) != 1 || !slices.Contains(both, left[0]) || slices.Contains(ended[dir], left[0]) {
			t.Errorf("%s: had %q, of which %q have ended; left are %q: %+v", dir, both, ended[dir], left, r)
		}
	}
	if _, err := os.Stat(filepath.Join(link, "precious")); err != nil {
		t.Errorf("behind a link: %v", err)
	}
	w.refuseToPrune()

	for _, slot := range []string{"a", "b", "c"} {
		w.nodes[slot].kill()
	}
	w.recoverFrom("a", "data/a")
	if again := w.key("laptop", "--min-epoch", "2", "--generation", "1"); again != first {
		t.Error("the key changed with a recovery from what was left")
	}
}

// archivesIn lists the archives in a data directory, as a recovery finds them.
func (w *world) archivesIn(dir string) (ids []string) {
	w.t.Helper()
	names, err := remote.Directory{Root: filepath.Join(w.dir, dir)}.List()
	if err != nil || len(names) == 0 {
		w.t.Fatalf("%s: %v, %v", dir, names, err)
	}
	for _, n := range names {
		ids = append(ids, n.String())
	}
	return ids
}

// decoys puts beside archives what is none: a link to a directory, named as a server.
func (w *world) decoys(dir string) (target string) {
	w.t.Helper()
	target = w.t.TempDir()
	for _, err := range []error{
		os.WriteFile(filepath.Join(target, "precious"), nil, 0o600),
		os.Symlink(target, filepath.Join(w.dir, dir, strings.Repeat("5", 64))),
	} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return target
}

type pruned struct {
	Archives []struct{ Server string }
	Ended    int
	Bytes    int64 `json:"ended_bytes"`
	Deleted  bool
}

func (w *world) prune(dir string, flags ...string) (p pruned) {
	w.t.Helper()
	out := w.claviger(append([]string{"cluster", "prune", dir, "--sim", "world.json", "--json"}, flags...)...)
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return p
}

// refuseToPrune is about directories that are not this cluster's, or of which the leader cannot be asked.
func (w *world) refuseToPrune() {
	w.t.Helper()
	other := filepath.Join(w.dir, "other", strings.Repeat("7", 64))
	if err := os.MkdirAll(other, 0o700); err != nil {
		w.t.Fatal(err)
	}
	for _, c := range []struct {
		says string
		code int
		args []string
	}{
		{"of another one", 2, []string{"other"}},
		{"no archive in", 2, []string{"nothing"}},
		{"--idle", 2, []string{"data/a", "--idle=-1s"}},
		{"epoch", 1, []string{"data/a", "--min-epoch", "9"}},
	} {
		r := w.run(append([]string{"claviger", "cluster", "prune", "--sim", "world.json", "--idle", "0s", "--delete", "--timeout", "5s"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.says) {
			w.t.Errorf("prune %v: exit code %d, %s", c.args, r.code, r.stderr)
		}
	}
	if _, err := os.Stat(other); err != nil {
		w.t.Errorf("another cluster's archive: %v", err)
	}
}

var statementHash = regexp.MustCompile(`(?m)^statement +SHA-256 ([0-9a-f]{16})`)

// recoverFrom brings the cluster back from archives on files, by shares and the signature of the one operator.
func (w *world) recoverFrom(slot, archives string) {
	w.t.Helper()
	w.claviger("sim", "quote", "--sim", "world.json", "--machine", "laptop", "--image", "orders", "--out", "quote.bin", "--root-out", "root.pem")
	var cluster struct {
		ID string `json:"cluster_id"`
	}
	raw, err := os.ReadFile(filepath.Join(w.dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(raw, &cluster)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	name := filepath.Join(w.dir, slot+".yaml")
	if raw, err = os.ReadFile(name); err == nil {
		err = os.WriteFile(name, append(raw, "\nrecovery: {archives: ["+archives+"]}\n"...), 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[slot] = w.start("the recovery waits", "clavigerd-sim", "--recover", slot+".yaml")
	dir, known := "data/"+slot+"/recovery/", []string{"--root", "root.pem", "--cluster-id", cluster.ID}
	returns := append([]string{"cluster", "recover", "return", "--request", dir + "recovery-request.json", "--genesis-policy"}, known...)
	shares, err := filepath.Glob(filepath.Join(w.dir, "data/a/shares/share-*.hex"))
	if err != nil || len(shares) == 0 {
		w.t.Fatalf("shares: %v, %v", shares, err)
	}
	for _, s := range shares {
		returns = append(returns, "--share", s)
	}
	w.claviger(returns...)
	w.awaitFile(dir + "recovery-report.json")
	approve := append([]string{"cluster", "recover", "approve", "--report", dir + "recovery-report.json", "--destroyed", "all"}, known...)
	shown := w.claviger(approve...)
	hash := statementHash.FindStringSubmatch(shown)
	if hash == nil {
		w.t.Fatalf("no statement in:\n%s", shown)
	}
	w.claviger(append(approve, "--statement", hash[1], "--key", "operator.key")...)
	w.awaitReady(slot)
}

// awaitFile waits for a file that a node writes.
func (w *world) awaitFile(name string) {
	w.t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(w.dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	w.t.Fatalf("there is no %s", name)
}

// awaitReady waits until a node says that it is.
func (w *world) awaitReady(slot string) {
	w.t.Helper()
	said := ""
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		code, body := w.ready(slot)
		if said = body; code == 200 {
			return
		}
	}
	w.t.Fatalf("node %s is not ready: %s\n%s", slot, said, w.nodes[slot].tail())
}
