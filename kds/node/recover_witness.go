package node

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Bounds on what people put beside a recovery.
const (
	maxWitnesses   = 1024     // files of one kind
	maxReceiptFile = 64 << 10 // bytes of one receipt, or of one final checkpoint
)

// ErrBelow says that a history misses something that was acknowledged.
var ErrBelow = errors.New("the history misses what was acknowledged")

// witnesses are what a new epoch must not fall below: receipts that clients have
// kept, and the final checkpoints of servers that were stopped.
type witnesses struct {
	receipts []receiptSeen
	finals   []finalSeen
}

type receiptSeen struct {
	path string
	r    api.Receipt
	err  error // it proves nothing
}

type finalSeen struct {
	path string
	f    api.SignedFinal
	err  error // it proves nothing
}

// maxProofs bounds the witnesses of one kind that count.
const maxProofs = 4 * maxWitnesses

var errTooMany = errors.New("more than 1024 files of receipts or final checkpoints; bring the newest, and start again")

// keep adds what an earlier look has proved and this one has not seen: nobody
// unproves a receipt by taking its file away.
func (w *witnesses) keep(before *witnesses) error {
	if before == nil {
		return nil
	}
	for _, old := range before.receipts {
		same := func(s receiptSeen) bool {
			return s.err == nil && s.r.TreeSize == old.r.TreeSize && s.r.RootHash == old.r.RootHash && s.r.Epoch == old.r.Epoch
		}
		if old.err == nil && !slices.ContainsFunc(w.receipts, same) {
			w.receipts = append(w.receipts, old)
		}
	}
	for _, old := range before.finals {
		same := func(s finalSeen) bool { return s.err == nil && s.f.Checkpoint == old.f.Checkpoint }
		if old.err == nil && !slices.ContainsFunc(w.finals, same) {
			w.finals = append(w.finals, old)
		}
	}
	if len(w.receipts) > maxProofs || len(w.finals) > maxProofs {
		return fmt.Errorf("%w: %w", ErrRecovery, errTooMany)
	}
	return nil
}

// readWitnesses reads them from files. It is called when the report is made and
// again before the epoch opens, because one may arrive in between (finding 1 of
// raftstore/model). A file that is missing or proves nothing is reported and
// not counted: whoever could put it there could have left it away.
func readWitnesses(receipts, finals []string, identity ed25519.PublicKey, id api.ID) (*witnesses, error) {
	w := &witnesses{}
	receipts, finals = witnessFiles(receipts, ""), witnessFiles(finals, "final-")
	if len(receipts) > maxWitnesses || len(finals) > maxWitnesses {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, errTooMany)
	}
	for _, path := range receipts {
		s := receiptSeen{path: path}
		if s.err = readWitness(path, &s.r); s.err == nil {
			_, s.err = s.r.Verify(identity, id)
		}
		w.receipts = append(w.receipts, s)
	}
	for _, path := range finals {
		s := finalSeen{path: path}
		if s.err = readWitness(path, &s.f); s.err == nil {
			s.err = s.f.Verify(identity, id)
		}
		w.finals = append(w.finals, s)
	}
	return w, nil
}

// witnessFiles puts the files of a directory, those of a name that begins and
// ends right, in its place: at every look, since one may have come. A directory
// that cannot be listed stays, and is reported as what it is.
func witnessFiles(paths []string, prefix string) (files []string) {
	for _, path := range paths {
		entries, err := os.ReadDir(path)
		if err != nil {
			files = append(files, path)
			continue
		}
		for _, e := range entries {
			if name := e.Name(); !e.IsDir() && strings.HasPrefix(name, prefix) && strings.HasSuffix(name, ".json") {
				files = append(files, filepath.Join(path, name))
			}
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// readWitness leaves the file's name out of errors about what is in it.
func readWitness(path string, v any) error {
	raw, err := readBounded(path, maxReceiptFile)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("there is no such file yet")
	}
	if err != nil {
		return err
	}
	return api.DecodeJSON(raw, maxReceiptFile, v)
}

// final is the checkpoint with which a server was stopped, or nil. A server is a
// boot, and of one epoch.
func (w *witnesses) final(id api.ID) *api.FinalCheckpoint {
	for i := range w.finals {
		if f := &w.finals[i]; f.err == nil && f.f.Checkpoint.ServerID == id {
			return &f.f.Checkpoint
		}
	}
	return nil
}

// check refuses a history that misses what a witness proves.
func (w *witnesses) check(a *inspected, identity ed25519.PublicKey, id api.ID) error {
	for _, s := range w.receipts {
		if s.err != nil {
			continue
		}
		if _, err := kds.HoldReceipt(a.machine, &s.r, identity, id); holds(err) != nil {
			return fmt.Errorf("%w: %w: receipt %s: %w", ErrRecovery, ErrBelow, s.path, err)
		}
	}
	for _, s := range w.finals {
		if s.err != nil {
			continue
		}
		if err := a.holdsFinal(&s.f, identity, id); err != nil {
			return fmt.Errorf("%w: %w: final checkpoint %s: %w", ErrRecovery, ErrBelow, s.path, err)
		}
	}
	return nil
}

// holds turns the verdict on a witness into a refusal. One that is older than the
// history reaches back says nothing: what it proves was committed before the
// snapshot was.
func holds(err error) error {
	if errors.Is(err, state.ErrUnseen) {
		return nil
	}
	return err
}

// holdsFinal compares the log, and then every entry: a history that lacks what a
// stopped server had applied is below it, whether or not that released a key.
func (a *inspected) holdsFinal(f *api.SignedFinal, identity ed25519.PublicKey, id api.ID) error {
	if err := holds(kds.HoldFinal(a.machine, f, identity, id)); err != nil {
		return err
	}
	c := &f.Checkpoint
	if c.Epoch != a.report.Epoch { // an older one: this epoch was opened under the same rules
		return nil
	}
	if c.Applied > a.report.Applied {
		return fmt.Errorf("server %.16s had applied entry %d, this history ends at %d", c.ServerID, c.Applied, a.report.Applied)
	}
	if chain, known := a.chainAt(c.Applied); known && chain != c.Chain {
		return fmt.Errorf("up to entry %d server %.16s had applied others than those of this history", c.Applied, c.ServerID)
	}
	return nil
}

func (w *witnesses) reports() (receipts, finals []WitnessReport) {
	for _, s := range w.receipts {
		r := WitnessReport{Path: printable(s.path), Epoch: s.r.Epoch, LogSize: s.r.TreeSize}
		if s.err != nil {
			r = WitnessReport{Path: printable(s.path), Problem: printable(s.err.Error())}
		}
		receipts = append(receipts, r)
	}
	for _, s := range w.finals {
		c := s.f.Checkpoint
		r := WitnessReport{Path: printable(s.path), Epoch: c.Epoch, ServerID: c.ServerID, Applied: c.Applied, LogSize: c.LogSize}
		if s.err != nil {
			r = WitnessReport{Path: printable(s.path), Problem: printable(s.err.Error())}
		}
		finals = append(finals, r)
	}
	return receipts, finals
}
