package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// What refused a statement may pass: a survivor that did not answer, a source of collateral that was away. Operators who bring
// the very same statement again are heard; the file that was refused is not taken twice.
func TestTheSameApprovalsAreHeardAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f, err := RecoverByFile(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, RecoveryApprovalsFile)
		bring := func(at time.Time) {
			if err := writeJSON(name, RecoveryApprovals{Statement: []byte("the statement")}); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(name, at, at); err != nil {
				t.Fatal(err)
			}
		}
		ask := func(refused error) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := f.Approve(ctx, &RecoveryReport{}, refused)
			return err
		}
		bring(time.Unix(1, 0))
		if err := ask(nil); err != nil {
			t.Fatal(err)
		}
		if ask(errSurvivor) == nil {
			t.Error("the file that was refused is taken again")
		}
		bring(time.Unix(2, 0))
		if err := ask(errSurvivor); err != nil {
			t.Errorf("the same statement, brought again: %v", err)
		}
	})
}
