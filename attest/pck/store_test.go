package pck_test

import (
	"bytes"
	"testing"

	"github.com/claviger/claviger/attest/pck"
)

// FuzzStore: nothing that the trusted key did not sign is accepted or remembered by a store that knows a genuine chain.
func FuzzStore(f *testing.F) {
	p := newPKI(f)
	genuine, signer := p.pem(leaf, ca, root), p.pem(signing, root)
	f.Add(genuine)
	f.Add(signer)
	f.Add(p.pem(ca, root))
	f.Add(bytes.ReplaceAll(genuine, []byte("\n"), nil))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"))
	s := pck.NewStore(p.trusted())
	want, err := s.Chain(genuine)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := s.SigningChain(signer); err != nil {
		f.Fatal(err)
	}
	known := s.Len()
	f.Fuzz(func(t *testing.T, raw []byte) {
		chain, err := s.Chain(raw)
		if (chain == nil) != (err != nil) {
			t.Fatal("a chain beside an error")
		}
		signing, err := s.SigningChain(raw)
		if (signing == nil) != (err != nil) {
			t.Fatal("a signing chain beside an error")
		}
		issuer, err := s.IssuerChain(raw)
		if (issuer == nil) != (err != nil) {
			t.Fatal("an issuer chain beside an error")
		}
		if chain != nil && !bytes.Equal(chain.KeyBytes(), want.KeyBytes()) {
			t.Fatal("accepted another PCK certificate")
		}
		if s.Len() != known && s.Len() > 2*known { // each certificate has a second encoding of its signature
			t.Fatalf("%d certificates are remembered instead of %d", s.Len(), known)
		}
	})
}

// TestStore: what the root key signed is remembered, byte for byte, and nothing else is.
func TestStore(t *testing.T) {
	t.Parallel()
	p, foreign := newPKI(t), newPKI(t)
	s := pck.NewStore(p.trusted())
	for range 2 {
		if _, err := s.Chain(p.pem(leaf, ca, root)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SigningChain(p.pem(signing, root)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.IssuerChain(p.pem(ca, root)); err != nil {
			t.Fatal(err)
		}
	}
	if s.Len() != 3 {
		t.Errorf("%d certificates are remembered, not root, PCK CA and signer", s.Len())
	}
	mixed := func(roles ...int) []byte { // of the foreign PKI, the root of the trusted one
		return append(foreign.pem(roles...), p.pem(root)...)
	}
	for name, err := range map[string]error{
		"foreign chain":                  second(s.Chain(foreign.pem(leaf, ca, root))),
		"foreign chain under the root":   second(s.Chain(mixed(leaf, ca))),
		"foreign leaf":                   second(s.Chain(append(foreign.pem(leaf), p.pem(ca, root)...))),
		"foreign signer":                 second(s.SigningChain(mixed(signing))),
		"foreign CA":                     second(s.IssuerChain(mixed(ca))),
		"signer in the CA's place":       second(s.IssuerChain(p.pem(signing, root))),
		"CA in the signer's place":       second(s.SigningChain(p.pem(ca, root))),
		"nothing":                        second(s.Chain(nil)),
		"nothing for a signer":           second(s.SigningChain(nil)),
		"nothing for a CA":               second(s.IssuerChain(nil)),
		"known chain, no key to trust":   second(pck.NewStore(nil).Chain(p.pem(leaf, ca, root))),
		"known signer, no key to trust":  second(pck.NewStore(nil).SigningChain(p.pem(signing, root))),
		"known chain, another root":      second(pck.NewStore(foreign.trusted()).Chain(p.pem(leaf, ca, root))),
		"CA's certificate as the root's": second(s.IssuerChain(p.pem(ca, ca))),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if s.Len() != 3 {
		t.Errorf("%d certificates are remembered after the refusals", s.Len())
	}
}

func second[T any](_ T, err error) error { return err }

// TestStoreBounds: more certificates than there is room for, all of them the root key's, displace the oldest and verify still.
func TestStoreBounds(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := pck.NewStore(p.trusted())
	for range 40 {
		p.issue(t, signing, pck.TCBSigningCN)
		for range 2 {
			if _, err := s.SigningChain(p.pem(signing, root)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.Len() != 32 {
		t.Errorf("%d certificates are remembered", s.Len())
	}
	if _, err := s.Chain(p.pem(leaf, ca, root)); err != nil {
		t.Error(err)
	}
}
