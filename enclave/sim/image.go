package sim

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tdx"
	"github.com/claviger/claviger/enclave"
)

// MaxField is the longest Name, Signer or Version of an image, in bytes.
const MaxField = 255

// ErrImage is returned by Machine.Launch for an image that cannot run.
var ErrImage = errors.New("sim: bad image")

// Image is what runs in a simulated enclave: it stands for the code, whose
// measurements are hashes of the fields here. Two images with equal Kind, Name
// and Version are the same code; who signed it, and whether it runs in debug
// mode, is not part of the code's measurement on hardware either.
type Image struct {
	Kind    enclave.Kind // enclave.SGX or enclave.TDX: the format of the quotes
	Name    string       // of the program; required
	Version string       // of the program
	Signer  string       // names the signing key behind MRSIGNER; SGX only
	ProdID  uint16       // ISVPRODID; SGX only
	SVN     uint16       // ISVSVN; SGX only
	Debug   bool         // the host can read the memory; policies deny it unless they ask for it
}

// firmware stands for the virtual firmware of simulated TDs: one build for all of
// them, as in a cloud. MRTD measures no more than that.
const firmware = "claviger simulated firmware 1"

// measured returns the framed bytes that a measurement hashes.
func measured(register string, parts ...string) []byte {
	var b []byte
	for _, part := range append([]string{"claviger/sim/measurement/v1", register}, parts...) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// MREnclave is the SGX measurement of the image's code.
func (i Image) MREnclave() [32]byte { return sha256.Sum256(measured("MRENCLAVE", i.Name, i.Version)) }

// MRSigner is the hash of the key that signed the image.
func (i Image) MRSigner() [32]byte { return sha256.Sum256(measured("MRSIGNER", i.Signer)) }

// MRTD is the measurement of the TD's firmware: the same for every image, which is
// why it alone proves little.
func (i Image) MRTD() [48]byte { return sha512.Sum384(measured("MRTD", firmware)) }

// RTMR returns run-time measurement register n, 0 to 3, of the image's TD: 0 the
// firmware's configuration, 1 the kernel (here: the program's name), 2 its command
// line and initial file system (name and version), 3 what the program extends
// (nothing). Another n panics.
func (i Image) RTMR(n int) [48]byte {
	return [4][48]byte{
		sha512.Sum384(measured("RTMR0", firmware)),
		sha512.Sum384(measured("RTMR1", i.Name)),
		sha512.Sum384(measured("RTMR2", i.Name, i.Version)),
	}[n]
}

// Constraint returns the inline policy constraint that exactly this image
// satisfies, in canonical form: `C:<mrenclave> SEC:STALE` for SGX,
// `TD:<mrtd> RTMR1:… RTMR2:… SEC:STALE` for TDX, and SEC:INSECURE instead for a debug
// image. STALE is the language's default, which the canonical form spells out: it
// accepts platforms that miss updates. An image of another kind has no constraint: "".
func (i Image) Constraint() string {
	var tokens []string
	switch i.Kind {
	case enclave.SGX:
		m := i.MREnclave()
		tokens = append(tokens, "C:"+hex.EncodeToString(m[:]))
	case enclave.TDX:
		m, r1, r2 := i.MRTD(), i.RTMR(1), i.RTMR(2)
		tokens = append(tokens, "TD:"+hex.EncodeToString(m[:]), "RTMR1:"+hex.EncodeToString(r1[:]),
			"RTMR2:"+hex.EncodeToString(r2[:]))
	default:
		return ""
	}
	if i.Debug {
		return strings.Join(append(tokens, "SEC:INSECURE"), " ")
	}
	return strings.Join(append(tokens, "SEC:STALE"), " ")
}

// check returns ErrImage unless the image can be launched.
func (i Image) check() error {
	if i.Kind != enclave.SGX && i.Kind != enclave.TDX {
		return fmt.Errorf("%w: kind %.32q; use sgx or tdx", ErrImage, i.Kind)
	}
	if i.Name == "" {
		return fmt.Errorf("%w: it has no name", ErrImage)
	}
	if len(i.Name) > MaxField || len(i.Signer) > MaxField || len(i.Version) > MaxField {
		return fmt.Errorf("%w: name, signer or version is longer than %d bytes", ErrImage, MaxField)
	}
	return nil
}

// SGX attributes of a report: flags INIT and MODE64BIT, DEBUG if asked for, and an
// XFRM of x87, SSE, AVX and AVX-512 (Intel SDM volume 3D, "ATTRIBUTES").
const (
	flagsProduction = 0x05
	flagDebug       = 0x02
	xfrm            = 0xe7
)

// report returns the SGX report body of the image.
func (i Image) report(reportData [enclave.ReportDataSize]byte) sgx.Report {
	r := sgx.Report{
		MREnclave: i.MREnclave(), MRSigner: i.MRSigner(), ISVProdID: i.ProdID, ISVSVN: i.SVN, ReportData: reportData,
	}
	r.Attributes[0], r.Attributes[8] = flagsProduction, xfrm
	if i.Debug {
		r.Attributes[0] |= flagDebug
	}
	return r
}

// TD attributes and extended features of a body: SEPT_VE_DISABLE (bit 28), without
// which the host can inject faults into the TD, DEBUG (bit 0) if asked for, and an
// XFAM of x87, SSE, AVX, AVX-512, PKRU, CET and AMX (Intel TDX module ABI
// specification, "ATTRIBUTES" and "XFAM").
const (
	attributeSEPTVEDisable = 1 << 28
	attributeDebug         = 1 << 0
	xfam                   = 0x602e7
)

// body returns the TD report body of the image.
func (i Image) body(reportData [enclave.ReportDataSize]byte) tdx.Body {
	b := tdx.Body{MRTD: i.MRTD(), ReportData: reportData}
	for n := range b.RTMR {
		b.RTMR[n] = i.RTMR(n)
	}
	attributes := uint64(attributeSEPTVEDisable)
	if i.Debug {
		attributes |= attributeDebug
	}
	binary.LittleEndian.PutUint64(b.TDAttributes[:], attributes)
	binary.LittleEndian.PutUint64(b.XFAM[:], xfam)
	return b
}
