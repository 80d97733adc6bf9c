package attest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tdx"
)

// intelQEVendor is the QE vendor id of Intel's quoting enclaves, the only ones whose identity Intel publishes.
var intelQEVendor = [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

// Quote is a parsed quote. Nothing in it is verified: give it to Verifier.Verify and use the claims.
type Quote struct {
	raw []byte
	sgx *sgx.Quote // exactly one of the two is set
	tdx *tdx.Quote
}

// Parse decodes a quote: SGX version 3, TDX version 4, or version 5 of either. All bytes of raw must belong to the quote; see
// QuoteSize for buffers that are padded. A quote must carry its PCK certificate chain (certification data of type 5), else
// ErrNoPCKChain. Structure only: nothing is verified.
func Parse(raw []byte) (*Quote, error) {
	fail := func(err error) (*Quote, error) {
		return nil, refuse(StageParse, "ask the enclave for a new quote, and pass on its bytes unchanged", err)
	}
	if len(raw) > MaxQuote {
		return fail(fmt.Errorf("%w: %d bytes, the limit is %d", ErrUnsupported, len(raw), MaxQuote))
	}
	if len(raw) < sgx.HeaderSize {
		return fail(fmt.Errorf("%w: %d bytes are no quote", ErrUnsupported, len(raw)))
	}
	q := &Quote{raw: append([]byte(nil), raw...)}
	var err error
	switch version := binary.LittleEndian.Uint16(raw); version {
	case sgx.Version:
		q.sgx, err = sgx.ParseQuote(q.raw)
	case tdx.Version5:
		if binary.LittleEndian.Uint32(raw[4:]) == sgx.TEEType {
			q.sgx, err = sgx.ParseQuote(q.raw)
		} else {
			q.tdx, err = tdx.ParseQuote(q.raw)
		}
	case tdx.Version4:
		q.tdx, err = tdx.ParseQuote(q.raw)
	default:
		err = fmt.Errorf("%w: version %d", ErrUnsupported, version)
	}
	if err != nil {
		return fail(err)
	}
	p := q.parts()
	if p.vendor != intelQEVendor {
		return fail(fmt.Errorf("%w: QE vendor %x is not Intel", ErrUnsupported, p.vendor))
	}
	if p.certType != sgx.CertTypePCKChain {
		return nil, refuse(StageParse, hintNoPCKChain, missingChain(p.certType, p.certData))
	}
	return q, nil
}

const hintNoPCKChain = "give the machine's quote provider library a PCCS that has its PCK certificate and take a new quote, or replace the " +
	"certification data by type 5 with the chain from PCS, Get PCK Certificate (encrypted PPID, CPUSVN, PCESVN, PCEID)"

// missingChain says which certification data a quote has instead of a chain, and for which TCB a certificate is needed. The
// PPID identifies the machine and stays out of error texts.
func missingChain(certType uint16, data []byte) error {
	names := map[uint16]string{
		1: "PPID in plain text", 2: "PPID encrypted with RSA-2048", 3: "PPID encrypted with RSA-3072", 4: "the PCK certificate alone",
		6: "a QE report", 7: "a platform manifest",
	}
	name, ok := names[certType]
	if !ok {
		return fmt.Errorf("%w: certification data type %d", ErrNoPCKChain, certType)
	}
	// Types 1 to 3: PPID of 16, 256 or 384 bytes, CPUSVN, PCESVN, PCEID.
	if ppid := map[uint16]int{1: 16, 2: 256, 3: 384}[certType]; ppid != 0 && len(data) == ppid+20 {
		name += fmt.Sprintf(", CPUSVN %x, PCESVN %d, PCEID %x", data[ppid:ppid+16], binary.LittleEndian.Uint16(data[ppid+16:]), data[ppid+18:])
	}
	return fmt.Errorf("%w: certification data type %d holds %s", ErrNoPCKChain, certType, name)
}

// QuoteSize returns how many of the first bytes of raw are the quote, for transports that pad it (such as the fixed
// buffers of a quote generation service). Parse itself refuses trailing bytes.
func QuoteSize(raw []byte) (int, error) {
	fail := func(err error) (int, error) { return 0, refuse(StageParse, "pass the whole quote", err) }
	if len(raw) < sgx.HeaderSize {
		return fail(fmt.Errorf("%w: %d bytes are no quote", ErrUnsupported, len(raw)))
	}
	n := 0
	switch version := binary.LittleEndian.Uint16(raw); version {
	case sgx.Version:
		n = sgx.HeaderSize + sgx.ReportSize
	case tdx.Version4:
		n = tdx.HeaderSize + tdx.BodySize10
	case tdx.Version5:
		n = tdx.HeaderSize + 6
		if len(raw) >= n {
			n += int(min(binary.LittleEndian.Uint32(raw[tdx.HeaderSize+2:]), MaxQuote))
		}
	default:
		return fail(fmt.Errorf("%w: version %d", ErrUnsupported, version))
	}
	if len(raw) < n+4 {
		return fail(errors.New("attest: quote is truncated"))
	}
	size := uint64(n) + 4 + uint64(binary.LittleEndian.Uint32(raw[n:]))
	if size > uint64(len(raw)) || size > MaxQuote {
		return fail(fmt.Errorf("%w: it says %d bytes, %d are there", ErrUnsupported, size, len(raw)))
	}
	return int(size), nil
}

// TEE returns the kind of TEE that the quote says it comes from.
func (q *Quote) TEE() TEE {
	if q.tdx != nil {
		return TDX
	}
	return SGX
}

// Version returns the quote format version: 3, 4 or 5.
func (q *Quote) Version() int { return int(binary.LittleEndian.Uint16(q.raw)) }

// ReportData returns the unverified report data.
func (q *Quote) ReportData() [64]byte {
	if q.tdx != nil {
		return q.tdx.Body.ReportData
	}
	return q.sgx.Report.ReportData
}

// Raw returns a copy of the bytes that were parsed. Their hash is no identity: signatures are malleable.
func (q *Quote) Raw() []byte { return append([]byte(nil), q.raw...) }

// SGX returns the parsed SGX quote, nil for TDX. It shares memory with q: read only.
func (q *Quote) SGX() *sgx.Quote { return q.sgx }

// TDX returns the parsed TDX quote, nil for SGX. It shares memory with q: read only.
func (q *Quote) TDX() *tdx.Quote { return q.tdx }

// parts is what SGX and TDX quotes have in common.
type parts struct {
	vendor            [16]byte
	signature         *[64]byte
	attestationKey    *[64]byte
	qeReport          *[sgx.ReportSize]byte
	qeReportSignature *[64]byte
	qeAuthData        []byte
	certType          uint16
	certData          []byte
}

func (q *Quote) parts() parts {
	if q.tdx != nil {
		a := &q.tdx.Auth
		return parts{q.tdx.Header.QEVendorID, &a.Signature, &a.AttestationKey, &a.QEReport, &a.QEReportSignature, a.QEAuthData, a.CertType, a.CertData}
	}
	a := &q.sgx.Auth
	return parts{q.sgx.Header.QEVendorID, &a.Signature, &a.AttestationKey, &a.QEReport, &a.QEReportSignature, a.QEAuthData, a.CertType, a.CertData}
}

// maxSigned is the size of the largest signed part: header, body descriptor and body.
const maxSigned = tdx.HeaderSize + 6 + tdx.BodySize15Ex

// appendSigned appends the bytes that the attestation key signs. They are encoded from the fields and not taken from the
// input, so that no claim can come from a field that was changed after parsing.
func (q *Quote) appendSigned(b []byte) []byte {
	if q.tdx != nil {
		return q.tdx.AppendSigned(b)
	}
	return q.sgx.AppendSigned(b)
}
