package state

import (
	"iter"
	"slices"
)

// pageSize bounds a page of sets.
const pageSize = 32

// sets is the replicated collateral, sorted by key, in pages that never change
// in place: a new set copies one page and the list of pages, and whoever holds
// an older value keeps all of it. That is what makes a snapshot free.
type sets struct {
	pages [][]Collateral // none is empty
	n     int
}

// find returns where key is, or belongs.
func (s sets) find(key CollateralKey) (page, at int, found bool) {
	page, _ = slices.BinarySearchFunc(s.pages, key, func(p []Collateral, k CollateralKey) int {
		return compareKeys(p[len(p)-1].Key, k)
	})
	if page == len(s.pages) {
		if page == 0 {
			return 0, 0, false
		}
		return page - 1, len(s.pages[page-1]), false
	}
	at, found = slices.BinarySearchFunc(s.pages[page], key, func(c Collateral, k CollateralKey) int { return compareKeys(c.Key, k) })
	return page, at, found
}

func (s sets) get(key CollateralKey) (Collateral, bool) {
	page, at, ok := s.find(key)
	if !ok {
		return Collateral{}, false
	}
	return s.pages[page][at], true
}

// current reports whether version, from 1, is the one in force for key.
func (s sets) current(key CollateralKey, version uint64) bool {
	c, ok := s.get(key)
	return ok && c.Version == version
}

// put returns the sets with c in place of what its key had.
func (s sets) put(c Collateral) sets {
	page, at, found := s.find(c.Key)
	pages := slices.Clone(s.pages)
	if len(pages) == 0 {
		return sets{[][]Collateral{{c}}, 1}
	}
	p := slices.Clone(pages[page])
	if found {
		p[at] = c
		pages[page] = p
		return sets{pages, s.n}
	}
	p = slices.Insert(p, at, c)
	pages[page] = p
	if half := len(p) / 2; len(p) > pageSize {
		pages[page] = slices.Clone(p[:half])
		pages = slices.Insert(pages, page+1, slices.Clone(p[half:]))
	}
	return sets{pages, s.n + 1}
}

func (s sets) all() iter.Seq[Collateral] {
	return func(yield func(Collateral) bool) {
		for _, p := range s.pages {
			for _, c := range p {
				if !yield(c) {
					return
				}
			}
		}
	}
}
