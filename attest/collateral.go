package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Collateral is what a verifier needs besides the quote, as Intel's provisioning certification service (PCS) serves it.
// It is untrusted until Verify has checked the signatures inside.
type Collateral struct {
	TCBInfo         []byte // the signed JSON envelope, byte for byte as served
	QEIdentity      []byte // likewise
	TCBSigningChain []byte // PEM, leaf first: "Intel SGX TCB Signing", "Intel SGX Root CA"
	PCKCRL          []byte // DER or PEM; of the PCK CA that issued the quote's PCK certificate
	RootCRL         []byte // DER or PEM
}

// bundle is the file form of Collateral. The documents are base64 and not nested JSON, because their signatures cover
// their exact bytes.
type bundle struct {
	Version         int    `json:"claviger_collateral"`
	TCBInfo         []byte `json:"tcb_info"`
	QEIdentity      []byte `json:"qe_identity"`
	TCBSigningChain []byte `json:"tcb_signing_chain"`
	PCKCRL          []byte `json:"pck_crl"`
	RootCRL         []byte `json:"root_crl"`
}

const bundleVersion = 1

// ParseCollateral decodes a one-file bundle, surrounding white space aside. It accepts only what Marshal writes, byte for
// byte: unknown, missing, repeated, reordered or differently cased keys, trailing data, and parts over their limits are
// refused with ErrBundle. Nothing is verified.
func ParseCollateral(raw []byte) (*Collateral, error) {
	fail := func(err error) (*Collateral, error) {
		return nil, refuse(StageParse, "export the bundle again", fmt.Errorf("%w: %w", ErrBundle, err))
	}
	if len(raw) > MaxCollateral {
		return fail(fmt.Errorf("%d bytes, the limit is %d", len(raw), MaxCollateral))
	}
	raw = bytes.TrimSpace(raw)
	var b bundle
	if err := json.Unmarshal(raw, &b); err != nil {
		return fail(err)
	}
	if b.Version != bundleVersion {
		return fail(fmt.Errorf("version %d, not %d", b.Version, bundleVersion))
	}
	c := &Collateral{b.TCBInfo, b.QEIdentity, b.TCBSigningChain, b.PCKCRL, b.RootCRL}
	again, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	// The comparison makes the strictness: whatever a lenient decoder forgave is not in the second encoding.
	if !bytes.Equal(raw, again) {
		return fail(errors.New("not in canonical form: unknown, repeated or reordered keys"))
	}
	return c, nil
}

// Marshal encodes c as a one-file bundle: JSON, one line, a fixed order of keys. Equal collateral gives equal bytes.
func (c *Collateral) Marshal() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, refuse(StageParse, "fetch the collateral again", fmt.Errorf("%w: %w", ErrBundle, err))
	}
	raw, err := json.Marshal(bundle{bundleVersion, c.TCBInfo, c.QEIdentity, c.TCBSigningChain, c.PCKCRL, c.RootCRL})
	if err != nil {
		return nil, refuse(StageParse, "fetch the collateral again", fmt.Errorf("%w: %w", ErrBundle, err))
	}
	if len(raw) > MaxCollateral {
		err := fmt.Errorf("%w: %d bytes, the limit is %d", ErrBundle, len(raw), MaxCollateral)
		return nil, refuse(StageParse, "fetch the collateral again", err)
	}
	return raw, nil
}

// Hash is the SHA-256 of a label and the five parts in the order of the struct, each after its length (64 bits, big
// endian). It names a set of collateral; it is not a signature.
func (c *Collateral) Hash() [32]byte {
	h := sha256.New()
	h.Write([]byte("claviger/collateral/v1"))
	for _, part := range [][]byte{c.TCBInfo, c.QEIdentity, c.TCBSigningChain, c.PCKCRL, c.RootCRL} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// check bounds the parts and refuses absent ones.
func (c *Collateral) check() error {
	if c == nil {
		return errors.New("no collateral")
	}
	for _, part := range []struct {
		name  string
		data  []byte
		limit int
	}{
		{"tcb_info", c.TCBInfo, MaxTCBInfo},
		{"qe_identity", c.QEIdentity, MaxQEIdentity},
		{"tcb_signing_chain", c.TCBSigningChain, MaxSigningChain},
		{"pck_crl", c.PCKCRL, MaxCRL},
		{"root_crl", c.RootCRL, MaxCRL},
	} {
		if len(part.data) == 0 {
			return fmt.Errorf("%s is missing", part.name)
		}
		if len(part.data) > part.limit {
			return fmt.Errorf("%s is %d bytes, the limit is %d", part.name, len(part.data), part.limit)
		}
	}
	return nil
}
