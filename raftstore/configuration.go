package raftstore

import "github.com/hashicorp/raft"

// ParseConfiguration reads a configuration as the log and snapshots hold it:
// the servers that count, and the nonvoters. For recovery; a running store
// knows its own, see Members.
func ParseConfiguration(raw []byte) ([]Member, error) {
	c, err := decodeConfiguration(raw)
	if err != nil {
		return nil, err
	}
	var list []Member
	for _, s := range c.Servers {
		id, addr, err := parseRaftAddress(s.Address)
		if err != nil {
			return nil, err
		}
		list = append(list, Member{ID: id, Address: addr, Voter: s.Suffrage == raft.Voter})
	}
	return list, nil
}
