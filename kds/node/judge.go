package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

var (
	// ErrNodePolicy says that genuine evidence is not of a node of this cluster.
	ErrNodePolicy = errors.New("node: the evidence does not satisfy the cluster's node policy")
	// errOutdated is beside ErrNodePolicy where the code is right and the platform
	// genuine, and only its TCB status or the age of the TCB info fails.
	errOutdated = errors.New("the platform's TCB has fallen behind the policy")
	// errCode is beside ErrNodePolicy where no constraint accepts the code itself,
	// whatever becomes of the platform. Only operators can bring that about: a
	// quote says what runs, and the constraints are theirs.
	errCode = errors.New("the code is not one of those that the policy names")
)

// checkNodePolicy is checkConstraints with the policy of the manifest.
func checkNodePolicy(m *api.Manifest, v *attest.Verified, now time.Time) error {
	return checkConstraints(m.NodePolicy, v, now)
}

// checkConstraints reports nil if one constraint of the list accepts the
// evidence. Debug enclaves never pass, whatever a constraint says.
func checkConstraints(list []string, v *attest.Verified, now time.Time) error {
	if v.Claims().Debug {
		return fmt.Errorf("%w: %w: it is a debug enclave, whose host reads its memory", ErrNodePolicy, errCode)
	}
	var denials []error
	code := false // whether one constraint accepts the code
	for _, text := range list {
		c, err := policy.ParseConstraint(text)
		if err != nil || c.Insecure() || c.String() != text {
			denials = append(denials, fmt.Errorf("constraint %.80q cannot govern nodes", text))
			continue
		}
		err = c.CheckNode(v, now)
		if err == nil {
			return nil
		}
		denials = append(denials, err)
		if onlyOutdated(v, err) {
			denials = append(denials, errOutdated)
		}
		code = code || acceptsCode(err)
	}
	if !code {
		denials = append(denials, errCode)
	}
	return fmt.Errorf("%w: %w", ErrNodePolicy, errors.Join(denials...))
}

func verifyWith(v *attest.Verifier, quote, bundle []byte, now time.Time) (*attest.Verified, error) {
	q, err := attest.Parse(quote)
	if err != nil {
		return nil, err
	}
	c, err := attest.ParseCollateral(bundle)
	if err != nil {
		return nil, err
	}
	return v.Verify(q, c, now)
}

// ErrOldCollateral refuses evidence that only a list of some days ago speaks for:
// its platform may have been revoked since, and its host chooses which list it
// sends along.
var ErrOldCollateral = errors.New("node: the collateral beside the evidence is too old")

// checkRecent is the rule of kds.ForRoots for people, who judge without a source.
func checkRecent(v *attest.Verified, now time.Time) error {
	claims := v.Claims()
	c, p := claims.Collateral, claims.Platform
	oldest := slices.MinFunc([]time.Time{c.TCBInfoIssueDate, c.QEIdentityIssueDate, c.PCKCRLIssueDate}, time.Time.Compare)
	if now.Sub(oldest) <= kds.RootsAge {
		return nil
	}
	return fmt.Errorf("%w: a part of it was issued on %s, and who is to hold roots is judged by collateral of the last %d days; get it yourself, away from that host: claviger collateral fetch --tee %s --fmspc %x --ca %s",
		ErrOldCollateral, oldest.UTC().Format(time.DateOnly), kds.RootsAge/(24*time.Hour), claims.TEE, p.FMSPC, p.CA)
}

// onlyOutdated tells what time and Intel did from what the code or the host did.
func onlyOutdated(v *attest.Verified, err error) bool {
	d, ok := errors.AsType[*policy.Denied](err)
	if !ok || v.Claims().TCB.Status == attest.StatusRevoked || v.Claims().TCB.Status == attest.StatusNotSupported {
		return false
	}
	return acceptsCode(d)
}

// acceptsCode reports whether a denial is about the platform alone.
func acceptsCode(err error) bool {
	d, ok := errors.AsType[*policy.Denied](err)
	return ok && !slices.ContainsFunc(d.Failures, func(f policy.Failure) bool { return !strings.HasPrefix(f.Clause, "SEC:") && f.Clause != "EXPIRE" })
}
