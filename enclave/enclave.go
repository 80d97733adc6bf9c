package enclave

import (
	"context"
	"errors"
	"fmt"

	"github.com/claviger/claviger/enclave/secret"
)

// Kind names a kind of trusted execution environment. The zero Kind names none.
type Kind string

// The kinds that exist. An image of the simulator is of kind SGX or TDX, since
// that decides the format of its quotes; a running simulated enclave says Sim,
// so that no caller takes it for hardware.
const (
	SGX Kind = "sgx"
	TDX Kind = "tdx"
	Sim Kind = "sim"
)

// ReportDataSize is the size in bytes of the data that a quote binds.
const ReportDataSize = 64

// MaxLabel is the longest label, in bytes, that SealingKey accepts.
const MaxLabel = 255

// SealingKeySize is the size in bytes of every sealing key.
const SealingKeySize = 32

var (
	// ErrUnsupported is returned where the environment cannot do what is asked
	// of it: no sealing key on TDX, no hardware behind this process. The text
	// around it says which.
	ErrUnsupported = errors.New("not supported by this environment")

	// ErrLabel is returned for a sealing-key label that is empty or longer than
	// MaxLabel bytes.
	ErrLabel = errors.New("sealing key label must have 1 to 255 bytes")
)

// TEE is the environment that this process runs in.
//
// Implementations are safe for concurrent use.
type TEE interface {
	// Kind says what the environment is. It is a statement of the process about
	// itself: only a verified quote proves it to others.
	Kind() Kind

	// Quote returns an attestation quote in Intel's format (SGX v3, TDX v4 or
	// later) that binds reportData and the identity of this enclave. It fails
	// with ErrUnsupported off hardware, and with ctx's error once ctx is done.
	Quote(ctx context.Context, reportData [ReportDataSize]byte) ([]byte, error)

	// SealingKey returns a SealingKeySize-byte key that only this enclave's
	// identity on this machine can obtain, a different one for each label. It
	// protects integrity and secrecy of what the host stores, never freshness.
	// It fails with ErrLabel, and with ErrUnsupported where the platform has no
	// such key (TDX).
	SealingKey(ctx context.Context, label string) (secret.Key, error)
}

// ParseKind parses the text form of a Kind: "sgx", "tdx" or "sim", exactly.
func ParseKind(text string) (Kind, error) {
	switch k := Kind(text); k {
	case SGX, TDX, Sim:
		return k, nil
	}
	return "", fmt.Errorf("unknown kind of enclave %.32q: use sgx, tdx or sim", text)
}

// CheckLabel returns ErrLabel unless label can name a sealing key. It is for
// implementations of TEE.
func CheckLabel(label string) error {
	if len(label) == 0 || len(label) > MaxLabel {
		return fmt.Errorf("%w, it has %d", ErrLabel, len(label))
	}
	return nil
}
