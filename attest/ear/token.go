package ear

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Limits and times.
const (
	MaxToken  = 128 << 10 // bytes of a token
	MaxKeySet = 16 << 10  // bytes of a JWKS document
	MaxKeys   = 16        // keys of a set
	MinNonce  = 8         // bytes of a nonce (EAR, section 3)
	MaxNonce  = 64

	// DefaultLifetime is how long a result is good for: long enough to be carried to a relying party, short against the
	// day after which collateral may say otherwise.
	DefaultLifetime = 10 * time.Minute
	// MaxLifetime is the longest that Verify accepts, whatever the token says.
	MaxLifetime = 24 * time.Hour
	// Leeway is how far the clock of a relying party may be behind the verifier's. Expiry has none.
	Leeway = time.Minute

	maxDepth    = 16  // nesting of JSON
	maxPolicies = 16  // names of policies
	maxText     = 512 // bytes of an issuer, a policy's name, or a part of the verifier's id
)

// Profile is the EAT profile of draft-ietf-rats-ear-04, which the claims below belong to.
const Profile = "tag:ietf.org,2026:rats/ear#04"

// Names of the claims of ours, inside ear_verifier_claims; DESIGN.md describes them.
const (
	ClaimClaims  = "github.com/claviger/claims/v1"  // JSON form of attest.Claims, without the PPID
	ClaimVerdict = "github.com/claviger/verdict/v1" // see Verdict
)

const (
	algorithm = string(jose.EdDSA)
	tokenType = "eat+jwt" // RFC 9782, section 2, without "application/" (RFC 7515, section 4.1.9)
)

// Signer signs with an Ed25519 key whose private half it does not show.
type Signer interface {
	Public() ed25519.PublicKey
	Sign(message []byte) ([]byte, error) // ed25519 over message itself
}

// VerifierID names the software that appraised (AR4SI, section 3.3).
type VerifierID struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

// Statement is a result to be signed.
type Statement struct {
	Issuer    string // names the verifier's key holder: "urn:claviger:cluster:" and the cluster id
	Verifier  VerifierID
	IssuedAt  time.Time // written as whole seconds, rounded down; also the start of validity
	Expires   time.Time // likewise; at most MaxLifetime later
	Nonce     []byte    // 8 to 64 bytes, or nil: chosen by whoever asked for the result
	Appraisal Appraisal
}

// wire is the claims set of an EAR as JSON, with nbf and iss of RFC 7519.
type wire struct {
	Profile    string                   `json:"eat_profile"`
	Issuer     string                   `json:"iss"`
	IssuedAt   int64                    `json:"iat"`
	NotBefore  int64                    `json:"nbf"`
	Expires    int64                    `json:"exp"`
	Nonce      string                   `json:"eat_nonce,omitempty"`
	Status     Status                   `json:"ear_status"`
	VerifierID VerifierID               `json:"ear_verifier_id"`
	Submodules map[string]wireAppraisal `json:"submods"`
}

type wireAppraisal struct {
	Status    Status         `json:"ear_status"`
	Vector    Vector         `json:"ear_trustworthiness_vector"`
	PolicyIDs []string       `json:"ear_appraisal_policy_ids,omitempty"`
	Nonce     string         `json:"eat_nonce,omitempty"`
	Verifier  map[string]any `json:"ear_verifier_claims"`
}

// Issue signs a result and returns the token in compact form. It refuses what Verify would refuse: ErrInput,
// ErrInconsistent, ErrTooLarge.
//
// The signed bytes begin with "eyJ", the base64url of a JSON object. What else a key signs must not: this project's
// other statements are CBOR arrays, whose first byte is 0x80 or above, so that no signature passes for another.
func Issue(s Signer, st Statement) (string, error) {
	if err := st.check(); err != nil {
		return "", err
	}
	a := &st.Appraisal
	w := wire{
		Profile: Profile, Issuer: st.Issuer, IssuedAt: st.IssuedAt.Unix(), NotBefore: st.IssuedAt.Unix(), Expires: st.Expires.Unix(),
		Nonce: base64.URLEncoding.EncodeToString(st.Nonce), Status: a.Status, VerifierID: st.Verifier,
	}
	private := map[string]any{ClaimVerdict: a.Verdict}
	if a.Claims != nil {
		private[ClaimClaims] = a.Claims
	}
	w.Submodules = map[string]wireAppraisal{a.Label: {
		Status: a.Status, Vector: a.Vector, PolicyIDs: a.PolicyIDs,
		Nonce: base64.URLEncoding.EncodeToString(a.EvidenceNonce), Verifier: private,
	}}
	payload, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInput, err)
	}
	token, err := sign(s, payload)
	if err == nil && len(token) > MaxToken {
		return "", fmt.Errorf("%w: token of %d bytes, limit %d", ErrTooLarge, len(token), MaxToken)
	}
	return token, err
}

// check refuses a statement that Verify would refuse.
func (st *Statement) check() error {
	lifetime := st.Expires.Unix() - st.IssuedAt.Unix()
	switch {
	case !validText(st.Issuer) || !validText(st.Verifier.Developer) || !validText(st.Verifier.Build):
		return fmt.Errorf("%w: issuer, developer and build are texts of 1 to %d bytes", ErrInput, maxText)
	case st.IssuedAt.Unix() <= 0 || lifetime <= 0 || lifetime > int64(MaxLifetime/time.Second):
		return fmt.Errorf("%w: valid for %d s from %s", ErrInput, lifetime, st.IssuedAt)
	case st.Nonce != nil && !nonceLength(st.Nonce):
		return fmt.Errorf("%w: nonce of %d bytes, want %d to %d", ErrInput, len(st.Nonce), MinNonce, MaxNonce)
	}
	if err := st.Appraisal.check(); err != nil {
		return err
	}
	_, err := st.Appraisal.evidence()
	return err
}

func validText(s string) bool { return s != "" && len(s) <= maxText }

func nonceLength(n []byte) bool { return len(n) >= MinNonce && len(n) <= MaxNonce }

func sign(s Signer, payload []byte) (string, error) {
	if s == nil {
		return "", fmt.Errorf("%w: no signer", ErrInput)
	}
	t, err := trust(s.Public())
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: opaque{s, t}}, new(jose.SignerOptions).WithType(tokenType))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInput, err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// opaque lets go-jose sign with a key that it never sees.
type opaque struct {
	signer Signer
	trusted
}

// Public returns the public key with its id.
func (o opaque) Public() *jose.JSONWebKey {
	return &jose.JSONWebKey{Key: o.key, KeyID: o.id, Algorithm: algorithm, Use: "sig"}
}

// Algs returns the one algorithm of the key.
func (o opaque) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{jose.EdDSA} }

// SignPayload signs, and checks what came back: a fault in a signer must not go out.
func (o opaque) SignPayload(payload []byte, alg jose.SignatureAlgorithm) ([]byte, error) {
	if alg != jose.EdDSA {
		return nil, fmt.Errorf("%w: %s", ErrAlgorithm, alg)
	}
	sig, err := o.signer.Sign(payload)
	if err != nil {
		return nil, err
	}
	if !ed25519.Verify(o.key, payload, sig) {
		return nil, fmt.Errorf("%w: the signer's own", ErrSignature)
	}
	return sig, nil
}
