package api

import (
	"encoding/json"
	"fmt"
	"time"
)

// AttestRequest asks for a verdict on a quote; POST /v1/attest.
type AttestRequest struct {
	Quote      []byte      `json:"quote"`
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
	ClusterID  ID              `json:"cluster_id"`
	Epoch      uint64          `json:"epoch"`
	Time       time.Time       `json:"time"` // the instant the verdict was made for
}
