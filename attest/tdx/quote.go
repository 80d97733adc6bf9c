package tdx

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes and constants of the version 4 and 5 quote formats. Sizes are in bytes.
const (
	// HeaderSize is the size of the quote header.
	HeaderSize = 48
	// Version4 and Version5 are the quote versions of this package.
	Version4 uint16 = 4
	Version5 uint16 = 5
	// TEEType is the value of the header's TEE type for TDX.
	TEEType uint32 = 0x81
	// KeyTypeECDSAP256 is the attestation key type "ECDSA-256-with-P-256", the only one in use.
	KeyTypeECDSAP256 uint16 = 2
	// CertTypePCKChain is certification data type 5: a PEM chain of PCK leaf, PCK CA and root.
	CertTypePCKChain uint16 = 5
	// BodyTD10, BodyTD15 and BodyTD15Ex are the body types of version 5 quotes that this package reads.
	BodyTD10   uint16 = 2
	BodyTD15   uint16 = 3
	BodyTD15Ex uint16 = 4
	// MaxQuoteSize bounds a quote. Real ones are under 8 KiB; the certification data makes up most of that.
	MaxQuoteSize = 64 << 10

	reportSize         = 384
	certTypeQEReport   = 6                   // the outer certification data: QE report, its signature, and type 5 inside
	qeFixed            = reportSize + 64     // up to the QE authentication data
	minQE              = qeFixed + 2 + 2 + 4 // the content of the outer certification data
	minAuth            = 64 + 64 + 2 + 4 + minQE
	bodyDescriptorSize = 2 + 4
)

// Errors of ParseQuote. They are wrapped with the numbers involved; match them with errors.Is.
var (
	ErrTooLarge = errors.New("tdx: quote is larger than 64 KiB")
	ErrShort    = errors.New("tdx: quote is truncated")
	ErrTrailing = errors.New("tdx: bytes after the end of the quote")
	ErrVersion  = errors.New("tdx: not a version 4 or 5 quote")
	ErrTEEType  = errors.New("tdx: TEE type is not TDX")
	ErrKeyType  = errors.New("tdx: attestation key type is not ECDSA P-256")
	ErrBodyType = errors.New("tdx: unsupported quote body type or size")
	ErrLength   = errors.New("tdx: signature data length does not match its content")
	ErrCertType = errors.New("tdx: certification data is not a QE report (type 6)")
)

// Auth is the quote's signature data: who signed the body, and why that key should count.
type Auth struct {
	Signature         [64]byte // r ‖ s, big endian, by AttestationKey over Quote.AppendSigned
	AttestationKey    [64]byte // x ‖ y, big endian, P-256
	CertType          uint16   // of CertData, inside the QE report certification data (type 6)
	QEReport          [reportSize]byte
	QEReportSignature [64]byte // r ‖ s, by the PCK key over QEReport
	QEAuthData        []byte   // at most 65,535 bytes
	CertData          []byte
}

// Quote is a parsed, unverified quote of version 4 or 5.
type Quote struct {
	Header   Header
	BodyType uint16 // 0 in version 4, which has no body descriptor; BodyTD10, BodyTD15 or BodyTD15Ex in version 5
	Body     Body
	Body15   *Body15   // set exactly when BodyType is BodyTD15 or BodyTD15Ex
	Body15Ex *Body15Ex // set exactly when BodyType is BodyTD15Ex
	Auth     Auth
}

// ParseQuote decodes a version 4 or 5 TDX quote, all of it: a length field that disagrees with the input, or a byte left
// over, is an error. Slices in the result are copies. Nothing is verified.
func ParseQuote(raw []byte) (*Quote, error) {
	if len(raw) > MaxQuoteSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(raw))
	}
	if len(raw) < HeaderSize {
		return nil, fmt.Errorf("%w: %d bytes, the header is %d", ErrShort, len(raw), HeaderSize)
	}
	q := &Quote{Header: parseHeader(raw)}
	switch h := q.Header; {
	case h.Version != Version4 && h.Version != Version5:
		return nil, fmt.Errorf("%w: version %d", ErrVersion, h.Version)
	case h.AttestationKeyType != KeyTypeECDSAP256:
		return nil, fmt.Errorf("%w: type %d", ErrKeyType, h.AttestationKeyType)
	case h.TEEType != TEEType:
		return nil, fmt.Errorf("%w: type %#x", ErrTEEType, h.TEEType)
	}
	rest, err := q.parseBodies(raw[HeaderSize:])
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
	if err := q.Auth.parse(rest); err != nil {
		return nil, err
	}
	return q, nil
}

// parseBodies decodes the body descriptor (version 5 only) and the body, and returns what follows.
func (q *Quote) parseBodies(raw []byte) ([]byte, error) {
	size := BodySize10
	if q.Header.Version == Version5 {
		if len(raw) < bodyDescriptorSize {
			return nil, fmt.Errorf("%w: no body descriptor", ErrShort)
		}
		q.BodyType = binary.LittleEndian.Uint16(raw)
		said := binary.LittleEndian.Uint32(raw[2:])
		raw = raw[bodyDescriptorSize:]
		switch q.BodyType {
		case BodyTD10:
		case BodyTD15:
			size = BodySize15
		case BodyTD15Ex:
			size = BodySize15Ex
		default:
			return nil, fmt.Errorf("%w: type %d", ErrBodyType, q.BodyType)
		}
		if said != uint32(size) {
			return nil, fmt.Errorf("%w: type %d of %d bytes", ErrBodyType, q.BodyType, said)
		}
	}
	if len(raw) < size {
		return nil, fmt.Errorf("%w: body of %d bytes, %d are left", ErrShort, size, len(raw))
	}
	q.Body = parseBody(raw)
	if size >= BodySize15 {
		q.Body15 = new(Body15)
		copy(q.Body15.TEETCBSVN2[:], raw[BodySize10:])
		copy(q.Body15.MRServiceTD[:], raw[BodySize10+16:])
	}
	if size == BodySize15Ex {
		q.Body15Ex = &Body15Ex{VMID: raw[BodySize15]}
		rest := raw[BodySize15+1:]
		for _, field := range q.Body15Ex.fields() {
			rest = rest[copy(field, rest):]
		}
	}
	return raw[size:], nil
}

// parse decodes the whole of raw as signature data.
func (a *Auth) parse(raw []byte) error {
	if len(raw) < minAuth {
		return fmt.Errorf("%w: %d bytes, the smallest is %d", ErrLength, len(raw), minAuth)
	}
	copy(a.Signature[:], raw[0:])
	copy(a.AttestationKey[:], raw[64:])
	outer, size := binary.LittleEndian.Uint16(raw[128:]), uint64(binary.LittleEndian.Uint32(raw[130:]))
	raw = raw[134:]
	if outer != certTypeQEReport {
		return fmt.Errorf("%w: type %d", ErrCertType, outer)
	}
	if size != uint64(len(raw)) {
		return fmt.Errorf("%w: QE report certification data says %d bytes, %d are there", ErrLength, size, len(raw))
	}
	copy(a.QEReport[:], raw[0:])
	copy(a.QEReportSignature[:], raw[reportSize:])
	rest := raw[qeFixed:]
	n := int(binary.LittleEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) < n+6 {
		return fmt.Errorf("%w: QE authentication data of %d bytes", ErrLength, n)
	}
	a.QEAuthData = append([]byte(nil), rest[:n]...)
	rest = rest[n:]
	a.CertType = binary.LittleEndian.Uint16(rest)
	size = uint64(binary.LittleEndian.Uint32(rest[2:]))
	rest = rest[6:]
	if size != uint64(len(rest)) {
		return fmt.Errorf("%w: certification data says %d bytes, %d are there", ErrLength, size, len(rest))
	}
	a.CertData = append([]byte(nil), rest...)
	return nil
}

// Append appends the encoding of q to b: the exact inverse of ParseQuote.
func (q *Quote) Append(b []byte) []byte {
	b = q.AppendSigned(b)
	a := &q.Auth
	variable := len(a.QEAuthData) + len(a.CertData)
	b = binary.LittleEndian.AppendUint32(b, uint32(minAuth+variable))
	b = append(b, a.Signature[:]...)
	b = append(b, a.AttestationKey[:]...)
	b = binary.LittleEndian.AppendUint16(b, certTypeQEReport)
	b = binary.LittleEndian.AppendUint32(b, uint32(minQE+variable))
	b = append(b, a.QEReport[:]...)
	b = append(b, a.QEReportSignature[:]...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(a.QEAuthData)))
	b = append(b, a.QEAuthData...)
	b = binary.LittleEndian.AppendUint16(b, a.CertType)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(a.CertData)))
	return append(b, a.CertData...)
}

// AppendSigned appends header ‖ body (in version 5 the body descriptor between them), which is what the attestation key
// signs.
func (q *Quote) AppendSigned(b []byte) []byte {
	b = q.Header.append(b)
	if q.Header.Version == Version5 {
		size := uint32(BodySize10)
		if q.Body15Ex != nil {
			size = BodySize15Ex
		} else if q.Body15 != nil {
			size = BodySize15
		}
		b = binary.LittleEndian.AppendUint16(b, q.BodyType)
		b = binary.LittleEndian.AppendUint32(b, size)
	}
	b = q.Body.Append(b)
	if q.Body15 != nil {
		b = append(b, q.Body15.TEETCBSVN2[:]...)
		b = append(b, q.Body15.MRServiceTD[:]...)
	}
	if q.Body15Ex != nil {
		b = append(b, q.Body15Ex.VMID)
		for _, field := range q.Body15Ex.fields() {
			b = append(b, field...)
		}
	}
	return b
}
