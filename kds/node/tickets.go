package node

import (
	"errors"
	"fmt"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// entitled refuses a boot that Apply would reject for want of a ticket, before
// anything is written for it and before it can raise a clone alarm: a host may
// run any number of genuine enclaves, and each of them may ask for ever.
func (n *Node) entitled(slot string, joiner, platform [32]byte) error {
	err := n.machine.Entitled(slot, joiner, platform)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, state.ErrTicket):
		return needsTicket(slot, joiner, platform)
	case errors.Is(err, state.ErrSuperseded), errors.Is(err, state.ErrRemoved):
		return n.superseded(joiner, err)
	}
	return &RefusedError{Text: err.Error()}
}

// needsTicket is what a boot hears that nobody has vouched for: it waits, and
// its log has the command that lets it in.
func needsTicket(slot string, joiner, platform [32]byte) *RefusedError {
	return &RefusedError{Retry: true, Text: fmt.Sprintf("slot %s on this machine needs a ticket of the operators; this boot waits for one: "+
		"claviger cluster join --slot %s --server %s --platform %s", slot, slot, api.ID(joiner), api.ID(platform))}
}
