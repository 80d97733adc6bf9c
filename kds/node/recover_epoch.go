package node

import (
	"fmt"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

// codeRecovered refuses raft/1 to a server of an epoch that has ended.
const codeRecovered ratls.Code = "recovered"

// checkEnded tells a server of an earlier epoch, which the identity key vouches
// for, what has happened. It may be one of an old majority that somebody kept
// alive behind a partition: it has no vote here, and its log is not ours.
func checkEnded(m *membership, st *api.NodeStatement, peer [32]byte) error {
	if st.Membership.Epoch >= m.Epoch {
		return nil
	}
	if _, err := st.Verify(m.clusterID, 1, peer); err != nil {
		return fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	return &ratls.RefusedError{Code: codeRecovered, Message: fmt.Sprintf(
		"%v: the cluster was recovered into epoch %d, and epoch %d has ended; stop this node, and start it again to join the new epoch",
		ErrNotMember, m.Epoch, st.Membership.Epoch)}
}
