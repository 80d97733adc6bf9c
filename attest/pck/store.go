package pck

import (
	"bytes"
	"crypto/ecdsa"
	"sync"
	"sync/atomic"
)

// storeSize bounds a Store. Intel's PKI has two root certificates, two PCK CAs and a handful of TCB signing certificates;
// each has a second encoding through the malleability of its signature.
const storeSize = 32

// Store verifies chains under one trusted root key and remembers the certificates that the root key signed: the root's,
// the PCK CAs' and the TCB signing certificates. They are in every chain, so most chains need one signature check and the
// decoding of one certificate.
//
// What is remembered is a certificate, byte for byte, and the fact that the trusted key signed it; names, uses and times
// are compared every time. Only certificates whose signature verified enter, the oldest leaves. It is safe for concurrent
// use.
type Store struct {
	trusted *ecdsa.PublicKey
	known   [storeSize]atomic.Pointer[certificate]

	mu   sync.Mutex // guards next and writes to known
	next int
}

// NewStore returns an empty store under the trusted root key. A nil key trusts nothing.
func NewStore(trusted *ecdsa.PublicKey) *Store { return &Store{trusted: trusted} }

// Chain parses a PCK chain as ParseChain does and verifies all of it that does not depend on the time: before use,
// CheckValidity and CheckRevocation.
func (s *Store) Chain(raw []byte) (*Chain, error) {
	c, err := parseChain(raw, s)
	if err != nil {
		return nil, err
	}
	if err := c.verify(s); err != nil {
		return nil, err
	}
	return c, nil
}

// SigningChain parses the chain of a TCB signing certificate as ParseSigningChain does and verifies all of it that does not
// depend on the time: before use, Check.
func (s *Store) SigningChain(raw []byte) (*SigningChain, error) {
	c, err := parseSigningChain(raw, s)
	if err != nil {
		return nil, err
	}
	if err := c.verify(s); err != nil {
		return nil, err
	}
	return c, nil
}

// IssuerChain parses the chain of a PCK CA as ParseIssuerChain does and verifies all of it that does not depend on the
// time: before use, Check.
func (s *Store) IssuerChain(raw []byte) (*IssuerChain, error) {
	c, err := parseIssuerChain(raw, s)
	if err != nil {
		return nil, err
	}
	if err := verifyIssuer(c.intermediate, c.root, s); err != nil {
		return nil, err
	}
	return c, nil
}

// Len returns how many certificates are remembered.
func (s *Store) Len() (n int) {
	for i := range s.known {
		if s.known[i].Load() != nil {
			n++
		}
	}
	return n
}

// find returns the remembered certificate of exactly these bytes, nil if there is none or no store.
func (s *Store) find(der []byte) *certificate {
	if s == nil {
		return nil
	}
	for i := range s.known {
		if c := s.known[i].Load(); c != nil && bytes.Equal(c.Raw, der) {
			return c
		}
	}
	return nil
}

// signed says whether the trusted key signed cert, and remembers it if so.
func (s *Store) signed(cert *certificate) bool {
	if s.find(cert.Raw) != nil {
		return true
	}
	if s.trusted == nil || !checkSigned(s.trusted, cert.RawTBSCertificate, cert.Signature) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.find(cert.Raw) == nil { // another goroutine may have been first
		s.known[s.next].Store(cert)
		s.next = (s.next + 1) % storeSize
	}
	return true
}
