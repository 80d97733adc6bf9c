package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Three of five nodes die. The two that live come first: no share leaves its holder, the operators sign once, the survivors
// stop for good, and the first node of the new epoch gives the same old keys.
func TestSurvivorCeremony(t *testing.T) {
	t.Parallel()
	s := newRecoverySite(t)
	for _, name := range []string{"alice", "bob", "carol"} {
		s.quiet(0, "cluster", "operator-key", "--out", name+".key")
	}
	s.found()
	before := s.key("1.json")
	for _, slot := range []string{"a", "b", "c"} {
		cmd := s.procs[slot]
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(s.procs, slot)
	}
	s.say("Three of five nodes die. Node a is started to recover, with the addresses of the two that live.")
	s.config("a", fmt.Sprintf("recovery: {survivors: [\"127.0.0.1:%d\", \"127.0.0.1:%d\"], archives: [data/a, data/b, data/c], receipts: [1.json]}\n",
		s.ports["d"][0], s.ports["e"][0]))
	s.start("a", "--recover")
	report := "data/a/recovery/recovery-report.json"
	s.await(report)
	shown := s.run(0, "cluster", "recover", "inspect", "--root", "root.pem", "--report", report)
	for _, want := range []string{"ALIVE", "with the live servers", "it lives: --stopped", "not opened yet"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	approve := func(code int, args ...string) string {
		return s.run(code, append([]string{"cluster", "recover", "approve", "--root", "root.pem", "--report", report, "--cluster-id", s.clusterID(), "--source", "d"}, args...)...)
	}
	s.say("Who is dead cannot be stopped, but destroyed.")
	approve(2, "--stopped", "all")
	s.say("And who lives is not destroyed.")
	approve(2, "--stopped", "d", "--destroyed", "all")
	read := statementIn(t, approve(0, "--stopped", "d,e", "--destroyed", "all"))
	approve(0, "--stopped", "d,e", "--destroyed", "all", "--statement", read, "--key", "alice.key", "--key", "carol.key")
	s.ready("a")
	s.tell("a", "RECOVERED")
	for _, slot := range []string{"d", "e"} {
		s.tell(slot, "STOPPED FOR A RECOVERY")
		if body := s.probe(slot); !strings.Contains(body, "stopped this node for a recovery") {
			t.Errorf("node %s: %s", slot, body)
		}
	}
	if got := s.keyOf("1"); got != before {
		t.Error("generation 1 gives another key than before")
	}
	s.save()
}

// probe is what a node's readiness says.
func (s *recoverySite) probe(slot string) string {
	s.t.Helper()
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", s.ports[slot][2]))
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}
