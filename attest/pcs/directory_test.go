package pcs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki"
)

// open returns a directory in dir.
func (b *bed) open(t *testing.T, dir string, change func(*pcs.DirectoryConfig)) *pcs.Directory {
	t.Helper()
	config := pcs.DirectoryConfig{Path: dir, Verifier: b.verifier, Clock: b.now}
	if change != nil {
		change(&config)
	}
	d, err := pcs.OpenDirectory(config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bundle fetches a set and returns it with its one-file form.
func (b *bed) bundle(t *testing.T, r pcs.Request) (*pcs.Set, []byte) {
	t.Helper()
	set, err := b.client(t, nil).Fetch(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := set.Collateral.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return set, raw
}

// TestOfflineSite carries bundles to a site without a network, imports them, and verifies quotes there.
func TestOfflineSite(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	site := b.open(t, dir, nil)
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		for _, ca := range []simpki.CA{simpki.PlatformCA, simpki.ProcessorCA} {
			quote := b.quote(t, tee, ca)
			r, err := pcs.RequestFor(quote)
			if err != nil {
				t.Fatal(err)
			}
			c, err := site.Collateral(t.Context(), quote)
			wants(t, "before", c, err, pcs.ErrNoBundle)
			set, raw := b.bundle(t, r)
			imported, err := site.Import(raw, set.PCKIssuer)
			if err != nil || imported.Request != r {
				t.Fatalf("%s: %v", r, err)
			}
			q, err := attest.Parse(quote)
			if err != nil {
				t.Fatal(err)
			}
			if c, err = site.Collateral(t.Context(), quote); err != nil {
				t.Fatal(err)
			}
			if _, err := b.verifier.Verify(q, c, b.now()); err != nil {
				t.Error(err)
			}
			if loaded, err := site.Load(r); err != nil || loaded.Report.Set != set.Report.Set || !loaded.Fetched.Equal(b.now()) {
				t.Errorf("%s: %v", r, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, err := site.Collateral(ctx, b.quote(t, attest.SGX, ""))
	wants(t, "cancelled", c, err, pcs.ErrTimeout)
	// The day comes when the bundles are too old.
	b.skew.Store(int64(31 * day))
	c, err = site.Collateral(t.Context(), b.quote(t, attest.SGX, ""))
	wants(t, "expired", c, err, pcs.ErrExpired)
	set, err := site.Load(request())
	wants(t, "expired", set, err, pcs.ErrExpired)
}

// TestBareBundle puts a bundle where it belongs by hand, without the chain of the CA: a quote brings that along.
func TestBareBundle(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	site := b.open(t, dir, nil)
	want, raw := b.bundle(t, request())
	if err := os.WriteFile(filepath.Join(dir, request().String()+".json"), append(raw, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	quote := b.quote(t, attest.SGX, "")
	if _, err := site.Collateral(t.Context(), quote); err != nil {
		t.Error(err)
	}
	set, err := site.Load(request())
	wants(t, "no chain", set, err, pcs.ErrNoIssuer)
	set, err = site.Import(raw, nil)
	wants(t, "import, no chain", set, err, pcs.ErrNoIssuer)
	q, err := attest.Parse(quote)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := attest.PCKIssuer(q)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := site.Import(raw, issuer); err != nil {
		t.Fatal(err)
	}
	if set, err = site.Load(request()); err != nil || set.Report.Set != want.Report.Set {
		t.Error(err)
	}
	// From now on the directory has the chain of that CA, and of that one only.
	if _, err := site.Import(raw, nil); err != nil {
		t.Error(err)
	}
	other := request()
	other.CA = pcs.ProcessorCA
	_, raw = b.bundle(t, other)
	set, err = site.Import(raw, nil)
	wants(t, "other CA", set, err, pcs.ErrVerify)
}

// TestImportRefuses carries in what must not come in.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	set, raw := b.bundle(t, request())
	old, err := b.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, birth.Add(-day))
	if err != nil {
		t.Fatal(err)
	}
	older, err := old.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if old, err = b.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, birth.Add(-40*day)); err != nil {
		t.Fatal(err)
	}
	oldest, err := old.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	site := b.open(t, t.TempDir(), nil)
	if _, err := site.Import(raw, set.PCKIssuer); err != nil {
		t.Fatal(err)
	}
	tampered := *set.Collateral
	tampered.PCKCRL = flip(tampered.PCKCRL, len(tampered.PCKCRL)-1)
	forged, err := tampered.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		bundle, issuer []byte
		is             error
	}{
		"nothing":            {nil, set.PCKIssuer, pcs.ErrCorrupt},
		"half":               {raw[:len(raw)/2], set.PCKIssuer, pcs.ErrCorrupt},
		"huge":               {make([]byte, attest.MaxCollateral+1), set.PCKIssuer, pcs.ErrCorrupt},
		"no chain":           {raw, []byte{}, pcs.ErrVerify},
		"another chain":      {raw, set.Collateral.TCBSigningChain, pcs.ErrVerify},
		"tampered list":      {forged, set.PCKIssuer, pcs.ErrVerify},
		"older than it was":  {older, set.PCKIssuer, pcs.ErrRollback},
		"older, known chain": {older, nil, pcs.ErrRollback},
		"expired":            {oldest, set.PCKIssuer, pcs.ErrExpired},
	} {
		got, err := site.Import(tc.bundle, tc.issuer)
		wants(t, name, got, err, tc.is)
	}
	if kept, err := site.Load(request()); err != nil || kept.Report.Set != set.Report.Set {
		t.Errorf("after the attacks: %v", err)
	}
	stranger, err := simpki.New(simpki.Config{Seed: [32]byte{99}, Now: birth})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: stranger.Root()})
	if err != nil {
		t.Fatal(err)
	}
	other := b.open(t, t.TempDir(), func(c *pcs.DirectoryConfig) { c.Verifier = verifier })
	got, err := other.Import(raw, set.PCKIssuer)
	wants(t, "another root", got, err, pcs.ErrVerify)
}

// TestSaveRefuses saves what was not fetched.
func TestSaveRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	site := b.open(t, dir, nil)
	good, _ := b.bundle(t, request())
	for name, tc := range map[string]struct {
		change func(*pcs.Set)
		is     error
	}{
		"wrong name":   {func(s *pcs.Set) { s.Request.TEE = attest.TDX }, pcs.ErrMismatch},
		"wrong family": {func(s *pcs.Set) { s.Request.FMSPC[0]++ }, pcs.ErrMismatch},
		"wrong number": {func(s *pcs.Set) { s.Request.Evaluation = 1 }, pcs.ErrMismatch},
		"no request":   {func(s *pcs.Set) { s.Request = pcs.Request{} }, pcs.ErrRequest},
		"path":         {func(s *pcs.Set) { s.Request.CA = "/../../platform" }, pcs.ErrRequest},
		"no parts":     {func(s *pcs.Set) { s.Collateral = nil }, pcs.ErrVerify},
		"empty parts":  {func(s *pcs.Set) { s.Collateral = new(attest.Collateral) }, pcs.ErrVerify},
		"no chain":     {func(s *pcs.Set) { s.PCKIssuer = nil }, pcs.ErrVerify},
	} {
		set := *good
		tc.change(&set)
		wants(t, name, nil, site.Save(&set), tc.is)
	}
	wants(t, "nil", nil, site.Save(nil), pcs.ErrRequest)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v was written (%v)", entries, err)
	}
	if err := site.Save(good); err != nil {
		t.Error(err)
	}
}

// TestRenamedFile gives the bundle of one platform the name of another.
func TestRenamedFile(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	site := b.open(t, dir, nil)
	r := request()
	r.TEE = attest.TDX
	set, raw := b.bundle(t, r)
	if _, err := site.Import(raw, set.PCKIssuer); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, r.String()+".json"), filepath.Join(dir, request().String()+".json")); err != nil {
		t.Fatal(err)
	}
	c, err := site.Collateral(t.Context(), b.quote(t, attest.SGX, ""))
	wants(t, "renamed", c, err, pcs.ErrMismatch)
	if e, _ := errors.AsType[*pcs.Error](err); e == nil || filepath.Base(e.Path) != request().String()+".json" {
		t.Errorf("%v does not name the file", err)
	}
}

// TestEvaluationsAreApart keeps sets of one platform by update and number.
func TestEvaluationsAreApart(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	set, raw := b.bundle(t, request())
	number := set.Report.Set.TCBEvaluation
	for name, change := range map[string]func(*pcs.DirectoryConfig){
		"sgx-518060000000-platform.json":          nil,
		"sgx-518060000000-platform-early.json":    func(c *pcs.DirectoryConfig) { c.Update = pcs.Early },
		"sgx-518060000000-platform-standard.json": func(c *pcs.DirectoryConfig) { c.Update = pcs.Standard },
		"sgx-518060000000-platform-e17.json":      func(c *pcs.DirectoryConfig) { c.Evaluation = number },
	} {
		if number != 17 {
			t.Fatalf("evaluation number %d", number)
		}
		site := b.open(t, dir, change)
		c, err := site.Collateral(t.Context(), b.quote(t, attest.SGX, ""))
		wants(t, name, c, err, pcs.ErrNoBundle)
		if _, err := site.Import(raw, set.PCKIssuer); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
		if _, err := site.Collateral(t.Context(), b.quote(t, attest.SGX, "")); err != nil {
			t.Error(err)
		}
	}
	site := b.open(t, dir, func(c *pcs.DirectoryConfig) { c.Evaluation = number + 1 })
	got, err := site.Import(raw, set.PCKIssuer)
	wants(t, "another number", got, err, pcs.ErrMismatch)
}

// TestBadFiles loads what a disk or a person may leave there.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	site := b.open(t, dir, nil)
	set, raw := b.bundle(t, request())
	bundle, chain := filepath.Join(dir, request().String()+".json"), filepath.Join(dir, "pck-platform.pem")
	for name, tc := range map[string]struct {
		bundle, chain []byte
		is            error
	}{
		"good":             {raw, set.PCKIssuer, nil},
		"empty":            {nil, set.PCKIssuer, pcs.ErrCorrupt},
		"half":             {raw[:len(raw)/2], set.PCKIssuer, pcs.ErrCorrupt},
		"huge":             {bytes.Repeat([]byte{' '}, attest.MaxCollateral+1), set.PCKIssuer, pcs.ErrCorrupt},
		"empty chain":      {raw, nil, pcs.ErrCorrupt},
		"huge chain":       {raw, bytes.Repeat([]byte{' '}, attest.MaxSigningChain+1), pcs.ErrCorrupt},
		"another chain":    {raw, set.Collateral.TCBSigningChain, pcs.ErrVerify},
		"chain is no PEM":  {raw, []byte("chain"), pcs.ErrCorrupt},
		"chain with noise": {raw, append([]byte("\n\n"), append(set.PCKIssuer, '\n')...), nil},
	} {
		if err := errors.Join(os.WriteFile(bundle, tc.bundle, 0o600), os.WriteFile(chain, tc.chain, 0o600)); err != nil {
			t.Fatal(err)
		}
		got, err := site.Load(request())
		if tc.is != nil {
			wants(t, name, got, err, tc.is)
		} else if err != nil || got.Report.Set != set.Report.Set {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPipe must not wait for a writer.
func TestPipe(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, request().String()+".json"), 0o600); err != nil {
		t.Skip("no pipes here: ", err)
	}
	set, err := b.open(t, dir, nil).Load(request())
	wants(t, "pipe", set, err, pcs.ErrDisk)
}

// TestDirectoryIsBounded fills a directory beyond its bound: the oldest bundles go, other people's files stay.
func TestDirectoryIsBounded(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	for name, at := range map[string]time.Time{".tmp-old": birth.Add(-2 * time.Hour), ".tmp-new": birth} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"notes.txt", "tdx-handbook.pdf"}
	for i := range 520 {
		r := request()
		r.FMSPC = [6]byte{1, byte(i), byte(i >> 8)}
		names = append(names, r.String()+".json")
	}
	for i, name := range names {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		at := birth.Add(time.Duration(i) * time.Second)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	set, _ := b.bundle(t, request())
	if err := b.open(t, dir, nil).Save(set); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 512+4 { // two foreign files, the chain, and one file that may be in the making
		t.Errorf("%d files (%v)", len(entries), err)
	}
	for i, name := range names {
		_, err := os.Stat(filepath.Join(dir, name))
		if gone := i >= 2 && i < 2+520-511; gone != os.IsNotExist(err) {
			t.Errorf("file %d: %v", i, err)
		}
	}
}

// TestAtomicWrites reads while another process, as it were, writes: a reader sees a whole file.
func TestAtomicWrites(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	set, _ := b.bundle(t, request())
	writer, reader := b.open(t, dir, nil), b.open(t, dir, nil)
	if err := writer.Save(set); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		for range 20 {
			if err := writer.Save(set); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	reads := 0
	for {
		select {
		case err := <-done:
			if err != nil || reads == 0 {
				t.Errorf("%d reads: %v", reads, err)
			}
			return
		default:
		}
		if _, err := reader.Load(request()); err != nil {
			t.Error(err)
		}
		reads++
	}
}

func TestDirectoryConfig(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		config pcs.DirectoryConfig
		is     error
	}{
		"zero":        {pcs.DirectoryConfig{}, pcs.ErrConfig},
		"no verifier": {pcs.DirectoryConfig{Path: t.TempDir()}, pcs.ErrConfig},
		"no path":     {pcs.DirectoryConfig{Verifier: b.verifier}, pcs.ErrDisk},
		"absent":      {pcs.DirectoryConfig{Verifier: b.verifier, Path: file + "x"}, pcs.ErrDisk},
		"file":        {pcs.DirectoryConfig{Verifier: b.verifier, Path: file}, pcs.ErrDisk},
		"update":      {pcs.DirectoryConfig{Verifier: b.verifier, Path: t.TempDir(), Update: "x"}, pcs.ErrConfig},
	} {
		d, err := pcs.OpenDirectory(tc.config)
		wants(t, name, nil, err, tc.is)
		if d != nil {
			t.Errorf("%s: a directory beside the error", name)
		}
	}
	set, err := b.open(t, t.TempDir(), nil).Load(pcs.Request{})
	wants(t, "zero request", set, err, pcs.ErrRequest)
	c, err := b.open(t, t.TempDir(), nil).Collateral(t.Context(), bytes.Repeat([]byte{3}, 100))
	wants(t, "no quote", c, err, pcs.ErrRequest)
}
