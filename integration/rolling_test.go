package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// TestRollingUpdate rehearses what docs/operations.md says under "Updating the node software", with processes and commands:
// three nodes move from one measurement to the next, one of them forgotten at first, while an app asks for its key.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.node("a", "--genesis")
	w.node("b")
	w.node("c")
	w.awaitVoters(3)
	first := w.key("laptop")
	before := w.nodePolicy()
	next := w.constraintOf("2")
	stopAsking := w.ask(first)

	// A build that the operators have not accepted stays outside. Once they have, one node after the other moves to it.
	w.image("b", "2")
	w.refused("b")
	out := w.claviger("cluster", "policy", "--sim", "world.json", "--add", next, "--key", "operator.key")
	if !strings.Contains(out, "accepted") {
		t.Errorf("adding a constraint: %s", out)
	}
	w.node("b")
	w.awaitVoters(3)
	w.image("a", "2")
	w.end("a")
	w.node("a")
	w.awaitVoters(3)

	// c was forgotten: its node leaves by itself, and does not come back as it was.
	w.claviger("cluster", "policy", "--sim", "world.json", "--remove", before[0], "--key", "operator.key")
	w.nodes["c"].wait()
	if code, log := w.nodes["c"].cmd.ProcessState.ExitCode(), w.nodes["c"].tail(); code != 1 || !strings.Contains(log, "the node policy no longer accepts this code") {
		t.Errorf("the node of the old build ended with exit code %d:\n%s", code, log)
	}
	w.refused("c")
	w.image("c", "2")
	w.node("c")
	w.awaitVoters(3)

	asked := stopAsking()
	t.Logf("an app asked %d times meanwhile, and always got its key", asked)
	if now := w.nodePolicy(); asked < 5 || len(now) != 1 || now[0] != next {
		t.Errorf("asked %d times; the policy in force is %q, want %q", asked, now, next)
	}
	if again := w.key("server"); again != first {
		t.Error("the key changed with the build of the nodes")
	}
}

// image sets the version of a node's image in its configuration.
func (w *world) image(slot, version string) {
	w.t.Helper()
	name := filepath.Join(w.dir, slot+".yaml")
	raw, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^sim: \{(.*?)(, image: .*)?\}$`).ReplaceAllString(string(raw), `sim: {$1, image: "`+version+`"}`)
	if !strings.Contains(text, "image: ") {
		w.t.Fatalf("%s has no sim section on a line", name)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// end stops a node, if it runs.
func (w *world) end(slot string) {
	w.t.Helper()
	select {
	case <-w.nodes[slot].done:
		return
	default:
	}
	if code := w.nodes[slot].stop(w.t); code != 0 {
		w.t.Errorf("node %s stopped with exit code %d:\n%s", slot, code, w.nodes[slot].tail())
	}
}

// refused starts a node in the place of the one that ran, and wants every member to refuse its code.
func (w *world) refused(slot string) {
	w.t.Helper()
	w.end(slot)
	if r := w.run("clavigerd-sim", slot+".yaml"); r.code != 1 || !strings.Contains(r.stderr, "the code is not one of those that the policy names") {
		w.t.Errorf("node %s, of code that is not accepted: exit code %d\n%s", slot, r.code, r.stderr)
	}
}

// constraintOf is what the operators write for a version of the node's image. On hardware it comes from a build of their own.
func (w *world) constraintOf(version string) string {
	w.t.Helper()
	var q struct{ Constraint string }
	out := w.claviger("sim", "quote", "--json", "--sim", "world.json", "--machine", "builder", "--image", "clavigerd", "--kind", "tdx", "--image-version", version, "--out", "build.bin")
	if err := json.Unmarshal([]byte(out), &q); err != nil || q.Constraint == "" {
		w.t.Fatalf("%v: %s", err, out)
	}
	return q.Constraint
}

// nodePolicy is what 'claviger cluster policy' proves.
func (w *world) nodePolicy() []string {
	w.t.Helper()
	var p struct{ Constraints []string }
	out := w.claviger("cluster", "policy", "--json", "--sim", "world.json")
	if err := json.Unmarshal([]byte(out), &p); err != nil || len(p.Constraints) == 0 {
		w.t.Fatalf("%v: %s", err, out)
	}
	return p.Constraints
}

// ask has an app ask for its key again and again, until stop, which says how often it did.
func (w *world) ask(want string) (stop func() int) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var work sync.WaitGroup
	w.t.Cleanup(func() { cancel(); work.Wait() })
	asked := 0
	work.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			var d struct{ Key string }
			r := w.run(deriveArgs("laptop")...)
			if err := json.Unmarshal([]byte(r.stdout), &d); r.code != 0 || err != nil || d.Key != want {
				w.t.Errorf("request %d: exit code %d, %v, key %.8s: %s", asked, r.code, err, d.Key, r.stderr)
			}
		}
	})
	return func() int {
		cancel()
		work.Wait()
		return asked
	}
}
