package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
)

// simQuote WORLD OUT IMAGE [report] writes the quote of a simulated enclave, raw or as an Open Enclave report, and its
// collateral to OUT.json. It sets the variable C to the image's constraint.
func simQuote(ts *testscript.TestScript, _ bool, args []string) {
	world, err := sim.OpenWorld(ts.MkAbs(args[0]))
	ts.Check(err)
	machine, err := world.Machine("quoted")
	ts.Check(err)
	image := sim.Image{Kind: enclave.SGX, Name: args[2], Version: "1"}
	tee, err := machine.Launch(image)
	ts.Check(err)
	quote, err := tee.Quote(context.Background(), [64]byte{})
	ts.Check(err)
	c, err := world.Collateral(context.Background(), quote)
	ts.Check(err)
	bundle, err := c.Marshal()
	ts.Check(err)
	if len(args) > 3 {
		header := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0}, 2)
		quote = append(binary.LittleEndian.AppendUint64(header, uint64(len(quote))), quote...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), quote, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]+".json"), bundle, 0o600))
	ts.Setenv("C", image.Constraint())
}

// tokenNonce FILE NAME sets a variable to the nonce in the JSON output of attest.
func tokenNonce(ts *testscript.TestScript, _ bool, args []string) {
	var out struct{ Nonce string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &out))
	if out.Nonce == "" {
		ts.Fatalf("%s has no nonce", args[0])
	}
	ts.Setenv(args[1], out.Nonce)
}

// jwtLibrary TOKEN JWKS checks a token with a generic library.
func jwtLibrary(ts *testscript.TestScript, neg bool, args []string) {
	var set jose.JSONWebKeySet
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &set))
	token, err := jwt.ParseSigned(strings.TrimSpace(ts.ReadFile(args[0])), []jose.SignatureAlgorithm{jose.EdDSA})
	ts.Check(err)
	var claims jwt.Claims
	if err := token.Claims(&set, &claims); (err != nil) != neg {
		ts.Fatalf("a generic library says %v", err)
	}
}
