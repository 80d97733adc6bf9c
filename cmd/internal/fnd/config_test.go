package fnd

import (
	"errors"
	"strings"
	"testing"

	"github.com/claviger/claviger/cmd/internal/daemon"
)

func valid() Config {
	var c Config
	c.Listen.API, c.Listen.Admin, c.Data, c.Cluster = "127.0.0.1:1", "127.0.0.1:2", "data", "cluster.json"
	return c
}

// TestNobodyDeploysUnlessNamed: the zero configuration admits no owner, and both ways at once are refused.
func TestNobodyDeploysUnlessNamed(t *testing.T) {
	t.Parallel()
	c := valid()
	if a, err := c.access(); err != nil || a.Anyone || len(a.Owners) != 0 {
		t.Errorf("the zero access: %+v, %v", a, err)
	}
	key := strings.Repeat("ab", 32)
	c.Owners = []string{key, strings.ToUpper(key)}
	if a, err := c.access(); err != nil || a.Anyone || len(a.Owners) != 2 || a.Owners[0][0] != 0xab {
		t.Errorf("two owners: %+v, %v", a, err)
	}
	c.OpenToAnyOwner = true
	if a, err := c.access(); !errors.Is(err, daemon.ErrConfig) || a.Anyone {
		t.Errorf("owners and anybody: %+v, %v", a, err)
	}
	c.Owners = nil
	if a, err := c.access(); err != nil || !a.Anyone {
		t.Errorf("anybody: %+v, %v", a, err)
	}
	for _, bad := range []string{"", "ab", key + "ab", strings.Repeat("xy", 32), " " + key[1:]} {
		c := valid()
		c.Owners = []string{key, bad}
		if err := c.Resolve("/x"); !errors.Is(err, daemon.ErrConfig) || !strings.Contains(err.Error(), "owners") {
			t.Errorf("owner %q: %v, want ErrConfig that names owners", bad, err)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	c := valid()
	if err := c.Resolve("/x"); err != nil {
		t.Fatal(err)
	}
	if want := (Limits{MemoryMiB: 512, SnapshotMiB: 8, ProjectMiB: 64, DiskMiB: 8192, Projects: 256}); c.Limits != want {
		t.Errorf("defaults: %+v, want %+v", c.Limits, want)
	}
	for name, bad := range map[string]Limits{
		"negative": {DiskMiB: -1}, "no memory": {MemoryMiB: 1}, "a huge snapshot": {SnapshotMiB: 65}, "a huge project": {ProjectMiB: 257},
		"too many projects": {Projects: 1<<20 + 1}, "memory for less than a project": {MemoryMiB: 64},
	} {
		c := valid()
		c.Limits = bad
		if err := c.Resolve("/x"); !errors.Is(err, daemon.ErrConfig) || !strings.Contains(err.Error(), "limits.") {
			t.Errorf("%s: %v, want ErrConfig that names the limit", name, err)
		}
	}
	small := Limits{MemoryMiB: 32, SnapshotMiB: 4, ProjectMiB: 16}
	if err := small.check(); err != nil {
		t.Errorf("a small host: %v", err)
	}
}
