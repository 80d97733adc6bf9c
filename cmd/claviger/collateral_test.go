package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
	"github.com/claviger/claviger/enclave/sim"
)

// TestFetchFromPCCSWithItsOwnCA fetches from a PCCS whose TLS certificate nobody knows, without and with its CA.
func TestFetchFromPCCSWithItsOwnCA(t *testing.T) {
	t.Parallel()
	world := sim.NewWorld([32]byte{'t'}, nil)
	handler, err := pcsserver.New(pcsserver.Config{PKI: world.PKI(), PCCS: true})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it hears of the handshake that fails
	server.StartTLS()
	defer server.Close()
	dir := t.TempDir()
	root, ca := filepath.Join(dir, "root.pem"), filepath.Join(dir, "ca.pem")
	if err := writeRoot(root, world.Root()); err != nil {
		t.Fatal(err)
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	fetch := []string{"collateral", "fetch", "--json", "--pccs", server.URL, "--tee", "tdx", "--fmspc", "50806F000000", "--root", root, "--dir", dir}
	if code := run(t.Context(), fetch, nil, nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), `"reason":"tls"`) {
		t.Errorf("unknown CA: exit code %d: %s", code, &errs)
	}
	if len(handler.Requests()) != 0 {
		t.Error("the request was sent to an unknown service")
	}
	if code := run(t.Context(), append(fetch, "--ca-file", ca), nil, nil, &out, &errs); code != 0 {
		t.Errorf("with its CA: exit code %d: %s", code, &errs)
	}
}

// TestParseSetName is the inverse of pcs.Request.String, and takes no other names.
func TestParseSetName(t *testing.T) {
	t.Parallel()
	fmspc := [6]byte{0x50, 0x80, 0x6f}
	for _, r := range []pcs.Request{
		{TEE: "tdx", FMSPC: fmspc, CA: pcs.PlatformCA},
		{TEE: "sgx", FMSPC: fmspc, CA: pcs.ProcessorCA, Update: pcs.Early},
		{TEE: "sgx", FMSPC: fmspc, CA: pcs.PlatformCA, Update: pcs.Standard},
		{TEE: "sgx", FMSPC: fmspc, CA: pcs.PlatformCA, Evaluation: 17},
	} {
		if got, ok := parseSetName(r.String() + ".json"); !ok || got != r {
			t.Errorf("%s: %v, %v", r, got, ok)
		}
	}
	for _, name := range []string{
		"", ".json", "pck-platform.pem", "tdx-50806f000000-platform", "tdx-50806F000000-platform.json", "tdx-50806f0000-platform.json",
		"amd-50806f000000-platform.json", "tdx-50806f000000-root.json", "tdx-50806f000000-platform-late.json", "tdx-50806f000000-platform-e0.json",
		"tdx-50806f000000-platform-e017.json", "tdx-50806f000000-platform-e-1.json", "tdx-50806f000000-platform-.json", "tdx-50806f000000-platform-early-x.json",
	} {
		if got, ok := parseSetName(name); ok {
			t.Errorf("%q is taken for %v", name, got)
		}
	}
}

// TestReasonsAreDistinct: each failure of package pcs has one name, by which programs tell them apart.
func TestReasonsAreDistinct(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range reasons {
		got, ok := reasoned(&pcs.Error{Err: r.err}).(*collateralError)
		if !ok || got.Reason() != r.name || seen[r.name] {
			t.Errorf("%v: %v", r.err, got)
		}
		seen[r.name] = true
	}
	if len(seen) < 20 || reasoned(io.EOF) != io.EOF {
		t.Errorf("%d reasons", len(seen))
	}
}
