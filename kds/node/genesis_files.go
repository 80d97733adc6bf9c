package node

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/claviger/claviger/kds/api"
)

// The files of a genesis ceremony, in the directory given to ApproveByFile.
const (
	StatementFile = "genesis-statement.json" // a Statement, written by the node
	ApprovalsFile = "genesis-approvals.json" // a list of Approval, brought by the operators

	maxApprovals = 64 << 10 // bytes of the approvals file
)

// ApproveByFile returns an Approve that writes the statement into dir, for
// operators to verify elsewhere and sign, and waits until their approvals lie
// beside it. The files travel through the host: it can withhold them, and
// nothing else, since the signatures are checked in the enclave.
func ApproveByFile(dir string, told func(path string)) func(context.Context, *Statement) ([]Approval, error) {
	return func(ctx context.Context, s *Statement) ([]Approval, error) {
		// A fresh statement voids approvals of an older one: the identity key is new.
		if err := ceremonyDir(dir, ApprovalsFile); err != nil {
			return nil, fmt.Errorf("node: genesis files: %w", err)
		}
		path := filepath.Join(dir, StatementFile)
		if err := writeJSON(path, s); err != nil {
			return nil, fmt.Errorf("node: genesis files: %w", err)
		}
		if told != nil {
			told(path)
		}
		var list []Approval
		err := awaitFile(ctx, func() error {
			raw, err := readBounded(filepath.Join(dir, ApprovalsFile), maxApprovals)
			if err != nil {
				return err
			}
			if err := api.DecodeJSON(raw, maxApprovals, &list); err != nil {
				return fmt.Errorf("%s: %w", ApprovalsFile, err)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrApproval, err)
		}
		return list, nil
	}
}
