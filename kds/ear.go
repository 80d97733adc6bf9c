package kds

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	buildinfo "runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// developer names us in attestation results.
const developer = "https://github.com/claviger/claviger"

// build names the software of this node: its version and the revision it was
// built from.
var build = sync.OnceValue(func() string {
	info, ok := buildinfo.ReadBuildInfo()
	if !ok {
		return "claviger unknown"
	}
	name := "claviger " + info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			name += " " + s.Value
		}
	}
	return name
})

// KeySet returns the public half of the identity key in the form that JWT
// libraries read. Like Cluster it needs no quorum: the cluster id names the
// key for ever, and who compares it needs to trust no node.
func (s *Service) KeySet(context.Context) (api.KeySet, error) {
	set, err := s.keySet()
	return set, s.finish("key_set", err)
}

func (s *Service) keySet() (api.KeySet, error) {
	if _, _, err := s.cluster(); err != nil {
		return api.KeySet{}, err
	}
	keys, err := ear.NewKeys(s.Secrets.Identity().Public())
	if err != nil {
		return api.KeySet{}, err
	}
	var set api.KeySet
	for _, key := range keys.JWKs() {
		set.Keys = append(set.Keys, api.JSONWebKey(key))
	}
	return set, nil
}

// sign adds the token to a verdict: both say the same.
func (s *Service) sign(req api.AttestRequest, v api.Verdict, a ear.Appraisal, expires time.Time) (api.Verdict, error) {
	if !v.OK {
		a = a.Refused(ear.Refusal{Code: string(v.Code), Stage: v.Stage, Detail: v.Error})
	}
	a.Verdict.Constraint, a.Verdict.Epoch = v.Constraint, v.Epoch
	token, err := ear.Issue(s.Secrets.Identity(), ear.Statement{
		Issuer: api.ClusterURN(v.ClusterID), Verifier: ear.VerifierID{Developer: developer, Build: build()},
		IssuedAt: v.Time, Expires: expires, Nonce: req.Nonce, Appraisal: a,
	})
	if err != nil {
		return api.Verdict{}, err
	}
	v.Token = token
	return v, nil
}

// tokenExpiry is the end of a result's life: never after the collateral that it
// rests on, and at least one second.
func tokenExpiry(now time.Time, claims attest.Claims) time.Time {
	expires := now.Add(ear.DefaultLifetime)
	if end := claims.Collateral.EarliestExpiry; end.Before(expires) {
		expires = end
	}
	if least := now.Add(time.Second); expires.Before(least) {
		return least
	}
	return expires
}

// policyOf tells ear what a constraint said: denied is the result of its Check.
// The clauses of a denial decide what the constraint's reference values say
// about the code.
func policyOf(c policy.Constraint, claims attest.Claims, denied error) (ear.Policy, error) {
	id, err := api.PolicyURN(c.String())
	if err != nil {
		return ear.Policy{}, err
	}
	p := ear.Policy{ID: id, Accepted: denied == nil, Executables: ear.ApprovedAtBoot}
	if claims.TDX != nil && slices.Contains(strings.Fields(c.String()), "FIRMWARE_ONLY_UNSAFE") {
		p.Executables = ear.Unrecognized // whatever the firmware booted
	}
	d, ok := errors.AsType[*policy.Denied](denied)
	if denied != nil && !ok {
		return ear.Policy{}, denied
	}
	if !ok {
		return p, nil
	}
	for _, f := range d.Failures {
		p.Failures = append(p.Failures, ear.Failure(f))
		switch f.Clause {
		case "REVOKE":
			p.Executables = ear.Contraindicating
		case "C", "S", "TD", "PROD", "RTMR0", "RTMR1", "RTMR2", "RTMR3", "MRCONFIGID", "MROWNER", "MROWNERCONFIG":
			if p.Executables != ear.Contraindicating {
				p.Executables = ear.Unrecognized
			}
		}
	}
	return p, nil
}

// ErrReport says that bytes begin as an Open Enclave report and are not one.
var ErrReport = errors.New("kds: malformed Open Enclave report")

// The header of an Open Enclave report, which EGo puts before a quote
// (openenclave/internal/report.h): version, type and size of what follows, 4, 4
// and 8 bytes, little endian.
const (
	oeHeaderSize = 16
	oeVersion    = 1
	oeRemote     = 2
)

// unwrapReport returns the quote in an Open Enclave report; a raw quote is
// returned as it is. No quote begins with the version of a report: the formats
// that exist count from 3.
func unwrapReport(raw []byte) ([]byte, error) {
	if len(raw) < 4 || binary.LittleEndian.Uint32(raw) != oeVersion {
		return raw, nil
	}
	var why string
	switch {
	case len(raw) <= oeHeaderSize:
		why = "nothing follows its header"
	case binary.LittleEndian.Uint32(raw[4:]) != oeRemote:
		why = fmt.Sprintf("type %d, want %d: only remote reports hold a quote", binary.LittleEndian.Uint32(raw[4:]), oeRemote)
	case binary.LittleEndian.Uint64(raw[8:]) != uint64(len(raw)-oeHeaderSize):
		why = fmt.Sprintf("the header says %d bytes, %d follow", binary.LittleEndian.Uint64(raw[8:]), len(raw)-oeHeaderSize)
	default:
		return raw[oeHeaderSize:], nil
	}
	return nil, &attest.Error{Stage: attest.StageParse, Err: fmt.Errorf("%w: %s", ErrReport, why), Hint: "send the report as the enclave made it"}
}
