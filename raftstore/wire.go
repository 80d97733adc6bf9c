package raftstore

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// A frame is a 4-byte big-endian payload length, a type byte and the payload:
// CBOR with the request's fields in order. A snapshot is its request frame
// followed by chunk frames until Size bytes have been sent.
type frameType uint8

const (
	frameAppend     frameType = 1
	frameVote       frameType = 2
	framePreVote    frameType = 3
	frameSnapshot   frameType = 4
	frameTimeoutNow frameType = 5
	frameChunk      frameType = 6
	frameForward    frameType = 7    // proposals for the leader; a connection that carries one carries nothing else
	frameAsk        frameType = 8    // the read index is asked for
	frameReply      frameType = 0x40 // Term, LastLog, Success, NoRetryBackoff or Granted
	frameRefusal    frameType = 0x41 // one byte: why
	frameOutcome    frameType = 0x42 // answers frameForward
	frameIndex      frameType = 0x43 // answers frameAsk
)

// Refusals are codes: raft gives meaning to some error texts, so no text of a peer may reach it.
const (
	refusedPeer   byte = 1
	refusedFailed byte = 2
)

func maxPayload(t frameType) int {
	switch t {
	case frameAppend:
		return maxAppendFrame
	case frameSnapshot:
		return maxSnapshotFrame
	case frameChunk:
		return chunkSize
	case frameForward:
		return maxForwardFrame
	case frameVote, framePreVote, frameTimeoutNow, frameAsk, frameReply, frameRefusal, frameOutcome, frameIndex:
		return maxSmallFrame
	}
	return -1
}

func writeFrame(w *bufio.Writer, t frameType, payload []byte) error {
	if len(payload) > maxPayload(t) {
		return fmt.Errorf("raftstore: frame type %d with %d bytes is over its limit", t, len(payload))
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(payload)))
	head[4] = byte(t)
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

// readFrame bounds the length by the frame's type and takes memory as bytes
// arrive, so that a claimed length alone costs nothing. onHead runs between
// header and payload, to set the deadline.
func readFrame(r *bufio.Reader, onHead func(n int)) (frameType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n, t := int64(binary.BigEndian.Uint32(head[:])), frameType(head[4])
	limit := maxPayload(t)
	if limit < 0 {
		return 0, nil, fmt.Errorf("%w: unknown frame type %d", ErrPeer, t)
	}
	if n > int64(limit) {
		return 0, nil, fmt.Errorf("%w: frame type %d claims %d bytes, the limit is %d", ErrPeer, t, n, limit)
	}
	if onHead != nil {
		onHead(int(n))
	}
	payload, err := readGrowing(r, int(n))
	return t, payload, err
}

func readGrowing(r io.Reader, n int) ([]byte, error) {
	buf := make([]byte, 0, min(n, chunkSize))
	for len(buf) < n {
		step := min(n-len(buf), max(len(buf), chunkSize))
		start := len(buf)
		buf = append(buf, make([]byte, step)...)
		if _, err := io.ReadFull(r, buf[start:]); err != nil {
			return nil, fmt.Errorf("%w: truncated frame: %w", ErrPeer, err)
		}
	}
	return buf, nil
}

type wireHeader struct {
	_       struct{} `cbor:",toarray"`
	Version uint8
	ID      []byte
	Addr    []byte
}

type wireEntry struct {
	_     struct{} `cbor:",toarray"`
	Index uint64
	Term  uint64
	Type  uint8
	Data  []byte
}

type wireAppend struct {
	_         struct{} `cbor:",toarray"`
	Header    wireHeader
	Term      uint64
	PrevIndex uint64
	PrevTerm  uint64
	Commit    uint64
	Entries   []wireEntry
}

// wireVote is a vote, a pre-vote (Transfer unused) or a TimeoutNow (header only).
type wireVote struct {
	_         struct{} `cbor:",toarray"`
	Header    wireHeader
	Term      uint64
	LastIndex uint64
	LastTerm  uint64
	Transfer  bool
}

type wireSnapshot struct {
	_           struct{} `cbor:",toarray"`
	Header      wireHeader
	Term        uint64
	LastIndex   uint64
	LastTerm    uint64
	Config      []byte
	ConfigIndex uint64
	Size        int64
}

// wireReply answers every request; OK is Success or Granted. It carries no
// identity: the channel it came through is the identity.
type wireReply struct {
	_              struct{} `cbor:",toarray"`
	Term           uint64
	LastLog        uint64
	OK             bool
	NoRetryBackoff bool
}

func toWireHeader(h raft.RPCHeader) wireHeader {
	return wireHeader{Version: uint8(h.ProtocolVersion), ID: h.ID, Addr: h.Addr}
}

// check is the rule that a message's header must be the channel's identity.
func (h wireHeader) check(peer ServerID) (raft.RPCHeader, error) {
	if h.Version != uint8(raft.ProtocolVersionMax) {
		return raft.RPCHeader{}, fmt.Errorf("%w: raft protocol version %d", ErrPeer, h.Version)
	}
	if string(h.ID) != peer.String() {
		return raft.RPCHeader{}, fmt.Errorf("%w: the header names another server than the channel", ErrPeer)
	}
	if id, _, err := parseRaftAddress(raft.ServerAddress(h.Addr)); err != nil || id != peer {
		return raft.RPCHeader{}, fmt.Errorf("%w: the header's address belongs to another server than the channel", ErrPeer)
	}
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: h.ID, Addr: h.Addr}, nil
}

func encodeAppend(a *raft.AppendEntriesRequest) ([]byte, error) {
	w := wireAppend{Header: toWireHeader(a.RPCHeader), Term: a.Term, PrevIndex: a.PrevLogEntry,
		PrevTerm: a.PrevLogTerm, Commit: a.LeaderCommitIndex, Entries: make([]wireEntry, len(a.Entries))}
	for i, e := range a.Entries {
		w.Entries[i] = wireEntry{Index: e.Index, Term: e.Term, Type: uint8(e.Type), Data: e.Data}
	}
	return encMode.Marshal(&w)
}

// decodeAppend refuses what raft would panic on or store unchecked, and clamps
// the commit index to what this very request vouches for: a follower must not
// commit entries it holds beyond the ones the leader has just matched.
func decodeAppend(payload []byte, peer ServerID) (*raft.AppendEntriesRequest, error) {
	var w wireAppend
	if err := unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("%w: append entries: %w", ErrPeer, err)
	}
	h, err := w.Header.check(peer)
	if err != nil {
		return nil, err
	}
	if len(w.Entries) > maxAppendEntries {
		return nil, fmt.Errorf("%w: %d entries in one request", ErrPeer, len(w.Entries))
	}
	a := &raft.AppendEntriesRequest{RPCHeader: h, Term: w.Term, Leader: h.Addr, PrevLogEntry: w.PrevIndex, PrevLogTerm: w.PrevTerm}
	term := w.PrevTerm
	for i, e := range w.Entries {
		if e.Index != w.PrevIndex+1+uint64(i) || e.Index <= w.PrevIndex || e.Term < term || e.Term > w.Term {
			return nil, fmt.Errorf("%w: entry %d does not follow the one before it", ErrPeer, e.Index)
		}
		if err := checkEntry(e); err != nil {
			return nil, err
		}
		term = e.Term
		a.Entries = append(a.Entries, &raft.Log{Index: e.Index, Term: e.Term, Type: raft.LogType(e.Type), Data: e.Data})
	}
	a.LeaderCommitIndex = min(w.Commit, w.PrevIndex+uint64(len(w.Entries)))
	return a, nil
}

func checkEntry(e wireEntry) error {
	switch raft.LogType(e.Type) {
	case raft.LogCommand:
		if len(e.Data) == 0 || len(e.Data) > MaxEntry {
			return fmt.Errorf("%w: entry %d has %d bytes", ErrPeer, e.Index, len(e.Data))
		}
		return nil
	case raft.LogNoop, raft.LogBarrier:
		if len(e.Data) != 0 {
			return fmt.Errorf("%w: entry %d carries data it may not have", ErrPeer, e.Index)
		}
		return nil
	case raft.LogConfiguration:
		_, err := decodeConfiguration(e.Data)
		return err
	}
	return fmt.Errorf("%w: entry %d has the unknown type %d", ErrPeer, e.Index, e.Type)
}

// decodeConfiguration is raft's decoder without its panic, followed by the rules of ours.
func decodeConfiguration(data []byte) (c raft.Configuration, err error) {
	if len(data) == 0 || len(data) > maxConfigSize {
		return c, fmt.Errorf("%w: a configuration of %d bytes", ErrPeer, len(data))
	}
	defer func() {
		if r := recover(); r != nil {
			c, err = raft.Configuration{}, fmt.Errorf("%w: malformed configuration", ErrPeer)
		}
	}()
	c = raft.DecodeConfiguration(data)
	if len(c.Servers) == 0 || len(c.Servers) > MaxServers {
		return raft.Configuration{}, fmt.Errorf("%w: a configuration of %d servers", ErrPeer, len(c.Servers))
	}
	seen, voters := map[ServerID]bool{}, 0
	for _, s := range c.Servers {
		id, _, err := parseRaftAddress(s.Address)
		if err != nil || id.raftID() != s.ID || seen[id] || s.Suffrage > raft.Nonvoter {
			return raft.Configuration{}, fmt.Errorf("%w: malformed server in a configuration", ErrPeer)
		}
		seen[id] = true
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if voters == 0 {
		return raft.Configuration{}, fmt.Errorf("%w: a configuration without a voter", ErrPeer)
	}
	return c, nil
}

func decodeVote(payload []byte, peer ServerID) (raft.RPCHeader, wireVote, error) {
	var w wireVote
	if err := unmarshal(payload, &w); err != nil {
		return raft.RPCHeader{}, w, fmt.Errorf("%w: vote: %w", ErrPeer, err)
	}
	h, err := w.Header.check(peer)
	return h, w, err
}

func decodeSnapshot(payload []byte, peer ServerID) (*raft.InstallSnapshotRequest, error) {
	var w wireSnapshot
	if err := unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("%w: install snapshot: %w", ErrPeer, err)
	}
	h, err := w.Header.check(peer)
	if err != nil {
		return nil, err
	}
	if w.Size < 0 || w.Size > MaxSnapshot {
		return nil, fmt.Errorf("%w: a snapshot of %d bytes", ErrPeer, w.Size)
	}
	if w.LastTerm > w.Term || w.ConfigIndex > w.LastIndex || w.LastIndex == 0 {
		return nil, fmt.Errorf("%w: a snapshot from the future", ErrPeer)
	}
	if _, err := decodeConfiguration(w.Config); err != nil {
		return nil, err
	}
	return &raft.InstallSnapshotRequest{RPCHeader: h, SnapshotVersion: 1, Term: w.Term, Leader: h.Addr,
		LastLogIndex: w.LastIndex, LastLogTerm: w.LastTerm, Configuration: w.Config, ConfigurationIndex: w.ConfigIndex, Size: w.Size}, nil
}
