package ear

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/claviger/claviger/attest"
)

// Evidence is what the verifier says genuine evidence proved: the part of attest.Claims that relying parties decide by.
// The whole is in Appraisal.Claims.
type Evidence struct {
	TEE        attest.TEE
	Debug      bool
	Simulated  bool     // under a simulated root of trust: this says nothing about hardware
	Root       [32]byte // attest.Root.ID of the root of trust
	ReportData [64]byte
	Status     attest.Status // of the TCB
	Advisories []string
	Platform   [32]byte // attest.Platform.ID
	SGX        *SGXEvidence
	TDX        *TDXEvidence
}

// SGXEvidence identifies an enclave.
type SGXEvidence struct {
	MREnclave, MRSigner [32]byte
	ISVProdID, ISVSVN   uint16
}

// TDXEvidence identifies a TD. MRTD alone measures firmware: what runs in the TD is in the RTMRs.
type TDXEvidence struct {
	MRTD         [48]byte
	RTMR         [4][48]byte
	TDAttributes [8]byte
}

func parseEvidence(raw []byte) (*Evidence, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	e := &Evidence{}
	if err := errors.Join(o.need("tee", &e.TEE), o.need("debug", &e.Debug), o.hex("report_data", e.ReportData[:])); err != nil {
		return nil, err
	}
	for name, read := range map[string]func(object) error{
		"root": func(o object) error { return errors.Join(o.need("simulated", &e.Simulated), o.hex("id", e.Root[:])) },
		"tcb": func(o object) error {
			return errors.Join(o.need("status", &e.Status), o.need("advisories", &e.Advisories))
		},
		"platform": func(o object) error { return o.hex("id", e.Platform[:]) },
	} {
		c, err := o.child(name)
		if err != nil {
			return nil, err
		}
		if err := read(c); err != nil {
			return nil, err
		}
	}
	_, sgx := o["sgx"]
	_, tdx := o["tdx"]
	switch {
	case e.TEE == attest.SGX && sgx && !tdx:
		err = e.sgx(o)
	case e.TEE == attest.TDX && tdx && !sgx:
		err = e.tdx(o)
	default:
		err = fmt.Errorf("%w: claims of TEE %.20q", ErrMalformed, e.TEE)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Evidence) sgx(o object) error {
	c, err := o.child(LabelSGX)
	if err != nil {
		return err
	}
	e.SGX = &SGXEvidence{}
	return errors.Join(c.hex("mrenclave", e.SGX.MREnclave[:]), c.hex("mrsigner", e.SGX.MRSigner[:]),
		c.need("isv_prod_id", &e.SGX.ISVProdID), c.need("isv_svn", &e.SGX.ISVSVN))
}

func (e *Evidence) tdx(o object) error {
	c, err := o.child(LabelTDX)
	if err != nil {
		return err
	}
	e.TDX = &TDXEvidence{}
	var rtmr []string
	if err := errors.Join(c.hex("mrtd", e.TDX.MRTD[:]), c.hex("td_attributes", e.TDX.TDAttributes[:]), c.need("rtmr", &rtmr)); err != nil {
		return err
	}
	if len(rtmr) != len(e.TDX.RTMR) {
		return fmt.Errorf("%w: %d RTMRs", ErrMalformed, len(rtmr))
	}
	for i, text := range rtmr {
		if err := decodeHex(e.TDX.RTMR[i][:], text); err != nil {
			return err
		}
	}
	return nil
}

// hex reads a member that holds exactly len(into) bytes.
func (o object) hex(name string, into []byte) error {
	var text string
	if err := o.need(name, &text); err != nil {
		return err
	}
	if err := decodeHex(into, text); err != nil {
		return fmt.Errorf("%w: %s", err, name)
	}
	return nil
}

func decodeHex(into []byte, text string) error {
	if len(text) != 2*len(into) {
		return fmt.Errorf("%w: %d digits, want %d", ErrMalformed, len(text), 2*len(into))
	}
	if _, err := hex.Decode(into, []byte(text)); err != nil || hex.EncodeToString(into) != text {
		return fmt.Errorf("%w: not lower-case hexadecimal", ErrMalformed)
	}
	return nil
}
