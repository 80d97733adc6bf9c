package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

var (
	// ErrNodePolicy says that genuine evidence is not of a node of this cluster.
	ErrNodePolicy = errors.New("node: the evidence does not satisfy the cluster's node policy")
	// errOutdated is beside ErrNodePolicy where the code is right and the platform
	// genuine, and only its TCB status or the age of the TCB info fails.
	errOutdated = errors.New("the platform's TCB has fallen behind the policy")
)

// checkNodePolicy reports nil if one constraint of the manifest accepts the
// evidence. Debug enclaves never pass, whatever a constraint says.
func checkNodePolicy(m *api.Manifest, v *attest.Verified, now time.Time) error {
	if v.Claims().Debug {
		return fmt.Errorf("%w: it is a debug enclave, whose host reads its memory", ErrNodePolicy)
	}
	var denials []error
	for _, text := range m.NodePolicy {
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

// onlyOutdated tells what time and Intel did from what the code or the host did.
func onlyOutdated(v *attest.Verified, err error) bool {
	d, ok := errors.AsType[*policy.Denied](err)
	if !ok || v.Claims().TCB.Status == attest.StatusRevoked || v.Claims().TCB.Status == attest.StatusNotSupported {
		return false
	}
	return !slices.ContainsFunc(d.Failures, func(f policy.Failure) bool { return !strings.HasPrefix(f.Clause, "SEC:") && f.Clause != "EXPIRE" })
}
