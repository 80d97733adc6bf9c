package tdx

import "encoding/binary"

// Sizes in bytes of the TD report bodies.
const (
	// BodySize10 is the size of the TDX 1.0 body.
	BodySize10 = 584
	// BodySize15 is the size of the TDX 1.5 body: the 1.0 body, TEE_TCB_SVN_2 and MRSERVICETD.
	BodySize15 = BodySize10 + 16 + 48
	// BodySize15Ex is the size of the extended TDX 1.5 body: the 1.5 body and what Body15Ex holds.
	BodySize15Ex = BodySize15 + 1 + 32 + 48 + 48 + 8 + 16 + 16 + 12 + 48 + 8
)

// tdAttributeDebug is TDATTRIBUTES bit 0, the only defined bit of the "TD under debug" group.
const tdAttributeDebug = 1

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

// Body is the TD report body: the fields of TDX 1.0, which every body starts with.
type Body struct {
	TEETCBSVN      [16]byte // [0] module SVN, [1] module major version, from [2] the other TDX components
	MRSEAM         [48]byte // measurement of the TDX module
	MRSignerSEAM   [48]byte // zero for a module signed by Intel
	SEAMAttributes [8]byte
	TDAttributes   [8]byte
	XFAM           [8]byte
	MRTD           [48]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	RTMR           [4][48]byte
	ReportData     [64]byte
}

// Body15 holds what a TDX 1.5 body adds.
type Body15 struct {
	TEETCBSVN2  [16]byte // the TCB in force now; TEETCBSVN is that at the TD's launch
	MRServiceTD [48]byte // hash of the service TDs bound to this TD, zero for none
}

// Body15Ex holds what the extended TDX 1.5 body adds: the identity of the TD's instance and the history of its migrations.
// Field names follow sgx_report2_body_v1_5_ex_t of Intel's quote library.
type Body15Ex struct {
	VMID                    byte     // of the requesting component; 0 for a TD that is not partitioned
	TDID                    [32]byte // drawn at launch, kept by migration and module update; zero where the host has it off
	DeviceInfo              [48]byte // hash of the device information
	InitServiceTDHash       [48]byte // at creation
	InitServiceTDAttributes [8]byte
	InitCPUSVN              [16]byte // TCB of the platform that the TD was created on
	InitTEETCBSVN           [16]byte
	InitTEEFMSPC            [12]byte
	ServiceTDHash           [48]byte // now
	ServiceTDAttributes     [8]byte
}

// fields returns the fields after VMID in the order of their encoding.
func (e *Body15Ex) fields() [][]byte {
	return [][]byte{
		e.TDID[:], e.DeviceInfo[:], e.InitServiceTDHash[:], e.InitServiceTDAttributes[:], e.InitCPUSVN[:], e.InitTEETCBSVN[:],
		e.InitTEEFMSPC[:], e.ServiceTDHash[:], e.ServiceTDAttributes[:],
	}
}

// Append appends the BodySize10 bytes of b10 to b.
func (b10 *Body) Append(b []byte) []byte {
	b = append(b, b10.TEETCBSVN[:]...)
	b = append(b, b10.MRSEAM[:]...)
	b = append(b, b10.MRSignerSEAM[:]...)
	b = append(b, b10.SEAMAttributes[:]...)
	b = append(b, b10.TDAttributes[:]...)
	b = append(b, b10.XFAM[:]...)
	b = append(b, b10.MRTD[:]...)
	b = append(b, b10.MRConfigID[:]...)
	b = append(b, b10.MROwner[:]...)
	b = append(b, b10.MROwnerConfig[:]...)
	for i := range b10.RTMR {
		b = append(b, b10.RTMR[i][:]...)
	}
	return append(b, b10.ReportData[:]...)
}

// Debug reports whether the TD runs in debug mode: its memory is then open to the host, and so is any key given to it.
func (b10 *Body) Debug() bool { return b10.TDAttributes[0]&tdAttributeDebug != 0 }

// parseBody decodes the first BodySize10 bytes of raw, which the caller has checked to be there.
func parseBody(raw []byte) (b Body) {
	for _, field := range [][]byte{
		b.TEETCBSVN[:], b.MRSEAM[:], b.MRSignerSEAM[:], b.SEAMAttributes[:], b.TDAttributes[:], b.XFAM[:],
		b.MRTD[:], b.MRConfigID[:], b.MROwner[:], b.MROwnerConfig[:],
		b.RTMR[0][:], b.RTMR[1][:], b.RTMR[2][:], b.RTMR[3][:], b.ReportData[:],
	} {
		raw = raw[copy(field, raw):]
	}
	return b
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

func (h *Header) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, h.Version)
	b = binary.LittleEndian.AppendUint16(b, h.AttestationKeyType)
	b = binary.LittleEndian.AppendUint32(b, h.TEEType)
	b = binary.LittleEndian.AppendUint16(b, h.QESVN)
	b = binary.LittleEndian.AppendUint16(b, h.PCESVN)
	b = append(b, h.QEVendorID[:]...)
	return append(b, h.UserData[:]...)
}
