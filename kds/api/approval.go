package api

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
)

// ErrApprovals says that the signatures under a statement of the operators do
// not carry it.
var ErrApprovals = errors.New("api: the operators' approvals are refused")

// Approval is one operator's signature of a statement.
type Approval struct {
	_         struct{} `cbor:",toarray"`
	Key       []byte   `json:"key"`       // ed25519 public key, 32 bytes
	Signature []byte   `json:"signature"` // 64 bytes
}

// Approve signs a message with each of the keys and returns the approvals in
// the order that Check asks for. Read what you sign first.
func Approve(message []byte, keys ...ed25519.PrivateKey) []Approval {
	var out []Approval
	for _, k := range keys {
		out = append(out, Approval{Key: k.Public().(ed25519.PublicKey), Signature: ed25519.Sign(k, message)})
	}
	return sortApprovals(out)
}

func sortApprovals(list []Approval) []Approval {
	slices.SortFunc(list, func(a, b Approval) int { return bytes.Compare(a.Key, b.Key) })
	return slices.CompactFunc(list, func(a, b Approval) bool { return bytes.Equal(a.Key, b.Key) })
}

// Collect puts approvals from several hands into the one form that Check
// accepts: those of these operators that are valid for the message, one for
// each operator, sorted. It leaves the rest out and does not count.
func (o *Operators) Collect(message []byte, lists ...[]Approval) []Approval {
	var out []Approval
	for _, a := range slices.Concat(lists...) {
		if o.has(a.Key) && verify(a.Key, message, a.Signature) == nil {
			out = append(out, a)
		}
	}
	return sortApprovals(out)
}

func (o *Operators) has(key []byte) bool {
	return slices.ContainsFunc(o.Keys, func(k []byte) bool { return bytes.Equal(k, key) })
}

// Check reports whether the approvals carry the message: sorted by key, of
// distinct operators, each one valid, and at least the threshold of them. One
// approval too many of a stranger spoils the list, so that a statement has no
// second form; Collect makes the list. It does not say what the message means.
func (o *Operators) Check(message []byte, approvals []Approval) error {
	if len(approvals) > len(o.Keys) {
		return fmt.Errorf("%w: %d approvals of %d operators", ErrApprovals, len(approvals), len(o.Keys))
	}
	for i, a := range approvals {
		switch {
		case i > 0 && bytes.Compare(approvals[i-1].Key, a.Key) >= 0:
			return fmt.Errorf("%w: they must be sorted by key, one for each operator", ErrApprovals)
		case !o.has(a.Key):
			return fmt.Errorf("%w: key %.64x is not an operator's", ErrApprovals, a.Key)
		}
	}
	// Counted before the signatures, which cost time.
	if o.Threshold == 0 || uint64(len(approvals)) < o.Threshold {
		return fmt.Errorf("%w: %d operators have signed, %d are needed", ErrApprovals, len(approvals), o.Threshold)
	}
	for _, a := range approvals {
		if err := verify(a.Key, message, a.Signature); err != nil {
			return fmt.Errorf("%w: operator %.64x: %w", ErrApprovals, a.Key, err)
		}
	}
	return nil
}
