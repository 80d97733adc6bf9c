package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

const (
	firstPause = 50 * time.Millisecond // after the first fruitless round over all endpoints; doubles from there
	lastPause  = 2 * time.Second
	maxHops    = 3 // hints followed in one round: two nodes that name each other must not spin us
)

// The paths that a client with Config.AnyMember may use.
const (
	pathCluster = "/v1/cluster"
	pathAdmin   = "/v1/admin/statements"
)

// call is one request and what its reply must satisfy. The reply is checked against the highest epoch seen when the
// request was sent.
type call struct {
	method, path string
	request      any // nil: no body
	reply        any
	check        func(epoch uint64) error
}

// fate says what an error means for the call.
type fate int

const (
	later    fate = iota // passing trouble: another endpoint, or the same one after a pause
	unproved             // the endpoint is not a node of ours, of an epoch that has ended, or at fault: leave it alone in this call
	final                // the answer is no, or the fault is on this side
)

// fateOf judges an error of one attempt.
func fateOf(err error) fate {
	if r, ok := errors.AsType[*ratls.RefusedError](err); ok {
		_, proved := errors.AsType[*refusedError](err)
		switch {
		case r.Code == ratls.CodeInternal || proved && api.Code(r.Code).Retry():
			return later
		case proved && api.Code(r.Code) != api.CodeEnded:
			return final
		default:
			return unproved // words of someone who has shown nothing, or of an epoch that has ended
		}
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		switch {
		case p.Code == api.CodeEnded: // another may be of the epoch that follows; this one will not say more
			return unproved
		case p.Code == api.CodeInternal: // a fault of this node, and perhaps of no other
			return unproved
		case p.Code.Retry():
			return later
		}
		return final
	}
	for _, e := range []error{ErrReply, ErrClosed, ratls.ErrAttest, ratls.ErrConfig} {
		if errors.Is(err, e) {
			return final
		}
	}
	for _, e := range []error{
		ErrNode, ratls.ErrALPN, ratls.ErrLeaf, ratls.ErrSameKey, ratls.ErrClusterID, ratls.ErrEpoch, ratls.ErrNoEvidence,
		ratls.ErrEvidence, ratls.ErrUnbound, ratls.ErrFrame, ratls.ErrFrameSize,
	} {
		if errors.Is(err, e) {
			return unproved
		}
	}
	return later
}

// do runs a call to its end: an answer, a refusal, no endpoint left, or the end of ctx.
func (c *Client) do(ctx context.Context, cl call) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })()
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	if c.cfg.AnyMember && cl.path != pathCluster && cl.path != pathAdmin {
		return fmt.Errorf("%w: a client of any member may look at the cluster and submit statements, and nothing else", ErrConfig)
	}
	var body []byte
	if cl.request != nil {
		var err error
		if body, err = json.Marshal(cl.request); err != nil {
			return err
		}
	}
	c.renew()
	t := newTour(c.order())
	for {
		endpoint, pause, ok := t.next()
		if !ok {
			return fmt.Errorf("kds client: no endpoint proved to be a node of cluster %s that can answer: %w", c.cfg.ClusterID, t.failures())
		}
		if err := sleep(ctx, pause); err != nil {
			return ended(ctx, t.failures())
		}
		err := c.attempt(ctx, endpoint, cl, body)
		if err == nil {
			c.prefer(endpoint)
			return nil
		}
		if fateOf(err) == final {
			return err
		}
		c.putLast(endpoint)
		if ctx.Err() != nil {
			t.cut(endpoint, err)
			return ended(ctx, t.failures())
		}
		t.failed(endpoint, err)
	}
}

// ended is the error of a call whose context ended, with what was in the way.
func ended(ctx context.Context, last error) error {
	cause := context.Cause(ctx)
	if last == nil {
		return fmt.Errorf("kds client: %w", cause)
	}
	return fmt.Errorf("kds client: %w; last: %w", cause, last)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt sends the call to one endpoint and reads the answer.
func (c *Client) attempt(ctx context.Context, endpoint string, cl call, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.AttemptTimeout)
	defer cancel()
	var peer ratls.Peer
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, ok := info.Conn.(*ratls.Conn); ok {
			peer = conn.Peer()
		}
	}})
	req, err := http.NewRequestWithContext(ctx, cl.method, "https://"+endpoint+cl.path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	epoch := c.Epoch()
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("%s: %w", endpoint, err)
	}
	defer res.Body.Close()
	if peer.Verified == nil || peer.Epoch < epoch {
		// A pooled connection to a node of an epoch that has since been left: it must not answer any more.
		c.transport.Renew()
		return fmt.Errorf("%s: the connection is of epoch %d, %d was seen: connecting anew", endpoint, peer.Epoch, epoch)
	}
	return readReply(res, cl, max(epoch, peer.Epoch))
}

// readReply decodes and checks the reply, or returns the refusal in its place.
func readReply(res *http.Response, cl call, epoch uint64) error {
	// One buffer of the announced size: a growing one would leave copies of a key behind.
	raw := make([]byte, 0, min(max(res.ContentLength, 512), api.MaxReplyBody)+1)
	buf := bytes.NewBuffer(raw)
	if _, err := buf.ReadFrom(io.LimitReader(res.Body, api.MaxReplyBody+1)); err != nil {
		return err
	}
	defer func() { clear(buf.Bytes()) }()
	if res.StatusCode != http.StatusOK {
		p := new(api.Problem)
		if err := api.DecodeJSON(buf.Bytes(), api.MaxReplyBody, p); err != nil || p.Code == "" {
			return fmt.Errorf("%w: status %d without a problem document", ErrReply, res.StatusCode)
		}
		return p
	}
	if err := api.DecodeJSON(buf.Bytes(), api.MaxReplyBody, cl.reply); err != nil {
		return fmt.Errorf("%w: %w", ErrReply, err)
	}
	if err := cl.check(epoch); err != nil {
		return fmt.Errorf("%w: %w", ErrReply, err)
	}
	return nil
}

// renew empties the pool when its connections have aged: collateral and policy move, and so must the proof of the nodes.
func (c *Client) renew() {
	now := c.cfg.Clock()
	c.mu.Lock()
	age := now.Sub(c.renewed)
	due := age >= c.cfg.Reattest || age < 0
	if due {
		c.renewed = now
	}
	c.mu.Unlock()
	if due {
		c.transport.Renew()
	}
}

// order is the preferred endpoint, then the configured ones in random order, so that clients spread; last come those that gave
// no answer when they were asked last. A call that has less time than an attempt may take gets to one endpoint that is
// silent, and calls that each began with the same one would never get past it.
func (c *Client) order() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out, last []string
	if c.preferred != "" {
		out = append(out, c.preferred)
	}
	for _, i := range rand.Perm(len(c.cfg.Endpoints)) {
		switch e := c.cfg.Endpoints[i]; {
		case e == c.preferred:
		case c.mute[e]:
			last = append(last, e)
		default:
			out = append(out, e)
		}
	}
	return append(out, last...)
}

// prefer begins the next calls with an endpoint that has answered.
func (c *Client) prefer(endpoint string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.preferred = endpoint
	delete(c.mute, endpoint)
}

// putLast ends the next tours with an endpoint that has not answered.
func (c *Client) putLast(endpoint string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.preferred == endpoint {
		c.preferred = ""
	}
	if slices.Contains(c.cfg.Endpoints, endpoint) { // not every address that a node names
		c.mute[endpoint] = true
	}
}
