package state

import (
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// frontier is the right edge of an RFC 6962 Merkle tree: the roots of the
// complete subtrees that the size decomposes into, largest first. It is all
// that a machine needs to append leaves and to prove the newest one.
type frontier struct {
	size  uint64
	peaks [][32]byte
}

// valid reports whether the number of peaks belongs to the size.
func (f frontier) valid() bool {
	return f.size <= maxLeaves && len(f.peaks) == bits.OnesCount64(f.size)
}

// maxLeaves keeps sizes within the signed arithmetic of verifiers.
const maxLeaves = 1<<62 - 1

// append returns the frontier with one leaf more and the inclusion proof of
// that leaf in the new tree. The left siblings of the newest leaf are exactly
// the peaks before it, smallest first.
func (f frontier) append(leaf [32]byte) (frontier, [][32]byte) {
	proof := slices.Clone(f.peaks)
	slices.Reverse(proof)
	peaks := slices.Clone(f.peaks)
	node := tlog.RecordHash(leaf[:])
	for range bits.TrailingZeros64(^f.size) {
		last := len(peaks) - 1
		node = tlog.NodeHash(peaks[last], node)
		peaks = peaks[:last]
	}
	return frontier{f.size + 1, append(peaks, node)}, proof
}

// root returns the tree head; zero for an empty tree, which is never signed.
func (f frontier) root() [32]byte {
	if len(f.peaks) == 0 {
		return [32]byte{}
	}
	node := tlog.Hash(f.peaks[len(f.peaks)-1])
	for _, peak := range slices.Backward(f.peaks[:len(f.peaks)-1]) {
		node = tlog.NodeHash(peak, node)
	}
	return node
}

// prefix returns the head that the tree had at an earlier size, for the few
// sizes that its peaks still show: those that a run of them adds up to.
func (f frontier) prefix(size uint64) ([32]byte, bool) {
	for n := range f.peaks {
		if n := n + 1; f.sum(n) == size {
			return frontier{size, f.peaks[:n]}.root(), true
		}
	}
	return [32]byte{}, false
}

// sum is how many leaves the first n peaks have: the n highest bits of the size.
func (f frontier) sum(n int) uint64 {
	rest := f.size
	for range len(f.peaks) - n {
		rest &= rest - 1
	}
	return rest
}
