package kds

import (
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
)

// The cluster's secrets are wrapped to a recovery key, whose public half
// everybody may have. Its private half follows from one scalar, which is shared
// out among the operators at genesis (Shamir over the scalars of ristretto255)
// and exists nowhere else until enough shares meet in an enclave.
//
// A share carries the hash of the public key that it belongs to: the key that
// enough shares make is compared with it, so that wrong shares are found out
// without any commitment to them being published.

const (
	shareLabel   = "claviger/share/v1"
	sealLabel    = "claviger/share-seal/v1"
	wrapLabel    = "claviger/wrapped-secrets/v1"
	scalarLabel  = "claviger/recovery-key/v1"
	maxShare     = 256
	maxSealed    = 2048                // a share sealed to an enclave
	maxWrapped   = maxSecrets + 2*1216 // wrapped secrets: the encapsulated key is 1120 bytes
	scalarLength = 32
)

var (
	// ErrShares says that shares do not make the recovery key.
	ErrShares = errors.New("kds: recovery shares refused")
	// ErrWrapped says that wrapped secrets do not open.
	ErrWrapped = errors.New("kds: wrapped secrets refused")
)

// The suite withstands quantum computers as well: wrapped secrets lie on hosts'
// disks for years.
func suite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.MLKEM768X25519(), hpke.HKDFSHA256(), hpke.AES256GCM()
}

// Share is one operator's part of the recovery key. It does not print and does
// not marshal; Reveal encodes it for its owner's eyes.
type Share struct {
	Index     uint64   // 1 to the number of shares
	Threshold uint64   // how many shares make the key
	Key       [32]byte // SHA-256 of the recovery public key
	value     secret.Key
}

// MarshalJSON refuses: without its value a share is none.
func (Share) MarshalJSON() ([]byte, error) { return nil, secret.ErrMarshal }

// NewRecoveryKey makes a recovery key, to be called inside the enclave at
// genesis: its public half, and n shares of which threshold make the private
// one. n is 1 to api.MaxOperators.
func NewRecoveryKey(threshold, n uint64) (public []byte, shares []Share, err error) {
	if threshold == 0 || threshold > n || n > api.MaxOperators {
		return nil, nil, fmt.Errorf("%w: threshold %d of %d, at most %d shares", ErrShares, threshold, n, api.MaxOperators)
	}
	scalar := group.Ristretto255.RandomNonZeroScalar(rand.Reader)
	private, err := recoveryKey(scalar)
	if err != nil {
		return nil, nil, err
	}
	public = private.PublicKey().Bytes()
	sharing := secretsharing.New(rand.Reader, uint(threshold-1), scalar) // its t shares say nothing, t+1 say all
	for i, s := range sharing.Share(uint(n)) {
		value, err := scalarKey(s.Value)
		if err != nil {
			return nil, nil, err
		}
		shares = append(shares, Share{Index: uint64(i) + 1, Threshold: threshold, Key: sha256.Sum256(public), value: value})
	}
	return public, shares, nil
}

// scalarKey puts a scalar behind a handle. The library's own copies cannot be
// cleared; they die with the call.
func scalarKey(s group.Scalar) (secret.Key, error) {
	raw, err := s.MarshalBinary()
	if err != nil {
		return secret.Key{}, err
	}
	defer clear(raw)
	return secret.New(raw)
}

// recoveryKey is the key pair that follows from the shared scalar.
func recoveryKey(s group.Scalar) (hpke.PrivateKey, error) {
	k, err := scalarKey(s)
	if err != nil {
		return nil, err
	}
	defer k.Destroy()
	seed, err := k.Derive(scalarLabel, 32)
	if err != nil {
		return nil, err
	}
	defer seed.Destroy()
	raw := seed.Reveal()
	defer clear(raw)
	kem, _, _ := suite()
	return kem.DeriveKeyPair(raw)
}

// combine makes the recovery key of enough shares.
func combine(shares []Share) (hpke.PrivateKey, error) {
	if len(shares) == 0 {
		return nil, fmt.Errorf("%w: there are none", ErrShares)
	}
	first := shares[0]
	seen := map[uint64]bool{}
	var parts []secretsharing.Share
	for _, s := range shares {
		switch {
		case s.Key != first.Key || s.Threshold != first.Threshold:
			return nil, fmt.Errorf("%w: share %d belongs to another set than share %d", ErrShares, s.Index, first.Index)
		case seen[s.Index]:
			return nil, fmt.Errorf("%w: share %d is there twice", ErrShares, s.Index)
		}
		seen[s.Index] = true
		p, err := s.scalars()
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	if uint64(len(shares)) < first.Threshold {
		return nil, fmt.Errorf("%w: %d shares, %d are needed", ErrShares, len(shares), first.Threshold)
	}
	scalar, err := secretsharing.Recover(uint(first.Threshold-1), parts)
	if err != nil {
		return nil, fmt.Errorf("%w: they do not combine", ErrShares)
	}
	private, err := recoveryKey(scalar)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(private.PublicKey().Bytes()) != first.Key {
		return nil, fmt.Errorf("%w: one of them at least is wrong; bring others to find out which", ErrShares)
	}
	return private, nil
}

func (s Share) scalars() (secretsharing.Share, error) {
	raw := s.value.Reveal()
	defer clear(raw)
	value := group.Ristretto255.NewScalar()
	if s.Index == 0 || s.Index > api.MaxOperators || s.Threshold == 0 || s.Threshold > api.MaxOperators || len(raw) != scalarLength {
		return secretsharing.Share{}, fmt.Errorf("%w: share %d of threshold %d is empty or out of range", ErrShares, s.Index, s.Threshold)
	}
	if err := value.UnmarshalBinary(raw); err != nil {
		return secretsharing.Share{}, fmt.Errorf("%w: share %d is not a scalar", ErrShares, s.Index)
	}
	return secretsharing.Share{ID: group.Ristretto255.NewScalar().SetUint64(s.Index), Value: value}, nil
}

type shareForm struct {
	_         struct{} `cbor:",toarray"`
	Label     string
	Key       [32]byte
	Threshold uint64
	Index     uint64
	Value     []byte
}

// Reveal encodes the share in the clear, at most 256 bytes, for the one
// operator who keeps it. Clear the bytes afterwards.
func (s Share) Reveal() ([]byte, error) {
	if _, err := s.scalars(); err != nil {
		return nil, err
	}
	form := shareForm{Label: shareLabel, Key: s.Key, Threshold: s.Threshold, Index: s.Index, Value: s.value.Reveal()}
	defer clear(form.Value)
	return api.MarshalCanonical(form)
}

// ParseShare reads what Reveal wrote. That it is a right one shows only when
// enough of them are combined.
func ParseShare(raw []byte) (Share, error) {
	var form shareForm
	defer func() { clear(form.Value) }()
	if err := api.UnmarshalCanonical(raw, maxShare, &form); err != nil || form.Label != shareLabel {
		return Share{}, fmt.Errorf("%w: a share that does not decode", ErrShares) // the cause could quote it
	}
	value, err := secret.New(form.Value)
	if err != nil {
		return Share{}, fmt.Errorf("%w: %w", ErrShares, err)
	}
	s := Share{Index: form.Index, Threshold: form.Threshold, Key: form.Key, value: value}
	if _, err := s.scalars(); err != nil {
		return Share{}, err
	}
	return s, nil
}

// Seal encrypts the share to the enclave that holds the private half of to,
// see NewShareRecipient. Whoever calls it has verified that enclave's evidence
// over this very key. info is bound into the ciphertext.
func (s Share) Seal(to, info []byte) ([]byte, error) {
	plain, err := s.Reveal()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	kem, kdf, aead := suite()
	public, err := kem.NewPublicKey(to)
	if err != nil {
		return nil, fmt.Errorf("%w: the recovering enclave's key does not decode", ErrShares)
	}
	bound, err := api.MarshalCanonical([]any{sealLabel, info})
	if err != nil {
		return nil, err
	}
	return hpke.Seal(public, kdf, aead, bound, plain)
}

// ShareRecipient receives shares in a recovering enclave. Its private half
// lives as long as the value, in memory only.
type ShareRecipient struct {
	public []byte
	open   func(info, sealed []byte) ([]byte, error) // holds the private half, where no printer looks
}

// NewShareRecipient makes a fresh key pair.
func NewShareRecipient() (*ShareRecipient, error) {
	kem, kdf, aead := suite()
	private, err := kem.GenerateKey()
	if err != nil {
		return nil, err
	}
	return &ShareRecipient{public: private.PublicKey().Bytes(), open: func(info, sealed []byte) ([]byte, error) {
		return hpke.Open(private, kdf, aead, info, sealed)
	}}, nil
}

// Public is the key to seal shares to, 1216 bytes; the enclave's quote covers it.
func (r *ShareRecipient) Public() []byte { return r.public }

// Open decrypts a share that was sealed to this recipient with the same info.
func (r *ShareRecipient) Open(sealed, info []byte) (Share, error) {
	if len(sealed) > maxSealed {
		return Share{}, fmt.Errorf("%w: a sealed share of %d bytes", ErrShares, len(sealed))
	}
	bound, err := api.MarshalCanonical([]any{sealLabel, info})
	if err != nil {
		return Share{}, err
	}
	plain, err := r.open(bound, sealed)
	if err != nil {
		return Share{}, fmt.Errorf("%w: a share that was not sealed to this enclave", ErrShares)
	}
	defer clear(plain)
	return ParseShare(plain)
}

type wrappedForm struct {
	_        struct{} `cbor:",toarray"`
	Label    string
	Identity []byte   // the cluster's public identity key
	Key      [32]byte // SHA-256 of the recovery public key
	Sealed   []byte
}

// info binds wrapped secrets to the cluster and the recovery key.
func (f *wrappedForm) info() ([]byte, error) {
	return api.MarshalCanonical([]any{wrapLabel, f.Identity, f.Key})
}

// WrapSecrets encrypts all secrets to the recovery key; the result may lie
// anywhere. It is not fresh: an older one holds fewer generations.
func WrapSecrets(s *Secrets, recoveryPublic []byte) ([]byte, error) {
	kem, kdf, aead := suite()
	public, err := kem.NewPublicKey(recoveryPublic)
	if err != nil {
		return nil, fmt.Errorf("%w: the recovery key does not decode", ErrWrapped)
	}
	plain, err := s.Reveal()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	form := wrappedForm{Label: wrapLabel, Identity: s.Identity().Public(), Key: sha256.Sum256(recoveryPublic)}
	info, err := form.info()
	if err != nil {
		return nil, err
	}
	if form.Sealed, err = hpke.Seal(public, kdf, aead, info, plain); err != nil {
		return nil, err
	}
	return api.MarshalCanonical(form)
}

// UnwrapSecrets opens wrapped secrets, at most 18816 bytes, with enough shares
// of the recovery key. identity is the cluster's public key: secrets of another
// cluster are refused.
func UnwrapSecrets(wrapped []byte, shares []Share, identity ed25519.PublicKey) (*Secrets, error) {
	var form wrappedForm
	if err := api.UnmarshalCanonical(wrapped, maxWrapped, &form); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWrapped, err)
	}
	switch {
	case form.Label != wrapLabel:
		return nil, fmt.Errorf("%w: another version", ErrWrapped)
	case !identity.Equal(publicKey(form.Identity)):
		return nil, fmt.Errorf("%w: they belong to another cluster", ErrWrapped)
	}
	private, err := combine(shares)
	if err != nil {
		return nil, err
	}
	if form.Key != shares[0].Key {
		return nil, fmt.Errorf("%w: they are wrapped to another recovery key than the shares'", ErrWrapped)
	}
	info, err := form.info()
	if err != nil {
		return nil, err
	}
	_, kdf, aead := suite()
	plain, err := hpke.Open(private, kdf, aead, info, form.Sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: they were changed", ErrWrapped)
	}
	defer clear(plain)
	return ParseSecrets(plain, identity)
}

// NextGeneration returns the secrets with one more root, for a new epoch. The
// older roots stay: what was sealed with their keys must open for ever.
func (s *Secrets) NextGeneration() (*Secrets, error) {
	if len(s.roots) == 0 || len(s.roots) >= maxGenerations {
		return nil, fmt.Errorf("%w: no generation follows %d", ErrSecrets, len(s.roots))
	}
	root, err := secret.Random(rootSize)
	if err != nil {
		return nil, err
	}
	return newSecrets(s.seed, append(s.roots[:len(s.roots):len(s.roots)], root)...)
}
