package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/enclave/sim"
)

// defaultPCSPort is beside those of 'claviger sim init' and 'claviger dev'.
const defaultPCSPort = 7500

type pcsFlags struct {
	world   string
	port    uint16
	intel   bool
	keyFile string
	rootOut string
	faults  []string
	times   int
	recover bool
}

func simPCSCommand(s *cli.Streams) *cobra.Command {
	f := pcsFlags{port: defaultPCSPort}
	cmd := &cobra.Command{
		Use: "pcs", Short: "Serve the collateral of a simulated world, as Intel or a PCCS does",
		Long: `Serves TCB info, QE identities and revocation lists of a simulated world on this machine until interrupted, with the API of
a PCCS, or with Intel's under --intel, for 'claviger collateral fetch' to be tried on.

--fault DOCUMENT=FAULT makes answers faulty; it may be repeated. Documents: tcb-info, qe-identity, pck-crl, root-crl, all.
Faults: slow or slow:5s; truncated; wrong-signature; expired; older or older:48h (genuine and valid, but from before);
retry-after:60 (429, asking for that many seconds); html (a login page); no-chain (a proxy strips the issuer chain);
redirect; and any status from 400 to 599, such as 404, 429 or 503. --fault-times heals them after so many answers.`,
		Example: "  claviger sim pcs --sim tour/world.json --root-out tour/root.pem\n  claviger sim pcs --sim tour/world.json --fault tcb-info=truncated --fault-times 2",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.world, "sim", "", "world `file` of the simulator")
	flags.Uint16Var(&f.port, "port", f.port, "port on 127.0.0.1; 0 takes a free one")
	flags.BoolVar(&f.intel, "intel", false, "answer as Intel's own service: the root's list is then at /IntelSGXRootCA.der")
	flags.StringVar(&f.keyFile, "api-key-file", "", "`file` with a subscription key that requests must carry")
	flags.StringVar(&f.rootOut, "root-out", "", "write the world's root key to this `file`, PEM, for --root")
	flags.StringArrayVar(&f.faults, "fault", nil, "`DOCUMENT=FAULT` to inject")
	flags.IntVar(&f.times, "fault-times", -1, "inject each fault this often; -1 is for ever")
	flags.BoolVar(&f.recover, "recover", false, "perform a TCB recovery first: evaluation numbers rise by one, known platforms fall out of date")
	return cmd
}

func (f *pcsFlags) run(ctx context.Context, s *cli.Streams) error {
	if f.world == "" {
		return cli.Usagef("--sim is missing; 'claviger sim init' makes a world")
	}
	world, err := sim.OpenWorld(f.world)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	server, err := f.server(s, world)
	if err != nil {
		return err
	}
	if f.rootOut != "" {
		if err := writeRoot(f.rootOut, world.Root()); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(f.port))))
	if err != nil {
		return err
	}
	out := struct {
		URL        string `json:"url"`
		RootCRLURL string `json:"root_crl_url,omitempty"`
		Root       string `json:"root,omitempty"`
	}{URL: "http://" + l.Addr().String(), Root: f.rootOut}
	if f.intel {
		out.RootCRLURL = out.URL + "/IntelSGXRootCA.der"
	}
	err = s.Print(out, func(w io.Writer) {
		fmt.Fprintf(w, "A SIMULATED Intel serves collateral at %s until interrupted. What it serves says nothing about hardware.\n", out.URL)
		if f.rootOut != "" && !f.intel {
			fmt.Fprintf(w, "Try: claviger collateral fetch --url %s --root %s --tee tdx --fmspc 50806f000000\n", out.URL, f.rootOut)
		}
	})
	if err != nil {
		return err
	}
	err = daemon.Serve(ctx, l, server, logger(s, false))
	if ctx.Err() != nil {
		return nil // told to stop, and stopped
	}
	return err
}

// server makes the service with its faults.
func (f *pcsFlags) server(s *cli.Streams, world *sim.World) (*pcsserver.Server, error) {
	config := pcsserver.Config{PKI: world.PKI(), Clock: world.Now, PCCS: !f.intel}
	if f.keyFile != "" {
		raw, err := s.ReadFile(f.keyFile, maxKeyFile)
		if err != nil {
			return nil, err
		}
		config.APIKey = strings.TrimSpace(string(raw))
	}
	if f.recover {
		if err := world.PKI().Recover(world.Now()); err != nil {
			return nil, err
		}
	}
	server, err := pcsserver.New(config)
	if err != nil {
		return nil, err
	}
	for _, text := range f.faults {
		documents, fault, err := parseFault(text, world.Now())
		if err != nil {
			return nil, err
		}
		for _, d := range documents {
			server.Inject(d, f.times, fault)
		}
	}
	return server, nil
}

// parseFault reads DOCUMENT=FAULT.
func parseFault(text string, now time.Time) ([]pcsserver.Document, pcsserver.Fault, error) {
	name, kind, _ := strings.Cut(text, "=")
	documents, ok := map[string][]pcsserver.Document{
		"tcb-info": {pcsserver.TCBInfo}, "qe-identity": {pcsserver.QEIdentity}, "pck-crl": {pcsserver.PCKCRL}, "root-crl": {pcsserver.RootCRL},
		"all": {pcsserver.TCBInfo, pcsserver.QEIdentity, pcsserver.PCKCRL, pcsserver.RootCRL},
	}[name]
	if !ok {
		return nil, pcsserver.Fault{}, cli.Usagef("--fault %q: write DOCUMENT=FAULT; documents are tcb-info, qe-identity, pck-crl, root-crl and all", text)
	}
	kind, argument, _ := strings.Cut(kind, ":")
	if name == "root-crl" && kind == "expired" {
		return nil, pcsserver.Fault{}, cli.Usagef("--fault %q: the root's list is good for a year, and no simulated Intel is that old; use older", text)
	}
	fault, ok := faultOf(kind, argument, now)
	if !ok {
		return nil, pcsserver.Fault{}, cli.Usagef("--fault %q: no such fault; 'claviger sim pcs --help' lists them", text)
	}
	return documents, fault, nil
}

func faultOf(kind, argument string, now time.Time) (pcsserver.Fault, bool) {
	duration := func(otherwise time.Duration) (time.Duration, bool) {
		if argument == "" {
			return otherwise, true
		}
		d, err := time.ParseDuration(argument)
		return d, err == nil && d > 0
	}
	switch kind {
	case "slow":
		d, ok := duration(time.Minute)
		return pcsserver.Slow(d), ok
	case "older":
		d, ok := duration(48 * time.Hour)
		return pcsserver.AsOf(now.Add(-d)), ok
	case "retry-after":
		_, err := strconv.ParseUint(argument, 10, 31)
		return pcsserver.RetryAfter(429, argument), err == nil
	}
	if argument != "" {
		return pcsserver.Fault{}, false
	}
	if code, err := strconv.Atoi(kind); err == nil {
		return pcsserver.Status(code), code >= 400 && code <= 599
	}
	fault, ok := map[string]pcsserver.Fault{
		"truncated": pcsserver.Truncated(), "wrong-signature": pcsserver.WrongSignature(),
		"expired": pcsserver.AsOf(now.Add(-60 * 24 * time.Hour)), "redirect": pcsserver.Redirect("https://elsewhere.invalid/"),
		"html": pcsserver.Content("text/html", "<!doctype html><title>Please log in</title>"),
		"no-chain": pcsserver.Change(func(a *pcsserver.Answer) {
			for _, name := range []string{pcsserver.TCBInfoChain, pcsserver.TCBInfoChainOld, pcsserver.QEIdentityChain, pcsserver.PCKCRLChain} {
				a.Header.Del(name)
			}
		}),
	}[kind]
	return fault, ok
}

// writeRoot writes the public key of a root, PEM, as --root takes it.
func writeRoot(name string, root attest.Root) error {
	der, err := x509.MarshalPKIXPublicKey(root.Key)
	if err != nil {
		return err
	}
	return replaceFile(name, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
