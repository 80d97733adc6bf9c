package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/kds/node"
)

// An operator's key and a share of the recovery key cannot be made again: a slip in --out does not write over one, by no spelling
// of its name and through no link.
func TestSecretsAreNotWrittenOver(t *testing.T) {
	t.Parallel()
	c := newCeremony(t)
	c.write(node.StatementFile, c.statement(simworld.NodeImage, nil))
	key, link := c.path("op0.key"), c.path("link")
	if err := os.Symlink(key, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(memoryFile(key), []byte(`{"clusters":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{key, c.dir + "/./op0.key", link} {
		_, text := c.approve(2, "--key", c.path("op1.key"), "--key", key, "--out", out)
		c.wants(text, "--out", "cannot be made again")
	}
	_, text := c.approve(2, "--key", link, "--out", key)
	c.wants(text, "cannot be made again")
	for what, args := range map[string][]string{
		"a statement": {"cluster", "stop", "--cluster", c.path("none.json"), "--key", key, "--out", key},
		"an approval": {"cluster", "recover", "approve", "--cluster-id", "00", "--statement", "0123456789abcdef", "--report", c.path("none.json"), "--key", key, "--out", key},
		"a share":     {"cluster", "recover", "return", "--cluster-id", "00", "--genesis-policy", "--request", c.path("none.json"), "--share", key, "--out", key},
		"an approval over what the key has signed": {"cluster", "recover", "approve", "--cluster-id", "00", "--statement", "0123456789abcdef", "--report", c.path("none.json"),
			"--key", key, "--out", memoryFile(key)},
	} {
		if _, text := c.claviger(2, args...); !strings.Contains(text, "cannot be made again") {
			t.Errorf("%s: %s", what, text)
		}
	}
	if after, err := os.ReadFile(key); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key is gone: %v", err)
	}
	if to, err := filepath.EvalSymlinks(link); err != nil || filepath.Base(to) != "op0.key" {
		t.Errorf("the link is gone: %v", err)
	}
	c.approve(0, "--key", key, "--out", c.path("one.json"))
	c.approve(0, "--key", key, "--out", c.path("one.json")) // once more
}
