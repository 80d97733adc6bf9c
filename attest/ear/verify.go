package ear

import (
	"bytes"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Result is a result that was verified. The zero Result affirms nothing.
type Result struct {
	Issuer    string
	KeyID     string // thumbprint of the trusted key that signed
	Verifier  VerifierID
	IssuedAt  time.Time
	Expires   time.Time
	Nonce     []byte // nil: the result answers no nonce
	Appraisal Appraisal
	Evidence  *Evidence // what the evidence proved; nil unless it is genuine
}

// Affirms reports whether the verifier affirms the evidence by the named policy, and by that one only: it is genuine, the
// policy accepts it, and no trustworthiness claim warns. The name is needed because whoever asked for the result chose the
// policy, and may have chosen one that accepts code of its own. It is false for nil and for an empty name.
func (r *Result) Affirms(policyID string) bool {
	return r != nil && policyID != "" && r.Appraisal.Status == Affirming && slices.Equal(r.Appraisal.PolicyIDs, []string{policyID})
}

// Verify checks a token against trusted keys, at the instant now, for the nonce that the caller chose: nil demands a token
// without one. Any doubt is an error, and a result beside it is nil. A nonce that matches proves that the result was made
// after the nonce was chosen; that the evidence is fresh is proved by the report data in it and by nothing else.
func Verify(token string, keys Keys, now time.Time, nonce []byte) (*Result, error) {
	if nonce != nil && !nonceLength(nonce) {
		return nil, fmt.Errorf("%w: nonce of %d bytes, want %d to %d", ErrInput, len(nonce), MinNonce, MaxNonce)
	}
	r, err := verify(token, keys, now)
	if err != nil {
		return nil, err
	}
	if (nonce == nil) != (r.Nonce == nil) || subtle.ConstantTimeCompare(nonce, r.Nonce) != 1 {
		return nil, ErrNonce
	}
	return r, nil
}

// VerifyAnyNonce is Verify for whoever did not choose the nonce, such as a relying party to which the attester brings its
// result: within its lifetime, a result can be shown again by anybody.
func VerifyAnyNonce(token string, keys Keys, now time.Time) (*Result, error) {
	return verify(token, keys, now)
}

func verify(token string, keys Keys, now time.Time) (*Result, error) {
	if keys.IsZero() || now.IsZero() {
		return nil, fmt.Errorf("%w: no trusted key, or no time", ErrInput)
	}
	payload, key, err := open(token, keys)
	if err != nil {
		return nil, err
	}
	if err := uniqueKeys(payload); err != nil {
		return nil, err
	}
	claims, err := parseObject(payload)
	if err != nil {
		return nil, err
	}
	r := &Result{KeyID: key.id}
	if err := r.read(claims); err != nil {
		return nil, err
	}
	if err := r.times(claims, now); err != nil {
		return nil, err
	}
	if err := r.Appraisal.check(); err != nil {
		return nil, err
	}
	if r.Evidence, err = r.Appraisal.evidence(); err != nil {
		return nil, err
	}
	return r, nil
}

// open checks form, header and signature, and returns what was signed. The header is compared, not interpreted: each key
// has exactly one, which names it, the algorithm and the type, so that nothing in a token chooses how it is checked.
func open(token string, keys Keys) ([]byte, trusted, error) {
	if len(token) > MaxToken {
		return nil, trusted{}, fmt.Errorf("%w: token of %d bytes, limit %d", ErrTooLarge, len(token), MaxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, trusted{}, fmt.Errorf("%w: a token has three parts", ErrMalformed)
	}
	for _, part := range parts {
		// Go's decoder skips line ends: one token would have many spellings.
		if _, err := base64.RawURLEncoding.Strict().DecodeString(part); part == "" || err != nil || strings.ContainsAny(part, "\r\n") {
			return nil, trusted{}, fmt.Errorf("%w: a part is not base64url", ErrMalformed)
		}
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if _, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
		return nil, trusted{}, fmt.Errorf("%w: %w", ErrAlgorithm, err)
	}
	if err != nil || len(jws.Signatures) != 1 {
		return nil, trusted{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	key, ok := keys.find(jws.Signatures[0].Protected.KeyID)
	if !ok {
		return nil, trusted{}, fmt.Errorf("%w: kid %.60q", ErrKey, jws.Signatures[0].Protected.KeyID)
	}
	if parts[0] != key.header {
		return nil, trusted{}, ErrType
	}
	payload, err := jws.Verify(key.key)
	if err != nil {
		return nil, trusted{}, ErrSignature
	}
	return payload, key, nil
}

// read takes the claims apart; times are left to the next step.
func (r *Result) read(o object) error {
	var profile, nonce string
	var status Status
	err := errors.Join(o.need("eat_profile", &profile), o.need("iss", &r.Issuer), o.may("eat_nonce", &nonce), o.need("ear_status", &status))
	if err != nil {
		return err
	}
	if profile != Profile {
		return fmt.Errorf("%w: profile %.60q, want %s", ErrMalformed, profile, Profile)
	}
	id, err := o.child("ear_verifier_id")
	if err != nil {
		return err
	}
	if err := errors.Join(id.need("developer", &r.Verifier.Developer), id.need("build", &r.Verifier.Build)); err != nil {
		return err
	}
	if !validText(r.Issuer) || !validText(r.Verifier.Developer) || !validText(r.Verifier.Build) {
		return fmt.Errorf("%w: issuer or verifier id", ErrMalformed)
	}
	if _, given := o["eat_nonce"]; given {
		if r.Nonce, err = parseNonce(nonce); err != nil {
			return err
		}
	}
	return r.submodule(o, status)
}

// submodule reads the one submodule, whose status is that of the whole.
func (r *Result) submodule(o object, status Status) error {
	submodules, err := o.child("submods")
	if err != nil {
		return err
	}
	if len(submodules) != 1 {
		return fmt.Errorf("%w: %d submodules, want one", ErrMalformed, len(submodules))
	}
	for label := range submodules {
		if r.Appraisal, err = parseAppraisal(label, submodules); err != nil {
			return err
		}
	}
	if status != r.Appraisal.Status {
		return fmt.Errorf("%w: status %s over a submodule of status %s", ErrInconsistent, status, r.Appraisal.Status)
	}
	return nil
}

func parseAppraisal(label string, submodules object) (Appraisal, error) {
	o, err := submodules.child(label)
	if err != nil {
		return Appraisal{}, err
	}
	a := Appraisal{Label: label}
	var nonce string
	err = errors.Join(o.need("ear_status", &a.Status), o.need("ear_trustworthiness_vector", &a.Vector),
		o.may("ear_appraisal_policy_ids", &a.PolicyIDs), o.may("eat_nonce", &nonce))
	if err != nil {
		return Appraisal{}, err
	}
	if _, given := o["eat_nonce"]; given {
		if a.EvidenceNonce, err = parseNonce(nonce); err != nil {
			return Appraisal{}, err
		}
	}
	private, err := o.child("ear_verifier_claims")
	if err != nil {
		return Appraisal{}, err
	}
	if err := errors.Join(private.need(ClaimVerdict, &a.Verdict), private.may(ClaimClaims, &a.Claims)); err != nil {
		return Appraisal{}, err
	}
	a.Claims = bytes.Clone(a.Claims)
	return a, nil
}

// parseNonce reads base64url with padding, the one form in which 8 to 64 bytes have the 12 to 88 characters that EAR names.
func parseNonce(text string) ([]byte, error) {
	n, err := base64.URLEncoding.Strict().DecodeString(text)
	if err != nil || !nonceLength(n) || base64.URLEncoding.EncodeToString(n) != text {
		return nil, fmt.Errorf("%w: a nonce is %d to %d bytes in padded base64url", ErrMalformed, MinNonce, MaxNonce)
	}
	return n, nil
}

// times checks the validity. EAR allows whole seconds only, and all three are needed: a result is about a moment.
func (r *Result) times(o object, now time.Time) error {
	var issued, start, end int64
	if err := errors.Join(o.need("iat", &issued), o.need("nbf", &start), o.need("exp", &end)); err != nil {
		return err
	}
	const far = 1 << 40 // seconds; keeps the arithmetic below from wrapping
	if issued <= 0 || start < issued || end <= start || end > far || end-issued > int64(MaxLifetime/time.Second) {
		return fmt.Errorf("%w: issued %d, valid from %d to %d", ErrMalformed, issued, start, end)
	}
	r.IssuedAt, r.Expires = time.Unix(issued, 0).UTC(), time.Unix(end, 0).UTC()
	switch {
	case now.Add(Leeway).Before(time.Unix(start, 0)):
		return fmt.Errorf("%w: valid from %s, it is %s", ErrNotYetValid, time.Unix(start, 0).UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !now.Before(r.Expires):
		return fmt.Errorf("%w: good until %s, it is %s", ErrExpired, r.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// evidence reads the claims about the evidence and holds them against status and label, last of all: a verifier that
// affirmed a debug enclave would contradict itself.
func (a *Appraisal) evidence() (*Evidence, error) {
	if a.Claims == nil {
		return nil, nil
	}
	e, err := parseEvidence(a.Claims)
	if err != nil {
		return nil, err
	}
	switch {
	case string(e.TEE) != a.Label:
		return nil, fmt.Errorf("%w: claims of %s in submodule %s", ErrInconsistent, e.TEE, a.Label)
	case e.Debug && a.Status != Contraindicated:
		return nil, fmt.Errorf("%w: a debug enclave of status %s", ErrInconsistent, a.Status)
	case a.EvidenceNonce != nil && !bytes.Equal(a.EvidenceNonce, e.ReportData[:]):
		return nil, fmt.Errorf("%w: the nonce of the evidence is not its report data", ErrInconsistent)
	}
	return e, nil
}
