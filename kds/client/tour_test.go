package client

import (
	"context"
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// An attempt that the caller's own deadline cuts short must not hide what the endpoint had said before.
func TestCutAttemptKeepsTheReason(t *testing.T) {
	t.Parallel()
	tr := newTour([]string{"a:1", "b:1"})
	tr.failed("a:1", api.NewProblem(api.CodeNoQuorum, "too few nodes"))
	tr.cut("a:1", context.DeadlineExceeded)
	tr.cut("b:1", context.Canceled)
	err := tr.failures()
	if !errors.Is(err, &api.Problem{Code: api.CodeNoQuorum}) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the reason is lost: %v", err)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the only thing known of the other endpoint is lost: %v", err)
	}
}
