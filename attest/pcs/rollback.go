package pcs

import (
	"math/big"
	"strconv"
	"time"

	"github.com/claviger/claviger/attest"
)

// notOlder refuses a set that is older than one for the same request in any part. A host or cache that may choose among
// genuine, unexpired sets could otherwise hide a revocation or a TCB recovery for as long as the old ones last.
func notOlder(have, got *attest.CollateralClaims) error {
	if have == nil {
		return nil
	}
	for _, n := range []struct {
		what      string
		have, got int
	}{
		{"TCB evaluation number of the TCB info", have.TCBEvaluation, got.TCBEvaluation},
		{"TCB evaluation number of the QE identity", have.QEEvaluation, got.QEEvaluation},
	} {
		if n.got < n.have {
			return older(n.what, strconv.Itoa(n.have), strconv.Itoa(n.got))
		}
	}
	for _, t := range []struct {
		what      string
		have, got time.Time
	}{
		{"issue date of the TCB info", have.TCBInfoIssueDate, got.TCBInfoIssueDate},
		{"issue date of the QE identity", have.QEIdentityIssueDate, got.QEIdentityIssueDate},
		{"date of the PCK revocation list", have.PCKCRLIssueDate, got.PCKCRLIssueDate},
		{"date of the root revocation list", have.RootCRLIssueDate, got.RootCRLIssueDate},
	} {
		if t.got.Before(t.have) {
			return older(t.what, t.have.Format(time.RFC3339), t.got.Format(time.RFC3339))
		}
	}
	for _, n := range []struct{ what, have, got string }{
		{"number of the PCK revocation list", have.PCKCRLNumber, got.PCKCRLNumber},
		{"number of the root revocation list", have.RootCRLNumber, got.RootCRLNumber},
	} {
		a, ok := new(big.Int).SetString(n.have, 10)
		b, ok2 := new(big.Int).SetString(n.got, 10)
		if !ok || !ok2 || b.Cmp(a) < 0 {
			return older(n.what, n.have, n.got)
		}
	}
	return nil
}

func older(what, have, got string) error {
	return fail(&RollbackError{What: what, Have: have, Got: got},
		"the service or its cache is behind, or someone hides an update: refresh the cache, or ask Intel's service directly")
}
