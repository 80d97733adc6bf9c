package ratls

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
)

// ErrOEReport says that bytes are not an Open Enclave report of a remote SGX enclave.
var ErrOEReport = errors.New("ratls: malformed Open Enclave report")

// Layout of an Open Enclave report: oe_report_header_t of openenclave/internal/report.h, all little endian, then the quote.
const (
	oeHeaderSize = 16 // version(4) ‖ type(4) ‖ size of what follows(8)
	oeVersion    = 1  // OE_REPORT_HEADER_VERSION
	oeTypeRemote = 2  // OE_REPORT_TYPE_SGX_REMOTE; 1 is a local report, which proves nothing to another machine

	// MaxOEReport bounds a report, header included, in bytes: OE_MAX_REPORT_SIZE of openenclave/bits/report.h. Real ones
	// have under 5 KiB.
	MaxOEReport = 10 << 10
)

// oidOEReport is the certificate extension whose value is a report: X509_OID_FOR_NEW_QUOTE_EXT of
// openenclave/internal/report.h, oidOeNewQuote in EGo's internal/attestation.
var oidOEReport = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 105, 1}

// ParseOEReport returns the quote of a report as EGo's enclave.GetRemoteReport makes it, sharing memory with raw. The
// header is version 1, type 2 (remote SGX), and counts exactly the bytes that follow it; anything else is ErrOEReport.
// Nothing is verified, and the quote is not parsed: give it to attest.Parse, which refuses trailing bytes too.
func ParseOEReport(raw []byte) (quote []byte, err error) {
	if len(raw) > MaxOEReport {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrOEReport, len(raw), MaxOEReport)
	}
	if len(raw) <= oeHeaderSize {
		return nil, fmt.Errorf("%w: %d bytes hold no quote behind the header of %d", ErrOEReport, len(raw), oeHeaderSize)
	}
	version, kind := binary.LittleEndian.Uint32(raw), binary.LittleEndian.Uint32(raw[4:])
	if version != oeVersion || kind != oeTypeRemote {
		return nil, fmt.Errorf("%w: version %d and type %d, want %d and %d", ErrOEReport, version, kind, oeVersion, oeTypeRemote)
	}
	if size := binary.LittleEndian.Uint64(raw[8:]); size != uint64(len(raw)-oeHeaderSize) {
		return nil, fmt.Errorf("%w: header counts %d bytes, %d follow", ErrOEReport, size, len(raw)-oeHeaderSize)
	}
	return raw[oeHeaderSize:], nil
}

// AppendOEReport appends the report that holds quote: the exact inverse of ParseOEReport, for quotes within MaxOEReport.
func AppendOEReport(b, quote []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, oeVersion)
	b = binary.LittleEndian.AppendUint32(b, oeTypeRemote)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(quote)))
	return append(b, quote...)
}

// KeyFormat names how report data stands for a public key. Both forms are 32 bytes of SHA-256 and 32 zero bytes.
type KeyFormat string

// The two formats in use.
const (
	// FormatEGo is SHA-256 of the key's SubjectPublicKeyInfo in DER: enclave.CreateAttestationCertificate and
	// CreateAttestationServerTLSConfig of EGo.
	FormatEGo KeyFormat = "ego"
	// FormatOpenEnclave is SHA-256 of the same in PEM ("PUBLIC KEY", lines of 64 characters, a final line feed) and a zero
	// byte: oe_generate_attestation_certificate of Open Enclave, and EGo's …InOpenEnclaveFormat.
	FormatOpenEnclave KeyFormat = "open-enclave"
)

// KeyBoundReportData is the report data that stands for pub, a P-256 or Ed25519 key; another key is ErrLeaf, another
// format ErrConfig.
func KeyBoundReportData(pub crypto.PublicKey, format KeyFormat) (reportData [64]byte, err error) {
	hash, err := KeyHash(pub)
	if err != nil {
		return reportData, err
	}
	switch format {
	case FormatEGo:
	case FormatOpenEnclave:
		spki, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return reportData, fmt.Errorf("%w: %w", ErrLeaf, err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
		hash = sha256.Sum256(append(text, 0))
	default:
		return reportData, fmt.Errorf("%w: key format %q, want %q or %q", ErrConfig, format, FormatEGo, FormatOpenEnclave)
	}
	copy(reportData[:], hash[:])
	return reportData, nil
}

// formatOf says in which format reportData stands for pub. All 64 bytes count: what EGo leaves unread must be zero, as EGo
// makes it, so that a quote that was made to say something else cannot be read as one that names a key.
func formatOf(reportData [64]byte, pub crypto.PublicKey) (KeyFormat, error) {
	for _, format := range []KeyFormat{FormatEGo, FormatOpenEnclave} {
		want, err := KeyBoundReportData(pub, format)
		if err != nil {
			return "", err
		}
		if reportData == want {
			return format, nil
		}
	}
	return "", fmt.Errorf("%w: its report data is not the hash of the certificate's key", ErrUnbound)
}

// oeExtension is the certificate extension for a report. EGo and Open Enclave do not mark it critical.
func oeExtension(report []byte) pkix.Extension {
	return pkix.Extension{Id: oidOEReport, Value: report}
}

// reportIn returns the report in a certificate, nil where there is none.
func reportIn(cert *x509.Certificate) ([]byte, error) {
	var report []byte
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidOEReport) {
			continue
		}
		if report != nil {
			return nil, fmt.Errorf("%w: two attestation extensions in one certificate", ErrOEReport)
		}
		report = append([]byte{}, e.Value...) // not nil, though it be empty
	}
	return report, nil
}
