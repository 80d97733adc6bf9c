package raftstore

import "time"

// Every bound of the package, in bytes unless the name says otherwise.
const (
	// MaxEntry bounds one proposed entry.
	MaxEntry = 256 << 10
	// MaxSnapshot bounds a snapshot that this store accepts from a leader. It is
	// held in memory whole before it is installed, so that heartbeats are
	// answered while it streams.
	MaxSnapshot = 256 << 20
	// MaxAddress bounds a member's network address.
	MaxAddress = 256
	// MaxServers bounds the servers of a configuration, nonvoters included.
	MaxServers = 64

	maxAppendEntries = 64 // entries in one AppendEntries request
	maxAppendFrame   = maxAppendEntries*(MaxEntry+64) + 4096
	maxConfigSize    = 64 << 10
	maxSmallFrame    = 4 << 10 // votes, leadership transfer, replies
	maxSnapshotFrame = maxConfigSize + 4096
	chunkSize        = 64 << 10

	maxForwardEntries   = 64      // proposals in one frame to the leader
	maxForwardBytes     = 1 << 20 // and their bytes
	maxForwardFrame     = maxForwardBytes + maxForwardEntries*16 + maxSmallFrame
	maxForwardsInFlight = 8        // frames that await their outcome
	maxPending          = 4096     // proposals that a follower has taken and not answered
	maxPendingBytes     = 32 << 20 // and their bytes

	maxUncommitted      = 1 << 14  // entries of a leader that are not committed; up to maxAppendEntries more are in raft's hands
	maxUncommittedBytes = 64 << 20 // and their bytes

	maxIdlePerPeer    = 4  // pooled outbound connections to one peer
	maxInboundPerPeer = 16 // inbound connections from one peer
)

// Timeouts are the times of replication. A zero field takes its default.
// No safety decision depends on any of them.
type Timeouts struct {
	Heartbeat time.Duration // follower without contact before it campaigns; default 200 ms
	Election  time.Duration // candidate before it campaigns again; default 200 ms
	Lease     time.Duration // leader without a majority before it steps down; default 150 ms
	Commit    time.Duration // idle time before followers are told the commit index; default 20 ms
	RPC       time.Duration // one request and its reply, dialling excluded; default 1 s, plus 1 s per MiB sent
	Dial      time.Duration // an outbound channel, attestation included; default 3 s
	Disk      time.Duration // leader's one write of entries before it falls silent and another one is elected; default 3 s
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&t.Heartbeat, 200*time.Millisecond)
	set(&t.Election, 200*time.Millisecond)
	set(&t.Lease, 150*time.Millisecond)
	set(&t.Commit, 20*time.Millisecond)
	set(&t.RPC, time.Second)
	set(&t.Dial, 3*time.Second)
	set(&t.Disk, 3*time.Second)
	return t
}

// Compaction says when the log in memory is cut. A zero field takes its default.
type Compaction struct {
	Threshold uint64        // entries since the last snapshot; default 8192
	Trailing  uint64        // entries kept behind a snapshot for slow followers; default 4096
	Interval  time.Duration // between looks at the threshold; default 10 s
}

func (c Compaction) withDefaults() Compaction {
	if c.Threshold == 0 {
		c.Threshold = 8192
	}
	if c.Trailing == 0 {
		c.Trailing = 4096
	}
	if c.Interval == 0 {
		c.Interval = 10 * time.Second
	}
	return c
}
