package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// The files of a genesis ceremony, in the directory given to ApproveByFile.
const (
	StatementFile = "genesis-statement.json" // a Statement, written by the node
	ApprovalsFile = "genesis-approvals.json" // a list of Approval, brought by the operators

	maxApprovals = 64 << 10 // bytes of the approvals file
	pollInterval = 500 * time.Millisecond
)

// ApproveByFile returns an Approve that writes the statement into dir, for
// operators to verify elsewhere and sign, and waits until their approvals lie
// beside it. The files travel through the host: it can withhold them, and
// nothing else, since the signatures are checked in the enclave.
func ApproveByFile(dir string, told func(path string)) func(context.Context, *Statement) ([]Approval, error) {
	return func(ctx context.Context, s *Statement) ([]Approval, error) {
		raw, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("node: genesis files: %w", err)
		}
		// A fresh statement voids approvals of an older one: the identity key is new.
		approvals := filepath.Join(dir, ApprovalsFile)
		if err := os.Remove(approvals); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("node: genesis files: %w", err)
		}
		path := filepath.Join(dir, StatementFile)
		if err := os.WriteFile(path, append(raw, '\n'), 0o600); err != nil {
			return nil, fmt.Errorf("node: genesis files: %w", err)
		}
		if told != nil {
			told(path)
		}
		return awaitApprovals(ctx, approvals)
	}
}

// awaitApprovals polls: an enclave has no other way to hear of a file. A file
// that does not parse may still be on its way, so it is looked at again.
func awaitApprovals(ctx context.Context, path string) ([]Approval, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		list, err := readApprovals(path)
		if err == nil {
			return list, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w: %w", ErrApproval, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func readApprovals(path string) ([]Approval, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxApprovals+1))
	if err != nil {
		return nil, err
	}
	var list []Approval
	if err := api.DecodeJSON(raw, maxApprovals, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", ApprovalsFile, err)
	}
	return list, nil
}
