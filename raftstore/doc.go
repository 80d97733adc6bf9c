// Package raftstore replicates an opaque deterministic machine over
// hashicorp/raft under an adversary who owns the disk, the network and the
// clock. It owns replication and never meaning: entries are bytes, members are
// key hashes, and what either of them is for belongs to the caller.
//
// # One boot, one server
//
// A Store begins with no consensus state and never reads any from disk: its
// term, vote, log and snapshots are those of this boot, in memory. The identity
// is a key of this boot ([ServerID] is the SHA-256 of its public key), so a
// restarted machine is a different server that must be admitted again, and an
// old disk or a clone has nothing to act on. Every record is also written
// through, sealed and hash-chained, to an [Archive] that is write-only while
// the store runs; it serves recovery after a majority is lost and nothing else.
//
// # Use
//
//	s, err := raftstore.Open(raftstore.Config{…})
//	err = s.Genesis()                     // on the first node of a new cluster, once
//	index, result, err := s.Submit(ctx, entry) // on any member, through the leader; Propose is the leader's own
//	err = s.Read(ctx)                     // on any member: reads of the machine made after it are linearizable; SafeRead is the leader's own
//	go s.Serve(conn, peer)                // for each inbound authenticated channel
//
// # Guarantees and their conditions
//
// The caller authenticates channels: a [Dialer] returns a channel to exactly
// the identity asked for, and Serve is given one already authenticated as peer.
// The store checks every message against that identity. An archive that cannot
// be written stops the store, for good, before anything that depended on the
// write leaves it: see Err and Done; the process should live on, for what its
// memory holds. See DESIGN.md beside this file for the rules and their reasons.
package raftstore
