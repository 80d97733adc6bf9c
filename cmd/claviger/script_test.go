package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"claviger": main})
}

// TestScripts runs the command line as a user does; each script is a story with good and bad input.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"evidence": evidence, "mangle": mangle, "json": checkJSON, "code": checkCode,
			"freeport": freePort, "await": awaitFile, "awaitport": awaitPort, "samekey": sameKey,
			"constraint": constraintOf, "agematch": ageMatch, "guide": guide,
			"simquote": simQuote, "tokennonce": tokenNonce, "jwtlib": jwtLibrary,
		},
	})
}

// birth is when the PKI of the scripts starts; scripts verify on the days after it.
var birth = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// evidence DIR sgx|tdx [STATUS|debug] writes a quote of a simulated platform and its collateral, as files and as bundle.
func evidence(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: birth})
	ts.Check(err)
	config, debug := simpki.PlatformConfig{Name: "script"}, false
	if len(args) > 2 {
		if debug = args[2] == "debug"; !debug {
			config.TCB = attest.Status(args[2])
		}
	}
	platform, err := pki.Platform(config)
	ts.Check(err)
	quote := mint(ts, platform, args[1], debug)
	c, err := pki.Collateral(attest.TEE(args[1]), platform.FMSPC(), birth.Add(36*time.Hour))
	ts.Check(err)
	bundle, err := c.Marshal()
	ts.Check(err)
	for name, raw := range map[string][]byte{
		"quote.bin": quote, "tcb.json": c.TCBInfo, "qe.json": c.QEIdentity, "pck.der": c.PCKCRL, "root.der": c.RootCRL,
		"chain.pem": c.TCBSigningChain, "bundle.json": bundle,
		"root.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pki.RootCertificate()}),
		"root.pub": publicPEM(ts, pki.Root()),
	} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), raw, 0o600))
	}
}

func publicPEM(ts *testscript.TestScript, root attest.Root) []byte {
	der, err := x509.MarshalPKIXPublicKey(root.Key)
	ts.Check(err)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func mint(ts *testscript.TestScript, platform *simpki.Platform, tee string, debug bool) []byte {
	var quote []byte
	var err error
	switch tee {
	case "sgx":
		r := sgx.Report{ISVProdID: 7, ISVSVN: 3, MREnclave: [32]byte{0xee}, MRSigner: [32]byte{0x51}}
		r.Attributes[0] = 0x05 // INIT and MODE64BIT
		if debug {
			r.Attributes[0] |= 0x02
		}
		quote, err = platform.QuoteSGX(r)
	case "tdx":
		b := tdx.Body{MRTD: [48]byte{0x7d}}
		b.RTMR[1], b.RTMR[2] = [48]byte{0x71}, [48]byte{0x72}
		b.TDAttributes[3] = 0x10 // SEPT_VE_DISABLE
		if debug {
			b.TDAttributes[0] = 0x01
		}
		quote, err = platform.QuoteTDX(b)
	default:
		ts.Fatalf("no TEE %q", tee)
	}
	ts.Check(err)
	return quote
}

// mangle OP FROM TO [ARG]: truncate to ARG bytes, append ARG (hex), flip the byte at offset ARG, grow to ARG bytes, or
// replace text ARG with ARG2.
func mangle(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	switch args[0] {
	case "truncate":
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		raw = raw[:n]
	case "append":
		more, err := hex.DecodeString(args[3])
		ts.Check(err)
		raw = append(raw, more...)
	case "flip":
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		raw[n] ^= 1
	case "grow":
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		raw = append(raw, make([]byte, n-len(raw))...)
	case "replace":
		if !bytes.Contains(raw, []byte(args[3])) {
			ts.Fatalf("%s does not contain %q", args[1], args[3])
		}
		raw = bytes.Replace(raw, []byte(args[3]), []byte(args[4]), 1)
	default:
		ts.Fatalf("no operation %q", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), raw, 0o600))
}

// checkJSON stdout|stderr KEY VALUE compares one top-level value of the only JSON line; ! json … KEY wants it absent.
func checkJSON(ts *testscript.TestScript, neg bool, args []string) {
	var doc map[string]json.RawMessage
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc))
	got, present := doc[args[1]]
	if neg {
		if present {
			ts.Fatalf("%s is %s, want it absent", args[1], got)
		}
		return
	}
	if text := string(bytes.Trim(got, `"`)); text != args[2] {
		ts.Fatalf("%s is %q, want %q", args[1], text, args[2])
	}
}

// checkCode N COMMAND… runs the command, wants exactly the exit code N, and leaves its output for stdout and stderr.
func checkCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
