package sgx

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ReportSize is the size in bytes of an SGX report body.
const ReportSize = 384

// attributeDebug is ATTRIBUTES.FLAGS bit 1 (Intel SDM volume 3D, "ATTRIBUTES"): the host can read and write the
// enclave's memory.
const attributeDebug = 1 << 1

// ErrReportSize says that the input is not exactly ReportSize bytes.
var ErrReportSize = errors.New("sgx: report body is not 384 bytes")

// Report is an SGX report body as the CPU wrote it. Reserved fields are kept, so that Append reproduces the signed bytes.
type Report struct {
	CPUSVN       [16]byte
	MiscSelect   uint32
	Reserved1    [12]byte
	ISVExtProdID [16]byte
	Attributes   [16]byte // FLAGS (64 bits), then XFRM (64 bits), little endian
	MREnclave    [32]byte
	Reserved2    [32]byte
	MRSigner     [32]byte
	Reserved3    [32]byte
	ConfigID     [64]byte
	ISVProdID    uint16
	ISVSVN       uint16
	ConfigSVN    uint16
	Reserved4    [42]byte
	ISVFamilyID  [16]byte
	ReportData   [64]byte
}

// ParseReport decodes exactly ReportSize bytes. Every input of that size is a report; nothing in it is verified.
func ParseReport(raw []byte) (*Report, error) {
	if len(raw) != ReportSize {
		return nil, fmt.Errorf("%w: %d", ErrReportSize, len(raw))
	}
	r := parseReport(raw)
	return &r, nil
}

// parseReport decodes the first ReportSize bytes of raw, which the caller has checked to be there.
func parseReport(raw []byte) (r Report) {
	copy(r.CPUSVN[:], raw[0:])
	r.MiscSelect = binary.LittleEndian.Uint32(raw[16:])
	copy(r.Reserved1[:], raw[20:])
	copy(r.ISVExtProdID[:], raw[32:])
	copy(r.Attributes[:], raw[48:])
	copy(r.MREnclave[:], raw[64:])
	copy(r.Reserved2[:], raw[96:])
	copy(r.MRSigner[:], raw[128:])
	copy(r.Reserved3[:], raw[160:])
	copy(r.ConfigID[:], raw[192:])
	r.ISVProdID = binary.LittleEndian.Uint16(raw[256:])
	r.ISVSVN = binary.LittleEndian.Uint16(raw[258:])
	r.ConfigSVN = binary.LittleEndian.Uint16(raw[260:])
	copy(r.Reserved4[:], raw[262:])
	copy(r.ISVFamilyID[:], raw[304:])
	copy(r.ReportData[:], raw[320:])
	return r
}

// Append appends the ReportSize bytes of r to b: the inverse of ParseReport.
func (r *Report) Append(b []byte) []byte {
	b = append(b, r.CPUSVN[:]...)
	b = binary.LittleEndian.AppendUint32(b, r.MiscSelect)
	b = append(b, r.Reserved1[:]...)
	b = append(b, r.ISVExtProdID[:]...)
	b = append(b, r.Attributes[:]...)
	b = append(b, r.MREnclave[:]...)
	b = append(b, r.Reserved2[:]...)
	b = append(b, r.MRSigner[:]...)
	b = append(b, r.Reserved3[:]...)
	b = append(b, r.ConfigID[:]...)
	b = binary.LittleEndian.AppendUint16(b, r.ISVProdID)
	b = binary.LittleEndian.AppendUint16(b, r.ISVSVN)
	b = binary.LittleEndian.AppendUint16(b, r.ConfigSVN)
	b = append(b, r.Reserved4[:]...)
	b = append(b, r.ISVFamilyID[:]...)
	return append(b, r.ReportData[:]...)
}

// Debug reports whether the enclave runs in debug mode: its memory is then open to the host, and so is any key given
// to it.
func (r *Report) Debug() bool { return r.Attributes[0]&attributeDebug != 0 }
