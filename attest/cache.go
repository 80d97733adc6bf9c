package attest

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/claviger/claviger/attest/pck"
)

// ways is how many entries share one slot of a cache. A lookup compares with at most that many.
const ways = 8

// content is what an entry is for: byte strings, compared one by one and in full. Unused ones are nil.
type content [5][]byte

// cache maps content to what was verified of that content. It holds a fixed number of entries, never answers for other
// bytes than those it was given (a hash only chooses where to look), reads without locks, and forgets the entries that were
// not asked for lately when there is no room. Callers put only what they have verified, and check at every hit whatever
// depends on the time or on other content. A nil cache is empty and takes nothing.
type cache[V any] struct {
	seed   maphash.Seed
	slots  [][ways]atomic.Pointer[entry[V]]
	limit  int // bytes of content; what is larger is not kept
	hits   atomic.Uint64
	misses atomic.Uint64

	mu      sync.Mutex // guards writes to slots, and the fields below
	size    int
	evicted uint64
}

type entry[V any] struct {
	hash  uint64
	key   content
	value V
	used  atomic.Bool // since the last search for room
}

// newCache returns a cache of at least the given number of entries, nil if it is negative.
func newCache[V any](entries, limit int) *cache[V] {
	if entries < 0 {
		return nil
	}
	slots := 1
	for slots*ways < entries {
		slots *= 2
	}
	return &cache[V]{seed: maphash.MakeSeed(), slots: make([][ways]atomic.Pointer[entry[V]], slots), limit: limit}
}

// hash chooses a slot. Of a long part only the length and the end count, where signatures stand: reading it all would cost as
// much as comparing. Content that was made to share a slot can only displace other content.
func (c *cache[V]) hash(key *content) uint64 {
	const whole, end = 4 << 10, 256
	h := uint64(0)
	for _, part := range key {
		n := uint64(len(part))
		if len(part) > whole {
			part = part[len(part)-end:]
		}
		h = h*0x9e3779b97f4a7c15 + maphash.Bytes(c.seed, part) + n
	}
	return h ^ h>>32
}

func (k *content) equal(other *content) bool {
	for i := range k {
		if !bytes.Equal(k[i], other[i]) {
			return false
		}
	}
	return true
}

// get returns what is known about exactly this content.
func (c *cache[V]) get(key content) (value V, ok bool) {
	if c == nil {
		return value, false
	}
	h := c.hash(&key)
	slot := &c.slots[h%uint64(len(c.slots))]
	for i := range slot {
		if e := slot[i].Load(); e != nil && e.hash == h && e.key.equal(&key) {
			if !e.used.Load() { // written once and not at every hit, so that processors share the line
				e.used.Store(true)
			}
			c.hits.Add(1)
			return e.value, true
		}
	}
	c.misses.Add(1)
	return value, false
}

// put keeps value for the content, of which it makes a copy: callers may change theirs.
func (c *cache[V]) put(key content, value V) {
	if c == nil {
		return
	}
	total := 0
	for _, part := range key {
		total += len(part)
	}
	if total > c.limit {
		return
	}
	e := &entry[V]{hash: c.hash(&key), value: value}
	for i, part := range key {
		e.key[i] = bytes.Clone(part)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := &c.slots[e.hash%uint64(len(c.slots))]
	room := -1
	for i := range slot {
		switch old := slot[i].Load(); {
		case old == nil:
			room = i
		case old.hash == e.hash && old.key.equal(&e.key):
			return // another goroutine was first
		}
	}
	if room >= 0 {
		c.size++
	} else {
		room = victim(slot, c.evicted)
		c.evicted++
	}
	slot[room].Store(e)
}

// victim chooses the entry of a full slot that makes room: one that was not used since the last search, else any. Searches
// start at different places, so that a new entry is not the first to go.
func victim[V any](slot *[ways]atomic.Pointer[entry[V]], start uint64) int {
	found := -1
	for n := range uint64(ways) {
		i := int((start + n) % ways)
		if !slot[i].Load().used.Swap(false) && found < 0 {
			found = i
		}
	}
	if found < 0 {
		found = int(start % ways)
	}
	return found
}

// CacheStats describes one cache of a Verifier.
type CacheStats struct {
	Hits, Misses uint64 // lookups since the verifier was made
	Evictions    uint64 // entries that made room for others
	Entries      int    // now
	Capacity     int    // most entries; 0 for a cache that is switched off
}

func (c *cache[V]) stats() CacheStats {
	if c == nil {
		return CacheStats{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return CacheStats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Evictions: c.evicted, Entries: c.size, Capacity: len(c.slots) * ways,
	}
}

// Caches bounds what a Verifier remembers, in entries. Zero means the default; a negative number switches a cache off.
type Caches struct {
	Collateral int // whole sets; 64. A set takes some 100 KiB, at most 512 KiB
	Lists      int // revocation lists; 32. A list takes some 20 KiB, at most 256 KiB
	Chains     int // PCK chains: platforms; 2048. A chain takes some 12 KiB, at most 24 KiB
	QE         int // quoting enclaves with their attestation keys: two for a platform with SGX and TDX; 4096 of 2 KiB
}

// What is larger than this many bytes is verified and not remembered; see Caches for what genuine content takes.
const (
	maxKeptSet   = 160 << 10
	maxKeptList  = MaxCRL
	maxKeptChain = 8 << 10
	maxKeptQE    = 2 << 10
)

// known is all that a Verifier remembers, each by its content. Nothing in it was not verified under the verifier's root.
type known struct {
	collateral *cache[*collateralSet]
	lists      *cache[*pck.CRL]
	chains     *cache[*pck.Chain]
	qe         *cache[*qeHalf] // the content includes the PCK key that signed
}

func (c Caches) make() known {
	return known{
		collateral: newCache[*collateralSet](cmp.Or(c.Collateral, 64), maxKeptSet),
		lists:      newCache[*pck.CRL](cmp.Or(c.Lists, 32), maxKeptList),
		chains:     newCache[*pck.Chain](cmp.Or(c.Chains, 2048), maxKeptChain),
		qe:         newCache[*qeHalf](cmp.Or(c.QE, 4096), maxKeptQE),
	}
}

// Stats are the counters of a Verifier's caches.
type Stats struct {
	Collateral   CacheStats // whole sets
	Lists        CacheStats // revocation lists; not asked when the whole set is known
	Chains       CacheStats // PCK chains
	QE           CacheStats // quoting enclaves
	Certificates int        // of authorities, remembered
}

// Stats returns the counters of the caches. They are read one by one, not at one instant.
func (v *Verifier) Stats() Stats {
	if v == nil || v.store == nil {
		return Stats{}
	}
	return Stats{
		Collateral: v.known.collateral.stats(), Lists: v.known.lists.stats(), Chains: v.known.chains.stats(),
		QE: v.known.qe.stats(), Certificates: v.store.Len(),
	}
}
