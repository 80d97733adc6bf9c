package raftstore

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// Member is a server of the configuration.
type Member struct {
	ID      ServerID
	Address string // as given when it was added
	Voter   bool
}

// members is the committed configuration and who has ever been in one. An
// identity lives one boot and never comes back, so one that was seen and is
// gone is refused for ever. One never seen is not refused here: a lagging
// member must hear from a leader that was added after its last entry, and the
// caller has already seen that leader's membership statement.
type members struct {
	mu      sync.Mutex
	index   uint64
	current []Member
	seen    map[ServerID]bool // true while in the configuration
	changed chan struct{}     // closed and replaced at every update
	onGone  func(ServerID)    // drops the connections of a removed server
	log     *slog.Logger      // nil: nothing is logged
}

func newMembers(onGone func(ServerID)) *members {
	return &members{seen: map[ServerID]bool{}, changed: make(chan struct{}), onGone: onGone}
}

func (m *members) update(index uint64, c raft.Configuration) {
	list, gone := m.replace(index, c)
	for _, id := range gone {
		m.onGone(id)
	}
	if m.log != nil && list != nil {
		m.log.Info("the configuration has changed", "index", index, "members", describe(list), "gone", describeIDs(gone))
	}
}

// describe names members for the log: v for a voter, n for a nonvoter.
func describe(list []Member) []string {
	var out []string
	for _, m := range list {
		kind := "n:"
		if m.Voter {
			kind = "v:"
		}
		out = append(out, kind+m.ID.short())
	}
	return out
}

func describeIDs(list []ServerID) []string {
	var out []string
	for _, id := range list {
		out = append(out, id.short())
	}
	return out
}

// replace ignores an older configuration: a snapshot may be finished after its
// configuration has been superseded.
func (m *members) replace(index uint64, c raft.Configuration) (list []Member, gone []ServerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.index {
		return nil, nil
	}
	m.index, m.current = index, nil
	now := map[ServerID]bool{}
	for _, s := range c.Servers {
		id, addr, err := parseRaftAddress(s.Address)
		if err != nil || id.raftID() != s.ID {
			continue // cannot happen: configurations are checked before they enter the log
		}
		now[id] = true
		m.current = append(m.current, Member{ID: id, Address: addr, Voter: s.Suffrage == raft.Voter})
	}
	for id, in := range m.seen {
		if in && !now[id] {
			gone = append(gone, id)
			m.seen[id] = false
		}
	}
	for id := range now {
		m.seen[id] = true
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return slices.Clone(m.current), gone
}

func (m *members) removed(id ServerID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	in, seen := m.seen[id]
	return seen && !in
}

func (m *members) list() ([]Member, uint64, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Member(nil), m.current...), m.index, m.changed
}
