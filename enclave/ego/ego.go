package ego

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/secret"
)

var (
	// ErrSimulation is returned when the runtime hands out an all-zero seal key:
	// EGo's simulation mode, or no enclave at all.
	ErrSimulation = errors.New("ego: seal key is all zero: EGo runs in simulation mode or not at all; " +
		"start the program with `ego run` on SGX hardware and without OE_SIMULATION=1")

	// ErrReport is returned when what the runtime calls a report is not an Open
	// Enclave header and an SGX quote over the data that was asked for.
	ErrReport = errors.New("ego: malformed report from the runtime")

	// ErrSealKey is returned when the runtime's seal key has not 16 bytes.
	ErrSealKey = errors.New("ego: seal key from the runtime has a wrong size")
)

// runtime is what this package needs of EGo.
type runtime interface {
	// RemoteReport returns an Open Enclave report over 64 bytes of report data.
	RemoteReport(reportData []byte) ([]byte, error)
	// UniqueSealKey returns the 16-byte key bound to MRENCLAVE, the debug attribute and the processor with its CPUSVN.
	UniqueSealKey() ([]byte, error)
}

// TEE is this process's SGX enclave. Only Open makes one that works. It is safe
// for concurrent use.
type TEE struct{ rt runtime }

var _ enclave.TEE = (*TEE)(nil)

// open returns the TEE of a runtime that proves not to be simulated.
func open(rt runtime) (*TEE, error) {
	key, err := sealKey(rt)
	if err != nil {
		return nil, err
	}
	key.Destroy()
	return &TEE{rt}, nil
}

// Kind returns enclave.SGX.
func (*TEE) Kind() enclave.Kind { return enclave.SGX }

// Quote returns an SGX quote of version 3 over reportData. EGo cannot be
// interrupted: ctx is looked at before the call only.
func (t *TEE) Quote(ctx context.Context, reportData [enclave.ReportDataSize]byte) ([]byte, error) {
	if err := t.ready(ctx); err != nil {
		return nil, err
	}
	report, err := t.rt.RemoteReport(bytes.Clone(reportData[:]))
	if err != nil {
		return nil, fmt.Errorf("ego: remote report (is the AESM service up and the PCCS reachable?): %w", err)
	}
	return strip(report, reportData)
}

// SealingKey returns the key that label and the enclave's unique seal key
// determine. The seal key belongs to MRENCLAVE, the debug attribute and this
// processor at its present security version: after a microcode update it is
// another one, and what it sealed is lost unless a key of the KDS guards it.
func (t *TEE) SealingKey(ctx context.Context, label string) (secret.Key, error) {
	if err := enclave.CheckLabel(label); err != nil {
		return secret.Key{}, err
	}
	if err := t.ready(ctx); err != nil {
		return secret.Key{}, err
	}
	key, err := sealKey(t.rt)
	if err != nil {
		return secret.Key{}, err
	}
	defer key.Destroy()
	return key.Derive("claviger/ego/seal/v1/"+label, enclave.SealingKeySize)
}

// ready refuses a TEE that Open did not make, and a context that is done.
func (t *TEE) ready(ctx context.Context) error {
	if t == nil || t.rt == nil {
		return fmt.Errorf("ego: %w: use Open", enclave.ErrUnsupported)
	}
	return ctx.Err()
}

// sealKey returns the unique seal key, never the all-zero one.
func sealKey(rt runtime) (secret.Key, error) {
	raw, err := rt.UniqueSealKey()
	if err != nil {
		return secret.Key{}, fmt.Errorf("ego: seal key: %w", err)
	}
	defer clear(raw)
	if len(raw) != sealKeySize {
		return secret.Key{}, fmt.Errorf("%w: %d bytes, want %d", ErrSealKey, len(raw), sealKeySize)
	}
	if bytes.Equal(raw, make([]byte, sealKeySize)) {
		return secret.Key{}, ErrSimulation
	}
	return secret.New(raw)
}

// Layout of an Open Enclave report (openenclave/internal/report.h) and of the SGX
// quote in it (Intel SGX DCAP, appendix A.4), in bytes.
const (
	sealKeySize    = 16
	oeHeaderSize   = 16
	oeVersion      = 1
	oeTypeRemote   = 2
	maxReport      = 64 << 10
	quoteVersion   = 3
	reportDataAt   = 48 + 320 // quote header, then the report data's place in the report body
	signatureSize  = 48 + 384 // where the length of the signature data stands
	smallestReport = oeHeaderSize + signatureSize + 4
)

// strip checks the Open Enclave header of report and returns the quote behind it,
// which must be of version 3 and bind reportData.
func strip(report []byte, reportData [enclave.ReportDataSize]byte) ([]byte, error) {
	if len(report) < smallestReport || len(report) > maxReport {
		return nil, fmt.Errorf("%w: %d bytes, want %d to %d", ErrReport, len(report), smallestReport, maxReport)
	}
	header, quote := report[:oeHeaderSize], report[oeHeaderSize:]
	version, kind := binary.LittleEndian.Uint32(header), binary.LittleEndian.Uint32(header[4:])
	if version != oeVersion || kind != oeTypeRemote {
		return nil, fmt.Errorf("%w: header of version %d and type %d, want %d and %d", ErrReport, version, kind,
			oeVersion, oeTypeRemote)
	}
	if size := binary.LittleEndian.Uint64(header[8:]); size != uint64(len(quote)) {
		return nil, fmt.Errorf("%w: header says %d bytes, %d follow", ErrReport, size, len(quote))
	}
	if v := binary.LittleEndian.Uint16(quote); v != quoteVersion {
		return nil, fmt.Errorf("%w: quote of version %d, want %d", ErrReport, v, quoteVersion)
	}
	rest := len(quote) - signatureSize - 4
	if size := binary.LittleEndian.Uint32(quote[signatureSize:]); uint64(size) != uint64(rest) {
		return nil, fmt.Errorf("%w: quote says %d bytes of signature data, %d follow", ErrReport, size, rest)
	}
	if !bytes.Equal(quote[reportDataAt:][:len(reportData)], reportData[:]) {
		return nil, fmt.Errorf("%w: the quote binds other report data than was asked for", ErrReport)
	}
	return bytes.Clone(quote), nil
}
