package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tcb"
)

// Config configures a Verifier. The zero Config is refused: a verifier must be told what to trust.
type Config struct {
	// Root is the root of trust: IntelRoot, or a SimulatedRoot in tests and simulators.
	Root Root
	// ReserializedCollateralUnsafe also takes TCB info and QE identities that a caching service decoded and wrote again: with
	// other white space, escapes or order of keys, or with keys of its own in the envelope. Each is then written in Intel's
	// form, and Intel's signature must verify over that form; still nothing is believed that Intel did not sign. By default
	// such documents are refused: their bytes are not those that were signed, and a service that changes bytes has faults of
	// its own to hide. Fix the service instead where that can be done.
	ReserializedCollateralUnsafe bool
	// Caches bounds what the verifier remembers. Its zero value is the defaults.
	Caches Caches
}

// Verifier verifies evidence under one root of trust. It is safe for concurrent use, and it remembers what it verified:
// use one for many quotes.
type Verifier struct {
	root    Root
	relaxed bool       // Config.ReserializedCollateralUnsafe; what is known was read in this one way
	store   *pck.Store // certificates that the root key signed
	known   known
}

// NewVerifier returns a verifier, or ErrConfig when the root has no usable P-256 key.
func NewVerifier(config Config) (*Verifier, error) {
	if !config.Root.usable() {
		return nil, fmt.Errorf("%w: set Config.Root to IntelRoot() or a simulated root", ErrConfig)
	}
	root := config.Root
	root.Key = new(*root.Key)
	return &Verifier{root: root, relaxed: config.ReserializedCollateralUnsafe, store: pck.NewStore(root.Key), known: config.Caches.make()}, nil
}

// Root returns the root of trust.
func (v *Verifier) Root() Root {
	root := v.root
	if root.Key != nil {
		root.Key = new(*root.Key)
	}
	return root
}

// Option changes one call of Verify.
type Option func(*options)

type options struct {
	grace time.Duration
}

// WithGrace accepts TCB info, QE identity and revocation lists for d after their next update was due. It never extends
// certificates, and a negative d counts as zero. The claims carry the expiry that was passed.
func WithGrace(d time.Duration) Option {
	return func(o *options) { o.grace = max(d, 0) }
}

// Verify verifies the quote with the collateral at the time now. It is the only source of a Verified that holds claims.
//
// The steps run in this order, each named as the Stage of an *Error: chain, revocation, collateral, qe, signature, tcb. A
// genuine quote with a bad TCB status is not an error: the status is a claim, and policy decides.
func (v *Verifier) Verify(q *Quote, c *Collateral, now time.Time, opts ...Option) (*Verified, error) {
	if err := v.checkInput(q, c, now); err != nil {
		return nil, err
	}
	var o options
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	p := q.parts()
	// 1. chain: the PCK certificate is genuine, so its key and its SVNs count.
	chain, err := v.verifyChain(p.certData, now)
	if err != nil {
		return nil, err
	}
	// 2. revocation and 3. collateral: what Intel says about the platform today.
	set, err := v.verifyCollateral(c, chain, now, o.grace)
	if err != nil {
		return nil, err
	}
	if err := set.matches(q, chain); err != nil {
		return nil, refuse(StageCollateral, "fetch collateral for this quote's TEE and FMSPC", err)
	}
	// 4. qe: the PCK key vouches for a genuine quoting enclave, and that for the attestation key.
	qe, err := v.verifyQE(&p, chain, set.identity)
	if err != nil {
		return nil, refuse(StageQE, "discard the quote: its quoting enclave is not genuine", err)
	}
	// 5. signature: the attestation key vouches for the enclave's report.
	if err := qe.verifyReport(q, p.signature); err != nil {
		return nil, refuse(StageSignature, "discard the quote: it was changed or forged", err)
	}
	// 6. tcb: how good the platform is.
	result, err := tcb.Evaluate(set.info, set.identity, platformTCB(q, chain, qe.report.ISVSVN))
	if err != nil {
		return nil, refuse(StageTCB, "discard the quote: its TDX module is not genuine", err)
	}
	return &Verified{claims: v.claims(q, chain, set, result)}, nil
}

// VerifyChain verifies only the PCK chain inside the quote: that a platform under the root of trust exists which the quote
// names. It proves nothing about the quote. It is for those who would do work for a platform before there is collateral to
// verify with, such as fetching that: platforms that were made up end here. Revocation is not looked at.
func (v *Verifier) VerifyChain(q *Quote, now time.Time) error {
	if err := v.checkQuote(q, now); err != nil {
		return err
	}
	_, err := v.verifyChain(q.parts().certData, now)
	return err
}

// checkInput refuses what Verify cannot work with.
func (v *Verifier) checkInput(q *Quote, c *Collateral, now time.Time) error {
	if err := v.checkQuote(q, now); err != nil {
		return err
	}
	if c == nil {
		return refuse(StageParse, "pass a parsed quote, collateral and the time", ErrInput)
	}
	if err := c.check(); err != nil {
		return refuse(StageParse, "fetch the collateral again", fmt.Errorf("%w: %w", ErrBundle, err))
	}
	return nil
}

func (v *Verifier) checkQuote(q *Quote, now time.Time) error {
	if v == nil || !v.root.usable() {
		return refuse(StageParse, "make the verifier with NewVerifier", ErrConfig)
	}
	if q == nil || (q.sgx == nil) == (q.tdx == nil) || now.IsZero() {
		return refuse(StageParse, "pass a parsed quote, collateral and the time", ErrInput)
	}
	if q.tdx != nil && q.tdx.Body15Ex != nil {
		// It tells of the platforms that the TD came from, and how their TCBs count is not published.
		return refuse(StageParse, "ask the TD for a quote of version 4, or of version 5 with body type 2 or 3",
			fmt.Errorf("%w: there are no rules for evaluating body type %d", ErrUnsupported, q.tdx.BodyType))
	}
	return nil
}

// verifyChain verifies the PCK chain inside the quote.
func (v *Verifier) verifyChain(certData []byte, now time.Time) (*pck.Chain, error) {
	const hint = "the quote must carry the PCK chain of a platform under the configured root, valid at the given time"
	chain, ok := v.known.chains.get(content{certData})
	if !ok {
		var err error
		if chain, err = v.store.Chain(certData); err != nil {
			return nil, refuse(StageChain, hint, err)
		}
		v.known.chains.put(content{certData}, chain)
	}
	if err := chain.CheckValidity(now); err != nil {
		return nil, refuse(StageChain, hint, err)
	}
	return chain, nil
}

// verifyCollateral verifies the five parts, and that neither the chain nor the signer of the collateral is revoked. What is
// known spares signatures and decoding; times and revocation are looked at every time.
func (v *Verifier) verifyCollateral(c *Collateral, chain *pck.Chain, now time.Time, grace time.Duration) (*collateralSet, error) {
	const hint = "fetch both revocation lists again; if the platform is revoked, move the enclave"
	set, err := v.openLists(c)
	if err != nil {
		return nil, refuse(StageRevocation, hint, err)
	}
	err = chain.CheckRevocation(set.rootCRL, set.pckCRL, now, grace)
	v.keepLists(c, set)
	if err != nil {
		return nil, refuse(StageRevocation, hint, err)
	}
	if set, err = v.verifyDocuments(c, set, now, grace); err != nil {
		return nil, refuse(StageCollateral, "fetch the collateral again, and keep the bytes as they were served", err)
	}
	return set, nil
}

// matches says whether the documents are those for the quote's TEE and platform.
func (s *collateralSet) matches(q *Quote, chain *pck.Chain) error {
	want := tcb.SGX
	if q.TEE() == TDX {
		want = tcb.TDX
	}
	ext := chain.Extensions()
	switch {
	case s.info.ID != want: // the QE identity is of the same TEE as the TCB info, see openDocuments
		return fmt.Errorf("%w: TCB info is for %s, the quote is from %s", ErrMismatch, s.info.ID, want)
	case s.info.FMSPC != ext.FMSPC:
		return fmt.Errorf("%w: TCB info is for FMSPC %x, the platform has %x", ErrMismatch, s.info.FMSPC, ext.FMSPC)
	case s.info.PCEID != ext.PCEID:
		return fmt.Errorf("%w: TCB info is for PCE %x, the platform has %x", ErrMismatch, s.info.PCEID, ext.PCEID)
	}
	return nil
}

// qeHalf is the part of a quote that all quotes of a platform share: a report of the quoting enclave, signed by the PCK key,
// and the attestation key that it vouches for.
type qeHalf struct {
	report tcb.EnclaveReport
	key    *ecdsa.PublicKey // nil if the 64 bytes are no point on P-256
}

// verifyQE verifies that the PCK key signed the QE report, that the report vouches for the attestation key, and that the
// report is of the enclave that the identity describes.
func (v *Verifier) verifyQE(p *parts, chain *pck.Chain, identity *tcb.Identity) (*qeHalf, error) {
	key := content{chain.KeyBytes(), p.qeReport[:], p.qeReportSignature[:], p.attestationKey[:], p.qeAuthData}
	qe, ok := v.known.qe.get(key)
	if !ok {
		var err error
		if qe, err = openQE(p, chain.Key()); err != nil {
			return nil, err
		}
		v.known.qe.put(key, qe)
	}
	if err := identity.Check(qe.report); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQEMismatch, err)
	}
	return qe, nil
}

// openQE verifies what does not depend on collateral.
func openQE(p *parts, pckKey *ecdsa.PublicKey) (*qeHalf, error) {
	if !verifyP256(pckKey, p.qeReport[:], p.qeReportSignature) {
		return nil, fmt.Errorf("%w: QE report, by the PCK key", ErrSignature)
	}
	report, err := sgx.ParseReport(p.qeReport[:])
	if err != nil {
		return nil, err
	}
	// The quoting enclave writes the hash and 32 zero bytes; Intel's library compares the hash, which is what binds the key.
	h := sha256.New()
	h.Write(p.attestationKey[:])
	h.Write(p.qeAuthData)
	if [32]byte(h.Sum(nil)) != [32]byte(report.ReportData[:32]) {
		return nil, fmt.Errorf("%w: its report data does not vouch for the attestation key", ErrQEMismatch)
	}
	qe := &qeHalf{report: enclaveReport(report)}
	if key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, p.attestationKey[:]...)); err == nil {
		qe.key = key
	}
	return qe, nil
}

func enclaveReport(r *sgx.Report) tcb.EnclaveReport {
	e := tcb.EnclaveReport{Attributes: r.Attributes, MRSigner: r.MRSigner, ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN}
	binary.LittleEndian.PutUint32(e.MiscSelect[:], r.MiscSelect)
	return e
}

// verifyReport verifies that the attestation key signed the quote's header and body.
func (qe *qeHalf) verifyReport(q *Quote, signature *[64]byte) error {
	if qe.key == nil {
		return fmt.Errorf("%w: the attestation key is no point on P-256", ErrSignature)
	}
	var buffer [maxSigned]byte
	if !verifyP256(qe.key, q.appendSigned(buffer[:0]), signature) {
		return fmt.Errorf("%w: report, by the attestation key", ErrSignature)
	}
	return nil
}

// verifyP256 verifies r ‖ s over the SHA-256 of signed.
func verifyP256(key *ecdsa.PublicKey, signed []byte, signature *[64]byte) bool {
	digest := sha256.Sum256(signed)
	var buffer [maxASN1]byte
	return ecdsa.VerifyASN1(key, digest[:], appendASN1(buffer[:0], signature))
}

// maxASN1 is the size of the largest encoding by appendASN1.
const maxASN1 = 2 + 2*(2+33)

// appendASN1 appends SEQUENCE { r INTEGER, s INTEGER } in DER, the form that crypto/ecdsa takes. Every r and s has one.
func appendASN1(b []byte, signature *[64]byte) []byte {
	start := len(b)
	b = append(b, 0x30, 0)
	for _, n := range [][]byte{signature[:32], signature[32:]} {
		for len(n) > 1 && n[0] == 0 {
			n = n[1:]
		}
		size := len(n)
		if n[0]&0x80 != 0 {
			b = append(b, 0x02, byte(size+1), 0)
		} else {
			b = append(b, 0x02, byte(size))
		}
		b = append(b, n...)
	}
	b[start+1] = byte(len(b) - start - 2)
	return b
}

// platformTCB gathers what the evaluation compares.
func platformTCB(q *Quote, chain *pck.Chain, qeSVN uint16) tcb.Platform {
	ext := chain.Extensions()
	p := tcb.Platform{Components: ext.Components, PCESVN: ext.PCESVN, QEISVSVN: qeSVN}
	if q.tdx != nil {
		b := &q.tdx.Body
		p.TD = &tcb.TD{TEETCBSVN: b.TEETCBSVN, MRSignerSEAM: b.MRSignerSEAM, SEAMAttributes: b.SEAMAttributes}
		if q.tdx.Body15 != nil {
			p.TD.TEETCBSVN2 = &q.tdx.Body15.TEETCBSVN2
		}
	}
	return p
}

// PlatformOf returns what the quote's PCK certificate says about the platform. It is NOT verified: use it to choose which
// collateral to fetch, and for nothing else.
func PlatformOf(q *Quote) (Platform, error) {
	if q == nil || (q.sgx == nil) == (q.tdx == nil) {
		return Platform{}, refuse(StageParse, "pass a parsed quote", ErrInput)
	}
	chain, err := pck.ParseChain(q.parts().certData)
	if err != nil {
		return Platform{}, refuse(StageChain, "the quote must carry its PCK certificate chain", err)
	}
	return platform(chain), nil
}

func platform(chain *pck.Chain) Platform {
	e := chain.Extensions()
	return Platform{FMSPC: e.FMSPC, PCEID: e.PCEID, CPUSVN: e.CPUSVN, PCESVN: e.PCESVN, PPID: e.PPID, CA: string(chain.CA())}
}
