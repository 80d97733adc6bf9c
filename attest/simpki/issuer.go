package simpki

import "fmt"

// IssuerChain returns the chain of a PCK CA in PEM, CA then root, as PCS sends it beside the CA's revocation list. It
// fails with ErrConfig for an unknown CA.
func (p *PKI) IssuerChain(ca CA) ([]byte, error) {
	a, ok := p.ca[ca]
	if !ok {
		return nil, fmt.Errorf("%w: no CA %.32q; use platform or processor", ErrConfig, ca)
	}
	return pemOf(a.cert, p.root.cert), nil
}
