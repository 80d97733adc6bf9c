package ratls

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// limits is what a listener lets strangers take.
type limits struct {
	handshakes int           // that run at once
	perAddress int           // of those, with one remote address
	patience   time.Duration // of a connection that waits for its turn
}

// newLimits fills in the defaults.
func newLimits(handshakes, perAddress int, patience time.Duration) limits {
	if handshakes <= 0 {
		handshakes = DefaultMaxHandshakes
	}
	if perAddress <= 0 {
		perAddress = handshakes / 4
	}
	return limits{handshakes: handshakes, perAddress: min(max(perAddress, 1), handshakes), patience: patience}
}

// places is how many connections may be accepted and not finished, those that
// wait for their turn included; one address may have half of them.
func (l limits) places() int { return 8 * l.handshakes }

// crowd knows the connections of a listener that are not finished, by address:
// one that comes with many, silent or not, waits for itself and not others for it.
type crowd struct {
	limits limits
	mu     sync.Mutex
	from   map[string]*visitors
}

// visitors are the connections from one address.
type visitors struct {
	here int           // guarded by crowd.mu
	turn chan struct{} // one token per handshake that runs
}

func newCrowd(l limits) *crowd { return &crowd{limits: l, from: map[string]*visitors{}} }

// enter counts a connection in, or says that its address has too many.
func (c *crowd) enter(key string) (*visitors, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.from[key]
	if v == nil {
		v = &visitors{turn: make(chan struct{}, c.limits.perAddress)}
		c.from[key] = v
	}
	if v.here >= max(c.limits.places()/2, 1) {
		return nil, false
	}
	v.here++
	return v, true
}

// leave counts it out again; an address without connections is forgotten.
func (c *crowd) leave(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.from[key]; v != nil {
		if v.here--; v.here == 0 {
			delete(c.from, key)
		}
	}
}

// origin is what counts as one address: for IPv6 the /64, of which whoever has
// one address has all; without port and zone.
func origin(a net.Addr) string {
	if a == nil {
		return ""
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}
