package pcs_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// service starts a simulated Intel and its service, for the examples.
func service() (url string, verifier *attest.Verifier, stop func(), err error) {
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: time.Now()})
	if err != nil {
		return "", nil, nil, err
	}
	if verifier, err = attest.NewVerifier(attest.Config{Root: pki.Root()}); err != nil {
		return "", nil, nil, err
	}
	handler, err := pcsserver.New(pcsserver.Config{PKI: pki, PCCS: true})
	if err != nil {
		return "", nil, nil, err
	}
	server := httptest.NewServer(handler)
	return server.URL, verifier, server.Close, nil
}

// A fetch for a named platform writes a one-file bundle. This is all that the command "collateral fetch" needs:
// RequestFor(quote) makes the request when the user names a quote, NewAPIKey holds the content of a key file, and
// Config.RootCAs the certificate of a PCCS.
func ExampleClient_Fetch() {
	url, verifier, stop, err := service()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()

	client, err := pcs.NewClient(pcs.Config{Verifier: verifier, BaseURL: url})
	if err != nil {
		fmt.Println(err)
		return
	}
	set, err := client.Fetch(context.Background(), pcs.Request{
		TEE: attest.TDX, FMSPC: [6]byte{0x50, 0x80, 0x6f}, CA: pcs.PlatformCA, Update: pcs.Early,
	})
	if err != nil {
		fmt.Println(err) // names the part, the URL and what to do
		return
	}
	bundle, err := set.Collateral.Marshal()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(set.Request, "evaluation", set.Report.Set.TCBEvaluation, "bundle", len(bundle) > 0)
	// Output: tdx-50806f000000-platform-early evaluation 17 bundle true
}

// "collateral export" loads a set from the cache directory; its bundle, and the chain of the PCK CA beside it, are carried to
// a site without a network. There "collateral import" verifies and keeps them, and Directory.Collateral serves quotes.
func ExampleDirectory_Import() {
	url, verifier, stop, err := service()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()
	cache, err1 := os.MkdirTemp("", "cache")
	site, err2 := os.MkdirTemp("", "site")
	client, err3 := pcs.NewClient(pcs.Config{Verifier: verifier, BaseURL: url})
	if err1 != nil || err2 != nil || err3 != nil {
		fmt.Println(err1, err2, err3)
		return
	}
	defer os.RemoveAll(cache)
	defer os.RemoveAll(site)

	// With a network: a source fills the cache.
	source, err := pcs.NewSource(pcs.SourceConfig{Fetcher: client, Verifier: verifier, Dir: cache})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer source.Close()
	request := pcs.Request{TEE: attest.SGX, FMSPC: [6]byte{0, 0x60, 0x6a}, CA: pcs.PlatformCA}
	if _, err := source.Get(context.Background(), request); err != nil {
		fmt.Println(err)
		return
	}

	// Export.
	from, err := pcs.OpenDirectory(pcs.DirectoryConfig{Path: cache, Verifier: verifier})
	if err != nil {
		fmt.Println(err)
		return
	}
	set, err := from.Load(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	bundle, err := set.Collateral.Marshal()
	if err != nil {
		fmt.Println(err)
		return
	}

	// Without a network: import. Instead of the exported chain, attest.PCKIssuer takes it from any quote of the site.
	to, err := pcs.OpenDirectory(pcs.DirectoryConfig{Path: site, Verifier: verifier})
	if err != nil {
		fmt.Println(err)
		return
	}
	imported, err := to.Import(bundle, set.PCKIssuer)
	fmt.Println(imported.Request, err)
	// Output: sgx-00606a000000-platform <nil>
}
