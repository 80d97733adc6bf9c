package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestClusterOfProcesses is the README's tour with separate processes: three key nodes, a function host, an app's key,
// kill -9 of the leader, the same key again, the killed node back, a cluster without quorum, and everything stopped.
func TestClusterOfProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.node("a", "--genesis")
	w.node("b")
	w.node("c")
	leader := w.awaitVoters(3)

	first := w.key("laptop")
	if again := w.key("server"); again != first {
		t.Error("another machine got another key")
	}
	if other := w.key("laptop", "--image-version", "2"); other == first {
		t.Error("another version of the app got the same key")
	}
	w.metricsAreDocumented()
	functions := w.start("msg=ready", "claviger-fn-sim", "fn.yaml")
	w.functions(t)

	w.nodes[leader].kill()
	start := time.Now()
	if again := w.key("laptop"); again != first {
		t.Error("the key changed with the leader")
	}
	t.Logf("the key was served %.2f s after kill -9 of the leader", time.Since(start).Seconds())
	if got := w.claviger("fn", "call", "--dir", "passwords", "--sim", "world.json", "get", `"my long token"`, `"example.org"`); got != "{\"user\":\"ada\",\"password\":\"hunter2\"}\n" {
		t.Errorf("after the failover the function returned %q", got)
	}
	w.node(leader)
	w.awaitVoters(3)
	w.followerServes(t)
	if code := functions.stop(t); code != 0 {
		t.Errorf("claviger-fn-sim stopped with exit code %d:\n%s", code, functions.tail())
	}
	w.withoutQuorum(t)
}

// functions starts a project, deploys it and stores an entry.
func (w *world) functions(t *testing.T) {
	t.Helper()
	host := configured(t, filepath.Join(w.dir, "fn.yaml"), "api: ")
	w.claviger("fn", "init", "passwords", "--host", "http://"+host)
	w.claviger("fn", "deploy", "--dir", "passwords", "--sim", "world.json")
	w.claviger("fn", "call", "--dir", "passwords", "--sim", "world.json", "add", `"my long token"`, `"example.org"`, `"ada"`, `"hunter2"`)
	r := w.run("claviger", "fn", "call", "--json", "--dir", "passwords", "--sim", "world.json", "list", `"another token"`)
	if r.code != 1 || !strings.Contains(r.stderr, "wrong token") {
		t.Errorf("a wrong token: exit code %d, %s", r.code, r.stderr)
	}
}

// configured returns the value behind the first occurrence of key in a configuration file.
func configured(t *testing.T, name, key string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(raw), key)
	if !found {
		t.Fatalf("%s has no %q", name, key)
	}
	return strings.Fields(rest)[0]
}

// followerServes asks each node alone: a follower sends the client on to the leader.
func (w *world) followerServes(t *testing.T) {
	t.Helper()
	want := w.key("laptop")
	for slot := range w.nodes {
		endpoint := configured(t, filepath.Join(w.dir, slot+".yaml"), "api: ")
		if got := w.key("laptop", "--endpoint", endpoint); got != want {
			t.Errorf("node %s led to another key", slot)
		}
	}
}

// withoutQuorum leaves one node of three: nothing is released, and the refusal says why.
func (w *world) withoutQuorum(t *testing.T) {
	t.Helper()
	left := w.awaitVoters(3)
	for slot, p := range w.nodes {
		if slot != left {
			p.kill()
		}
	}
	r := w.run(deriveArgs("laptop", "--timeout", "3s")...)
	if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "no_quorum") {
		t.Errorf("without a quorum: exit code %d, stdout %q, stderr %s", r.code, r.stdout, r.stderr)
	}
	if code := w.nodes[left].stop(t); code != 0 {
		t.Errorf("clavigerd-sim stopped with exit code %d:\n%s", code, w.nodes[left].tail())
	}
}

// TestGenesisOnlyOnce: a second genesis, a join without a cluster file and a join without anybody are refused.
func TestGenesisOnlyOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run("clavigerd-sim", "b.yaml")
	if r.code != 2 || !strings.Contains(r.stderr, "start the first node with --genesis") {
		t.Errorf("joining nothing: exit code %d, %s", r.code, r.stderr)
	}
	r = w.run("clavigerd-sim", "--genesis", "b.yaml")
	if r.code != 2 || !strings.Contains(r.stderr, "genesis section") {
		t.Errorf("genesis without a section: exit code %d, %s", r.code, r.stderr)
	}
	w.node("a", "--genesis")
	w.nodes["a"].kill()
	r = w.run("clavigerd-sim", "--genesis", "a.yaml")
	if r.code != 2 || !strings.Contains(r.stderr, "has been founded") {
		t.Errorf("a second genesis: exit code %d, %s", r.code, r.stderr)
	}
}

// TestDaemonConfigurations: what a configuration must not contain is refused before anything starts.
func TestDaemonConfigurations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tc := range []struct{ name, daemon, from, old, new, says string }{
		{"unknown key", "clavigerd-sim", "b.yaml", "slot: b", "slot: b\ncolour: red", "colour"},
		{"duplicate key", "clavigerd-sim", "b.yaml", "slot: b", "slot: b\nslot: c", "slot"},
		{"anchor", "clavigerd-sim", "b.yaml", "slot: b", "slot: &s b", "anchors"},
		{"bad slot", "clavigerd-sim", "b.yaml", "slot: b", "slot: B B", "slot"},
		{"no port", "clavigerd-sim", "b.yaml", "admin: 127.0.0.1:", "admin: localhost #", "listen.admin"},
		{"bad archive", "clavigerd-sim", "b.yaml", "archive: bolt", "archive: tape", "archive"},
		{"remote without a server", "clavigerd-sim", "b.yaml", "archive: bolt", "archive: remote", "archive_server"},
		{"a server without remote", "clavigerd-sim", "b.yaml", "archive: bolt", "archive_server: 127.0.0.1:1\narchive: bolt", "archive_server"},
		{"bad archive server", "clavigerd-sim", "b.yaml", "archive: bolt", "archive: remote\narchive_server: here", "archive_server"},
		{"bad fsync", "clavigerd-sim", "b.yaml", "archive: bolt", "archive: bolt\nfsync: never", "always or relaxed"},
		{"no data", "clavigerd-sim", "b.yaml", "data: data/b", "data: \"\"", "data is missing"},
		{"bad level", "clavigerd-sim", "b.yaml", "level: info", "level: loud", "log.level"},
		{"no world", "clavigerd-sim", "b.yaml", "world: world.json", "world: nowhere.json", "nowhere.json"},
		{"no machine", "clavigerd-sim", "b.yaml", "machine: kds-b", "machine: \"\"", "sim.machine"},
		{"function host: unknown key", "claviger-fn-sim", "fn.yaml", "data: data/fn", "data: data/fn\ncolour: red", "colour"},
		{"function host: bad engine", "claviger-fn-sim", "fn.yaml", "data: data/fn", "data: data/fn\nengine: jet", "engine"},
		{"function host: no cluster file", "claviger-fn-sim", "fn.yaml", "", "", "cluster.json does not exist"},
		{"production: no bolt", "clavigerd", "b.yaml", "sim: {world: world.json, machine: kds-b}", "", "only simulated nodes"},
		{"production: no simulator", "clavigerd", "b.yaml", "", "", "sim"},
		{"missing file", "clavigerd", "", "", "", "does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			file := "none.yaml"
			if tc.from != "" {
				raw, err := os.ReadFile(filepath.Join(w.dir, tc.from))
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(string(raw), tc.old) {
					t.Fatalf("%s has no %q", tc.from, tc.old)
				}
				file = strings.ReplaceAll(tc.name, " ", "-") + ".yaml"
				text := strings.Replace(string(raw), tc.old, tc.new, 1)
				if err := os.WriteFile(filepath.Join(w.dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			sub := &world{t: t, dir: w.dir}
			if r := sub.run(tc.daemon, file); r.code != 2 || !strings.Contains(r.stderr, tc.says) {
				t.Errorf("exit code %d, want 2 and %q: %s", r.code, tc.says, r.stderr)
			}
		})
	}
}

// TestProductionRefusesToRunHere: outside an enclave the production daemons do not start, whatever their configuration.
func TestProductionRefusesToRunHere(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
		t.Skip("this machine may be a TDX guest")
	}
	w := &world{t: t, dir: t.TempDir()}
	node := "slot: a\nlisten: {peer: 127.0.0.1:1, api: 127.0.0.1:2, admin: 127.0.0.1:3}\ndata: d\ncluster: c.json\ncollateral: {dir: q, offline: true}\njoin: [127.0.0.1:4]\n"
	fn := "listen: {api: 127.0.0.1:1, admin: 127.0.0.1:2}\ndata: d\ncluster: c.json\n"
	for name, text := range map[string]string{"node.yaml": node, "fn.yaml": fn} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := w.run("clavigerd", "node.yaml"); r.code != 1 || !strings.Contains(r.stderr, "use clavigerd-sim") {
		t.Errorf("clavigerd: exit code %d, %s", r.code, r.stderr)
	}
	// Built without a cluster id, the function host does not even look for an enclave.
	if r := w.run("claviger-fn", "fn.yaml"); r.code != 1 || !strings.Contains(r.stderr, "pins no cluster") {
		t.Errorf("claviger-fn: exit code %d, %s", r.code, r.stderr)
	}
}
