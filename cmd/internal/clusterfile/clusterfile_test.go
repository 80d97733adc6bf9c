package clusterfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

func sample(t testing.TB) *File {
	t.Helper()
	m := api.Manifest{
		Version: api.ManifestVersion, Name: "test", Root: api.RootOfTrust{ID: [32]byte{1}, Simulated: true},
		NodePolicy: []string{"C:aa"}, Nonce: [32]byte{2},
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{bytes.Repeat([]byte{3}, 32)}},
	}
	raw, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	f := &File{Manifest: raw, IdentityKey: bytes.Repeat([]byte{4}, 32), Endpoints: []string{"127.0.0.1:7201"}}
	if f.ClusterID, err = api.ClusterID(raw, f.IdentityKey); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestCreateAndRead(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "cluster.json")
	f := sample(t)
	if err := f.Create(name); err != nil {
		t.Fatal(err)
	}
	got, err := Read(name)
	if err != nil {
		t.Fatal(err)
	}
	if got.ClusterID != f.ClusterID || !bytes.Equal(got.Manifest, f.Manifest) || len(got.Endpoints) != 1 {
		t.Errorf("read back %+v", got)
	}
	if m, err := got.ManifestOf(); err != nil || m.Name != "test" {
		t.Errorf("manifest %v, %v", m, err)
	}
	if got, err := ReadPinned(name, f.ClusterID); err != nil || got.ClusterID != f.ClusterID {
		t.Errorf("the pinned cluster: %v, %v", got, err)
	}
	if got, err := ReadPinned(name, api.ID{1}); !errors.Is(err, ErrPinned) || got != nil {
		t.Errorf("another cluster than the pinned one: %v, %v", got, err)
	}
	if _, err := ReadPinned(name+"x", api.ID{1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := f.Create(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second genesis overwrote the pin: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(name))
	if err != nil || len(left) != 1 {
		t.Errorf("temporary files left behind: %v, %v", left, err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good, err := json.Marshal(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	change := func(mutate func(*File)) []byte {
		f := sample(t)
		mutate(f)
		raw, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, raw := range map[string][]byte{
		"empty":         {},
		"trailing":      append(bytes.Clone(good), '{', '}'),
		"unknown key":   bytes.Replace(good, []byte(`{"cluster_id"`), []byte(`{"x":1,"cluster_id"`), 1),
		"duplicate key": bytes.Replace(good, []byte(`{"cluster_id"`), []byte(`{"endpoints":["a:1"],"cluster_id"`), 1),
		"oversized":     make([]byte, MaxFile+1),
		"other id":      change(func(f *File) { f.ClusterID[0] ^= 1 }),
		"other key":     change(func(f *File) { f.IdentityKey[0] ^= 1 }),
		"short key":     change(func(f *File) { f.IdentityKey = f.IdentityKey[1:] }),
		"no manifest":   change(func(f *File) { f.Manifest = nil }),
		"no endpoints":  change(func(f *File) { f.Endpoints = nil }),
		"no port":       change(func(f *File) { f.Endpoints = []string{"localhost"} }),
		"many":          change(func(f *File) { f.Endpoints = make([]string, MaxEndpoints+1) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if f, err := Parse(raw); !errors.Is(err, ErrInvalid) || f != nil {
				t.Errorf("got %v, %v, want ErrInvalid", f, err)
			}
		})
	}
}

// FuzzParse: whatever a host puts into the file, what is read names the cluster that it describes, and is written as it was read.
func FuzzParse(f *testing.F) {
	good, err := json.Marshal(sample(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(bytes.Replace(good, []byte(`:7201`), []byte(`:0`), 1))
	f.Add([]byte(`{"cluster_id":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := Parse(raw)
		if err != nil {
			if file != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v beside %v", file, err)
			}
			return
		}
		if id, err := api.ClusterID(file.Manifest, file.IdentityKey); err != nil || id != file.ClusterID {
			t.Fatalf("it names %s and describes %s, %v", file.ClusterID, id, err)
		}
		again, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := Parse(again); err != nil || !reflect.DeepEqual(file, second) {
			t.Fatalf("read back %+v, %v", second, err)
		}
	})
}
