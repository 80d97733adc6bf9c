package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/kds/api"
)

// archiveDirs makes directories as archives have them, written to a week ago.
func (g *governed) archiveDirs(dirs ...string) {
	g.t.Helper()
	week := time.Now().Add(-7 * 24 * time.Hour)
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			g.t.Fatal(err)
		}
		if err := os.Chtimes(dir, week, week); err != nil {
			g.t.Fatal(err)
		}
	}
}

// stays wants directories to be there still.
func (g *governed) stays(what string, dirs ...string) {
	g.t.Helper()
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			g.t.Errorf("%s: %v", what, err)
		}
	}
}

// What lies behind a link is not the cluster's; and code that the operators have shut out, whose nodes answer those who mend
// the policy, does not say which archives may go.
func TestPruneBelievesMembersOfThePolicyAlone(t *testing.T) {
	t.Parallel()
	g := newGoverned(t)
	var c api.Cluster
	out, _ := g.cluster(0, "status", "--json")
	if err := json.Unmarshal([]byte(out), &c); err != nil || len(c.Members) != 1 || len(c.Voters) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	data, foreign := g.path("data"), g.path("foreign")
	runs, ended := filepath.Join(data, c.Members[0].ServerID.String()), filepath.Join(data, strings.Repeat("1", 64))
	others := filepath.Join(foreign, strings.Repeat("2", 64))
	g.archiveDirs(runs, ended, others)
	if err := os.Symlink(foreign, filepath.Join(data, "attempt-2")); err != nil {
		t.Fatal(err)
	}
	out, _ = g.cluster(0, "prune", data, "--delete")
	g.says(out, "1 of 2 archives are of ended boots")
	if _, err := os.Stat(ended); !os.IsNotExist(err) {
		t.Errorf("an archive that nobody needs: %v", err)
	}
	g.stays("behind a link", runs, others)

	g.archiveDirs(ended)
	next := simworld.NodeImage
	next.Version = "2"
	g.cluster(0, "policy", "--add", next.Constraint(), "--remove", simworld.NodeImage.Constraint(), "--key", g.key(0), "--key", g.key(1))
	out, _ = g.cluster(0, "status")
	g.says(out, next.Constraint())
	_, text := g.cluster(1, "prune", data, "--delete", "--timeout", "5s")
	g.says(text, "node policy")
	g.stays("by the word of expelled code", runs, ended)
}
