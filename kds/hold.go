package kds

import (
	"crypto/ed25519"
	"fmt"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// HoldReceipt reports whether a history, replayed into h, contains the release
// that a receipt proves: nil, or an error that matches state.ErrBelow or
// state.ErrOtherLog, and then nobody may go on from that history; or
// state.ErrUnseen, where the history begins behind the receipt and says nothing
// either way. Other errors say that the receipt proves nothing about this
// cluster. The record tells people what would be lost.
func HoldReceipt(h *state.Heads, r *api.Receipt, identity ed25519.PublicKey, clusterID api.ID) (*api.Record, error) {
	record, err := r.Verify(identity, clusterID)
	if err != nil {
		return nil, err
	}
	if epoch := h.View().Epoch; r.Epoch > epoch {
		return record, fmt.Errorf("%w: the receipt is of epoch %d, the history of epoch %d", state.ErrBelow, r.Epoch, epoch)
	}
	return record, h.Check(r.TreeSize, r.RootHash)
}

// HoldFinal reports whether a history that ends at index applied of epoch, with
// this running hash and state, is not below a final checkpoint: the caller has
// replayed it into h. It fails as HoldReceipt does.
func HoldFinal(h *state.Heads, f *api.SignedFinal, identity ed25519.PublicKey, clusterID api.ID) error {
	if err := f.Verify(identity, clusterID); err != nil {
		return err
	}
	c, v := f.Checkpoint, h.View()
	switch {
	case c.Epoch > v.Epoch:
		return fmt.Errorf("%w: the final checkpoint is of epoch %d, the history of epoch %d", state.ErrBelow, c.Epoch, v.Epoch)
	case c.Epoch == v.Epoch && !v.Ended:
		return fmt.Errorf("%w: server %s has applied the end of epoch %d, which the history does not contain", state.ErrBelow, c.ServerID, c.Epoch)
	}
	return h.Check(c.LogSize, c.LogRoot)
}
