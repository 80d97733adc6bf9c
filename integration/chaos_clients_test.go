//go:build linux

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// A crowd is the clients of a run. They call through one gate, so that a check can wait until nobody calls.
type crowd struct {
	site   *site
	ledger *ledger
	gaps   *gaps
	gate   sync.RWMutex
	image  sim.Image
	wg     sync.WaitGroup
	cancel context.CancelFunc
	ctx    context.Context
}

const (
	chaosCallers = 8
	chaosNames   = 16                      // distinct keys that are asked for
	chaosCall    = 2500 * time.Millisecond // limit of one call
	chaosAttempt = 1500 * time.Millisecond
)

var chaosImage = sim.Image{Kind: enclave.SGX, Name: "orders", Version: "1", Signer: "shop", ProdID: 7, SVN: 1}

// chaosEvidence makes evidence for an image on a machine.
func chaosEvidence(world *sim.World, machine string, image sim.Image) (func(context.Context, [64]byte) (ratls.Evidence, error), error) {
	m, err := world.Machine(machine)
	if err != nil {
		return nil, err
	}
	tee, err := m.Launch(image)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
		quote, err := tee.Quote(ctx, reportData)
		if err != nil {
			return ratls.Evidence{}, err
		}
		collateral, err := world.Collateral(ctx, quote)
		if err != nil {
			return ratls.Evidence{}, err
		}
		bundle, err := collateral.Marshal()
		return ratls.Evidence{Quote: quote, Collateral: bundle}, err
	}, nil
}

// clientOf makes a client of some endpoints.
func (s *site) clientOf(machine string, image sim.Image, endpoints ...string) (*client.Client, error) {
	evidence, err := chaosEvidence(s.world, machine, image)
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{ClusterID: s.cluster, Endpoints: endpoints, Root: s.world.Root(), Attest: evidence,
		AttemptTimeout: chaosAttempt, Reattest: 20 * time.Second})
}

// caller is one goroutine's clients: one that knows every node, and one for each node.
type caller struct {
	crowd   *crowd
	id      int
	clients []*client.Client
	epoch   uint64
	size    uint64
}

// gather starts the clients.
func gather(s *site, g *gaps) (*crowd, error) {
	c := &crowd{site: s, gaps: g, image: chaosImage}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	first, err := c.newCaller(0, chaosImage)
	if err != nil {
		return nil, err
	}
	view, err := first.clients[0].Cluster(c.ctx)
	if err != nil {
		return nil, err
	}
	c.ledger = newLedger(view.LogSize)
	for id := range chaosCallers {
		caller, err := c.newCaller(id, chaosImage)
		if err != nil {
			return nil, err
		}
		c.wg.Go(caller.run)
	}
	for i, image := range []sim.Image{
		{Kind: enclave.SGX, Name: "orders", Version: "1", Signer: "shop", ProdID: 7, SVN: 1, Debug: true},
		{Kind: enclave.SGX, Name: "orders", Version: "2", Signer: "shop", ProdID: 7, SVN: 1},
		{Kind: enclave.TDX, Name: "orders", Version: "1"},
	} {
		caller, err := c.newCaller(chaosCallers+i, image)
		if err != nil {
			return nil, err
		}
		c.wg.Go(caller.intrude)
	}
	return c, nil
}

func (c *crowd) newCaller(id int, image sim.Image) (*caller, error) {
	out := &caller{crowd: c, id: id}
	var all []string
	for _, slot := range c.site.slots {
		all = append(all, slot.home.api)
	}
	lists := [][]string{all}
	for _, e := range all {
		lists = append(lists, []string{e})
	}
	for _, endpoints := range lists {
		cl, err := c.site.clientOf(fmt.Sprint("shop-", id), image, endpoints...)
		if err != nil {
			return nil, err
		}
		out.clients = append(out.clients, cl)
	}
	return out, nil
}

// disperse ends the clients.
func (c *crowd) disperse() {
	c.cancel()
	c.wg.Wait()
}

// pick is a client that knows all nodes, half of the time, or one of a random node.
func (c *caller) pick() *client.Client {
	if rand.IntN(2) == 0 {
		return c.clients[0]
	}
	return c.clients[1+rand.IntN(len(c.clients)-1)]
}

func (c *caller) run() {
	for c.crowd.ctx.Err() == nil {
		c.crowd.gate.RLock()
		if rand.IntN(3) == 0 {
			c.read(c.pick())
		} else {
			c.release(c.pick())
		}
		c.crowd.gate.RUnlock()
		time.Sleep(time.Duration(5+rand.IntN(40)) * time.Millisecond)
	}
	for _, cl := range c.clients {
		cl.Close()
	}
}

// sent notes when each attempt of a call had a connection, and to whom: whatever was sent was sent after that.
type sent struct {
	mu   sync.Mutex
	at   []int64
	last string
}

func (l *ledger) trace(ctx context.Context) (context.Context, *sent) {
	s := &sent{}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.at = append(s.at, l.tick())
		s.last = info.Conn.RemoteAddr().String()
	}}), s
}

// release asks for a key.
func (c *caller) release(cl *client.Client) {
	l := c.crowd.ledger
	name := fmt.Sprint("key-", rand.IntN(chaosNames))
	ctx, cancel := context.WithTimeout(c.crowd.ctx, chaosCall)
	defer cancel()
	ctx, sent := l.trace(ctx)
	o := chaosOp{client: c.id, release: true, call: l.tick()}
	key, reply, err := cl.Key(ctx, api.KeyRequest{Constraint: c.crowd.image.Constraint(), Name: name, Purpose: "aes-256"})
	o.ret = l.tick()
	sent.mu.Lock()
	defer sent.mu.Unlock()
	if err != nil {
		if !c.tolerable(err) {
			c.crowd.site.broken.add("client %d: %v", c.id, err)
		}
		l.attempts(sent.at) // any of them may have taken a leaf
		c.crowd.gaps.failed()
		return
	}
	l.attempts(sent.at[:len(sent.at)-1])
	c.crowd.gaps.served()
	raw := key.Reveal()
	hash := sha256.Sum256(raw)
	clear(raw)
	key.Destroy()
	l.key(name, hex.EncodeToString(hash[:]))
	record := sha256.Sum256(reply.Receipt.Record)
	o.value, o.size, o.root, o.record = reply.Receipt.Index, reply.Receipt.TreeSize, reply.Receipt.RootHash.String(), hex.EncodeToString(record[:])
	l.add(o)
	c.saw(reply.Epoch, 0)
}

// tolerable: a genuine node never gives an answer that does not hold, whatever its host does.
func (c *caller) tolerable(err error) bool { return !errors.Is(err, client.ErrReply) }

// read asks for the size of the log, as of now: a node says what it has, so it is first made to prove by a call that goes
// through a safe read that it has everything that was acknowledged before. Both answers must come from one node.
func (c *caller) read(cl *client.Client) {
	l := c.crowd.ledger
	ctx, cancel := context.WithTimeout(c.crowd.ctx, chaosCall)
	defer cancel()
	o := chaosOp{client: c.id, call: l.tick()}
	barrier, first := l.trace(ctx)
	if !*chaosBlind {
		public, err := cl.PublicKey(barrier, api.PublicKeyRequest{Constraint: c.crowd.image.Constraint(), Name: "mail", Purpose: "x25519"})
		if err != nil {
			c.unread(err)
			return
		}
		l.key("public", hex.EncodeToString(public.PublicKey))
	}
	look, second := l.trace(ctx)
	view, err := cl.Cluster(look)
	o.ret = l.tick()
	if err != nil {
		c.unread(err)
		return
	}
	if !*chaosBlind && (len(second.at) != 1 || first.last != second.last) {
		return
	}
	o.value, o.size, o.root = view.LogSize, view.LogSize, view.LogRoot.String()
	l.add(o)
	c.saw(view.Epoch, view.LogSize)
}

func (c *caller) unread(err error) {
	if !c.tolerable(err) {
		c.crowd.site.broken.add("client %d: %v", c.id, err)
	}
	l := c.crowd.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed++
}

// saw: epoch and log only grow before one client's eyes.
func (c *caller) saw(epoch, size uint64) {
	if epoch < c.epoch || size != 0 && size < c.size {
		c.crowd.site.broken.add("client %d saw epoch %d and %d leaves after epoch %d and %d", c.id, epoch, size, c.epoch, c.size)
	}
	c.epoch, c.size = epoch, max(size, c.size)
}

// intrude asks for the key of an app that this one is not, and must never get it.
func (c *caller) intrude() {
	l := c.crowd.ledger
	for c.crowd.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(c.crowd.ctx, chaosCall)
		_, _, err := c.pick().Key(ctx, api.KeyRequest{Constraint: c.crowd.image.Constraint(), Name: "key-0", Purpose: "aes-256"})
		cancel()
		p, refused := errors.AsType[*api.Problem](err)
		switch {
		case err == nil:
			c.crowd.site.broken.add("intruder %d got the key", c.id)
		case refused && (p.Code == api.CodePolicyDenied || p.Code == api.CodeEvidenceRefused):
			l.mu.Lock()
			l.refused++
			l.mu.Unlock()
		}
		time.Sleep(200 * time.Millisecond)
	}
	for _, cl := range c.clients {
		cl.Close()
	}
}

// barrier stops all clients, checks everything since the last barrier, runs look while nobody calls, and lets them go on.
func (c *crowd) barrier(look func() error) error {
	c.gaps.pause()
	c.gate.Lock()
	defer c.gate.Unlock()
	defer c.gaps.pause()
	size, err := c.sizeNow(30 * time.Second)
	if err != nil {
		return err
	}
	if err := c.ledger.window(size); err != nil {
		return err
	}
	return look()
}

// sizeNow reads the size of the log, with a caller of its own.
func (c *crowd) sizeNow(limit time.Duration) (uint64, error) {
	caller, err := c.newCaller(99, chaosImage)
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, cl := range caller.clients {
			cl.Close()
		}
	}()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		caller.read(caller.clients[0])
		if caller.size != 0 {
			return caller.size, nil
		}
	}
	return 0, fmt.Errorf("the log cannot be read within %v", limit)
}
