package functions

import (
	"crypto"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
)

// Deployment is the owner's signed statement that a bundle is in force.
type Deployment struct {
	Project   string            `cbor:"1,keyasint"` // the project's name, 1 to MaxName bytes
	Owner     ed25519.PublicKey `cbor:"2,keyasint"`
	Runtime   string            `cbor:"3,keyasint"` // the canonical constraint of the runtime it is for
	CodeHash  CodeHash          `cbor:"4,keyasint"`
	Sequence  uint64            `cbor:"5,keyasint"` // from 1; must exceed the one in force
	Signature []byte            `cbor:"6,keyasint"` // Ed25519 over all of the above
}

// ProjectID returns the project that the statement is about.
func (d *Deployment) ProjectID() (ProjectID, error) { return ProjectIDOf(d.Owner, d.Project) }

// message is what the owner signs. It holds the project's id and every field.
func (d *Deployment) message(id ProjectID) []byte {
	return fields("claviger/functions/deployment/v1", id[:], d.Owner, []byte(d.Project), []byte(d.Runtime),
		d.CodeHash[:], binary.BigEndian.AppendUint64(nil, d.Sequence))
}

// SignDeployment makes a deployment of code with the owner's Ed25519 key, which
// may sit in hardware behind the crypto.Signer.
func SignDeployment(owner crypto.Signer, project, runtime string, code []byte, sequence uint64) (Deployment, error) {
	pub, ok := owner.Public().(ed25519.PublicKey)
	if !ok {
		return Deployment{}, fmt.Errorf("%w: the owner's key is not Ed25519", ErrFormat)
	}
	d := Deployment{Project: project, Owner: pub, Runtime: runtime, CodeHash: HashCode(code), Sequence: sequence}
	if err := d.checkSizes(code); err != nil {
		return Deployment{}, err
	}
	id, err := d.ProjectID()
	if err != nil {
		return Deployment{}, err
	}
	d.Signature, err = owner.Sign(nil, d.message(id), crypto.Hash(0))
	if err != nil {
		return Deployment{}, fmt.Errorf("functions: signing the deployment: %w", err)
	}
	return d, nil
}

func (d *Deployment) checkSizes(code []byte) error {
	switch {
	case len(code) == 0 || len(code) > MaxCode:
		return fmt.Errorf("%w: a bundle has 1 to %d bytes, not %d", ErrTooLarge, MaxCode, len(code))
	case len(d.Runtime) == 0 || len(d.Runtime) > MaxRuntime:
		return fmt.Errorf("%w: a runtime's constraint has 1 to %d bytes", ErrFormat, MaxRuntime)
	case d.Sequence == 0:
		return fmt.Errorf("%w: sequence numbers begin at 1", ErrFormat)
	}
	return nil
}

// verify checks a deployment that came for a project of this runtime, with its
// code. Every check has its own refusal; all of them precede any use of the code.
func (d *Deployment) verify(project ProjectID, runtime string, code []byte) *CallError {
	if err := d.checkSizes(code); err != nil {
		return refuse(CodeBadBundle, "%v", err)
	}
	// The id is the hash of the owner's key: another key is another project.
	id, err := d.ProjectID()
	if err != nil || id != project {
		return refuse(CodeNotOwner, "the deployment's owner and name are not those of project %s", project)
	}
	// A deployment for another runtime must not be carried over by its holder.
	if d.Runtime != runtime {
		return refuse(CodeWrongRuntime, "sign the deployment for this runtime's constraint")
	}
	if !ed25519.Verify(d.Owner, d.message(id), d.Signature) {
		return refuse(CodeBadSignature, "the signature does not verify with the owner's key")
	}
	if HashCode(code) != d.CodeHash {
		return refuse(CodeHashMismatch, "the code is not the one that was signed")
	}
	return nil
}
