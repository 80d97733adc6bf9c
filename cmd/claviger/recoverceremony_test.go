package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// The whole ceremony with processes and files, as people do it: five nodes run and die, the disk of one is rolled back, one
// was a leader that was cut off and went on writing. With CLAVIGER_TRANSCRIPT=file what the operators type and see is kept.
func TestRecoveryCeremony(t *testing.T) {
	t.Parallel()
	s := newRecoverySite(t)
	s.say("Three operators make their keys, each on a machine of their own.")
	for _, name := range []string{"alice", "bob", "carol"} {
		s.run(0, "cluster", "operator-key", "--out", name+".key")
	}
	s.found()
	s.say("The cluster serves. An app keeps the receipt of its last key release.")
	before := s.key("1.json")
	s.copyArchive("d", "old")
	s.key("1.json")
	fork := s.forkLeader()
	s.run(0, "key", "derive", "--sim", "world.json", "--machine", "app", "--image", "orders", "--name", "db", "--purpose", "aes-256", "--receipt", "receipt.json")
	s.kill()
	s.rollBack("d", "old")
	s.say("All five nodes die at a time. The disk of node d is an old copy; node %s was cut off before that, and went on writing.", fork)

	home := slices.DeleteFunc([]string{"a", "b", "c"}, func(n string) bool { return n == fork })[0]
	s.say("Node %s is started to recover: its configuration lists the five data directories and the receipt.", home)
	s.config(home, "recovery: {archives: [data/a, data/b, data/c, data/d, data/e], receipts: [receipt.json]}\n")
	s.typed("clavigerd-sim --recover %s.yaml", home)
	s.start(home, "--recover")
	dir := "data/" + home + "/recovery/"
	s.await(dir + "recovery-request.json")
	s.tell(home, "waits for the operators")

	id := s.clusterID()
	s.say("Two holders of shares look at the request, and return their shares to that one enclave.")
	s.run(0, "cluster", "recover", "return", "--root", "root.pem", "--request", dir+"recovery-request.json")
	s.run(2, "cluster", "recover", "return", "--root", "root.pem", "--request", dir+"recovery-request.json", "--share", s.share(1))
	s.run(0, "cluster", "recover", "return", "--root", "root.pem", "--request", dir+"recovery-request.json", "--cluster-id", id, "--genesis-policy", "--share", s.share(1), "--out", "shares-alice.json")
	s.run(0, "cluster", "recover", "return", "--root", "root.pem", "--request", dir+"recovery-request.json", "--cluster-id", id, "--genesis-policy", "--share", s.share(3), "--with", "shares-alice.json")
	s.await(dir + "recovery-report.json")
	// A holder who does not say which node policy is in force might give the share to code that was shut out since the genesis.
	held := []string{"cluster", "recover", "return", "--root", "root.pem", "--request", dir + "recovery-request.json", "--cluster-id", id, "--share", s.share(2), "--out", "x.json"}
	s.quiet(2, held...)
	s.quiet(1, append(held, "--constraint", simworld.RuntimeImage.Constraint())...)
	if _, err := os.Stat(s.path("x.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a share went to code that the policy in force does not name: %v", err)
	}
	// Another cluster than the operator means, and another root of trust than theirs.
	s.quiet(1, "cluster", "recover", "inspect", "--root", "root.pem", "--report", dir+"recovery-report.json", "--cluster-id", strings.Repeat("ab", 32))
	s.quiet(1, "cluster", "recover", "inspect", "--report", dir+"recovery-report.json")
	s.quiet(1, "cluster", "recover", "return", "--root", "root.pem", "--request", dir+"recovery-request.json", "--cluster-id", strings.Repeat("ab", 32), "--genesis-policy", "--share", s.share(1), "--out", "x.json")

	s.say("The enclave has opened the archives. Everybody looks.")
	shown := s.run(0, "cluster", "recover", "inspect", "--root", "root.pem", "--report", dir+"recovery-report.json")
	for _, want := range []string{"behind by", "diverged after", "newest", "equal to the newest", "receipt   epoch 1"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	approve := func(code int, args ...string) string {
		return s.run(code, append([]string{"cluster", "recover", "approve", "--root", "root.pem", "--report", dir + "recovery-report.json", "--cluster-id", id}, args...)...)
	}
	s.say("The old copy cannot be chosen: the app's receipt is newer.")
	approve(1, "--source", "d", "--destroyed", "all")
	s.say("Every old server must be accounted for.")
	approve(2)
	s.say("Alice reads the statement, and signs what she has read; then Bob does.")
	read := statementIn(t, approve(0, "--destroyed", "all"))
	s.quiet(2, "cluster", "recover", "approve", "--root", "root.pem", "--report", dir+"recovery-report.json", "--cluster-id", id, "--destroyed", "all", "--key", "alice.key", "--out", "alice.json")
	// What the report, or a slip of the hand, makes of it is not what she has read.
	s.quiet(1, "cluster", "recover", "approve", "--root", "root.pem", "--report", dir+"recovery-report.json", "--cluster-id", id,
		"--destroyed", "all", "--epoch", "7", "--statement", read, "--key", "alice.key", "--out", "alice.json")
	for _, name := range []string{"alice.json", memoryFile("alice.key")} {
		if _, err := os.Stat(s.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was written for what was not read: %v", name, err)
		}
	}
	approve(0, "--destroyed", "all", "--statement", read, "--key", "alice.key", "--out", "alice.json")
	s.say("An epoch is signed once.")
	other := statementIn(t, s.quiet(0, "cluster", "recover", "approve", "--root", "root.pem", "--report", dir+"recovery-report.json", "--cluster-id", id, "--lost", "all", "--accept-fork"))
	approve(1, "--lost", "all", "--accept-fork", "--statement", other, "--key", "alice.key", "--out", "other.json")
	approve(2, "--destroyed", "all", "--statement", read, "--key", "alice.key")
	approve(0, "--destroyed", "all", "--statement", read, "--key", "bob.key", "--with", "alice.json")
	s.ready(home)
	s.tell(home, "RECOVERED")

	s.say("The other nodes start as usual, and none joins anything below epoch 2.")
	for _, slot := range []string{"a", "b", "c", "d", "e"} {
		if slot != home {
			s.config(slot, "min_epoch: 2\n")
			s.typed("clavigerd-sim %s.yaml", slot)
			s.start(slot)
			s.ready(slot)
		}
	}
	s.run(0, "cluster", "status", "--sim", "world.json", "--cluster", "cluster.json")
	s.say("Old keys are what they were; new ones are of the new root generation.")
	if got := s.keyOf("1"); got != before {
		t.Error("generation 1 gives another key than before")
	}
	if got := s.keyOf("2"); got == before {
		t.Error("generation 2 gives the old key")
	}
	s.plannedStop(home, before)
	s.save()
}

// plannedStop ends the recovered epoch as operators do, and recovers from it: the same ceremony, with proof instead of words.
func (s *recoverySite) plannedStop(home, before string) {
	s.t.Helper()
	dir, id := "data/"+home+"/recovery/", s.clusterID()
	s.say("A planned stop: the operators end epoch 2, and every node signs its final checkpoint.")
	s.run(0, "cluster", "stop", "--sim", "world.json", "--cluster", "cluster.json", "--key", "alice.key", "--out", "stop.json")
	s.run(0, "cluster", "stop", "--sim", "world.json", "--cluster", "cluster.json", "--key", "bob.key", "--with", "stop.json")
	for slot := range s.ports {
		s.await("data/" + slot + "/final-" + s.server(slot) + ".json")
	}
	s.kill()
	if err := os.RemoveAll(s.path(dir)); err != nil { // the enclave removes what is of another; this test must not see it before that
		s.t.Fatal(err)
	}
	s.say("All nodes are stopped. Node %s recovers again: final checkpoints beside the archives are found.", home)
	s.typed("clavigerd-sim --recover %s.yaml", home)
	s.config(home, "recovery: {archives: [data/a, data/b, data/c, data/d, data/e], receipts: [receipt.json]}\n")
	s.start(home, "--recover")
	s.await(dir + "recovery-request.json")
	s.quiet(0, "cluster", "recover", "return", "--root", "root.pem", "--request", dir+"recovery-request.json", "--cluster-id", id, "--genesis-policy", "--share", s.share(2), "--share", s.share(3))
	s.await(dir + "recovery-report.json")
	s.run(0, "cluster", "recover", "inspect", "--root", "root.pem", "--report", dir+"recovery-report.json")
	approve := []string{"cluster", "recover", "approve", "--root", "root.pem", "--report", dir + "recovery-report.json", "--cluster-id", id, "--stopped", "all"}
	read := statementIn(s.t, s.run(0, approve...))
	s.run(0, append(approve, "--statement", read, "--key", "alice.key", "--key", "carol.key")...)
	s.ready(home)
	s.tell(home, "RECOVERED")
	if got := s.keyOf("1"); got != before {
		s.t.Error("generation 1 gives another key after two recoveries")
	}
}

// statementIn is the hash, as far as it must be given, of the statement that a command has shown.
func statementIn(t *testing.T, shown string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^statement +SHA-256 ([0-9a-f]{16})`).FindStringSubmatch(shown)
	if found == nil {
		t.Fatalf("no statement was shown:\n%s", shown)
	}
	return found[1]
}

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

// unusedPorts are ports that nobody else uses until the test ends, also while nothing listens on them: a killed node's port
// must be there when it starts again.
func unusedPorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		port, mark, err := reservePort()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mark.Close() })
		ports = append(ports, port)
	}
	return ports
}

// reservePort picks a port below those that the system hands out by itself. Whoever looks for ports in this way, in this
// process or another, finds the UDP port of the same number taken until mark is closed.
func reservePort() (port int, mark io.Closer, err error) {
	for range 10000 {
		port = 10000 + rand.IntN(10000)
		udp, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			udp.Close()
			continue
		}
		l.Close()
		return port, udp, nil
	}
	return 0, nil, errors.New("no free ports")
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

// forkLeader cuts the leader off while clients write to it, kills it, and returns its slot once the others serve again.
func (s *recoverySite) forkLeader() string {
	s.t.Helper()
	leader := ""
	s.until("a leader", func() bool {
		for _, m := range s.members() {
			if m.Leader {
				leader = m.Slot
			}
		}
		return leader != "" && leader != "d" // whose disk is rolled back already
	})
	ctx, cancel := context.WithCancel(s.t.Context())
	var writers sync.WaitGroup
	wrote := make(chan struct{}, 64)
	for range 4 {
		writers.Go(func() { s.write(ctx, leader, wrote) })
	}
	for range 16 {
		<-wrote
	}
	for _, r := range s.relay {
		r.hold()
	}
	time.Sleep(120 * time.Millisecond) // less than the leader's lease, more than a write takes
	cmd := s.procs[leader]
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	delete(s.procs, leader)
	cancel()
	writers.Wait()
	for _, r := range s.relay {
		r.resume()
	}
	return leader
}

// write asks one node for keys until ctx ends: each release is an entry.
func (s *recoverySite) write(ctx context.Context, slot string, wrote chan<- struct{}) {
	c, err := s.client(slot)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer c.Close()
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		k, _, err := c.Key(limited, api.KeyRequest{Constraint: ordersImage.Constraint(), Name: "db", Purpose: "aes-256"})
		cancel()
		if err != nil {
			continue
		}
		k.Destroy()
		select {
		case wrote <- struct{}{}:
		default:
		}
	}
}

var ordersImage = sim.Image{Kind: enclave.SGX, Name: "orders", Version: "1"}

func (s *recoverySite) client(slot string) (*client.Client, error) {
	world, err := sim.OpenWorld(s.path("world.json"))
	if err != nil {
		return nil, err
	}
	place, err := simworld.At(world, "app", false)
	if err != nil {
		return nil, err
	}
	tee, err := place.Machine.Launch(ordersImage)
	if err != nil {
		return nil, err
	}
	id, err := api.ParseID(s.clusterID())
	if err != nil {
		return nil, err
	}
	var prove func(context.Context, [64]byte) (ratls.Evidence, error) = simworld.Attest(world, tee)
	return client.New(client.Config{ClusterID: id, Endpoints: []string{fmt.Sprintf("127.0.0.1:%d", s.ports[slot][1])}, Root: world.Root(), Attest: prove})
}

func (s *recoverySite) members() []api.Member {
	s.t.Helper()
	var reply api.Cluster
	if err := json.Unmarshal([]byte(s.quiet(0, "cluster", "status", "--json", "--sim", "world.json")), &reply); err != nil {
		s.t.Fatal(err)
	}
	return reply.Members
}

// relay stands before a node's peer port, so that the network can be cut.
type relay struct {
	addr string
	to   string

	mu    sync.Mutex
	held  bool
	conns []net.Conn
}

func newRelay(t *testing.T, port int) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &relay{addr: l.Addr().String(), to: fmt.Sprintf("127.0.0.1:%d", port)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *relay) serve(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", r.to)
	if err != nil || !r.add(in, out) {
		return
	}
	defer out.Close()
	go func() {
		r.copy(in, out)
		in.Close()
	}()
	r.copy(out, in)
}

func (r *relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held {
		for _, c := range conns {
			c.Close()
		}
		return false
	}
	r.conns = append(r.conns, conns...)
	return true
}

// copy forwards until an end closes; what comes while the relay holds goes nowhere.
func (r *relay) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		r.mu.Lock()
		held := r.held
		r.mu.Unlock()
		if err != nil {
			return
		}
		if held {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (r *relay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
}

// resume lets new connections through; the old ones have lost bytes and are closed.
func (r *relay) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns, r.held = nil, false
}

// publicOf is the public half of a seed in hex.
func publicOf(seed string) (string, error) {
	raw, err := hex.DecodeString(seed)
	if err != nil || len(raw) != ed25519.SeedSize {
		return "", fmt.Errorf("not a seed: %w", err)
	}
	return hex.EncodeToString(ed25519.NewKeyFromSeed(raw).Public().(ed25519.PublicKey)), nil
}
