package state

import (
	"fmt"
	"slices"
)

// MaxGenerations bounds the root generations of a cluster.
const MaxGenerations = 256

// CommitRoots fixes, for ever, which root each generation is: a root itself is
// never in the state, its id is, which follows from it and gives nothing of it
// away (kds.Secrets.GenerationIDs). Numbers alone do not tell roots apart: two
// recoveries that both go on from before an epoch make the same number twice.
//
// It comes before the first admission of an epoch. In a cluster that was founded
// below its level it comes when the level has been raised.
type CommitRoots struct {
	_     struct{} `cbor:",toarray"`
	Epoch uint64
	IDs   [][32]byte // by generation, from 1: all that there are, distinct
}

// Committed is the result of CommitRoots.
type Committed struct{ Generation uint64 }

func (*CommitRoots) kind() uint64  { return kindCommitRoots }
func (*CommitRoots) needs() uint64 { return LevelRoots }

func (e *CommitRoots) check() error {
	if e.Epoch == 0 || len(e.IDs) == 0 {
		return fmt.Errorf("%w: epochs and generations count from 1", ErrEntry)
	}
	if err := checkIDs(e.IDs); err != nil {
		return fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return nil
}

// checkIDs wants ids to tell roots apart.
func checkIDs(list [][32]byte) error {
	if len(list) > MaxGenerations {
		return fmt.Errorf("%d root generations, at most %d", len(list), MaxGenerations)
	}
	for i, id := range list {
		if id == [32]byte{} || slices.Contains(list[:i], id) {
			return fmt.Errorf("the id of root generation %d is zero, or another's", i+1)
		}
	}
	return nil
}

// commit takes the ids of generations that have none yet; those that have one
// keep it. The same again changes nothing.
func (d *data) commit(e *CommitRoots) (any, error) {
	switch {
	case e.Epoch != d.epoch:
		return nil, ErrEpoch
	case uint64(len(e.IDs)) != d.generation:
		return nil, fmt.Errorf("%w: %d ids for %d generations", ErrGeneration, len(e.IDs), d.generation)
	case !slices.Equal(e.IDs[:len(d.roots)], d.roots):
		return nil, ErrRoots
	}
	d.roots = e.IDs
	return Committed{d.generation}, nil
}

// uncommitted reports whether a generation has no id yet where it must have one:
// nobody is given its root, and no key of it, before.
func (d *data) uncommitted() bool {
	return d.level >= LevelRoots && uint64(len(d.roots)) < d.generation
}
