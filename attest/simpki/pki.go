package simpki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/claviger/claviger/attest"
)

// CA names one of Intel's two certification authorities for PCK certificates.
type CA string

// The authorities, spelled as in the PCS API. Platform issues for multi-package server platforms and is the default.
const (
	PlatformCA  CA = "platform"
	ProcessorCA CA = "processor"
)

// Common names, exactly Intel's: verifiers compare them.
const (
	rootName      = "Intel SGX Root CA"
	platformName  = "Intel SGX PCK Platform CA"
	processorName = "Intel SGX PCK Processor CA"
	leafName      = "Intel SGX PCK Certificate"
	signingName   = "Intel SGX TCB Signing"
)

// Lifetimes of certificates, and how long before its birth a PKI can already issue: old collateral has to come from
// somewhere.
const (
	day       = 24 * time.Hour
	year      = 365 * day
	past      = year
	rootLife  = 31 * year
	caLife    = 15 * year
	leafLife  = 7 * year
	signLife  = 7 * year
	crlPoint  = "https://certificates.simulated.invalid/IntelSGXRootCA.der"
	pckCRLURL = "https://api.simulated.invalid/sgx/certification/v4/pckcrl?ca=%s&encoding=der"
)

var (
	// ErrConfig is returned for a configuration that cannot make a PKI or a platform.
	ErrConfig = errors.New("simpki: bad configuration")
	// ErrTime is returned for collateral of a time at which the PKI's certificates are not valid.
	ErrTime = errors.New("simpki: outside the lifetime of this PKI")
)

// Config is what a PKI is a function of.
type Config struct {
	// Seed determines every key. It is as secret as the evidence is meaningful: not at all, outside one simulation.
	Seed [32]byte
	// Now is the PKI's birth; processes that share a PKI must agree on its UTC day. Required.
	Now time.Time
}

// PKI is a simulated Intel. It is safe for concurrent use.
type PKI struct {
	seed    [32]byte
	birth   time.Time // start of a UTC day
	root    authority
	ca      map[CA]authority
	signer  authority // signs TCB info and QE identity; guarded by mu once the PKI is shared
	signers int       // replacements of signer

	mu     sync.Mutex
	events events
	served map[request]*attest.Collateral // answers already given, at most maxServed
}

// authority is a key and its certificate.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// New returns the PKI that the configuration determines. It fails with ErrConfig if Now is zero.
func New(config Config) (*PKI, error) {
	if config.Now.IsZero() {
		return nil, fmt.Errorf("%w: Config.Now is the zero time; give the PKI's birth", ErrConfig)
	}
	p := &PKI{seed: config.Seed, birth: config.Now.UTC().Truncate(day), ca: map[CA]authority{}}
	var err error
	if p.root, err = p.issue(nil, rootName, rootLife, 1); err != nil {
		return nil, err
	}
	for ca, name := range map[CA]string{PlatformCA: platformName, ProcessorCA: processorName} {
		if p.ca[ca], err = p.issue(&p.root, name, caLife, 0); err != nil {
			return nil, err
		}
	}
	p.signer, err = p.issue(&p.root, signingName, signLife, notCA)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Root returns the simulated root of trust.
func (p *PKI) Root() attest.Root { return attest.SimulatedRoot(&p.root.key.PublicKey) }

// String names the PKI for people. It keeps %v from printing the seed.
func (p *PKI) String() string { return fmt.Sprintf("simulated PKI %x", p.Root().ID()) }

// GoString is String, for %#v.
func (p *PKI) GoString() string { return p.String() }

// RootCertificate returns the root certificate in DER.
func (p *PKI) RootCertificate() []byte { return append([]byte(nil), p.root.cert.Raw...) }

// notCA as a path length makes an end-entity certificate.
const notCA = -1

// issue makes the authority called name under issuer (nil: self-signed), valid for life from before the PKI's birth.
func (p *PKI) issue(issuer *authority, name string, life time.Duration, pathLength int) (authority, error) {
	return p.issueNumbered(issuer, name, 0, life, pathLength)
}

// issueNumbered issues the number-th successor of an authority, with a key of its own.
func (p *PKI) issueNumbered(issuer *authority, name string, number int, life time.Duration, pathLength int) (authority, error) {
	id := name
	if number > 0 {
		id = fmt.Sprintf("%s %d", name, number)
	}
	key, err := p.key("authority", id)
	if err != nil {
		return authority{}, err
	}
	template, err := p.template(name, &key.PublicKey, life)
	if err != nil {
		return authority{}, err
	}
	template.CRLDistributionPoints = []string{crlPoint}
	if pathLength != notCA {
		template.IsCA = true
		template.MaxPathLen = pathLength
		template.MaxPathLenZero = pathLength == 0
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if issuer == nil {
		issuer = &authority{key: key, cert: template}
	}
	cert, err := certify(issuer, template, &key.PublicKey)
	return authority{key: key, cert: cert}, err
}

// template returns what all certificates share: an end entity with Intel's key usage.
func (p *PKI) template(name string, key *ecdsa.PublicKey, life time.Duration) (*x509.Certificate, error) {
	rawSubject, err := subject(name)
	if err != nil {
		return nil, err
	}
	id, err := keyID(key)
	if err != nil {
		return nil, err
	}
	from := p.birth.Add(-past)
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id), SubjectKeyId: id, AuthorityKeyId: id, RawSubject: rawSubject,
		NotBefore: from, NotAfter: from.Add(life), BasicConstraintsValid: true,
		KeyUsage:           x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
		SignatureAlgorithm: x509.ECDSAWithSHA256,
	}, nil
}

// certify signs template for key with a deterministic signature: a nil source of randomness means RFC 6979.
func certify(issuer *authority, template *x509.Certificate, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(nil, template, issuer.cert, key, issuer.key)
	if err != nil {
		return nil, fmt.Errorf("simpki: certificate %q: %w", template.Subject, err)
	}
	return x509.ParseCertificate(der)
}
