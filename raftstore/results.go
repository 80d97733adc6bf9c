package raftstore

import (
	"cmp"
	"slices"
	"sync"
)

// maxCandidates bounds the results kept for one content that was submitted
// here. More than one exists only where equal entries are in the log, from here
// or from elsewhere; as many as may wait here are never too many.
const maxCandidates = maxPending

// results keeps what Apply returned for entries that are being submitted here,
// until their submitters have it. The leader says where an entry was committed;
// whether it is this entry, with these bytes, is looked up here.
type results struct {
	mu     sync.Mutex
	wanted map[[32]byte]*wanted // by the SHA-256 of the entry
}

type wanted struct {
	submitters int
	found      []found // by index, until their submitters have taken them
}

type found struct {
	index, term uint64
	result      any
}

// want keeps results of entries with this hash from now on, until the returned
// function has been called.
func (r *results) want(hash [32]byte) (enough func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wanted == nil {
		r.wanted = map[[32]byte]*wanted{}
	}
	w := r.wanted[hash]
	if w == nil {
		w = &wanted{}
		r.wanted[hash] = w
	}
	w.submitters++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if w.submitters--; w.submitters == 0 {
			delete(r.wanted, hash)
		}
	}
}

// applied notes a result, if anybody wants it.
func (r *results) applied(hash [32]byte, index, term uint64, result any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.wanted[hash]
	if w == nil {
		return
	}
	if len(w.found) == maxCandidates {
		w.found = slices.Delete(w.found, 0, 1) // of a submitter that has gone, or of another server's entry
	}
	w.found = append(w.found, found{index, term, result})
}

// take is the result of the entry with this hash at index, if it has this term.
// It is there for one submitter only: no two have one entry.
func (r *results) take(hash [32]byte, index, term uint64) (any, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.wanted[hash]
	if w == nil {
		return nil, false
	}
	i, ok := slices.BinarySearchFunc(w.found, index, func(f found, index uint64) int { return cmp.Compare(f.index, index) })
	if !ok || w.found[i].term != term {
		return nil, false
	}
	result := w.found[i].result
	w.found = slices.Delete(w.found, i, i+1)
	return result, true
}
