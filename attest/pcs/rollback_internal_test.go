package pcs

import (
	"errors"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
)

// Every part of a set has an order of its own. Intel numbers all lists 1, but a number that falls is a rollback all the same.
func TestNotOlderInEveryPart(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	base := func() *attest.CollateralClaims {
		return &attest.CollateralClaims{
			TCBEvaluation: 17, QEEvaluation: 17, TCBInfoIssueDate: day, QEIdentityIssueDate: day, PCKCRLIssueDate: day, RootCRLIssueDate: day,
			PCKCRLNumber: "7", RootCRLNumber: "7",
		}
	}
	if err := notOlder(nil, base()); err != nil {
		t.Errorf("nothing is known: %v", err)
	}
	if err := notOlder(base(), base()); err != nil {
		t.Errorf("the same again: %v", err)
	}
	earlier := day.Add(-time.Second)
	for name, age := range map[string]func(*attest.CollateralClaims){
		"TCB evaluation": func(c *attest.CollateralClaims) { c.TCBEvaluation-- },
		"QE evaluation":  func(c *attest.CollateralClaims) { c.QEEvaluation-- },
		"TCB info":       func(c *attest.CollateralClaims) { c.TCBInfoIssueDate = earlier },
		"QE identity":    func(c *attest.CollateralClaims) { c.QEIdentityIssueDate = earlier },
		"PCK list":       func(c *attest.CollateralClaims) { c.PCKCRLIssueDate = earlier },
		"root list":      func(c *attest.CollateralClaims) { c.RootCRLIssueDate = earlier },
		"PCK number":     func(c *attest.CollateralClaims) { c.PCKCRLNumber = "6" },
		"root number":    func(c *attest.CollateralClaims) { c.RootCRLNumber = "6" },
		"no number":      func(c *attest.CollateralClaims) { c.RootCRLNumber = "" },
	} {
		got := base()
		age(got)
		if err := notOlder(base(), got); !errors.Is(err, ErrRollback) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
