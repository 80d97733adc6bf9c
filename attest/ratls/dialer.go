package ratls

import (
	"context"
	"net"
	"sync"
)

// Dialer opens attested channels. It fits http.Transport's DialContext and DialTLSContext: the transport's own TLS is not
// used, so URLs name the scheme http with DialContext or https with DialTLSContext. HTTP1Transport and HTTP2Transport put one
// together.
type Dialer struct {
	// Config of every channel. With a nil Key one leaf key serves the life of the Dialer.
	Config *Config
	// Net opens the connection below; nil means a plain net.Dialer.
	Net func(ctx context.Context, network, addr string) (net.Conn, error)

	once sync.Once
	leaf *leaf
	err  error
}

// DialContext connects to addr and attests. The returned connection is a *Conn.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return DialFunc(d.dial).dial(ctx, network, addr)
}

func (d *Dialer) dial(ctx context.Context, network, addr string) (*Conn, error) {
	d.once.Do(func() {
		if d.err = d.Config.check(RoleClient); d.err == nil {
			d.leaf, d.err = newLeaf(d.Config.Key)
		}
	})
	if d.err != nil {
		return nil, d.err
	}
	conn, err := dialNet(ctx, d.Net, network, addr)
	if err != nil {
		return nil, err
	}
	return run(ctx, conn, d.Config, RoleClient, d.leaf)
}

func dialNet(ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error), network, addr string) (net.Conn, error) {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return dial(ctx, network, addr)
}
