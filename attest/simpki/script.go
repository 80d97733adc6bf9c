package simpki

import (
	"fmt"
	"math/big"
	"time"
)

// events are what a script did to the PKI, in the order it did them.
type events struct {
	recoveries []time.Time
	revoked    []revocation
	script     int // set by until: how many events the whole script had
}

// revocation of one certificate, listed by its issuer from an instant on.
type revocation struct {
	issuer string // a CA, or "root"
	serial *big.Int
	from   time.Time
}

const rootIssuer = "root"

// Revoke puts the platform's PCK certificate on its CA's revocation list from the instant at on.
func (p *PKI) Revoke(m *Platform, at time.Time) {
	p.revoke(revocation{string(m.ca), m.pck.cert.SerialNumber, at})
}

// RevokeCA puts a PCK CA's certificate on the root's revocation list from the instant at on. It fails with ErrConfig for
// an unknown CA.
func (p *PKI) RevokeCA(ca CA, at time.Time) error {
	a, ok := p.ca[ca]
	if !ok {
		return fmt.Errorf("%w: no CA %.32q; use platform or processor", ErrConfig, ca)
	}
	p.revoke(revocation{rootIssuer, a.cert.SerialNumber, at})
	return nil
}

// RevokeTCBSigning puts the certificate that signs collateral on the root's revocation list from the instant at on.
func (p *PKI) RevokeTCBSigning(at time.Time) {
	p.revoke(revocation{rootIssuer, p.signing().cert.SerialNumber, at})
}

// ReplaceTCBSigning gives the PKI a new certificate and key for signing collateral, as Intel reissues its own. What was
// signed before stays valid until it expires or the old certificate is revoked.
func (p *PKI) ReplaceTCBSigning() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signers++
	signer, err := p.issueNumbered(&p.root, signingName, p.signers, signLife, notCA)
	if err != nil {
		return err
	}
	p.signer, p.served = signer, nil
	return nil
}

func (p *PKI) revoke(r revocation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events.revoked = append(p.events.revoked, r)
}

// Recover performs a TCB recovery at the instant at: the evaluation number rises by one, a newer microcode becomes the
// only level that is up to date, and platforms made before are out of date until PKI.Platform makes them again.
// Recoveries come in order of time and number at most 100, else ErrConfig.
func (p *PKI) Recover(at time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.events.recoveries)
	if n >= 100 || n > 0 && at.Before(p.events.recoveries[n-1]) {
		return fmt.Errorf("%w: TCB recovery at %s after %d others", ErrConfig, at.UTC().Format(time.RFC3339), n)
	}
	p.events.recoveries = append(p.events.recoveries, at)
	return nil
}

// recoveries counts the TCB recoveries so far.
func (p *PKI) recoveries() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.events.recoveries)
}

// until returns the events up to and including the instant at.
func (p *PKI) until(at time.Time) (e events) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.script = len(p.events.recoveries) + len(p.events.revoked)
	for _, t := range p.events.recoveries {
		if !t.After(at) {
			e.recoveries = append(e.recoveries, t)
		}
	}
	for _, r := range p.events.revoked {
		if !r.from.After(at) {
			e.revoked = append(e.revoked, r)
		}
	}
	return e
}

// signing is the authority that signs collateral now.
func (p *PKI) signing() authority {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signer
}
