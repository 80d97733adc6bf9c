package kdsd

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/node"
	"github.com/claviger/claviger/raftstore"
)

var (
	one = raftstore.ServerID(bytes.Repeat([]byte{0x11}, 32))
	two = raftstore.ServerID(bytes.Repeat([]byte{0x22}, 32))
)

// A data directory stands for all archives in it, an archive for itself, and what lies beside them is found.
func TestRecoveryFindsArchives(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	for _, dir := range []string{one.String(), "attempt-2/" + two.String(), "recovery", "attempt-x"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	last := node.WrappedFile(3, [32]byte{7})
	for _, name := range []string{node.WrappedFile(1, [32]byte{5}), last, node.WrappedFile(3, [32]byte{6}), last + ".new", "final-" + two.String() + ".json"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := &Recovery{Archives: []string{data}}
	dirs, err := r.archiveDirs()
	slices.Sort(dirs)
	if want := []string{filepath.Join(data, one.String()), filepath.Join(data, "attempt-2", two.String())}; err != nil || !slices.Equal(dirs, want) {
		t.Fatalf("%q, %v", dirs, err)
	}
	wrapped, finals := beside(dirs)
	if len(wrapped) != 3 || len(finals) != 1 || filepath.Base(wrapped[2]) != last {
		t.Errorf("wrapped %q, finals %q", wrapped, finals)
	}
	single := filepath.Join("elsewhere", one.String()) // need not exist: it may be a name of a server's
	if dirs, err := (&Recovery{Archives: []string{single}}).archiveDirs(); err != nil || len(dirs) != 1 {
		t.Errorf("%q, %v", dirs, err)
	}
	many := t.TempDir()
	for i := range node.MaxArchives + 1 {
		if err := os.Mkdir(filepath.Join(many, raftstore.ServerID{byte(i), 1}.String()), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range map[string]*Recovery{
		"too many":            {Archives: []string{many}},
		"nothing":             {},
		"no such directory":   {Archives: []string{filepath.Join(data, "none")}},
		"no archive below it": {Archives: []string{filepath.Join(data, "recovery")}},
	} {
		if dirs, err := r.archiveDirs(); err == nil {
			t.Errorf("%s: %q", name, dirs)
		}
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		genesis, recovery, ok bool
		want                  Mode
	}{{false, false, true, Join}, {true, false, true, Found}, {false, true, true, Recover}, {true, true, false, Join}} {
		if m, err := ModeOf(c.genesis, c.recovery); m != c.want || (err == nil) != c.ok {
			t.Errorf("%+v: %d, %v", c, m, err)
		}
	}
}

// Shares survive their files, are never overwritten, and no error repeats what is in a file.
func TestShareFiles(t *testing.T) {
	t.Parallel()
	_, shares, err := kds.NewRecoveryKey(2, 3)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "shares")
	write := WriteShares(dir, slog.New(slog.DiscardHandler))
	if err := write(shares); err != nil {
		t.Fatal(err)
	}
	if err := write(shares); err == nil {
		t.Error("shares were overwritten")
	}
	for _, s := range shares {
		raw, err := os.ReadFile(filepath.Join(dir, "share-"+string(rune('0'+s.Index))+".hex"))
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseShareFile(raw)
		if err != nil || back.Index != s.Index || back.Threshold != 2 || back.Key != s.Key {
			t.Errorf("%d: %v", s.Index, err)
		}
		for _, bad := range [][]byte{nil, raw[:len(raw)-3], append([]byte("zz"), raw...), []byte(hex.EncodeToString(raw)), bytes.Repeat([]byte{'a'}, MaxShareFile+2)} {
			if _, err := ParseShareFile(bad); err == nil || len(bad) > 8 && strings.Contains(err.Error(), string(bad[:8])) {
				t.Errorf("%d bytes: %v", len(bad), err)
			}
		}
	}
}

// FuzzShareFile: no file makes it panic, and the error never repeats what may be most of a secret.
func FuzzShareFile(f *testing.F) {
	_, shares, err := kds.NewRecoveryKey(2, 3)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := shares[0].Reveal()
	if err != nil {
		f.Fatal(err)
	}
	good := append(hex.AppendEncode([]byte(" "), raw), '\n')
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add(bytes.Repeat([]byte("ab"), MaxShareFile))
	f.Fuzz(func(t *testing.T, text []byte) {
		share, err := ParseShareFile(text)
		if err == nil {
			again, err := share.Reveal()
			if err != nil || !bytes.EqualFold(bytes.TrimSpace(text), hex.AppendEncode(nil, again)) {
				t.Fatalf("a share has two encodings, %v", err)
			}
			return
		}
		if word := bytes.TrimSpace(text); len(word) > 16 && strings.Contains(err.Error(), string(word)) {
			t.Fatal("the error repeats the file")
		}
	})
}
