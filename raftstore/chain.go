package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const chainLabel = "claviger/chain/v1"

// ExtendChain is the running hash after the command data, which the log has at
// index in term, when it was h before; it begins as zero. The term of the log
// is part of it, so that two servers with one hash have one log, and not only
// one sequence of commands:
//
//	SHA-256("claviger/chain/v1" ‖ 0 ‖ h ‖ index ‖ term ‖ SHA-256(data))
//
// Commands alone are in it, the entries that reach Machine.Apply; numbers are
// eight bytes, big endian.
func ExtendChain(h [32]byte, index, term uint64, data []byte) [32]byte {
	return extendChain(h, index, term, sha256.Sum256(data))
}

func extendChain(h [32]byte, index, term uint64, sum [32]byte) [32]byte {
	b := make([]byte, 0, len(chainLabel)+1+32+8+8+32)
	b = append(b, chainLabel...)
	b = append(b, 0)
	b = append(b, h[:]...)
	b = binary.BigEndian.AppendUint64(b, index)
	b = binary.BigEndian.AppendUint64(b, term)
	return sha256.Sum256(append(b, sum[:]...))
}

// Chain is the index of the last entry or configuration applied here, as
// AppliedIndex has it, and the running hash over all commands up to it (see
// ExtendChain). Servers of one epoch with equal indexes have equal hashes; the
// entry that halted a machine is not in it.
func (s *Store) Chain() (index uint64, hash [32]byte) { return s.fsm.progress.get() }

var snapshotMagic = [8]byte{'c', 'l', 'v', 's', 'n', 'a', 'p', '2'}

// SnapshotHeaderSize is how many bytes come before the machine's state in a
// snapshot as it is sent and archived: the magic "clvsnap2", the applied index
// and the running hash at it.
const SnapshotHeaderSize = len(snapshotMagic) + 8 + 32

// ParseSnapshotHeader reads the header that a snapshot begins with: what
// Store.Chain said when it was taken. Bytes behind the header are not looked
// at. A snapshot of another format is an ErrPeer.
func ParseSnapshotHeader(b []byte) (applied uint64, chain [32]byte, err error) {
	if len(b) < SnapshotHeaderSize {
		return 0, chain, fmt.Errorf("%w: a snapshot of %d bytes has no header", ErrPeer, len(b))
	}
	if [8]byte(b[:8]) != snapshotMagic {
		return 0, chain, fmt.Errorf("%w: the snapshot is of another format", ErrPeer)
	}
	return binary.BigEndian.Uint64(b[8:16]), [32]byte(b[16:SnapshotHeaderSize]), nil
}

func snapshotHeader(applied uint64, chain [32]byte) []byte {
	b := make([]byte, 0, SnapshotHeaderSize)
	b = append(b, snapshotMagic[:]...)
	b = binary.BigEndian.AppendUint64(b, applied)
	return append(b, chain[:]...)
}
