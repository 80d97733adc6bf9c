package ratls

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// alpn is the only application protocol; a peer that does not offer it is not one of ours.
const alpn = "claviger/1"

// NewKey makes a leaf key.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// KeyHash is SHA-256 of the key's SubjectPublicKeyInfo: how a channel, a server id and a membership statement name a key.
// It refuses keys that are neither P-256 nor Ed25519.
func KeyHash(pub crypto.PublicKey) ([32]byte, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return [32]byte{}, fmt.Errorf("%w: ECDSA key is not on P-256", ErrLeaf)
		}
	case ed25519.PublicKey:
	default:
		return [32]byte{}, fmt.Errorf("%w: key of type %T, want P-256 or Ed25519", ErrLeaf, pub)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %w", ErrLeaf, err)
	}
	return sha256.Sum256(spki), nil
}

// peerKeyHash names the key of a peer's single leaf. Nothing else in the certificate is believed, not even its signature:
// possession of the key is proved by TLS 1.3's CertificateVerify, and the identity by evidence.
func peerKeyHash(certs []*x509.Certificate) ([32]byte, error) {
	if len(certs) != 1 {
		return [32]byte{}, fmt.Errorf("%w: %d certificates, want one leaf", ErrLeaf, len(certs))
	}
	sum, err := KeyHash(certs[0].PublicKey)
	if err != nil {
		return [32]byte{}, err
	}
	// One key, one hash: an alternative encoding of a key must not give it a second name.
	if raw := sha256.Sum256(certs[0].RawSubjectPublicKeyInfo); !bytes.Equal(raw[:], sum[:]) {
		return [32]byte{}, fmt.Errorf("%w: public key is not in canonical form", ErrLeaf)
	}
	return sum, nil
}

// leaf is this side's TLS identity.
type leaf struct {
	cert tls.Certificate
	hash [32]byte
}

// newLeaf signs a certificate for key, or for a fresh key. Its fixed dates say nothing: no clock is read.
func newLeaf(key *ecdsa.PrivateKey, extensions ...pkix.Extension) (*leaf, error) {
	if key == nil {
		var err error
		if key, err = NewKey(); err != nil {
			return nil, fmt.Errorf("ratls: making a leaf key: %w", err)
		}
	}
	hash, err := KeyHash(key.Public())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	template := &x509.Certificate{
		SerialNumber:    big.NewInt(1),
		Subject:         pkix.Name{CommonName: "claviger"},
		NotBefore:       time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:        time.Date(2049, 12, 31, 0, 0, 0, 0, time.UTC),
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("ratls: making a leaf: %w", err)
	}
	return &leaf{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hash: hash}, nil
}

// tlsConfig is the same for both roles but for who checks whom: TLS 1.3 only, our ALPN only, no tickets, one self-signed
// leaf each. The usual chain building is switched off because there is no authority; verify takes its place.
func (l *leaf) tlsConfig(cfg *Config) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		Certificates:           []tls.Certificate{l.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection:       func(cs tls.ConnectionState) error { return l.verify(cs, cfg.PeerKey) },
	}
}

// verify is the whole of our trust in TLS: version, ALPN, a fresh session, and a peer key that is not ours and is the one
// expected.
func (l *leaf) verify(cs tls.ConnectionState, expected *[32]byte) error {
	if cs.Version != tls.VersionTLS13 || cs.DidResume {
		return fmt.Errorf("%w: version %#x, resumed %t", ErrTLS, cs.Version, cs.DidResume)
	}
	if cs.NegotiatedProtocol != alpn {
		return fmt.Errorf("%w: negotiated %q", ErrALPN, cs.NegotiatedProtocol)
	}
	peer, err := peerKeyHash(cs.PeerCertificates)
	if err != nil {
		return err
	}
	if peer == l.hash {
		return ErrSameKey
	}
	if expected != nil && peer != *expected {
		return fmt.Errorf("%w: want %x, got %x", ErrPeerKey, expected[:8], peer[:8])
	}
	return nil
}
