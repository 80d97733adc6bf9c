package persist_test

import (
	"testing"

	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

func TestSizeAndBytes(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	if n, found, err := persist.Size(files, "s"); n != 0 || found || err != nil {
		t.Errorf("no store: %d, %v, %v", n, found, err)
	}
	if _, _, err := persist.Size(files, "../s"); err == nil {
		t.Error("a name with a path is accepted")
	}
	o := persist.Options{Files: files, Name: "s", Key: testKey(t, 'k'), NoFreshnessUnsafe: true}
	m, err := persist.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if m.Bytes() != 0 {
		t.Errorf("an empty store has %d bytes", m.Bytes())
	}
	put := func(k, v string) {
		t.Helper()
		if err := m.Update(t.Context(), func(tx *persist.Tx) error { return tx.Put([]byte(k), []byte(v)) }); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "1234")
	put("b", "")
	put("a", "12")
	const want = 96 + 1 + 2 + 96 + 1
	if m.Bytes() != want {
		t.Errorf("%d bytes, want %d", m.Bytes(), want)
	}
	n, found, err := persist.Size(files, "s")
	if err != nil || !found || n != int64(len(files.Bytes("s.a"))+len(files.Bytes("s.b"))) || n == 0 {
		t.Errorf("files: %d, %v, %v", n, found, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if m, err = persist.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Bytes() != want {
		t.Errorf("%d bytes once opened again, want %d", m.Bytes(), want)
	}
}
