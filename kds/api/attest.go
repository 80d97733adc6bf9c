package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
)

// Nonce is what the asker of a verdict chose, 8 to 64 bytes. It proves that
// the result was made after it was chosen, and nothing about the evidence:
// that is what AttestRequest.ReportData is for. Its text and JSON form is
// base64url with padding (RFC 4648 section 5), exactly as the token shows it.
type Nonce []byte

// MarshalText implements encoding.TextMarshaler.
func (n Nonce) MarshalText() ([]byte, error) { return base64.URLEncoding.AppendEncode(nil, n), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The receiver changes
// only on success.
func (n *Nonce) UnmarshalText(text []byte) error {
	raw, err := base64.URLEncoding.Strict().DecodeString(string(text))
	if err != nil || len(raw) < MinNonce || len(raw) > MaxNonce || base64.URLEncoding.EncodeToString(raw) != string(text) {
		return fmt.Errorf("%w: a nonce is %d to %d bytes in base64url with padding", ErrMalformed, MinNonce, MaxNonce)
	}
	*n = raw
	return nil
}

// AttestRequest asks for a verdict on a quote; POST /v1/attest.
type AttestRequest struct {
	Quote      []byte      `json:"quote"`                 // raw, or in an Open Enclave report as EGo makes them
	Nonce      Nonce       `json:"nonce,omitempty"`       // echoed in the token
	Collateral []byte      `json:"collateral,omitempty"`  // marshalled bundle; empty: the replicated set
	ReportData *ReportData `json:"report_data,omitempty"` // if set, the quote must carry exactly this
	Constraint string      `json:"constraint,omitempty"`  // if set, the claims are checked against it
}

// Check bounds the request before anything reads it.
func (r *AttestRequest) Check() error {
	switch {
	case len(r.Quote) == 0:
		return fmt.Errorf("%w: the quote is empty", ErrMalformed)
	case len(r.Quote) > MaxQuote:
		return fmt.Errorf("%w: quote of %d bytes, limit %d", ErrTooLarge, len(r.Quote), MaxQuote)
	case r.Nonce != nil && (len(r.Nonce) < MinNonce || len(r.Nonce) > MaxNonce):
		return fmt.Errorf("%w: nonce of %d bytes, want %d to %d", ErrMalformed, len(r.Nonce), MinNonce, MaxNonce)
	case len(r.Collateral) > MaxCollateral:
		return fmt.Errorf("%w: collateral of %d bytes, limit %d", ErrTooLarge, len(r.Collateral), MaxCollateral)
	case len(r.Constraint) > MaxConstraint:
		return fmt.Errorf("%w: constraint of %d bytes, limit %d", ErrTooLarge, len(r.Constraint), MaxConstraint)
	}
	return nil
}

// Verdict is the answer. OK is true only if the quote is genuine, carries the
// report data asked for and satisfies the constraint asked for. A genuine
// quote that fails the constraint still shows its claims.
type Verdict struct {
	OK         bool            `json:"ok"`
	Code       Code            `json:"code,omitempty"`  // why not
	Stage      string          `json:"stage,omitempty"` // where evidence was refused
	Error      string          `json:"error,omitempty"`
	Status     string          `json:"status,omitempty"` // TCB status, Intel's spelling
	Advisories []string        `json:"advisories,omitempty"`
	TCBDate    time.Time       `json:"tcb_date,omitzero"`
	Failures   []Failure       `json:"failures,omitempty"`
	Constraint string          `json:"constraint,omitempty"` // canonical form of the one checked
	Claims     json.RawMessage `json:"claims,omitempty"`     // the JSON form of the verified claims
	Token      string          `json:"token,omitempty"`      // the same as a signed attestation result (package attest/ear)
	ClusterID  ID              `json:"cluster_id"`
	Epoch      uint64          `json:"epoch"`
	Time       time.Time       `json:"time"` // the instant the verdict was made for
}

// PolicyURN names an inline constraint, given in canonical form, as the
// appraisal policy of an attestation result: "urn:claviger:policy:" and the
// digits of PolicyHash.
func PolicyURN(canonical string) (string, error) {
	hash, err := PolicyHash(canonical)
	if err != nil {
		return "", err
	}
	return "urn:claviger:policy:" + hash.String(), nil
}

// ClusterURN names a cluster as the issuer of attestation results.
func ClusterURN(id ID) string { return "urn:claviger:cluster:" + id.String() }

// KeySet is the JWKS document (RFC 7517) of the keys that sign attestation
// results; GET /.well-known/jwks.json. Its one key is the cluster's identity
// key, which the cluster id is a hash of: compare it with Cluster.IdentityKey
// of a verified cluster, because the document itself proves nothing.
type KeySet struct {
	Keys []JSONWebKey `json:"keys"`
}

// JSONWebKey is an Ed25519 public key (RFC 8037).
type JSONWebKey struct {
	KeyType   string `json:"kty"` // "OKP"
	Curve     string `json:"crv"` // "Ed25519"
	X         string `json:"x"`   // 32 bytes in base64url without padding
	KeyID     string `json:"kid"` // RFC 7638 thumbprint
	Algorithm string `json:"alg"` // "EdDSA"
	Use       string `json:"use"` // "sig"
}
