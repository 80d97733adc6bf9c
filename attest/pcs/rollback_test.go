package pcs_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// TestRollback performs the attack: a service, or who stands before it, answers with older sets that are genuine and valid.
func TestRollback(t *testing.T) {
	t.Parallel()
	older := pcsserver.AsOf(birth.Add(-2 * day))
	for _, tc := range []struct {
		document pcsserver.Document
		what     string
	}{
		{pcsserver.TCBInfo, "issue date of the TCB info"},
		{pcsserver.QEIdentity, "issue date of the QE identity"},
		{pcsserver.PCKCRL, "date of the PCK revocation list"},
		{pcsserver.RootCRL, "date of the root revocation list"},
	} {
		for _, restart := range []bool{false, true} {
			b := newBed(t, nil)
			dir := t.TempDir()
			with := func(c *pcs.SourceConfig) { c.Dir = dir }
			source := b.source(t, b.client(t, nil), with)
			good, err := source.Get(t.Context(), request())
			if err != nil {
				t.Fatal(err)
			}
			if restart {
				source = b.source(t, b.client(t, nil), with)
			}
			b.server.Inject(tc.document, -1, older)
			set, err := source.Refresh(t.Context(), request())
			wants(t, tc.what, set, err, pcs.ErrRollback)
			if e, ok := errors.AsType[*pcs.RollbackError](err); !ok || e.What != tc.what || !strings.Contains(err.Error(), "refresh the cache") {
				t.Errorf("%s: %v", tc.what, err)
			}
			// What was there still serves, and still renews.
			if set, err = source.Get(t.Context(), request()); err != nil || set.Report.Set != good.Report.Set {
				t.Errorf("%s: %v", tc.what, err)
			}
			b.server.Inject(tc.document, 0, older)
			if _, err = source.Refresh(t.Context(), request()); err != nil {
				t.Errorf("%s, the same again: %v", tc.what, err)
			}
		}
	}
}

// TestRollbackOfRecovery hides a TCB recovery, the first number that counts. The old set has expired meanwhile: even then
// it is what the answer is compared with.
func TestRollbackOfRecovery(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	if err := b.pki.Recover(birth); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	with := func(c *pcs.SourceConfig) { c.Dir = dir }
	if _, err := b.source(t, b.client(t, nil), with).Get(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	b.skew.Store(int64(40 * day))
	// The same Intel without the recovery: its documents are newer in every date, and genuine.
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{7}, Now: birth})
	if err != nil {
		t.Fatal(err)
	}
	if b.server, err = pcsserver.New(pcsserver.Config{PKI: pki, Clock: b.now}); err != nil {
		t.Fatal(err)
	}
	set, err := b.source(t, b.client(t, nil), with).Get(t.Context(), request())
	wants(t, "hidden recovery", set, err, pcs.ErrRollback)
	if e, ok := errors.AsType[*pcs.RollbackError](err); !ok || !strings.Contains(e.What, "evaluation number") {
		t.Error(err)
	}
}
