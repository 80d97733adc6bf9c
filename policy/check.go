package policy

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
)

// Check decides whether verified evidence satisfies the constraint at the
// instant now, which must not be zero. It returns nil or a *Denied that names
// every failed clause of every alternative. One of the C, S and TD
// alternatives must hold, and all the rest that concerns the evidence's TEE.
func (c Constraint) Check(v *attest.Verified, now time.Time) error {
	return c.check(v.Claims(), now, false)
}

// CheckNode is Check for a node of a cluster, which holds root secrets: a TD
// that can migrate is denied even if its service TD is named, because the
// roots would follow it.
func (c Constraint) CheckNode(v *attest.Verified, now time.Time) error {
	return c.check(v.Claims(), now, true)
}

// checker collects failures over one set of claims.
type checker struct {
	*clauses
	claims   attest.Claims
	now      time.Time
	node     bool
	failures []Failure
}

func (c Constraint) check(claims attest.Claims, now time.Time, node bool) error {
	parsed, perr := parse(c.canonical)
	if perr != nil { // the zero Constraint: nothing else gets here
		return &Denied{[]Failure{{Clause: "constraint", Want: "a constraint", Got: "none", Hint: perr.Hint}}}
	}
	k := &checker{clauses: parsed, claims: claims, now: now, node: node}
	if now.IsZero() {
		k.fail("now", "the current time", "none", "the caller must supply a clock")
	}
	switch {
	case claims.TEE == attest.SGX && claims.SGX != nil:
		k.sgx(claims.SGX)
	case claims.TEE == attest.TDX && claims.TDX != nil:
		k.tdx(claims.TDX)
	default:
		k.fail("TEE", "sgx or tdx evidence", fmt.Sprintf("%q", claims.TEE), "verify the evidence first")
	}
	k.security()
	k.age()
	if len(k.failures) > 0 {
		return &Denied{k.failures}
	}
	return nil
}

func (k *checker) fail(clause, want, got, hint string) {
	k.failures = append(k.failures, Failure{Clause: clause, Want: want, Got: got, Hint: hint})
}

// alternative records that one C, S or TD did not match.
func (k *checker) alternative(key string, want []byte, got, hint string) {
	text := hex.EncodeToString(want)
	k.failures = append(k.failures, Failure{Alternative: key + ":" + text, Clause: key, Want: text, Got: got, Hint: hint})
}

const (
	hintCode  = "the evidence is of another program or version; ask with a constraint that names it, or run the program named"
	hintKind  = "this alternative is for another kind of TEE than the evidence"
	hintField = "the field of the evidence differs; compare with the reference values of the image"
)

func (k *checker) sgx(e *attest.SGXClaims) {
	code := slices.ContainsFunc(k.codes, func(b []byte) bool { return bytes.Equal(b, e.MREnclave[:]) })
	signer := slices.ContainsFunc(k.signers, func(b []byte) bool { return bytes.Equal(b, e.MRSigner[:]) })
	if !code && !signer {
		for _, want := range k.codes {
			k.alternative("C", want, hex.EncodeToString(e.MREnclave[:]), hintCode)
		}
		for _, want := range k.signers {
			k.alternative("S", want, hex.EncodeToString(e.MRSigner[:]), hintCode)
		}
		for _, want := range k.tds {
			k.alternative("TD", want, "sgx evidence", hintKind)
		}
	}
	if k.prod != nil && e.ISVProdID != *k.prod {
		k.fail("PROD", fmt.Sprint(*k.prod), fmt.Sprint(e.ISVProdID), "the signer signed another product")
	}
	if k.revoke != nil && uint32(e.ISVSVN) < uint32(*k.revoke)+1 {
		k.fail("REVOKE", fmt.Sprintf("ISVSVN of at least %d", uint32(*k.revoke)+1), fmt.Sprintf("ISVSVN %d", e.ISVSVN),
			"this version of the program has been revoked; deploy a newer one")
	}
}

func (k *checker) tdx(e *attest.TDXClaims) {
	if !slices.ContainsFunc(k.tds, func(b []byte) bool { return bytes.Equal(b, e.MRTD[:]) }) {
		for _, want := range k.codes {
			k.alternative("C", want, "tdx evidence", hintKind)
		}
		for _, want := range k.signers {
			k.alternative("S", want, "tdx evidence", hintKind)
		}
		for _, want := range k.tds {
			k.alternative("TD", want, hex.EncodeToString(e.MRTD[:]), hintCode)
		}
	}
	for _, key := range canonicalOrder {
		want, given := k.fields[key]
		if !given {
			continue
		}
		got, shown := tdxField(e, key), "absent from this version of the quote"
		if got != nil {
			shown = hex.EncodeToString(got)
		}
		if !bytes.Equal(got, want) {
			k.fail(key, hex.EncodeToString(want), shown, hintField)
		}
	}
	k.tdAttributes(e)
}

// tdxField returns the field a token compares, nil if the evidence has none.
func tdxField(e *attest.TDXClaims, key string) []byte {
	switch key {
	case "RTMR0", "RTMR1", "RTMR2", "RTMR3":
		return e.RTMR[key[4]-'0'][:]
	case "SEAM":
		return e.MRSignerSEAM[:]
	case "MRCONFIGID":
		return e.MRConfigID[:]
	case "MROWNER":
		return e.MROwner[:]
	case "MROWNERCONFIG":
		return e.MROwnerConfig[:]
	case "XFAM":
		return e.XFAM[:]
	case "SERVICETD":
		if e.MRServiceTD != nil {
			return e.MRServiceTD[:]
		}
	}
	return nil
}

// stale lists the statuses that SEC:STALE and SEC:INSECURE accept. Revoked
// and NotSupported are in no list, and neither is the empty status.
var stale = []attest.Status{
	attest.StatusUpToDate, attest.StatusSWHardeningNeeded, attest.StatusConfigurationNeeded,
	attest.StatusConfigurationAndSWHardeningNeeded, attest.StatusOutOfDate, attest.StatusOutOfDateConfigurationNeeded,
	attest.StatusTDRelaunchAdvised, attest.StatusTDRelaunchAdvisedConfigurationNeeded,
}

func (k *checker) security() {
	sec := "SEC:" + string(k.sec)
	switch {
	case k.sec == Insecure && !k.claims.Debug:
		k.fail(sec, "a debug enclave", "a production enclave",
			"INSECURE accepts debug enclaves only, so that their keys never meet production; use STALE or SECURE")
	case k.sec != Insecure && k.claims.Debug:
		k.fail(sec, "a production enclave", "a debug enclave",
			"the host can read a debug enclave; build it without debug, or name it with SEC:INSECURE for tests")
	}
	accepted := stale
	if k.sec == Secure {
		accepted = stale[:1]
	}
	status := k.claims.TCB.Status
	if slices.Contains(accepted, status) {
		return
	}
	names := make([]string, len(accepted))
	for i, s := range accepted {
		names[i] = string(s)
	}
	got := string(status)
	if got == "" {
		got = "no TCB status"
	}
	k.failures = append(k.failures, Failure{
		Clause: sec, Want: strings.Join(names, " or "), Got: got, Advisories: k.claims.TCB.Advisories,
		TCBDate: k.claims.TCB.Date, Hint: statusHint(status),
	})
}

func statusHint(s attest.Status) string {
	switch s {
	case attest.StatusRevoked:
		return "Intel has revoked this TCB level; move to another platform or update its firmware and microcode"
	case attest.StatusNotSupported, "":
		return "no TCB level of Intel's matches this platform; fetch current collateral, or use another platform"
	case attest.StatusTDRelaunchAdvised, attest.StatusTDRelaunchAdvisedConfigurationNeeded:
		return "the platform has been updated since the TD started; relaunch the TD"
	case attest.StatusConfigurationNeeded:
		return "change the platform's configuration as the advisories say, or accept the risk with SEC:STALE"
	case attest.StatusSWHardeningNeeded, attest.StatusConfigurationAndSWHardeningNeeded:
		return "harden program and platform as the advisories say, or accept the risk with SEC:STALE"
	}
	return "update the platform's firmware and microcode, or accept the risk with SEC:STALE"
}

// age enforces EXPIRE: the TCB info in force may be so old and not older.
func (k *checker) age() {
	if k.expire == nil {
		return
	}
	issued := k.claims.Collateral.TCBInfoIssueDate
	if !issued.IsZero() && !k.now.IsZero() && !k.now.After(k.expire.after(issued)) {
		return
	}
	k.failures = append(k.failures, Failure{
		Clause: "EXPIRE", Want: "TCB info no older than " + k.expire.String(),
		Got:     fmt.Sprintf("issued %s, now %s", issued.UTC().Format(time.RFC3339), k.now.UTC().Format(time.RFC3339)),
		TCBDate: k.claims.TCB.Date, Hint: "fetch current collateral and ask again",
	})
}
