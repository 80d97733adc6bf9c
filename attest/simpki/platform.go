package simpki

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/claviger/claviger/attest"
)

// MaxName is the longest platform name in bytes.
const MaxName = 255

// DefaultFMSPC is the platform family of a PlatformConfig that names none. Intel has no such family. Its
// hex has no letters, because verifiers disagree on their case.
var DefaultFMSPC = [6]byte{0x51, 0x80, 0x60, 0x00, 0x00, 0x00}

// PlatformConfig describes one simulated machine.
type PlatformConfig struct {
	// Name decides the platform's identity (PPID). 1 to MaxName bytes. Two configurations of one name are one machine
	// before and after an update.
	Name string
	// FMSPC is the platform family that collateral is issued for; zero means DefaultFMSPC.
	FMSPC [6]byte
	// PCEID is the provisioning certification enclave that the PCK certificate names. Collateral is for the zero one, so a
	// platform with another has none.
	PCEID [2]byte
	// CA issues the PCK certificate; empty means PlatformCA.
	CA CA
	// TCB is the status that the platform evaluates to under the collateral in force when it is made; empty means
	// UpToDate. Every status but the TDX relaunch ones can be asked for; see ModuleNow for those.
	TCB attest.Status
	// QE and Module are the statuses of the quoting enclaves and of the TDX module: UpToDate (also if empty), OutOfDate,
	// Revoked or NotSupported.
	QE, Module attest.Status
	// ModuleNow is that of the TDX module which replaced, under running TDs, the one of Module that launched them. Only
	// version 5 quotes with a TDX 1.5 body tell. Empty means that it was not replaced.
	ModuleNow attest.Status
	// ModuleMajor is the major version of the TDX module, TEE_TCB_SVN[1]; 0 means 1. Collateral describes 1 and 3; a module of
	// another version is none of Intel's.
	ModuleMajor byte
}

// Platform is a machine with a PCK certificate, quoting enclaves and an attestation key. It does not change: after a
// TCB recovery, PKI.Platform with the same configuration returns the machine with its update installed. It is safe for
// concurrent use.
type Platform struct {
	pki    *PKI
	name   string
	fmspc  [6]byte
	pceID  [2]byte
	ca     CA
	ppid   [16]byte
	dials  dials
	module byte // at the launch of a TD
	qeSVN  byte

	moduleNow   byte
	moduleMajor byte
	pck         authority
	chain       []byte // PEM

	// What the two quoting enclaves say about their attestation keys; made once, since it is the same in every quote.
	qe, tdQE func() (voucher, error)
}

// Platform makes a machine. It fails with ErrConfig.
func (p *PKI) Platform(config PlatformConfig) (*Platform, error) {
	if len(config.Name) == 0 || len(config.Name) > MaxName {
		return nil, fmt.Errorf("%w: platform name has %d bytes, want 1 to %d", ErrConfig, len(config.Name), MaxName)
	}
	m := &Platform{pki: p, name: config.Name, fmspc: config.FMSPC, pceID: config.PCEID, ca: config.CA}
	if m.fmspc == [6]byte{} {
		m.fmspc = DefaultFMSPC
	}
	if m.ca == "" {
		m.ca = PlatformCA
	}
	if _, ok := p.ca[m.ca]; !ok {
		return nil, fmt.Errorf("%w: no CA %.32q; use platform or processor", ErrConfig, m.ca)
	}
	ppid, err := p.derive(len(m.ppid), "ppid", m.name)
	if err != nil {
		return nil, err
	}
	copy(m.ppid[:], ppid)
	if err := m.fuse(config); err != nil {
		return nil, err
	}
	if err := m.certify(); err != nil {
		return nil, err
	}
	m.chain = pemOf(m.pck.cert, p.ca[m.ca].cert, p.root.cert)
	m.qe = sync.OnceValues(func() (voucher, error) { return m.vouch(qe) })
	m.tdQE = sync.OnceValues(func() (voucher, error) { return m.vouch(tdQE) })
	return m, nil
}

// fuse sets the SVNs that make the configured statuses.
func (m *Platform) fuse(config PlatformConfig) (err error) {
	if m.dials, err = dialsFor(config.TCB, m.pki.recoveries()); err != nil {
		return err
	}
	m.qeSVN, err = componentSVN("quoting enclave", config.QE, qeTop, qeOld, qeRevoked, qeUnlisted)
	if err != nil {
		return err
	}
	m.module, err = componentSVN("TDX module", config.Module, moduleTop, moduleOld, moduleRevoked, moduleUnlisted)
	if err != nil {
		return err
	}
	m.moduleMajor = cmp.Or(config.ModuleMajor, moduleMajor)
	now := cmp.Or(config.ModuleNow, config.Module)
	m.moduleNow, err = componentSVN("TDX module", now, moduleTop, moduleOld, moduleRevoked, moduleUnlisted)
	return err
}

// PPID is the platform's permanent identifier, as its PCK certificate states it.
func (m *Platform) PPID() [16]byte { return m.ppid }

// FMSPC is the platform's family, which selects its TCB info.
func (m *Platform) FMSPC() [6]byte { return m.fmspc }

// Name is the name that the platform was made under.
func (m *Platform) Name() string { return m.name }

// Chain returns the PCK chain in PEM: leaf, PCK CA, root, as in a quote's certification data of type 5.
func (m *Platform) Chain() []byte { return bytes.Clone(m.chain) }

// key returns the platform's key for use. PCK keys belong to one TCB level, so the SVNs are part of their derivation.
func (m *Platform) key(use string) (*ecdsa.PrivateKey, error) {
	comps := m.dials.sgx()
	return m.pki.key("platform", use, m.name, string(m.ca), string(m.fmspc[:]), string(comps[:]))
}

// certify issues the PCK certificate.
func (m *Platform) certify() error {
	key, err := m.key("pck")
	if err != nil {
		return err
	}
	template, err := m.pki.template(leafName, &key.PublicKey, leafLife)
	if err != nil {
		return err
	}
	extension, err := m.extension()
	if err != nil {
		return err
	}
	template.CRLDistributionPoints = []string{fmt.Sprintf(pckCRLURL, m.ca)}
	template.ExtraExtensions = []pkix.Extension{{Id: oid(), Value: extension}}
	issuer := m.pki.ca[m.ca]
	cert, err := certify(&issuer, template, &key.PublicKey)
	m.pck = authority{key: key, cert: cert}
	return err
}

// oid returns an identifier under Intel's SGX extension, 1.2.840.113741.1.13.1.
func oid(tail ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, tail...)
}

// attribute is one entry of the SGX extension: an identifier and a value of the type that the profile gives it.
type attribute struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// extension encodes the SGX extension of the PCK certificate (PCK certificate profile, section 1.3.5): PPID, TCB,
// PCEID, FMSPC, SGX type and, for the platform CA, instance and configuration.
func (m *Platform) extension() ([]byte, error) {
	comps := m.dials.sgx()
	var tcb []attribute
	for i, svn := range comps {
		tcb = append(tcb, attribute{oid(2, i+1), int(svn)})
	}
	tcb = append(tcb, attribute{oid(2, 17), pceSVN}, attribute{oid(2, 18), comps[:]})
	list := []attribute{
		{oid(1), m.ppid[:]}, {oid(2), tcb}, {oid(3), m.pceID[:]}, {oid(4), m.fmspc[:]}, {oid(5), asn1.Enumerated(0)},
	}
	if m.ca == PlatformCA {
		instance, err := m.pki.derive(16, "instance", m.name)
		if err != nil {
			return nil, err
		}
		list[4].Value = asn1.Enumerated(1) // scalable
		list = append(list, attribute{oid(6), instance}, attribute{oid(7), []attribute{
			{oid(7, 1), true}, {oid(7, 2), false}, {oid(7, 3), m.dials.configuration == 0}, // dynamic, cached keys, SMT
		}})
	}
	return asn1.Marshal(list)
}

// String names the platform for people.
func (m *Platform) String() string {
	return fmt.Sprintf("simulated platform %q (FMSPC %s)", m.name, hex.EncodeToString(m.fmspc[:]))
}
