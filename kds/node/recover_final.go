package node

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// FinalFile is the name, below DataDir, of the final checkpoint of a server that
// has applied the end of its epoch.
func FinalFile(id api.ID) string { return "final-" + id.String() + ".json" }

// finalPatience bounds how long a final checkpoint waits for the machine to
// come to rest: entries that are refused after the end still count.
const finalPatience = 10 * time.Second

// finalPause is between two attempts: a disk may be full, and people mend it.
const finalPause = time.Second

// finish writes this server's signed final checkpoint. It is what lets operators
// name the server as stopped with proof, and what the next epoch cannot begin
// below. It runs beside replication, once the machine says that the epoch ended.
func (n *Node) finish() {
	for n.ctx.Err() == nil {
		c, err := n.finalCheckpoint()
		if err == nil {
			err = n.writeFinal(c)
		}
		if err == nil {
			n.log.Info("the epoch has ended; the final checkpoint of this server is written, and it can be stopped",
				"file", filepath.Join(n.cfg.DataDir, FinalFile(c.ServerID)), "applied", c.Applied)
			return
		}
		n.log.Error("the epoch has ended, and this server has no final checkpoint to show for it yet; do not stop it", "reason", err)
		select {
		case <-n.ctx.Done():
		case <-time.After(finalPause):
		}
	}
}

// finalCheckpoint takes index, chain and state at one instant.
func (n *Node) finalCheckpoint() (api.FinalCheckpoint, error) {
	store, m := n.store.Load(), n.membership()
	if store == nil || m == nil {
		return api.FinalCheckpoint{}, errUnjoined
	}
	for limit := time.Now().Add(finalPatience); time.Now().Before(limit); time.Sleep(time.Millisecond) {
		at, chain := store.Chain()
		raw, err := snapshotBytes(n.machine)
		if err != nil {
			return api.FinalCheckpoint{}, err
		}
		v := n.machine.View()
		again, err := snapshotBytes(n.machine)
		if err != nil {
			return api.FinalCheckpoint{}, err
		}
		// The chain follows the machine: it stands at the state's last entry if it
		// has come that far, and nothing moved meanwhile.
		if _, now := store.Chain(); now != chain || v.Applied > at || !bytes.Equal(raw, again) {
			continue
		}
		return api.FinalCheckpoint{ClusterID: m.clusterID, Epoch: m.Epoch, ServerID: api.ID(n.boot.id), Applied: v.Applied,
			Chain: chain, StateSHA256: sha256.Sum256(raw), LogSize: v.Log.Size, LogRoot: v.Log.Root}, nil
	}
	return api.FinalCheckpoint{}, errors.New("the machine did not come to rest")
}

func (n *Node) writeFinal(c api.FinalCheckpoint) error {
	signed, err := api.SignFinal(n.secrets.Identity(), c)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(n.cfg.DataDir, FinalFile(c.ServerID)), signed)
}

// snapshotBytes is the machine's state as its snapshot writes it.
func snapshotBytes(m *state.Machine) ([]byte, error) {
	w, err := m.Snapshot()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("node: snapshot of the state: %w", err)
	}
	return b.Bytes(), nil
}
