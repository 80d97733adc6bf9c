package main

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/cmd/internal/simworld"
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
	other := statementIn(t, s.quiet(0, "cluster", "recover", "approve", "--root", "root.pem", "--report", dir+"recovery-report.json", "--cluster-id", id, "--lost", "all", "--accept-lost-servers"))
	approve(1, "--lost", "all", "--accept-lost-servers", "--statement", other, "--key", "alice.key", "--out", "other.json")
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
