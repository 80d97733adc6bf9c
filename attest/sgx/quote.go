package sgx

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes and constants of the version 3 and 5 quote formats. Sizes are in bytes.
const (
	// HeaderSize is the size of the quote header.
	HeaderSize = 48
	// Version and Version5 are the quote versions of this package.
	Version  uint16 = 3
	Version5 uint16 = 5
	// BodyEnclave is the body type of a version 5 quote with an SGX report.
	BodyEnclave uint16 = 1
	// TEEType is the value of the header's TEE type for SGX (in version 3 those four bytes are reserved and zero).
	TEEType uint32 = 0
	// KeyTypeECDSAP256 is the attestation key type "ECDSA-256-with-P-256", the only one in use.
	KeyTypeECDSAP256 uint16 = 2
	// CertTypePCKChain is certification data type 5: a PEM chain of PCK leaf, PCK CA and root.
	CertTypePCKChain uint16 = 5
	// MaxQuoteSize bounds a quote. Real ones are under 6 KiB; the certification data makes up most of that.
	MaxQuoteSize = 64 << 10

	certTypeQEReport   = 6                   // version 5: QE report, its signature, and type 5 inside
	qeFixed            = ReportSize + 64     // up to the QE authentication data
	minQE              = qeFixed + 2 + 2 + 4 // QE report with what follows it
	minAuth            = 64 + 64 + minQE     // version 3
	minAuth5           = minAuth + 2 + 4     // version 5: QE report and what follows wrapped as certification data
	bodyDescriptorSize = 2 + 4
)

// Errors of ParseQuote. They are wrapped with the numbers involved; match them with errors.Is.
var (
	ErrTooLarge = errors.New("sgx: quote is larger than 64 KiB")
	ErrShort    = errors.New("sgx: quote is truncated")
	ErrTrailing = errors.New("sgx: bytes after the end of the quote")
	ErrVersion  = errors.New("sgx: not a version 3 or 5 quote")
	ErrTEEType  = errors.New("sgx: TEE type is not SGX")
	ErrKeyType  = errors.New("sgx: attestation key type is not ECDSA P-256")
	ErrBodyType = errors.New("sgx: quote body is not an SGX report of 384 bytes (type 1)")
	ErrLength   = errors.New("sgx: signature data length does not match its content")
	ErrCertType = errors.New("sgx: certification data is not a QE report (type 6)")
)

// Header is the 48-byte quote header.
type Header struct {
	Version            uint16
	AttestationKeyType uint16
	TEEType            uint32
	QESVN              uint16
	PCESVN             uint16
	QEVendorID         [16]byte
	UserData           [20]byte
}

// Auth is the quote's signature data: who signed the report, and why that key should count.
type Auth struct {
	Signature         [64]byte // r ‖ s, big endian, by AttestationKey over Quote.AppendSigned
	AttestationKey    [64]byte // x ‖ y, big endian, P-256
	QEReport          [ReportSize]byte
	QEReportSignature [64]byte // r ‖ s, by the PCK key over QEReport
	QEAuthData        []byte   // at most 65,535 bytes
	CertType          uint16
	CertData          []byte
}

// Quote is a parsed, unverified version 3 quote.
type Quote struct {
	Header Header
	Report Report
	Auth   Auth
}

// ParseQuote decodes a version 3 quote, or a version 5 quote with an SGX report, all of it: a length field that disagrees
// with the input, or a byte left over, is an error. Slices in the result are copies. Nothing is verified.
func ParseQuote(raw []byte) (*Quote, error) {
	if len(raw) > MaxQuoteSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(raw))
	}
	if len(raw) < HeaderSize {
		return nil, fmt.Errorf("%w: %d bytes, the header is %d", ErrShort, len(raw), HeaderSize)
	}
	q := &Quote{Header: parseHeader(raw)}
	switch h := q.Header; {
	case h.Version != Version && h.Version != Version5:
		return nil, fmt.Errorf("%w: version %d", ErrVersion, h.Version)
	case h.AttestationKeyType != KeyTypeECDSAP256:
		return nil, fmt.Errorf("%w: type %d", ErrKeyType, h.AttestationKeyType)
	case h.TEEType != TEEType:
		return nil, fmt.Errorf("%w: type %#x", ErrTEEType, h.TEEType)
	}
	rest, err := q.parseBody(raw[HeaderSize:])
	if err != nil {
		return nil, err
	}
	if len(rest) < 4 {
		return nil, fmt.Errorf("%w: no signature data", ErrShort)
	}
	size := uint64(binary.LittleEndian.Uint32(rest))
	rest = rest[4:]
	if size > uint64(len(rest)) {
		return nil, fmt.Errorf("%w: signature data of %d bytes, %d are left", ErrShort, size, len(rest))
	}
	if size < uint64(len(rest)) {
		return nil, fmt.Errorf("%w: %d of them", ErrTrailing, uint64(len(rest))-size)
	}
	if err := q.Auth.parse(q.Header.Version, rest); err != nil {
		return nil, err
	}
	return q, nil
}

// parseBody decodes the body descriptor (version 5 only) and the report, and returns what follows.
func (q *Quote) parseBody(raw []byte) ([]byte, error) {
	if q.Header.Version == Version5 {
		if len(raw) < bodyDescriptorSize {
			return nil, fmt.Errorf("%w: no body descriptor", ErrShort)
		}
		kind, size := binary.LittleEndian.Uint16(raw), binary.LittleEndian.Uint32(raw[2:])
		if kind != BodyEnclave || size != ReportSize {
			return nil, fmt.Errorf("%w: type %d of %d bytes", ErrBodyType, kind, size)
		}
		raw = raw[bodyDescriptorSize:]
	}
	if len(raw) < ReportSize {
		return nil, fmt.Errorf("%w: report of %d bytes, %d are left", ErrShort, ReportSize, len(raw))
	}
	q.Report = parseReport(raw)
	return raw[ReportSize:], nil
}

// Append appends the encoding of q to b: the exact inverse of ParseQuote.
func (q *Quote) Append(b []byte) []byte {
	b = q.AppendSigned(b)
	a := &q.Auth
	variable := uint32(len(a.QEAuthData) + len(a.CertData))
	size := minAuth + variable
	if q.Header.Version == Version5 {
		size = minAuth5 + variable
	}
	b = binary.LittleEndian.AppendUint32(b, size)
	b = append(b, a.Signature[:]...)
	b = append(b, a.AttestationKey[:]...)
	if q.Header.Version == Version5 {
		b = binary.LittleEndian.AppendUint16(b, certTypeQEReport)
		b = binary.LittleEndian.AppendUint32(b, minQE+variable)
	}
	b = append(b, a.QEReport[:]...)
	b = append(b, a.QEReportSignature[:]...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(a.QEAuthData)))
	b = append(b, a.QEAuthData...)
	b = binary.LittleEndian.AppendUint16(b, a.CertType)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(a.CertData)))
	return append(b, a.CertData...)
}

// AppendSigned appends header ‖ report (in version 5 the body descriptor between them), which is what the attestation key
// signs.
func (q *Quote) AppendSigned(b []byte) []byte {
	h := &q.Header
	b = binary.LittleEndian.AppendUint16(b, h.Version)
	b = binary.LittleEndian.AppendUint16(b, h.AttestationKeyType)
	b = binary.LittleEndian.AppendUint32(b, h.TEEType)
	b = binary.LittleEndian.AppendUint16(b, h.QESVN)
	b = binary.LittleEndian.AppendUint16(b, h.PCESVN)
	b = append(b, h.QEVendorID[:]...)
	b = append(b, h.UserData[:]...)
	if h.Version == Version5 {
		b = binary.LittleEndian.AppendUint16(b, BodyEnclave)
		b = binary.LittleEndian.AppendUint32(b, ReportSize)
	}
	return q.Report.Append(b)
}

// parseHeader decodes the first HeaderSize bytes of raw, which the caller has checked to be there.
func parseHeader(raw []byte) Header {
	h := Header{
		Version:            binary.LittleEndian.Uint16(raw[0:]),
		AttestationKeyType: binary.LittleEndian.Uint16(raw[2:]),
		TEEType:            binary.LittleEndian.Uint32(raw[4:]),
		QESVN:              binary.LittleEndian.Uint16(raw[8:]),
		PCESVN:             binary.LittleEndian.Uint16(raw[10:]),
	}
	copy(h.QEVendorID[:], raw[12:])
	copy(h.UserData[:], raw[28:])
	return h
}

// parse decodes the whole of raw as the signature data of a quote version.
func (a *Auth) parse(version uint16, raw []byte) error {
	least := minAuth
	if version == Version5 {
		least = minAuth5
	}
	if len(raw) < least {
		return fmt.Errorf("%w: %d bytes, the smallest is %d", ErrLength, len(raw), least)
	}
	copy(a.Signature[:], raw[0:])
	copy(a.AttestationKey[:], raw[64:])
	raw = raw[128:]
	if version == Version5 {
		outer, size := binary.LittleEndian.Uint16(raw), uint64(binary.LittleEndian.Uint32(raw[2:]))
		raw = raw[6:]
		if outer != certTypeQEReport {
			return fmt.Errorf("%w: type %d", ErrCertType, outer)
		}
		if size != uint64(len(raw)) {
			return fmt.Errorf("%w: QE report certification data says %d bytes, %d are there", ErrLength, size, len(raw))
		}
	}
	copy(a.QEReport[:], raw[0:])
	copy(a.QEReportSignature[:], raw[ReportSize:])
	rest := raw[qeFixed:]
	n := int(binary.LittleEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) < n+6 {
		return fmt.Errorf("%w: QE authentication data of %d bytes", ErrLength, n)
	}
	a.QEAuthData = append([]byte(nil), rest[:n]...)
	rest = rest[n:]
	a.CertType = binary.LittleEndian.Uint16(rest)
	size := uint64(binary.LittleEndian.Uint32(rest[2:]))
	rest = rest[6:]
	if size != uint64(len(rest)) {
		return fmt.Errorf("%w: certification data says %d bytes, %d are there", ErrLength, size, len(rest))
	}
	a.CertData = append([]byte(nil), rest...)
	return nil
}
