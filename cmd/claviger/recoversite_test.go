package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
)

// recoverySite is a directory with five nodes' configurations, and their processes.
type recoverySite struct {
	t     *testing.T
	dir   string
	bin   string
	ports map[string][3]int // peer, api, admin
	relay map[string]*relay // in front of the peer ports

	mu         sync.Mutex
	transcript bytes.Buffer
	procs      map[string]*exec.Cmd
}

func newRecoverySite(t *testing.T) *recoverySite {
	t.Helper()
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "../claviger", "../clavigerd-sim").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := &recoverySite{t: t, dir: t.TempDir(), bin: bin, ports: map[string][3]int{}, relay: map[string]*relay{}, procs: map[string]*exec.Cmd{}}
	t.Cleanup(s.kill)
	world, err := sim.CreateWorld(s.path("world.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeRoot(s.path("root.pem"), world.Root()); err != nil {
		t.Fatal(err)
	}
	free := unusedPorts(t, 15)
	for i, slot := range []string{"a", "b", "c", "d", "e"} {
		s.ports[slot] = [3]int(free[3*i:])
		s.relay[slot] = newRelay(t, s.ports[slot][0])
	}
	return s
}

func (s *recoverySite) path(name string) string { return filepath.Join(s.dir, name) }

// config writes a node's file, with extra sections.
func (s *recoverySite) config(slot, extra string) {
	s.t.Helper()
	p := s.ports[slot]
	var join []string
	for _, other := range []string{"a", "b", "c", "d", "e"} {
		if other != slot {
			join = append(join, s.relay[other].addr)
		}
	}
	text := fmt.Sprintf("slot: %s\nlisten: {peer: \"127.0.0.1:%d\", api: \"127.0.0.1:%d\", admin: \"127.0.0.1:%d\"}\nadvertise: {peer: %q}\n"+
		"data: data/%s\narchive: file\ncluster: cluster.json\njoin: [%s]\nsim: {world: world.json, machine: kds-%s}\n%s",
		slot, p[0], p[1], p[2], s.relay[slot].addr, slot, strings.Join(join, ", "), slot, extra)
	if err := os.WriteFile(s.path(slot+".yaml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// found has two operators approve the genesis, and the other four nodes join.
func (s *recoverySite) found() {
	s.t.Helper()
	var keys, endpoints []string
	for _, name := range []string{"alice", "bob", "carol"} {
		key, err := readOperatorFile(s.path(name + ".key"))
		if err != nil {
			s.t.Fatal(err)
		}
		keys = append(keys, key)
	}
	for _, p := range s.ports {
		endpoints = append(endpoints, fmt.Sprintf("\"127.0.0.1:%d\"", p[1]))
	}
	s.config("a", fmt.Sprintf("genesis:\n  name: prod\n  node_policy: [%q]\n  operators: {threshold: 2, keys: [%s]}\n  open_slots: 9\n  endpoints: [%s]\n",
		simworld.NodeImage.Constraint(), strings.Join(keys, ", "), strings.Join(endpoints, ", ")))
	s.start("a", "--genesis")
	s.await("data/a/genesis/genesis-statement.json")
	var view struct {
		ClusterID string `json:"cluster_id"`
	}
	statement := []string{"cluster", "approve", "--root", "root.pem", "--statement", "data/a/genesis/genesis-statement.json"}
	if err := json.Unmarshal([]byte(s.quiet(0, append(statement, "--json")...)), &view); err != nil {
		s.t.Fatal(err)
	}
	s.quiet(0, append(statement, "--cluster-id", view.ClusterID, "--key", "alice.key", "--key", "carol.key")...)
	s.ready("a")
	for _, slot := range []string{"b", "c", "d", "e"} {
		s.config(slot, "")
		s.start(slot)
		s.ready(slot)
	}
}

func readOperatorFile(name string) (string, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	return publicOf(strings.TrimSpace(string(raw)))
}

// start runs a node until it is killed; its log is in the file SLOT.log.
func (s *recoverySite) start(slot string, flags ...string) {
	s.t.Helper()
	log, err := os.OpenFile(s.path(slot+".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, "clavigerd-sim"), append(flags, slot+".yaml")...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.procs[slot] = cmd
}

// kill ends every node, as a loss of power would.
func (s *recoverySite) kill() {
	for slot, cmd := range s.procs {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(s.procs, slot)
	}
}

func (s *recoverySite) until(what string, done func() bool) {
	s.t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	logs := ""
	for slot := range s.ports {
		raw, _ := os.ReadFile(s.path(slot + ".log"))
		logs += slot + ": " + string(raw[max(0, len(raw)-800):]) + "\n"
	}
	s.t.Fatalf("did not happen: %s\n%s", what, logs)
}

func (s *recoverySite) await(file string) {
	s.t.Helper()
	s.until(file, func() bool {
		_, err := os.Stat(s.path(file))
		return err == nil
	})
}

func (s *recoverySite) ready(slot string) {
	s.t.Helper()
	s.until("node "+slot+" is ready", func() bool {
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", s.ports[slot][2]))
		if err != nil {
			return false
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode == http.StatusOK
	})
}

// run types a command, wants its exit code, keeps what it printed, and returns it.
func (s *recoverySite) run(code int, args ...string) string {
	s.t.Helper()
	s.typed("claviger %s", strings.Join(args, " "))
	out := s.quiet(code, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.transcript.WriteString(out)
	if code != 0 {
		fmt.Fprintf(&s.transcript, "(exit code %d)\n", code)
	}
	return out
}

func (s *recoverySite) quiet(code int, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "claviger"), args...)
	cmd.Dir = s.dir
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		s.t.Fatalf("claviger %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	return string(out)
}

func (s *recoverySite) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.transcript, "\n# "+format+"\n", args...)
}

func (s *recoverySite) typed(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.transcript, "\n$ "+format+"\n", args...)
}

// tell keeps the line of a node's log that says something.
func (s *recoverySite) tell(slot, what string) {
	s.t.Helper()
	var line string
	s.until(what+" in the log of "+slot, func() bool {
		raw, _ := os.ReadFile(s.path(slot + ".log"))
		for l := range strings.Lines(string(raw)) {
			if strings.Contains(l, what) {
				line = l
				return true
			}
		}
		return false
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.transcript.WriteString(line)
}

var logTime = regexp.MustCompile(`time=\S+ `)

// save keeps the transcript without what differs from run to run by place and time.
func (s *recoverySite) save() {
	text := strings.ReplaceAll(logTime.ReplaceAllString(s.transcript.String(), ""), s.dir+"/", "")
	s.t.Log(text)
	if name := os.Getenv("CLAVIGER_TRANSCRIPT"); name != "" {
		if err := os.WriteFile(name, []byte(strings.TrimLeft(text, "\n")), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// key derives the app's key and keeps its receipt.
func (s *recoverySite) key(receipt string) string {
	s.t.Helper()
	return s.derive("--receipt", receipt)
}

func (s *recoverySite) keyOf(generation string) string {
	s.t.Helper()
	s.typed("claviger key derive … --min-epoch 2 --generation %s", generation)
	key := s.derive("--min-epoch", "2", "--generation", generation)
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.transcript, "key %.16s…\n", key)
	return key
}

func (s *recoverySite) derive(args ...string) string {
	s.t.Helper()
	var d derived
	out := s.quiet(0, append([]string{"key", "derive", "--json", "--sim", "world.json", "--machine", "app", "--image", "orders", "--name", "db", "--purpose", "aes-256"}, args...)...)
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Key == "" {
		s.t.Fatalf("%v: %s", err, out)
	}
	return d.Key
}

func (s *recoverySite) clusterID() string {
	s.t.Helper()
	file, err := clusterfile.Read(s.path("cluster.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	return file.ClusterID.String()
}

// share is the file of a share; the genesis has written them.
func (s *recoverySite) share(n int) string { return fmt.Sprintf("data/a/shares/share-%d.hex", n) }

// server is the id of the boot that runs in a slot.
func (s *recoverySite) server(slot string) string {
	s.t.Helper()
	raw, err := os.ReadFile(s.path(slot + ".log"))
	if err != nil {
		s.t.Fatal(err)
	}
	found := regexp.MustCompile(`msg=ready slot=\S+ server=([0-9a-f]{64})`).FindSubmatch(raw)
	if found == nil {
		s.t.Fatalf("node %s does not say who it is", slot)
	}
	return string(found[1])
}

// archive is the one archive in a node's data directory.
func (s *recoverySite) archive(slot string) string {
	s.t.Helper()
	entries, err := os.ReadDir(s.path("data/" + slot))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := api.ParseID(e.Name()); err == nil {
			return s.path("data/" + slot + "/" + e.Name())
		}
	}
	s.t.Fatalf("no archive of %s", slot)
	return ""
}

func (s *recoverySite) copyArchive(slot, to string) {
	s.t.Helper()
	if err := os.CopyFS(s.path(to), os.DirFS(s.archive(slot))); err != nil {
		s.t.Fatal(err)
	}
}

func (s *recoverySite) rollBack(slot, from string) {
	s.t.Helper()
	dir := s.archive(slot)
	if err := os.RemoveAll(dir); err != nil {
		s.t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(s.path(from))); err != nil {
		s.t.Fatal(err)
	}
}

func (s *recoverySite) members() []api.Member {
	s.t.Helper()
	var reply api.Cluster
	if err := json.Unmarshal([]byte(s.quiet(0, "cluster", "status", "--json", "--sim", "world.json")), &reply); err != nil {
		s.t.Fatal(err)
	}
	return reply.Members
}

// publicOf is the public half of a seed in hex.
func publicOf(seed string) (string, error) {
	raw, err := hex.DecodeString(seed)
	if err != nil || len(raw) != ed25519.SeedSize {
		return "", fmt.Errorf("not a seed: %w", err)
	}
	return hex.EncodeToString(ed25519.NewKeyFromSeed(raw).Public().(ed25519.PublicKey)), nil
}
