package kds

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Sizes of the cluster's secrets in bytes.
const (
	rootSize       = 32
	maxGenerations = state.MaxGenerations
	maxSecrets     = 16 << 10 // of the encoded form
)

var (
	// ErrSecrets says that secrets do not decode or that one is missing.
	ErrSecrets = errors.New("kds: cluster secrets refused")
	// ErrRoots says that roots are others than those that the cluster has committed to.
	ErrRoots = errors.New("kds: these are not the roots that the cluster has committed to")
)

// Secrets are what every admitted node of a cluster holds in memory: the root
// of each generation and the identity key. They are made once, at genesis,
// inside the first enclave, and leave it only over an attested channel to an
// admitted node. The zero Secrets hold nothing and sign nothing. They do not
// change after they are made, and no method prints them.
type Secrets struct {
	roots    []secret.Key // roots[0] is generation 1
	ids      [][32]byte   // of the roots
	seed     secret.Key   // RFC 8032 seed of the identity key
	identity identity
}

// identity signs with the cluster identity key. The expanded key lives in a
// closure, where no printer looks.
type identity struct {
	public ed25519.PublicKey
	sign   func(message []byte) []byte
}

// Public returns the public half.
func (i identity) Public() ed25519.PublicKey { return i.public }

// Sign returns the ed25519 signature of message.
func (i identity) Sign(message []byte) ([]byte, error) {
	if i.sign == nil {
		return nil, fmt.Errorf("%w: no identity key", ErrSecrets)
	}
	return i.sign(message), nil
}

// GenerateSecrets makes the secrets of a new cluster: the root of generation
// 1 and an identity key. Call it at genesis, inside the enclave.
func GenerateSecrets() (*Secrets, error) {
	root, err := secret.Random(rootSize)
	if err != nil {
		return nil, err
	}
	seed, err := secret.Random(ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return newSecrets(seed, root)
}

func newSecrets(seed secret.Key, roots ...secret.Key) (*Secrets, error) {
	if seed.Len() != ed25519.SeedSize || len(roots) == 0 || len(roots) > maxGenerations {
		return nil, fmt.Errorf("%w: identity seed of %d bytes, %d generations", ErrSecrets, seed.Len(), len(roots))
	}
	ids := make([][32]byte, len(roots))
	for i, r := range roots {
		if r.Len() != rootSize {
			return nil, fmt.Errorf("%w: root of %d bytes, want %d", ErrSecrets, r.Len(), rootSize)
		}
		id, err := r.Derive(rootIDLabel, len(ids[i]))
		if err != nil {
			return nil, err
		}
		ids[i] = [32]byte(id.Reveal())
		id.Destroy()
	}
	raw := seed.Reveal()
	defer clear(raw)
	private := ed25519.NewKeyFromSeed(raw)
	return &Secrets{roots: roots, ids: ids, seed: seed, identity: identity{
		public: private.Public().(ed25519.PublicKey),
		sign:   func(message []byte) []byte { return ed25519.Sign(private, message) },
	}}, nil
}

// Identity returns the signer of the cluster identity key.
func (s *Secrets) Identity() api.Signer { return s.identity }

// Generation returns the newest generation held.
func (s *Secrets) Generation() uint64 { return uint64(len(s.roots)) }

// rootIDLabel derives the id of a root, which is public: nothing else may be
// derived under it.
const rootIDLabel = "claviger/root-id/v1"

// GenerationIDs names the roots held, by generation from 1, by what follows from
// each of them and gives nothing of it away: HKDF of the root under a label of its
// own, 32 bytes. Numbers alone do not tell roots apart: see state.CommitRoots.
func (s *Secrets) GenerationIDs() [][32]byte { return slices.Clone(s.ids) }

// Check returns nil if these are the roots that a cluster has committed to, as its
// state has their ids: all of those, and perhaps later ones. Otherwise it says
// which one is another, or missing, and matches ErrRoots.
func (s *Secrets) Check(committed [][32]byte) error {
	for i, want := range committed {
		switch {
		case i >= len(s.ids):
			return fmt.Errorf("%w: the root of generation %d, id %.16s, is missing", ErrRoots, i+1, api.ID(want))
		case s.ids[i] != want:
			return fmt.Errorf("%w: generation %d has id %.16s there, and these have %.16s: they are of another epoch, which made the same generation, or of nobody",
				ErrRoots, i+1, api.ID(want), api.ID(s.ids[i]))
		}
	}
	return nil
}

// root returns the root of a generation, from 1.
func (s *Secrets) root(generation uint64) (secret.Key, error) {
	if generation == 0 || generation > uint64(len(s.roots)) {
		return secret.Key{}, fmt.Errorf("%w: no root of generation %d", ErrSecrets, generation)
	}
	return s.roots[generation-1], nil
}

// opening is the key of one leaf's commitment: whoever holds it can check
// that leaf and no other.
func (s *Secrets) opening(generation uint64, request [16]byte) ([32]byte, error) {
	root, err := s.root(generation)
	if err != nil {
		return [32]byte{}, err
	}
	logKey, err := root.Derive("claviger/log-key/v1", 32)
	if err != nil {
		return [32]byte{}, err
	}
	defer logKey.Destroy()
	key, err := logKey.Derive("claviger/log-opening/v1/"+hex.EncodeToString(request[:]), 32)
	if err != nil {
		return [32]byte{}, err
	}
	defer key.Destroy()
	return [32]byte(key.Reveal()), nil
}

// secretsForm is the encoded form, which exists only inside attested
// channels.
type secretsForm struct {
	_     struct{} `cbor:",toarray"`
	Label string
	Seed  []byte
	Roots [][]byte
}

const secretsLabel = "claviger/secrets/v1"

// Reveal encodes all secrets in the clear, for the one purpose of handing
// them to an admitted node over a channel bound to its evidence. Clear the
// bytes afterwards.
func (s *Secrets) Reveal() ([]byte, error) {
	if len(s.roots) == 0 {
		return nil, fmt.Errorf("%w: there are none", ErrSecrets)
	}
	form := secretsForm{Label: secretsLabel, Seed: s.seed.Reveal()}
	defer func() { form.clear() }()
	for _, r := range s.roots {
		form.Roots = append(form.Roots, r.Reveal())
	}
	return api.MarshalCanonical(form)
}

func (f *secretsForm) clear() {
	clear(f.Seed)
	for _, r := range f.Roots {
		clear(r)
	}
}

// ParseSecrets reads what Reveal wrote. identityKey is the public key of the
// cluster that the caller means to serve; secrets of another are refused.
func ParseSecrets(raw []byte, identityKey ed25519.PublicKey) (*Secrets, error) {
	var form secretsForm
	defer func() { form.clear() }()
	if err := api.UnmarshalCanonical(raw, maxSecrets, &form); err != nil {
		return nil, fmt.Errorf("%w: they do not decode", ErrSecrets) // the cause could quote them
	}
	if form.Label != secretsLabel {
		return nil, fmt.Errorf("%w: another version", ErrSecrets)
	}
	seed, err := secret.New(form.Seed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecrets, err)
	}
	roots := make([]secret.Key, len(form.Roots))
	for i, r := range form.Roots {
		if roots[i], err = secret.New(r); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSecrets, err)
		}
	}
	s, err := newSecrets(seed, roots...)
	if err != nil {
		return nil, err
	}
	if !s.identity.public.Equal(identityKey) {
		return nil, fmt.Errorf("%w: they belong to another cluster", ErrSecrets)
	}
	return s, nil
}

// publicKey gives raw bytes the type; Equal refuses a wrong length.
func publicKey(raw []byte) ed25519.PublicKey { return ed25519.PublicKey(raw) }
