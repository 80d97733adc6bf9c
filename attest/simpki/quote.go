package simpki

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/sha512"

	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tdx"
)

// intelQEVendor is the QE vendor ID of Intel's quoting enclaves; verifiers compare it.
var intelQEVendor = [16]byte{
	0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
}

// quotingEnclave is one of Intel's two: the QE and, for TDs, the TD QE.
type quotingEnclave struct {
	id        string // of its identity in collateral
	productID uint16
}

var (
	qe   = quotingEnclave{"QE", 1}
	tdQE = quotingEnclave{"TD_QE", 2}
)

// signer is the MRSIGNER of the quoting enclave. It is not Intel's: the identity in the collateral states it.
func (e quotingEnclave) signer() [32]byte {
	return sha256.Sum256([]byte(seedLabel + "/signer/" + e.id))
}

// attributes of the quoting enclaves: initialised, 64-bit, provisioning key; the identity masks the mode bit away.
var qeAttributes = [16]byte{0: 0x15, 8: 0xe7}

// voucher is the half of a quote that does not depend on its report: an attestation key, and the word of the quoting
// enclave and of the PCK key for it.
type voucher struct {
	key             *ecdsa.PrivateKey
	public          [64]byte
	report          [sgx.ReportSize]byte
	reportSignature [64]byte
	authData        []byte // shared: never changed
}

// QuoteSGX returns a version 3 quote over report. The processor's part is the platform's: CPUSVN is overwritten.
// Everything else, debug attribute and reserved bytes included, is signed as given.
func (m *Platform) QuoteSGX(report sgx.Report) ([]byte, error) {
	return m.quoteSGX(sgx.Version, report)
}

// QuoteSGX5 is QuoteSGX in a version 5 quote with body type 1.
func (m *Platform) QuoteSGX5(report sgx.Report) ([]byte, error) {
	return m.quoteSGX(sgx.Version5, report)
}

func (m *Platform) quoteSGX(version uint16, report sgx.Report) ([]byte, error) {
	report.CPUSVN = m.dials.sgx()
	q := sgx.Quote{Header: sgx.Header{
		Version: version, AttestationKeyType: sgx.KeyTypeECDSAP256, TEEType: sgx.TEEType,
		QESVN: uint16(m.qeSVN), PCESVN: pceSVN, QEVendorID: intelQEVendor,
	}, Report: report}
	id, err := m.pki.derive(16, "qe id", m.name)
	if err != nil {
		return nil, err
	}
	copy(q.Header.UserData[:], id)
	v, err := m.qe()
	if err != nil {
		return nil, err
	}
	q.Auth = sgx.Auth{
		AttestationKey: v.public, QEReport: v.report, QEReportSignature: v.reportSignature, QEAuthData: v.authData,
		CertType: sgx.CertTypePCKChain, CertData: append(m.Chain(), 0), // Intel's QE ends the PEM in NUL
	}
	if q.Auth.Signature, err = sign(v.key, q.AppendSigned(nil)); err != nil {
		return nil, err
	}
	return q.Append(nil), nil
}

// QuoteTDX returns a version 4 quote over body. The platform's part is the platform's: TEE_TCB_SVN, MRSEAM,
// MRSIGNERSEAM and SEAM attributes are overwritten. Everything else is signed as given.
func (m *Platform) QuoteTDX(body tdx.Body) ([]byte, error) {
	return m.quoteTDX(tdx.Quote{Header: tdx.Header{Version: tdx.Version4}, Body: body})
}

// QuoteTDX5 is QuoteTDX in a version 5 quote: with a TDX 1.0 body (type 2), or a TDX 1.5 body (type 3) if more is not
// nil, of which TEE_TCB_SVN_2 is overwritten, or an extended TDX 1.5 body (type 4) if neither of the two is nil.
func (m *Platform) QuoteTDX5(body tdx.Body, more *tdx.Body15, extended *tdx.Body15Ex) ([]byte, error) {
	q := tdx.Quote{Header: tdx.Header{Version: tdx.Version5}, Body: body, BodyType: tdx.BodyTD10}
	if more != nil {
		q.BodyType, q.Body15 = tdx.BodyTD15, new(*more)
		q.Body15.TEETCBSVN2 = m.dials.tdx(m.moduleNow, m.moduleMajor)
		if extended != nil {
			q.BodyType, q.Body15Ex = tdx.BodyTD15Ex, extended
		}
	}
	return m.quoteTDX(q)
}

// quoteTDX completes and signs q.
func (m *Platform) quoteTDX(q tdx.Quote) ([]byte, error) {
	q.Header.AttestationKeyType, q.Header.TEEType, q.Header.QEVendorID = tdx.KeyTypeECDSAP256, tdx.TEEType, intelQEVendor
	q.Body.TEETCBSVN = m.dials.tdx(m.module, m.moduleMajor)
	q.Body.MRSEAM = sha512.Sum384([]byte{m.moduleMajor, m.module})
	q.Body.MRSignerSEAM, q.Body.SEAMAttributes = [48]byte{}, [8]byte{} // a module signed by Intel
	v, err := m.tdQE()
	if err != nil {
		return nil, err
	}
	q.Auth = tdx.Auth{
		AttestationKey: v.public, QEReport: v.report, QEReportSignature: v.reportSignature, QEAuthData: v.authData,
		CertType: tdx.CertTypePCKChain, CertData: m.chain,
	}
	if q.Auth.Signature, err = sign(v.key, q.AppendSigned(nil)); err != nil {
		return nil, err
	}
	return q.Append(nil), nil
}

// vouch makes the attestation key of a quoting enclave and binds it: its hash stands in a report of the enclave, which
// the PCK key signs.
func (m *Platform) vouch(enclave quotingEnclave) (v voucher, err error) {
	if v.key, err = m.key("attestation " + enclave.id); err != nil {
		return v, err
	}
	if v.public, err = point(&v.key.PublicKey); err != nil {
		return v, err
	}
	v.authData = make([]byte, 32)
	for i := range v.authData {
		v.authData[i] = byte(i)
	}
	report := sgx.Report{
		CPUSVN: m.dials.sgx(), Attributes: qeAttributes, MREnclave: sha256.Sum256([]byte{m.qeSVN, byte(enclave.productID)}),
		MRSigner: enclave.signer(), ISVProdID: enclave.productID, ISVSVN: uint16(m.qeSVN),
	}
	bound := sha256.Sum256(append(v.public[:], v.authData...))
	copy(report.ReportData[:], bound[:])
	copy(v.report[:], report.Append(nil))
	v.reportSignature, err = sign(m.pck.key, v.report[:])
	return v, err
}
