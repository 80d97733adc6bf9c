package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type sample struct {
	Slot   int               `yaml:"slot"`
	Listen map[string]string `yaml:"listen"`
	Join   []string          `yaml:"join"`
	Sim    *struct {
		World string `yaml:"world"`
	} `yaml:"sim"`
}

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := Parse[sample]([]byte("---\n# a node\nslot: 2\nlisten: {api: 127.0.0.1:1}\njoin: [a, b]\nsim:\n  world: w.json\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Slot != 2 || got.Listen["api"] != "127.0.0.1:1" || len(got.Join) != 2 || got.Sim == nil || got.Sim.World != "w.json" {
		t.Errorf("got %+v", got)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		want       error
		says       string
	}{
		{"empty", "", ErrEmpty, ""},
		{"only comments", "# nothing\n", ErrEmpty, ""},
		{"only a header", "---\n", ErrEmpty, ""},
		{"unknown key", "slot: 1\nslots: 2\n", ErrInvalid, "slots"},
		{"unknown nested key", "sim: {world: w, seed: 1}\n", ErrInvalid, "seed"},
		{"case of a key", "Slot: 1\n", ErrInvalid, "Slot"},
		{"duplicate key", "slot: 1\nslot: 2\n", ErrInvalid, "slot"},
		{"duplicate nested key", "sim: {world: a, world: b}\n", ErrInvalid, "world"},
		{"anchor", "join: &a [x]\n", ErrFeature, "anchors"},
		{"alias", "join: &a [x]\nlisten: *a\n", ErrFeature, "anchors"},
		{"merge", "sim: {<<: {world: w}}\n", ErrFeature, "merge"},
		{"tag", "slot: !!str 1\n", ErrFeature, "tags"},
		{"directive", "%YAML 1.2\n---\nslot: 1\n", ErrFeature, "directives"},
		{"second document", "slot: 1\n---\nslot: 2\n", ErrFeature, "second document"},
		{"second document after header", "---\nslot: 1\n---\nslot: 2\n", ErrFeature, "second document"},
		{"wrong type", "slot: one\n", ErrInvalid, "slot"},
		{"not a mapping", "- 1\n- 2\n", ErrInvalid, ""},
		{"broken", "slot: [1\n", ErrInvalid, ""},
		{"oversized", "# " + strings.Repeat("x", MaxFile), ErrTooLarge, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse[sample]([]byte(tc.text))
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v that names %q", err, tc.want, tc.says)
			}
			if got.Slot != 0 || got.Join != nil || got.Sim != nil {
				t.Errorf("a refused file left a value: %+v", got)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "node.yaml")
	if _, err := Load[sample](name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(name, []byte("slot: 3\nextra: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load[sample](name); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v, want ErrInvalid that names the file", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"slot: 1\n", "join: [a]\n", "sim: {world: w}\n", "a: &b c\n", "---\n---\n", "\"\\x00\": 1", "? a\n: b"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := Parse[sample](raw); err != nil && err.Error() == "" {
			t.Error("an error without a sentence")
		}
	})
}
