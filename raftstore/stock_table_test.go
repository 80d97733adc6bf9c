package raftstore

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
)

var writeAttacks = flag.Bool("attacks.write", false, "write docs/attacks.md from this run instead of comparing it")

// outcomes is what the tests of this run have seen, by the name of the test.
var outcomes sync.Map

// outcome says, at the end of a test that has held, what happened; the same words in every run.
func outcome(t *testing.T, what string) {
	name := t.Name()
	outcomes.Store(name[strings.LastIndex(name, "/")+1:], what)
	t.Log(what)
}

// attack is a row of the table. A test that tells no outcome of its own has its words here.
type attack struct {
	what  string
	stock func(*testing.T)
	ours  func(*testing.T)
	words string
	also  []string // tests elsewhere that perform it on what lies around this package
}

func testName(f func(*testing.T)) string {
	name := runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
	return name[strings.LastIndex(name, ".")+1:]
}

// did returns what the test saw in this run, and runs it if it has not run.
func did(t *testing.T, f func(*testing.T), words string) string {
	name := testName(f)
	if seen, ok := outcomes.Load(name); ok {
		return seen.(string)
	}
	if !t.Run(name, f) {
		return "FAILED"
	}
	if seen, ok := outcomes.Load(name); ok {
		return seen.(string)
	}
	return words
}

// TestAttackTable performs every attack on hashicorp/raft and on this package, unless this run has done so
// already, prints the table, and compares it with the one in docs/attacks.md.
func TestAttackTable(t *testing.T) {
	var rows strings.Builder
	rows.WriteString("| attack | the library as documented | claviger | tests |\n|---|---|---|---|\n")
	for _, a := range attacks {
		stock, ours := did(t, a.stock, ""), did(t, a.ours, a.words)
		if stock == "" || ours == "" {
			t.Errorf("%s: a test passed and said nothing (%q, %q)", a.what, stock, ours)
		}
		tests := []string{"`raftstore." + testName(a.stock) + "`", "`raftstore." + testName(a.ours) + "`"}
		for _, name := range a.also {
			tests = append(tests, "`"+name+"`")
		}
		fmt.Fprintf(&rows, "| %s | %s | %s | %s |\n", a.what, stock, ours, strings.Join(tests, ", "))
	}
	t.Logf("%d attacks\n%s", len(attacks), rows.String())
	if t.Failed() {
		return
	}
	const begin, end = "<!-- attacks: written by go test -run TestAttackTable ./raftstore -attacks.write -->\n", "<!-- end -->"
	path := filepath.Join("..", "docs", "attacks.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(text), begin)
	have, tail, closed := strings.Cut(rest, end)
	switch {
	case !found || !closed:
		t.Fatal("docs/attacks.md has no place for the table")
	case *writeAttacks:
		if err := os.WriteFile(path, []byte(head+begin+rows.String()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	case have != rows.String():
		t.Error("docs/attacks.md does not say what this run has seen: go test -run TestAttackTable ./raftstore -attacks.write")
	}
}
