package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// A revocation of this morning counts this evening, although what was fetched before it is still valid; and a service that
// fails takes nothing away.
func TestNodesAskForRecentCollateral(t *testing.T) {
	t.Parallel()
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	server, err := pcsserver.New(pcsserver.Config{PKI: pki, PCCS: true})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server)
	defer web.Close()
	verifier, err := attest.NewVerifier(attest.Config{Root: pki.Root()})
	if err != nil {
		t.Fatal(err)
	}
	client, err := pcs.NewClient(pcs.Config{Verifier: verifier, BaseURL: web.URL, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	source, err := pcs.NewSource(pcs.SourceConfig{Fetcher: client, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	platform, err := pki.Platform(simpki.PlatformConfig{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	quote, err := platform.QuoteSGX(sgx.Report{})
	if err != nil {
		t.Fatal(err)
	}
	get := func(age time.Duration) *attest.Collateral {
		t.Helper()
		c, err := recent(source, "", age, slog.New(slog.DiscardHandler))(t.Context(), quote)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := get(time.Hour)
	pki.Revoke(platform, time.Now())
	if kept := get(time.Hour); !bytes.Equal(kept.PCKCRL, before.PCKCRL) {
		t.Error("an answer of this hour was asked for again")
	}
	after := get(0)
	if bytes.Equal(after.PCKCRL, before.PCKCRL) {
		t.Error("the revocation does not count")
	}
	web.Config.Handler = http.NotFoundHandler()
	if kept := get(0); !bytes.Equal(kept.PCKCRL, after.PCKCRL) {
		t.Error("a service that fails took the set away, or back")
	}
}

func TestCollateralUpdate(t *testing.T) {
	t.Parallel()
	for _, good := range []pcs.Update{"", pcs.Early, pcs.Standard} {
		if err := (&Collateral{Update: good}).Resolve("."); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	if err := (&Collateral{Update: "soon"}).Resolve("."); !errors.Is(err, ErrConfig) {
		t.Errorf("an update of its own: %v", err)
	}
}
