package tcb

import (
	"crypto/ecdsa"
	"fmt"
	"time"
)

// Identifiers of QE identity documents.
const (
	QE   = "QE"    // the quoting enclave of SGX
	TDQE = "TD_QE" // the quoting enclave of TDX
)

// Identity is a verified QE identity document: how a genuine quoting enclave identifies itself, and the status of its
// SVNs. It does not change after VerifyIdentity.
type Identity struct {
	ID               string // QE or TDQE
	Version          int    // 2
	IssueDate        time.Time
	NextUpdate       time.Time
	EvaluationNumber int
	MiscSelect       [4]byte // in the byte order of a report
	MiscSelectMask   [4]byte
	Attributes       [16]byte
	AttributesMask   [16]byte
	MRSigner         [32]byte
	ISVProdID        uint16
	Levels           []ISVLevel // in the order of the document
}

// EnclaveReport holds the fields of a QE report that an Identity is compared with.
type EnclaveReport struct {
	MiscSelect [4]byte // in the byte order of a report
	Attributes [16]byte
	MRSigner   [32]byte
	ISVProdID  uint16
	ISVSVN     uint16
}

// VerifyIdentity verifies the signature by signer over the raw inner object of a QE identity envelope of at most 64 KiB
// and then decodes it. Validity in time is separate: see CheckValidity.
func VerifyIdentity(envelope []byte, signer *ecdsa.PublicKey) (*Identity, error) {
	d := decoders.Get().(*decoder)
	defer d.release()
	v, err := d.envelope(envelope, "enclaveIdentity", signer)
	if err != nil {
		return nil, err
	}
	return parseIdentity(v)
}

func parseIdentity(v value) (*Identity, error) {
	r := newReader(v, root("enclaveIdentity"))
	id := &Identity{ID: r.str("id"), Version: int(r.uint("version", 1<<16))}
	if r.err == nil && (id.Version != 2 || id.ID != QE && id.ID != TDQE) {
		return nil, fmt.Errorf("%w: enclave identity version %d of %q", ErrUnsupported, id.Version, id.ID)
	}
	id.IssueDate, id.NextUpdate = r.time("issueDate"), r.time("nextUpdate")
	id.EvaluationNumber = int(r.uint("tcbEvaluationDataNumber", 1<<31-1))
	r.hex("miscselect", id.MiscSelect[:])
	r.hex("miscselectMask", id.MiscSelectMask[:])
	r.hex("attributes", id.Attributes[:])
	r.hex("attributesMask", id.AttributesMask[:])
	r.hex("mrsigner", id.MRSigner[:])
	id.ISVProdID = uint16(r.uint("isvprodid", 1<<16-1))
	id.Levels = parseISVLevels(r, 1<<16-1)
	if r.err != nil {
		return nil, r.err
	}
	return id, nil
}

// CheckValidity says whether now lies within [issue date, next update], both ends included; grace extends the later one.
func (id *Identity) CheckValidity(now time.Time, grace time.Duration) error {
	return checkValidity("QE identity", id.IssueDate, id.NextUpdate.Add(grace), now)
}

// Check verifies that the report is one of the enclave described: MISCSELECT and ATTRIBUTES under their masks, MRSIGNER and
// ISVPRODID. The enclave's SVN is evaluated by Evaluate.
func (id *Identity) Check(r EnclaveReport) error {
	switch {
	case !masked(r.MiscSelect[:], id.MiscSelectMask[:], id.MiscSelect[:]):
		return fmt.Errorf("%w: MISCSELECT is %x", ErrQE, r.MiscSelect)
	case !masked(r.Attributes[:], id.AttributesMask[:], id.Attributes[:]):
		return fmt.Errorf("%w: ATTRIBUTES are %x", ErrQE, r.Attributes)
	case r.MRSigner != id.MRSigner:
		return fmt.Errorf("%w: MRSIGNER is %x", ErrQE, r.MRSigner)
	case r.ISVProdID != id.ISVProdID:
		return fmt.Errorf("%w: ISVPRODID is %d", ErrQE, r.ISVProdID)
	}
	return nil
}

// masked says whether got under mask equals want. The three have equal lengths.
func masked(got, mask, want []byte) bool {
	for i := range got {
		if got[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}
