package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
)

// Root is a root of trust: the public key that ends a PCK chain. A certificate is never compared, because Intel issued
// more than one root certificate (2018 to 2033, 2018 to 2049) under one key.
type Root struct {
	Name      string           // "intel" or "simulated", for people
	Key       *ecdsa.PublicKey // P-256
	Simulated bool             // whoever holds the key can mint evidence: never for production
}

// intelRootKey is the uncompressed point of the root key, from the certificate "Intel SGX Root CA" that Intel publishes at
// certificates.trustedservices.intel.com (Intel_SGX_Provisioning_Certification_RootCA).
const intelRootKey = "04" +
	"0ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b4458561a36e705525f5" +
	"67918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"

// IntelRoot returns Intel's SGX root, pinned by its public key.
func IntelRoot() Root {
	point, err := hex.DecodeString(intelRootKey)
	if err != nil {
		return Root{}
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return Root{} // not reached: a test verifies Intel's own evidence; and the zero Root is refused
	}
	return Root{Name: "intel", Key: key}
}

// SimulatedRoot returns a root of trust for the simulator. Evidence under it proves nothing about hardware, and claims
// say so.
func SimulatedRoot(key *ecdsa.PublicKey) Root {
	return Root{Name: "simulated", Key: key, Simulated: true}
}

// ID is the SHA-256 of the root key's SubjectPublicKeyInfo. A root without a usable key has the zero ID.
func (r Root) ID() [32]byte {
	if !r.usable() {
		return [32]byte{}
	}
	spki, err := x509.MarshalPKIXPublicKey(r.Key)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(spki)
}

// usable reports whether the key is a point on P-256.
func (r Root) usable() bool {
	//lint:ignore SA1019 Bytes panics on a key without coordinates
	if r.Key == nil || r.Key.Curve != elliptic.P256() || r.Key.X == nil || r.Key.Y == nil {
		return false
	}
	_, err := r.Key.Bytes() // refuses points that are not on the curve
	return err == nil
}
