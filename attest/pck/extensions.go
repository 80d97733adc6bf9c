package pck

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// oidSGX is the SGX extension of a PCK certificate; the parts of it have their number appended.
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// Numbers of the parts under oidSGX, and under its TCB part.
const (
	partPPID          = 1
	partTCB           = 2
	partPCEID         = 3
	partFMSPC         = 4
	partSGXType       = 5
	partInstanceID    = 6
	partConfiguration = 7

	tcbPCESVN = 17
	tcbCPUSVN = 18
)

// SGXType says how a platform protects enclave memory.
type SGXType int

// The SGX types of the PCK certificate profile.
const (
	TypeStandard              SGXType = 0
	TypeScalable              SGXType = 1
	TypeScalableWithIntegrity SGXType = 2
)

// Extensions are the SGX extensions of a PCK certificate: which platform, at which TCB, it was issued for.
type Extensions struct {
	PPID          [16]byte // identifies the platform
	Components    [16]byte // SGX TCB component SVNs, to compare one by one
	PCESVN        uint16
	CPUSVN        [16]byte // as the CPU reports it; opaque
	PCEID         [2]byte
	FMSPC         [6]byte // family, model, stepping, platform type, custom SKU: chooses the TCB info
	Type          SGXType
	InstanceID    *[16]byte // platform CA only
	Configuration []byte    // platform CA only: DER of the configuration sequence, not interpreted
}

// parseExtensions decodes the SGX extension of a PCK certificate. Each mandatory part must be there once, and no part may
// be unknown: a part that changed the meaning of the others must not be skipped.
func parseExtensions(cert *x509.Certificate) (Extensions, error) {
	var e Extensions
	fail := func(what string) (Extensions, error) { return Extensions{}, fmt.Errorf("%w: %s", ErrExtensions, what) }
	var value cryptobyte.String
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(oidSGX) {
			value = cryptobyte.String(ext.Value)
		}
	}
	if value == nil {
		return fail("none in the certificate")
	}
	var list cryptobyte.String
	if !value.ReadASN1(&list, cbasn1.SEQUENCE) || !value.Empty() {
		return fail("not a sequence")
	}
	seen := 0
	for !list.Empty() {
		part, item, ok := readPart(&list, oidSGX)
		if !ok || part < partPPID || part > partConfiguration {
			return fail("unknown part")
		}
		if seen&(1<<part) != 0 {
			return fail(fmt.Sprintf("part %d twice", part))
		}
		seen |= 1 << part
		if !e.setPart(part, item) {
			return fail(fmt.Sprintf("part %d", part))
		}
	}
	const mandatory = 1<<partPPID | 1<<partTCB | 1<<partPCEID | 1<<partFMSPC | 1<<partSGXType
	if seen&mandatory != mandatory {
		return fail("a mandatory part is missing")
	}
	return e, nil
}

// readPart reads SEQUENCE { OID, value } where the OID is parent with one number appended. It returns that number and the
// value, still tagged.
func readPart(list *cryptobyte.String, parent asn1.ObjectIdentifier) (part int, item cryptobyte.String, ok bool) {
	var oid asn1.ObjectIdentifier
	if !list.ReadASN1(&item, cbasn1.SEQUENCE) || !item.ReadASN1ObjectIdentifier(&oid) {
		return 0, nil, false
	}
	if len(oid) != len(parent)+1 || !oid[:len(parent)].Equal(parent) {
		return 0, nil, false
	}
	return oid[len(parent)], item, true
}

// setPart decodes the whole of item as the given part.
func (e *Extensions) setPart(part int, item cryptobyte.String) bool {
	switch part {
	case partPPID:
		return readOctets(&item, e.PPID[:])
	case partTCB:
		return e.setTCB(item)
	case partPCEID:
		return readOctets(&item, e.PCEID[:])
	case partFMSPC:
		return readOctets(&item, e.FMSPC[:])
	case partSGXType:
		var t int
		if !item.ReadASN1Enum(&t) || !item.Empty() || t < int(TypeStandard) || t > int(TypeScalableWithIntegrity) {
			return false
		}
		e.Type = SGXType(t)
		return true
	case partInstanceID:
		e.InstanceID = new([16]byte)
		return readOctets(&item, e.InstanceID[:])
	case partConfiguration:
		var content cryptobyte.String
		if !item.ReadASN1(&content, cbasn1.SEQUENCE) || !item.Empty() {
			return false
		}
		e.Configuration = append([]byte{}, content...)
		return true
	}
	return false
}

// setTCB decodes the 18 parts of the TCB: 16 components, PCESVN and CPUSVN, each exactly once.
func (e *Extensions) setTCB(item cryptobyte.String) bool {
	var list cryptobyte.String
	if !item.ReadASN1(&list, cbasn1.SEQUENCE) || !item.Empty() {
		return false
	}
	parent := append(append(asn1.ObjectIdentifier{}, oidSGX...), partTCB)
	seen := 0
	for !list.Empty() {
		part, value, ok := readPart(&list, parent)
		if !ok || part < 1 || part > tcbCPUSVN || seen&(1<<part) != 0 {
			return false
		}
		seen |= 1 << part
		if part == tcbCPUSVN {
			if !readOctets(&value, e.CPUSVN[:]) {
				return false
			}
			continue
		}
		var svn uint16
		if !value.ReadASN1Integer(&svn) || !value.Empty() {
			return false
		}
		if part == tcbPCESVN {
			e.PCESVN = svn
			continue
		}
		if svn > 255 {
			return false
		}
		e.Components[part-1] = byte(svn)
	}
	return seen == 1<<(tcbCPUSVN+1)-2
}

// readOctets reads an octet string of exactly len(dst) bytes that is all of item.
func readOctets(item *cryptobyte.String, dst []byte) bool {
	var octets cryptobyte.String
	if !item.ReadASN1(&octets, cbasn1.OCTET_STRING) || !item.Empty() || len(octets) != len(dst) {
		return false
	}
	copy(dst, octets)
	return true
}
