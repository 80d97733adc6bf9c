package simpki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"

	"filippo.io/keygen"
)

// seedLabel separates everything that this package derives from other uses of a seed.
const seedLabel = "claviger/simpki/v1"

// derive returns n bytes determined by the seed and the framed parts.
func (p *PKI) derive(n int, parts ...string) ([]byte, error) {
	info := frame(nil, seedLabel)
	for _, part := range parts {
		info = frame(info, part)
	}
	return hkdf.Key(sha512.New, p.seed[:], nil, string(info), n)
}

// frame appends part with its 32-bit length in front, so that no two lists of parts run together.
func frame(b []byte, part string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
	return append(b, part...)
}

// key returns the P-256 key determined by the seed and the parts.
func (p *PKI) key(parts ...string) (*ecdsa.PrivateKey, error) {
	secret, err := p.derive(32, append([]string{"p256"}, parts...)...)
	if err != nil {
		return nil, err
	}
	return keygen.ECDSA(elliptic.P256(), secret)
}

// sign returns the deterministic (RFC 6979) signature over the SHA-256 of message as r ‖ s, big endian.
func sign(key *ecdsa.PrivateKey, message []byte) (raw [64]byte, err error) {
	digest := sha256.Sum256(message)
	der, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return raw, err
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) != 0 {
		return raw, fmt.Errorf("signature encoding: %d bytes left, %w", len(rest), err)
	}
	rs.R.FillBytes(raw[:32])
	rs.S.FillBytes(raw[32:])
	return raw, nil
}

// point returns x ‖ y of a P-256 public key, big endian.
func point(key *ecdsa.PublicKey) (raw [64]byte, err error) {
	b, err := key.Bytes()
	if err != nil {
		return raw, err
	}
	copy(raw[:], b[1:]) // after the byte that says "uncompressed"
	return raw, nil
}

// keyID returns the identifier of a public key. As in Intel's PKI it is the subject key identifier and the serial
// number of the key's certificate. The top bits are fixed so that as a number it is positive and 20 bytes long.
func keyID(key *ecdsa.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki)
	id := sum[:20]
	id[0] = id[0]&0x3f | 0x40
	return id, nil
}

// subject encodes a distinguished name with Intel's order and string types. The organisation says what it is, so that
// nobody takes a certificate for Intel's.
func subject(commonName string) ([]byte, error) {
	utf8 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)} }
	id := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 4, n} }
	var name pkix.RDNSequence
	for _, attribute := range []pkix.AttributeTypeAndValue{
		{Type: id(3), Value: utf8(commonName)},
		{Type: id(10), Value: utf8("Claviger Simulation")},
		{Type: id(7), Value: utf8("Santa Clara")},
		{Type: id(8), Value: utf8("CA")},
		{Type: id(6), Value: "US"},
	} {
		name = append(name, pkix.RelativeDistinguishedNameSET{attribute})
	}
	return asn1.Marshal(name)
}

// pemOf returns the PEM of the certificates in order.
func pemOf(certificates ...*x509.Certificate) (out []byte) {
	for _, c := range certificates {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
