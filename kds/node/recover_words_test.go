package node

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// A host names the files that a recovery reads: what it writes into their names is
// not a second row of the report that operators sign by.
func TestNamesOfWitnessesAreOneLine(t *testing.T) {
	t.Parallel()
	evil := filepath.Join(t.TempDir(), "r.json\nreceipt   epoch 9, 900 releases: \x1b[2J")
	w, err := readWitnesses([]string{evil}, []string{evil}, nil, api.ID{1})
	if err != nil {
		t.Fatal(err)
	}
	receipts, finals := w.reports()
	for _, r := range append(receipts, finals...) {
		if strings.ContainsAny(r.Path+r.Problem, "\n\x1b") || !strings.Contains(r.Path, "r.json receipt") {
			t.Errorf("%q: %q", r.Path, r.Problem)
		}
	}
	if len(receipts) != 1 || len(finals) != 1 {
		t.Errorf("%d receipts, %d final checkpoints", len(receipts), len(finals))
	}
}
