package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/claviger/claviger/kds/api"
)

// The files of a recovery, in the directory given to RecoverByFile. They travel
// through the host, which can withhold them and nothing else: what the enclave
// says is quoted, shares are sealed to it, approvals are signed.
const (
	RecoveryRequestFile   = "recovery-request.json"   // a RecoveryRequest, written by the enclave
	RecoverySharesFile    = "recovery-shares.json"    // a list of SealedShare, brought by the operators
	RecoveryReportFile    = "recovery-report.json"    // a RecoveryReport, written by the enclave
	RecoveryApprovalsFile = "recovery-approvals.json" // RecoveryApprovals, brought by the operators

	// MaxRecoveryFile bounds each of these files, in bytes.
	MaxRecoveryFile = 4 << 20
)

// RecoveryFiles is a recovery by people with files: its methods are the Shares
// and Approve of a Recovery. A file that did not suffice is told about, and
// looked at again when it has changed or was written anew: what stood in its way
// may have passed.
type RecoveryFiles struct {
	dir  string
	told func(path, next string, refused error)
	seen map[string]brought // files that were refused
}

// brought is one file as it was taken. When it was written is the host's word,
// who may bring the same again at any time.
type brought struct {
	content [32]byte
	written int64 // Unix time in nanoseconds
}

// RecoverByFile begins a ceremony in dir: files of an earlier one are removed,
// since they are for another enclave. Told is called with each file written, the
// file waited for next, and why the one before it was refused, if it was.
func RecoverByFile(dir string, told func(path, next string, refused error)) (*RecoveryFiles, error) {
	if err := ceremonyDir(dir, RecoveryRequestFile, RecoverySharesFile, RecoveryReportFile, RecoveryApprovalsFile); err != nil {
		return nil, fmt.Errorf("node: recovery files: %w", err)
	}
	return &RecoveryFiles{dir: dir, told: told, seen: map[string]brought{}}, nil
}

// Shares writes the request and waits for shares.
func (f *RecoveryFiles) Shares(ctx context.Context, r *RecoveryRequest, refused error) ([]SealedShare, error) {
	var shares []SealedShare
	return shares, f.exchange(ctx, RecoveryRequestFile, r, RecoverySharesFile, &shares, refused)
}

// Approve writes the report and waits for approvals.
func (f *RecoveryFiles) Approve(ctx context.Context, r *RecoveryReport, refused error) (*RecoveryApprovals, error) {
	var a RecoveryApprovals
	if err := f.exchange(ctx, RecoveryReportFile, r, RecoveryApprovalsFile, &a, refused); err != nil {
		return nil, err
	}
	return &a, nil
}

// exchange writes what the enclave says and waits for the answer.
func (f *RecoveryFiles) exchange(ctx context.Context, say string, content any, await string, answer any, refused error) error {
	if err := writeJSON(filepath.Join(f.dir, say), content); err != nil {
		return fmt.Errorf("node: recovery files: %w", err)
	}
	if f.told != nil {
		f.told(filepath.Join(f.dir, say), await, refused)
	}
	if err := awaitFile(ctx, func() error { return f.read(await, answer) }); err != nil {
		return fmt.Errorf("%w: waiting for %s: %w", ErrRecovery, await, err)
	}
	return nil
}

var errSeen = errors.New("the file has not been written since it was refused")

// read takes a file once: it is read again only after it was written.
func (f *RecoveryFiles) read(name string, answer any) error {
	path := filepath.Join(f.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	raw, err := readBounded(path, MaxRecoveryFile)
	if err != nil {
		return err
	}
	now := brought{sha256.Sum256(raw), info.ModTime().UnixNano()}
	if f.seen[name] == now {
		return errSeen
	}
	if err := api.DecodeJSON(raw, MaxRecoveryFile, answer); err != nil {
		return err
	}
	f.seen[name] = now
	return nil
}
