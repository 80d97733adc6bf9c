package raftstore

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// dialsOf has a network for each peer; all others cannot be reached.
type dialsOf map[ServerID]Dialer

func (d dialsOf) Dial(ctx context.Context, id ServerID, addr string) (net.Conn, error) {
	if to := d[id]; to != nil {
		return to.Dial(ctx, id, addr)
	}
	return nil, errors.New("unreachable")
}

// heldBack is a follower who gives a pre-vote whose arrival the host holds back, and then its vote; nobody else is
// heard. The victim has 3 in its configuration, and the leader is the puppet's boss.
func heldBack(t *testing.T) (p *puppet, release chan struct{}) {
	release = make(chan struct{})
	follower := answering(func(ft frameType) (frameType, []byte) {
		if ft == framePreVote {
			<-release
		}
		return frameReply, mustMarshal(t, &wireReply{Term: 4, OK: ft == frameVote || ft == framePreVote})
	})
	p = &puppet{t: t, boss: ServerID{7}}
	p.n = &testNode{id: ServerID{1}, addr: "v:1", machine: &listMachine{}, key: testKey(t)}
	var err error
	// A thread of the victim that the host stops: its timer for the election does not end.
	p.n.Store, err = Open(Config{ID: p.n.id, Address: p.n.addr, ClusterID: [32]byte{1}, Epoch: 1, Machine: p.n.machine,
		Dialer: dialsOf{ServerID{8}: follower}, Archive: &memArchive{}, ArchiveKey: p.n.key, Logger: testLogger(),
		Timeouts: Timeouts{Heartbeat: time.Minute, Election: time.Hour, RPC: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.n.Shutdown() })
	p.conf = p.configuration(8)
	if rep := p.append(wireAppend{Term: 3, Entries: []wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}}); !rep.OK {
		t.Fatal("the configuration was refused")
	}
	eventuallyWithin(t, time.Hour, "a candidate", func() bool { return p.n.raft.State() == raft.Candidate })
	synctest.Wait()
	return p, release
}

func eventuallyWithin(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// configuration is of the victim, the boss and others, all of them voters.
func (p *puppet) configuration(others ...byte) []byte {
	c := raft.Configuration{Servers: []raft.Server{{ID: p.n.id.raftID(), Address: raftAddress(p.n.id, p.n.addr)}}}
	for _, id := range append([]byte{7}, others...) {
		c.Servers = append(c.Servers, raft.Server{ID: ServerID{id}.raftID(), Address: raftAddress(ServerID{id}, "boss:1")})
	}
	return raft.EncodeConfiguration(c)
}

// leadsWithTwo fails if the victim leads with its own vote and that of the
// follower, when its configuration has five voters.
func (p *puppet) leadsWithTwo(release chan struct{}) {
	p.t.Helper()
	close(release)
	synctest.Wait()
	voters := len(p.n.configuration().Servers)
	if p.n.raft.State() == raft.Leader && voters > 3 {
		p.t.Fatalf("it leads term %d, elected by 2 of %d", p.n.Term(), voters)
	}
}

// The attack: a server campaigns, and a pre-vote for it is held back; its leader, which has made a configuration of
// three one of five meanwhile, sends it a snapshot. The library goes on being a candidate and has counted before what a
// majority is: two votes, of five. The other three go on committing, and this leader overwrites it.
func TestSnapshotChangesNoElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, release := heldBack(t)
		p.conf = p.configuration(8, 9, 10)
		if rep := p.snapshot(3, 20, 3, "a"); !rep.OK {
			t.Fatal("the snapshot was refused")
		}
		p.leadsWithTwo(release)
	})
}

// The same with entries: the last leader tells a server to campaign that has just begun to, and so makes it one that
// takes entries without ceasing to campaign.
func TestEntriesChangeNoElection(t *testing.T) {
	for name, entries := range map[string]func(p *puppet) []wireEntry{
		"appended": func(p *puppet) []wireEntry {
			return append(commands(2, 3, "a"), wireEntry{Index: 3, Term: 3, Type: uint8(raft.LogConfiguration), Data: p.configuration(8, 9, 10)})
		},
		"in the place of others": func(p *puppet) []wireEntry {
			return []wireEntry{{Index: 1, Term: 3, Type: uint8(raft.LogConfiguration), Data: p.configuration(8, 9, 10)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, release := heldBack(t)
				// It was let through when boss was the leader known here, an instant before the timer ended.
				if _, err := p.n.trans.dispatch(&raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}}, nil); err != nil {
					t.Fatal(err)
				}
				list := entries(p)
				w := wireAppend{Term: 3, PrevIndex: list[0].Index - 1, PrevTerm: min(list[0].Index-1, 1), Entries: list}
				if rep := p.append(w); rep.OK {
					t.Error("a candidate took entries")
				}
				p.leadsWithTwo(release)
				if last, _ := p.n.logs.LastIndex(); p.n.raft.State() != raft.Leader && last != p.n.raft.LastIndex() {
					t.Errorf("the log ends at %d, and raft believes at %d", last, p.n.raft.LastIndex())
				}
			})
		})
	}
}
