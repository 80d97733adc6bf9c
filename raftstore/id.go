package raftstore

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/hashicorp/raft"
)

// ServerID names one boot of one server: the SHA-256 of the SubjectPublicKeyInfo
// of a key made in that boot. The zero value names nobody and is refused.
type ServerID [32]byte

// String is 64 lower-case hexadecimal digits.
func (id ServerID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names nobody.
func (id ServerID) IsZero() bool { return id == ServerID{} }

func (id ServerID) short() string { return hex.EncodeToString(id[:6]) }

func (id ServerID) raftID() raft.ServerID { return raft.ServerID(id.String()) }

// ParseServerID reads the form of String, and only that.
func ParseServerID(s string) (ServerID, error) {
	var id ServerID
	if len(s) != 64 || s != strings.ToLower(s) {
		return ServerID{}, fmt.Errorf("%w: a server id is 64 lower-case hexadecimal digits", ErrPeer)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ServerID{}, fmt.Errorf("%w: a server id is 64 lower-case hexadecimal digits", ErrPeer)
	}
	if id.IsZero() {
		return ServerID{}, fmt.Errorf("%w: the zero server id", ErrPeer)
	}
	return id, nil
}

// raftAddress is the address raft sees. It carries the identity, because raft
// records votes and compares leaders by address: two boots that listen at one
// host and port must not be one candidate.
func raftAddress(id ServerID, addr string) raft.ServerAddress {
	return raft.ServerAddress(id.String() + "@" + addr)
}

func parseRaftAddress(a raft.ServerAddress) (ServerID, string, error) {
	s := string(a)
	if len(s) < 66 || len(s) > 65+MaxAddress || s[64] != '@' {
		return ServerID{}, "", fmt.Errorf("%w: malformed member address", ErrPeer)
	}
	id, err := ParseServerID(s[:64])
	if err != nil {
		return ServerID{}, "", err
	}
	return id, s[65:], nil
}
