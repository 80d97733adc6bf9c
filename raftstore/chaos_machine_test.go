package raftstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// The entries of the chaos: a register per key that is set or appended to, and
// who may have which slot.
const (
	opSet    byte = 's'
	opAppend byte = 'a'
	opAdmit  byte = 'm'
)

func kvEntry(op byte, key, value string) []byte {
	b := append([]byte{op, byte(len(key))}, key...)
	return append(b, value...)
}

func admitEntry(slot int, id ServerID) []byte { return append([]byte{opAdmit, byte(slot)}, id[:]...) }

var errSuperseded = errors.New("the slot has been given to a newer boot")

// chaosMachine is the replicated state, and tells the world what it applies.
type chaosMachine struct {
	w    *world
	self int

	mu       sync.Mutex
	index    uint64
	kv       map[string]string
	admitted map[int]ServerID
	former   map[ServerID]bool // of a slot that has been given away: they never come back
}

func newChaosMachine(w *world, self int) *chaosMachine {
	return &chaosMachine{w: w, self: self, kv: map[string]string{}, admitted: map[int]ServerID{}, former: map[ServerID]bool{}}
}

func (m *chaosMachine) Apply(index uint64, entry []byte) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.w.applies(m.self, index, entry)
	m.index = index
	if entry[0] == opAdmit {
		return m.admit(int(entry[1]), ServerID(entry[2:]))
	}
	key, value := string(entry[2:2+entry[1]]), string(entry[2+entry[1]:])
	if entry[0] == opAppend {
		value = m.kv[key] + value
	}
	m.kv[key] = value
	return value
}

func (m *chaosMachine) admit(slot int, id ServerID) any {
	old, taken := m.admitted[slot]
	switch {
	case m.former[id]:
		return errSuperseded
	case taken && old == id:
		return nil
	case taken:
		m.former[old] = true
	}
	m.admitted[slot] = id
	return nil
}

func (m *chaosMachine) get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kv[key]
}

func (m *chaosMachine) slots() map[int]ServerID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.admitted)
}

// state is the index of the last entry and a hash of everything.
func (m *chaosMachine) state() (uint64, [32]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index, sha256.Sum256(m.encode())
}

// encode needs mu.
func (m *chaosMachine) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, m.index)
	field := func(f string) { b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...) }
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.kv)))
	for _, k := range slices.Sorted(maps.Keys(m.kv)) {
		field(k)
		field(m.kv[k])
	}
	b = append(b, byte(len(m.admitted)))
	for _, s := range slices.Sorted(maps.Keys(m.admitted)) {
		id := m.admitted[s]
		b = append(append(b, byte(s)), id[:]...)
	}
	for _, id := range slices.SortedFunc(maps.Keys(m.former), func(a, b ServerID) int { return bytes.Compare(a[:], b[:]) }) {
		b = append(b, id[:]...)
	}
	return b
}

func (m *chaosMachine) Snapshot() (io.WriterTo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewBuffer(m.encode()), nil
}

func (m *chaosMachine) Restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	next := newChaosMachine(m.w, m.self)
	take := func(n int) []byte { f := b[:n]; b = b[n:]; return f }
	field := func() string { return string(take(int(binary.BigEndian.Uint16(take(2))))) }
	next.index = binary.BigEndian.Uint64(take(8))
	for range binary.BigEndian.Uint16(take(2)) {
		k := field()
		next.kv[k] = field()
	}
	for range take(1)[0] {
		slot := int(take(1)[0])
		next.admitted[slot] = ServerID(take(32))
	}
	for len(b) > 0 {
		next.former[ServerID(take(32))] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if next.index < m.index {
		m.w.violate("boot %d: its machine went back from index %d to %d", m.self, m.index, next.index)
	}
	m.w.stats.count("snapshot restored")
	m.index, m.kv, m.admitted, m.former = next.index, next.kv, next.admitted, next.former
	return nil
}

var errCrashed = errors.New("the machine is off")

// chaosDisk is an archive directory on a disk of the chaos: it can be slow, full,
// or of a machine that is off. What a recovery would find is kept.
type chaosDisk struct {
	stats *counters
	off   chan struct{} // closed by a crash

	mu      sync.Mutex
	records [][]byte // all of them, also those dropped
	synced  int      // so many are durable
	cut     int
	first   int
	full    bool
	dead    bool
	slow    time.Duration
}

func newChaosDisk(stats *counters) *chaosDisk {
	return &chaosDisk{stats: stats, off: make(chan struct{})}
}

// broken needs mu.
func (d *chaosDisk) broken() error {
	switch {
	case d.dead:
		return errCrashed
	case d.full:
		return errDisk
	}
	return nil
}

func (d *chaosDisk) Append(r []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.broken(); err != nil {
		return err
	}
	d.records = append(d.records, slices.Clone(r))
	return nil
}

func (d *chaosDisk) Sync() error {
	d.mu.Lock()
	slow, upTo := d.slow, len(d.records)
	d.mu.Unlock()
	if slow > 0 {
		d.stats.count("slow sync")
		select {
		case <-time.After(slow):
		case <-d.off:
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.broken(); err != nil {
		return err
	}
	d.synced = max(d.synced, upTo)
	return nil
}

func (d *chaosDisk) Cut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.broken(); err != nil {
		return err
	}
	d.cut = len(d.records)
	return nil
}

func (d *chaosDisk) Drop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.broken(); err != nil {
		return err
	}
	d.first = d.cut
	return nil
}

func (d *chaosDisk) Close() error { return nil }

func (d *chaosDisk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// crash switches the machine off: what waits for the disk fails, and what was
// not durable is lost.
func (d *chaosDisk) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.dead {
		d.dead = true
		close(d.off)
	}
}

// durable is what is on the disk from record number from on.
func (d *chaosDisk) durable(from int) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.records[min(from, d.synced):d.synced])
}

func (d *chaosDisk) String() string { return fmt.Sprintf("%d records", d.synced) }
