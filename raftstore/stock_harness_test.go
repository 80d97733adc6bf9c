package raftstore

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// The stock_ files perform attacks on hashicorp/raft assembled as its documentation says: BoltStore for log and
// votes, FileSnapshotStore, NetworkTransport, DefaultConfig. Nothing of this package takes part. What the
// adversary does is what a host can do: copy, replace and edit files, stop and start servers, decide when a
// message arrives, when a thread runs and how fast a clock goes, and speak to any port.

// stockNet is a network of such servers. Servers reach each other when they are in the same room.
type stockNet struct {
	t      *testing.T
	mu     sync.Mutex
	nodes  []*stockNode
	conns  map[net.Conn][2]*stockNode
	rule   func(stockMessage) bool                   // false: the message is lost; it may wait, which delays the message
	held   map[*stockNode]chan struct{}              // replies to it wait until the channel is closed
	routes map[raft.ServerAddress]raft.ServerAddress // which address a connection to one really leads to
	closed chan struct{}                             // ends all waiting
}

// stockMessage is a request on its way: one of raft's request types.
type stockMessage struct {
	from, to raft.ServerAddress
	request  any
}

type stockNode struct {
	*raft.Raft
	net     *stockNet
	id      raft.ServerID
	addr    raft.ServerAddress
	dir     string
	room    int
	inbox   chan net.Conn
	gone    chan struct{}
	store   *raftboltdb.BoltStore
	snaps   *raft.FileSnapshotStore
	trans   *stockWire
	machine *stockMachine
	once    sync.Once
}

// stockMachine is listMachine for raft.
type stockMachine struct{ listMachine }

func (m *stockMachine) Apply(l *raft.Log) any { return m.listMachine.Apply(l.Index, l.Data) }

func (m *stockMachine) Snapshot() (raft.FSMSnapshot, error) { return stockState(m.list()), nil }

func (m *stockMachine) Restore(rc io.ReadCloser) error { return m.listMachine.Restore(rc) }

type stockState []string

func (s stockState) Persist(sink raft.SnapshotSink) error {
	if _, err := listSnapshot(s).WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (stockState) Release() {}

func newStockNet(t *testing.T) *stockNet {
	n := &stockNet{t: t, conns: map[net.Conn][2]*stockNode{}, held: map[*stockNode]chan struct{}{}, closed: make(chan struct{})}
	t.Cleanup(func() {
		close(n.closed)
		for _, s := range slices.Clone(n.nodes) {
			s.stop()
		}
	})
	return n
}

// stockOptions is what a test changes of the recommended assembly; the zero value changes nothing.
type stockOptions struct {
	slowClock bool // 30 s of this server are 1 s of the others, as to elections and leases
	trailing  uint64
	stable    func(raft.StableStore) raft.StableStore
	bootstrap *raft.Configuration
	wire      func(*stockWire)
}

// start runs a server on a directory; whatever is in there is what it remembers.
func (n *stockNet) start(addr raft.ServerAddress, dir string, opt stockOptions) *stockNode {
	n.t.Helper()
	s := n.listen(addr, dir)
	store, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		n.t.Fatal(err)
	}
	s.store = store
	quiet := hclog.NewNullLogger()
	if s.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, 2, quiet); err != nil {
		n.t.Fatal(err)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = s.id, quiet
	if opt.slowClock {
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 30*time.Second, 30*time.Second, 30*time.Second
	}
	if opt.trailing != 0 {
		conf.TrailingLogs = opt.trailing
	}
	if opt.wire != nil {
		opt.wire(s.trans)
	}
	var stable raft.StableStore = store
	if opt.stable != nil {
		stable = opt.stable(stable)
	}
	if opt.bootstrap != nil {
		if err := raft.BootstrapCluster(conf, store, stable, s.snaps, s.trans, *opt.bootstrap); err != nil {
			n.t.Fatal(err)
		}
	}
	if s.Raft, err = raft.NewRaft(conf, s.machine, store, stable, s.snaps, s.trans); err != nil {
		n.t.Fatalf("stock raft refused to start: %v", err)
	}
	return s
}

// listen makes an address with a transport and nothing behind it: a server to be, or the adversary.
func (n *stockNet) listen(addr raft.ServerAddress, dir string) *stockNode {
	s := &stockNode{net: n, id: raft.ServerID(addr), addr: addr, dir: dir, inbox: make(chan net.Conn), gone: make(chan struct{}), machine: &stockMachine{}}
	s.trans = &stockWire{node: s, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stockStream{s}, MaxPool: 3, Timeout: 10 * time.Second, Logger: hclog.NewNullLogger()})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes = append(n.nodes, s)
	return s
}

// stop ends a server as if its process was killed; its directory stays.
func (s *stockNode) stop() {
	s.once.Do(func() {
		close(s.gone)
		s.net.mu.Lock()
		s.net.nodes = slices.DeleteFunc(s.net.nodes, func(o *stockNode) bool { return o == s })
		s.net.mu.Unlock()
		s.net.hangUp(func(a, b *stockNode) bool { return a == s || b == s })
		if s.Raft != nil {
			s.Shutdown().Error()
		}
		s.trans.Close()
		if s.store != nil {
			s.store.Close()
		}
	})
}

func (n *stockNet) hangUp(which func(a, b *stockNode) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c, ends := range n.conns {
		if which(ends[0], ends[1]) {
			c.Close()
			delete(n.conns, c)
		}
	}
}

// rooms puts the servers of each list in a room of its own; connections between rooms break.
func (n *stockNet) rooms(rooms ...[]*stockNode) {
	n.mu.Lock()
	for i, list := range rooms {
		for _, s := range list {
			s.room = i
		}
	}
	n.mu.Unlock()
	n.hangUp(func(a, b *stockNode) bool { return a.room != b.room })
}

// route leads new connections to an address elsewhere.
func (n *stockNet) route(routes map[raft.ServerAddress]raft.ServerAddress) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.routes = routes
}

// filter decides the fate of every request from here on; nil lets all pass.
func (n *stockNet) filter(rule func(stockMessage) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rule = rule
}

func (n *stockNet) pass(from, to raft.ServerAddress, request any) bool {
	n.mu.Lock()
	rule := n.rule
	n.mu.Unlock()
	return rule == nil || rule(stockMessage{from, to, request})
}

// wait is how a rule delays a message.
func (n *stockNet) wait(gate <-chan struct{}) bool {
	select {
	case <-gate:
		return true
	case <-n.closed:
		return false
	}
}

// hold keeps back the replies to s until the result is called.
func (n *stockNet) hold(s *stockNode) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	gate := make(chan struct{})
	n.held[s] = gate
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.held, s)
		close(gate)
	}
}

var errStockNet = errors.New("the network lost it")

// stockStream gives NetworkTransport its connections.
type stockStream struct{ node *stockNode }

func (s stockStream) Dial(addr raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	n := s.node.net
	n.mu.Lock()
	if other, ok := n.routes[addr]; ok {
		addr = other
	}
	var to *stockNode
	for _, o := range n.nodes {
		if o.addr == addr && o.room == s.node.room {
			to = o
		}
	}
	if to == nil {
		n.mu.Unlock()
		return nil, errStockNet
	}
	near, far := net.Pipe()
	n.conns[near] = [2]*stockNode{s.node, to}
	n.mu.Unlock()
	select {
	case to.inbox <- far:
		return &stockConn{near, s.node}, nil
	case <-to.gone:
		return nil, errStockNet
	}
}

func (s stockStream) Accept() (net.Conn, error) {
	select {
	case c := <-s.node.inbox:
		return c, nil
	case <-s.node.gone:
		return nil, net.ErrClosed
	}
}

func (s stockStream) Close() error   { return nil }
func (s stockStream) Addr() net.Addr { return stockAddr(s.node.addr) }

type stockAddr string

func (a stockAddr) Network() string { return "stock" }
func (a stockAddr) String() string  { return string(a) }

// stockConn is the dialling end.
type stockConn struct {
	net.Conn
	node *stockNode
}

func (c *stockConn) Read(p []byte) (int, error) {
	k, err := c.Conn.Read(p)
	c.node.net.mu.Lock()
	held := c.node.net.held[c.node]
	c.node.net.mu.Unlock()
	if held != nil {
		c.node.net.wait(held)
	}
	return k, err
}

// stockWire is NetworkTransport with the adversary on the wire.
type stockWire struct {
	*raft.NetworkTransport
	node      *stockNode
	scheduler func()                                                    // called where raft asks for an address to be encoded: the host may stop the thread
	sniff     func(raft.ServerID, *raft.InstallSnapshotRequest, []byte) // sees the snapshots that are sent
}

func (w *stockWire) EncodePeer(id raft.ServerID, a raft.ServerAddress) []byte {
	if w.scheduler != nil {
		w.scheduler()
	}
	return w.NetworkTransport.EncodePeer(id, a)
}

func (w *stockWire) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if !w.node.net.pass(w.node.addr, to, req) {
		return errStockNet
	}
	return w.NetworkTransport.AppendEntries(id, to, req, resp)
}

func (w *stockWire) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !w.node.net.pass(w.node.addr, to, req) {
		return errStockNet
	}
	return w.NetworkTransport.RequestVote(id, to, req, resp)
}

func (w *stockWire) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if !w.node.net.pass(w.node.addr, to, req) {
		return errStockNet
	}
	return w.NetworkTransport.RequestPreVote(id, to, req, resp)
}

func (w *stockWire) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !w.node.net.pass(w.node.addr, to, req) {
		return errStockNet
	}
	if w.sniff != nil {
		all, err := io.ReadAll(data)
		if err != nil {
			return err
		}
		w.sniff(id, req, all)
		data = bytes.NewReader(all)
	}
	return w.NetworkTransport.InstallSnapshot(id, to, req, resp, data)
}

func (w *stockWire) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := w.NetworkTransport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return &stockPipeline{p, w, to}, nil
}

type stockPipeline struct {
	raft.AppendPipeline
	wire *stockWire
	to   raft.ServerAddress
}

func (p *stockPipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if !p.wire.node.net.pass(p.wire.node.addr, p.to, req) {
		return nil, errStockNet
	}
	return p.AppendPipeline.AppendEntries(req, resp)
}

// cluster starts voters with one configuration, as the documentation tells.
func (n *stockNet) cluster(opts map[raft.ServerAddress]stockOptions, addrs ...raft.ServerAddress) []*stockNode {
	n.t.Helper()
	var conf raft.Configuration
	for _, a := range addrs {
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(a), Address: a})
	}
	var nodes []*stockNode
	for _, a := range addrs {
		opt := opts[a]
		opt.bootstrap = &conf
		nodes = append(nodes, n.start(a, n.t.TempDir(), opt))
	}
	n.leader(nodes...)
	return nodes
}

// threeStock is a leader and two followers, all of which have applied "old".
func threeStock(t *testing.T) (n *stockNet, a, b, c *stockNode) {
	t.Helper()
	n = newStockNet(t)
	nodes := n.cluster(nil, "a:1", "b:1", "c:1")
	a = n.leader(nodes...)
	rest := others(nodes, a)
	n.write(a, "old")
	n.everywhere("old", nodes...)
	return n, a, rest[0], rest[1]
}

// leader waits for one that can commit.
func (n *stockNet) leader(nodes ...*stockNode) *stockNode {
	n.t.Helper()
	var leader *stockNode
	eventually(n.t, "a stock leader that commits", func() bool {
		for _, s := range nodes {
			if s.State() == raft.Leader && s.Barrier(time.Second).Error() == nil {
				leader = s
				return true
			}
		}
		return false
	})
	return leader
}

// crown makes s the leader.
func (n *stockNet) crown(s *stockNode, nodes ...*stockNode) {
	n.t.Helper()
	eventually(n.t, "leadership is handed over", func() bool {
		lead := n.leader(nodes...)
		if lead == s {
			return true
		}
		lead.LeadershipTransferToServer(s.id, s.addr).Error()
		return false
	})
}

// write is acknowledged when it returns.
func (n *stockNet) write(s *stockNode, entry string) {
	n.t.Helper()
	if err := s.Apply([]byte(entry), time.Second).Error(); err != nil {
		n.t.Fatalf("%s did not take %q: %v", s.addr, entry, err)
	}
}

func (n *stockNet) everywhere(entry string, nodes ...*stockNode) {
	n.t.Helper()
	eventually(n.t, "all have applied "+entry, func() bool {
		for _, s := range nodes {
			if !slices.Contains(s.machine.list(), entry) {
				return false
			}
		}
		return true
	})
}

// copyDisk is the host's copy of a server's directory, taken while it runs.
func (n *stockNet) copyDisk(s *stockNode) string {
	n.t.Helper()
	dir := n.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// others returns nodes without some of them.
func others[T comparable](nodes []T, but ...T) (rest []T) {
	for _, s := range nodes {
		if !slices.Contains(but, s) {
			rest = append(rest, s)
		}
	}
	return rest
}

// logged returns the commands in a server's log.
func (s *stockNode) logged() (list []string) {
	first, _ := s.store.FirstIndex()
	last, _ := s.store.LastIndex()
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		if s.store.GetLog(i, &l) == nil && l.Type == raft.LogCommand {
			list = append(list, string(l.Data))
		}
	}
	return list
}

// indexOf returns where an entry is in a server's log.
func (s *stockNode) indexOf(entry string) (l raft.Log) {
	last, _ := s.store.LastIndex()
	for i := last; i > 0; i-- {
		if s.store.GetLog(i, &l) == nil && string(l.Data) == entry {
			return l
		}
	}
	s.net.t.Fatalf("%q is not in the log of %s", entry, s.addr)
	return l
}
