// Package model_test runs the Promela models of this folder; see README.md.
package model_test

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// variant is a line of variants.txt.
type variant struct {
	name, model, switches, want string
	short                       bool
}

func variants(t *testing.T) []variant {
	t.Helper()
	raw, err := os.ReadFile("variants.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []variant
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "|")
		if len(f) != 4 {
			t.Fatalf("variants.txt: %d columns in %q, want 4", len(f), line)
		}
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		name, short := strings.CutPrefix(f[0], "* ")
		list = append(list, variant{name, f[1], f[2], f[3], short})
	}
	return list
}

func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"bash", "spin", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: the models need %s (Debian packages spin, gcc, libc6-dev)", tool)
		}
	}
}

var all = flag.Bool("model.all", false, "run every variant of the models, a few minutes on two cores, instead of the base model and two mutations")

// TestModels runs the base model and two mutations, or with -model.all every
// variant, and compares the table with what was to be run.
func TestModels(t *testing.T) {
	t.Parallel()
	needTools(t)
	mode := "short"
	if *all {
		mode = "all"
	}
	out, err := exec.CommandContext(t.Context(), "bash", "check.sh", mode).CombinedOutput()
	t.Logf("check.sh %s\n%s", mode, out)
	if err != nil {
		t.Fatal(err)
	}
	held, caught := 0, 0
	for _, v := range variants(t) {
		if mode == "short" && !v.short {
			continue
		}
		row := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(v.name) + ` +[1-9][0-9]* +[1-9][0-9]* +` + v.want + ` +` + v.want + ` +ok$`)
		if !row.Match(out) {
			t.Errorf("no row says that %q ran and said %s", v.name, v.want)
		}
		if v.want == "holds" {
			held++
		} else {
			caught++
		}
	}
	if held == 0 || caught < 2 {
		t.Errorf("%d models held and %d mutations were caught: the test tested nothing", held, caught)
	}
}

// TestCheckNotices gives check.sh wrong expectations: a check that cannot fail proves nothing.
func TestCheckNotices(t *testing.T) {
	t.Parallel()
	needTools(t)
	const sound, broken = "x | store | NS=3 MAXT=2 MAXL=3 CLAIMANTS=0 | ", "x | store | NS=3 MAXT=2 MAXL=3 CLAIMANTS=0 M_TWO_VOTES | "
	for _, tc := range []struct{ name, line, memory string }{
		{"a mutation said to hold", broken + "holds", "500"},
		{"a sound model said to break", sound + "one_leader_per_term", "500"},
		{"another invariant breaks", broken + "linearizable_reads", "500"},
		{"a model that is not there", "x | missing | NS=3 | holds", "500"},
		{"a run that runs out of memory", sound + "holds", "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && tc.name != "another invariant breaks" {
				t.Skip("SKIPPED in short mode: each case compiles a model")
			}
			list := filepath.Join(t.TempDir(), "variants.txt")
			if err := os.WriteFile(list, []byte(tc.line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "bash", "check.sh", "all", list)
			cmd.Env = append(os.Environ(), "MEMORY="+tc.memory)
			out, err := cmd.CombinedOutput()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.ExitCode() != 1 || !strings.Contains(string(out), "DIFFERS") {
				t.Errorf("got %v, want exit status 1 and a row that differs:\n%s", err, out)
			}
		})
	}
}

// TestEveryRuleIsMutated needs no tools: each switch that breaks a rule is used
// by a variant, and each invariant of the models is broken by one.
func TestEveryRuleIsMutated(t *testing.T) {
	t.Parallel()
	list := variants(t)
	for _, model := range []string{"store", "recovery", "survivor"} {
		raw, err := os.ReadFile(model + ".pml")
		if err != nil {
			t.Fatal(err)
		}
		switches := regexp.MustCompile(`#ifn?def (M_[A-Z_]+)`).FindAllStringSubmatch(string(raw), -1)
		invariants := regexp.MustCompile(`(?m)^bool ([a-z_]+) = true;`).FindAllStringSubmatch(string(raw), -1)
		if len(switches) < 8 || len(invariants) < 6 {
			t.Fatalf("%s.pml: found %d switches and %d invariants: the test does not look at the model", model, len(switches), len(invariants))
		}
		for _, m := range switches {
			if !slices.ContainsFunc(list, func(v variant) bool { return v.model == model && slices.Contains(strings.Fields(v.switches), m[1]) }) {
				t.Errorf("%s.pml: no variant breaks the rule %s", model, m[1])
			}
		}
		for _, inv := range invariants {
			if !slices.ContainsFunc(list, func(v variant) bool { return v.model == model && v.want == inv[1] }) {
				t.Errorf("%s.pml: no mutation breaks the invariant %s", model, inv[1])
			}
		}
	}
}
