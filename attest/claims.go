package attest

import (
	"crypto/sha256"
	"slices"
	"time"

	"github.com/claviger/claviger/attest/tcb"
)

// TEE is the kind of trusted execution environment that a quote comes from.
type TEE string

// The kinds this package verifies.
const (
	SGX TEE = "sgx"
	TDX TEE = "tdx"
)

// Status is a TCB status as Intel spells it; see package tcb.
type Status = tcb.Status

// The TCB statuses, for callers that do not import package tcb.
const (
	StatusUpToDate                             = tcb.UpToDate
	StatusSWHardeningNeeded                    = tcb.SWHardeningNeeded
	StatusConfigurationNeeded                  = tcb.ConfigurationNeeded
	StatusConfigurationAndSWHardeningNeeded    = tcb.ConfigurationAndSWHardeningNeeded
	StatusOutOfDate                            = tcb.OutOfDate
	StatusOutOfDateConfigurationNeeded         = tcb.OutOfDateConfigurationNeeded
	StatusRevoked                              = tcb.Revoked
	StatusNotSupported                         = tcb.NotSupported
	StatusTDRelaunchAdvised                    = tcb.TDRelaunchAdvised
	StatusTDRelaunchAdvisedConfigurationNeeded = tcb.TDRelaunchAdvisedConfigurationNeeded
)

// Verified is proof that a quote was verified: only Verifier.Verify makes one that holds claims. That the evidence is
// genuine does not make it acceptable; a policy decides that from the claims. The zero Verified holds zero claims,
// whose status is none of the statuses.
type Verified struct {
	claims Claims
}

// Claims returns what the evidence proves, as a deep copy.
func (v *Verified) Claims() Claims {
	if v == nil {
		return Claims{}
	}
	return v.claims.clone()
}

// Claims is what verified evidence says. Exactly one of SGX and TDX is set. Byte fields hold the bytes in the order of
// the quote; in JSON they are lower-case hex.
type Claims struct {
	TEE          TEE
	QuoteVersion int      // 3, 4 or 5
	Root         Root     // the root of trust that the verifier was configured with
	Debug        bool     // the host can read the enclave's or TD's memory
	ReportData   [64]byte // what the enclave asked to have bound; its meaning belongs to the protocol
	SGX          *SGXClaims
	TDX          *TDXClaims
	Platform     Platform
	TCB          TCBClaims
	Collateral   CollateralClaims
}

// SGXClaims are the fields of an SGX report body.
type SGXClaims struct {
	MREnclave    [32]byte
	MRSigner     [32]byte
	ISVProdID    uint16
	ISVSVN       uint16
	Attributes   [16]byte // FLAGS (64 bits), then XFRM (64 bits), little endian
	MiscSelect   uint32
	CPUSVN       [16]byte
	ConfigID     [64]byte
	ConfigSVN    uint16
	ISVFamilyID  [16]byte
	ISVExtProdID [16]byte
}

// TDXClaims are the fields of a TD report body. MRTD alone measures firmware: what runs in the TD is in the RTMRs.
type TDXClaims struct {
	MRTD           [48]byte
	RTMR           [4][48]byte
	MRSEAM         [48]byte
	MRSignerSEAM   [48]byte
	SEAMAttributes [8]byte
	TDAttributes   [8]byte // bit 0 is DEBUG; see also Claims.Debug
	XFAM           [8]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	TEETCBSVN      [16]byte
	TEETCBSVN2     *[16]byte // version 5 with a TDX 1.5 body only
	MRServiceTD    *[48]byte // version 5 with a TDX 1.5 body only; zero when no service TD is bound
}

// Platform is the machine that the quote comes from, as its PCK certificate names it.
type Platform struct {
	FMSPC  [6]byte
	PCEID  [2]byte
	CPUSVN [16]byte // the TCB that the PCK certificate was issued for
	PCESVN uint16   // likewise
	PPID   [16]byte
	CA     string // "platform" or "processor": the PCK CA, which chooses the revocation list
}

// ID names the machine without revealing its PPID to whoever does not know it: SHA-256 of a label and the PPID.
func (p Platform) ID() [32]byte {
	return sha256.Sum256(append([]byte("claviger/platform/v1"), p.PPID[:]...))
}

// TCBClaims is the evaluation of the platform's trusted computing base.
type TCBClaims struct {
	Status           Status    // of everything together; whether it is acceptable is for policy
	Advisories       []string  // sorted union, such as "INTEL-SA-00615"
	Date             time.Time // the oldest of the dates below: known vulnerabilities up to then are fixed
	EvaluationNumber int       // of the TCB info: Intel's TCB evaluation data number
	Platform         TCBPart
	QE               TCBPart
	Module           *TCBPart // the TDX module; nil for SGX
}

// TCBPart is the evaluation of one part. Date is zero when no level matched, and for a TDX module of major version 0, which
// the platform's level covers.
type TCBPart struct {
	Status     Status
	Date       time.Time
	Advisories []string
}

// CollateralClaims says which collateral was used, so that callers can refuse older collateral later.
type CollateralClaims struct {
	EarliestExpiry      time.Time // the first of all the nextUpdate and certificate expiry times
	LatestIssue         time.Time // the last of all the signed issue times: a lower bound for the current time
	TCBInfoIssueDate    time.Time
	QEIdentityIssueDate time.Time
	TCBEvaluation       int // TCB evaluation data number of the TCB info
	QEEvaluation        int // and of the QE identity
	RootCRLIssueDate    time.Time
	PCKCRLIssueDate     time.Time
	RootCRLNumber       string
	PCKCRLNumber        string   // both in decimal; Intel's lists have all carried number 1, so only their dates order them
	Hash                [32]byte // of the five parts, see Collateral.Hash
}

func (p TCBPart) clone() TCBPart {
	p.Advisories = slices.Clone(p.Advisories)
	return p
}

func (c Claims) clone() Claims {
	if c.SGX != nil {
		c.SGX = new(*c.SGX)
	}
	if c.TDX != nil {
		c.TDX = new(*c.TDX)
		if c.TDX.TEETCBSVN2 != nil {
			c.TDX.TEETCBSVN2 = new(*c.TDX.TEETCBSVN2)
		}
		if c.TDX.MRServiceTD != nil {
			c.TDX.MRServiceTD = new(*c.TDX.MRServiceTD)
		}
	}
	c.TCB.Advisories = slices.Clone(c.TCB.Advisories)
	c.TCB.Platform, c.TCB.QE = c.TCB.Platform.clone(), c.TCB.QE.clone()
	if c.TCB.Module != nil {
		c.TCB.Module = new(c.TCB.Module.clone())
	}
	if c.Root.Key != nil {
		c.Root.Key = new(*c.Root.Key)
	}
	return c
}
