package ratls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"
)

// refusalGrace bounds the sending of a refusal to a peer that may not be reading.
const refusalGrace = time.Second

// aLongTimeAgo as a deadline makes blocked reads and writes return at once.
var aLongTimeAgo = time.Unix(1, 0)

// Client opens an attested channel over conn as the client. On error conn is closed; a refusal by the server is a
// *RefusedError, this side's own findings are the sentinels of this package.
func Client(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	return runFresh(ctx, conn, cfg, RoleClient)
}

// Server accepts an attested channel over conn. On error conn is closed and, where the peer got that far, it has been told
// the reason.
func Server(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	return runFresh(ctx, conn, cfg, RoleServer)
}

func runFresh(ctx context.Context, conn net.Conn, cfg *Config, role Role) (*Conn, error) {
	if err := cfg.check(role); err != nil {
		conn.Close()
		return nil, err
	}
	l, err := newLeaf(cfg.Key)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return run(ctx, conn, cfg, role, l)
}

// handshake is one side's view while it lasts.
type handshake struct {
	cfg      *Config
	role     Role
	tls      *tls.Conn
	own      [32]byte
	peer     [32]byte
	exporter [exporterSize]byte
	hello    Hello // of the peer; filled as it becomes known
}

// run bounds the handshake in time, runs it, and leaves conn without deadlines.
func run(ctx context.Context, conn net.Conn, cfg *Config, role Role, l *leaf) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.timeout())
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(aLongTimeAgo) })

	h := &handshake{cfg: cfg, role: role, own: l.hash}
	peer, err := h.run(ctx, conn, l)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline may already sit on conn: it is of no use any more
	}
	if err != nil {
		err = timely(ctx, err)
		h.refuse(conn, err)
		return nil, err
	}
	return &Conn{Conn: h.tls, peer: peer}, nil
}

// timely marks errors that the end of ctx caused.
func timely(ctx context.Context, err error) error {
	if ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w: %w", ErrTimeout, cause, err)
	}
	return fmt.Errorf("%w: %w", ErrTimeout, err)
}

// refuse tells the peer why, as far as it will listen, and closes.
func (h *handshake) refuse(conn net.Conn, err error) {
	defer conn.Close()
	_, refused := errors.AsType[*RefusedError](err)
	refusedByPeer := refused && !errors.Is(err, ErrEvidence)
	if h.tls == nil || !h.tls.ConnectionState().HandshakeComplete || refusedByPeer {
		return
	}
	conn.SetDeadline(time.Now().Add(refusalGrace))
	r := refusalFor(err)
	if writeFrame(h.tls, kindRefuse, refuse{Code: string(r.Code), Message: r.Message}) == nil {
		h.tls.CloseWrite() // an orderly end of what was sent; the refusal stands without it
	}
}

func (h *handshake) run(ctx context.Context, conn net.Conn, l *leaf) (Peer, error) {
	if err := h.handshakeTLS(ctx, conn, l); err != nil {
		return Peer{}, err
	}
	if h.role == RoleClient {
		return h.runClient(ctx)
	}
	return h.runServer(ctx)
}

func (h *handshake) handshakeTLS(ctx context.Context, conn net.Conn, l *leaf) error {
	if h.role == RoleClient {
		h.tls = tls.Client(conn, l.tlsConfig(h.cfg))
	} else {
		h.tls = tls.Server(conn, l.tlsConfig(h.cfg))
	}
	quick := h.hurry(conn)
	err := h.tls.HandshakeContext(ctx)
	if !quick() && err == nil {
		err = os.ErrDeadlineExceeded // it sits on conn already
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	cs := h.tls.ConnectionState()
	// VerifyConnection has run; running it again costs little and does not depend on crypto/tls calling it.
	if err := l.verify(cs, h.cfg.PeerKey); err != nil {
		return err
	}
	if h.peer, err = peerKeyHash(cs.PeerCertificates); err != nil {
		return err
	}
	h.exporter, err = exporterOf(cs)
	return err
}

// hurry gives a client little time for TLS, since connecting costs it nothing; stop is false if that is over.
func (h *handshake) hurry(conn net.Conn) (stop func() bool) {
	if h.role == RoleClient {
		return func() bool { return true }
	}
	return time.AfterFunc(orDefault(h.cfg.TLSTimeout, DefaultTLSTimeout), func() { conn.SetDeadline(aLongTimeAgo) }).Stop
}

func (h *handshake) runClient(ctx context.Context) (Peer, error) {
	protocol := h.cfg.Protocols[0]
	if err := writeFrame(h.tls, kindClientHello, clientHello{Protocol: protocol, WantEvidence: h.cfg.Verify != nil}); err != nil {
		return Peer{}, err
	}
	var server serverHello
	if err := readFrame(h.tls, kindServerHello, &server); err != nil {
		return Peer{}, err
	}
	if server.ClusterID != h.cfg.ClusterID {
		return Peer{}, fmt.Errorf("%w: want %x, got %x", ErrClusterID, h.cfg.ClusterID, server.ClusterID)
	}
	if server.Epoch < h.cfg.Epoch {
		return Peer{}, fmt.Errorf("%w: the cluster was recovered into epoch %d, and this server is still of epoch %d, which has ended", ErrEpoch, h.cfg.Epoch, server.Epoch)
	}
	h.meet(RoleServer, protocol, server.Epoch)
	peer, err := h.judge(ctx, server.Evidence, h.cfg.Verify != nil, true)
	if err != nil {
		return Peer{}, err
	}
	own, err := h.evidence(ctx, server.Want != wantNothing)
	if err != nil {
		return Peer{}, err
	}
	if err := writeFrame(h.tls, kindClientEvidence, own); err != nil {
		return Peer{}, err
	}
	if err := readFrame(h.tls, kindAccept, &accept{}); err != nil {
		return Peer{}, err
	}
	return peer, nil
}

func (h *handshake) runServer(ctx context.Context) (Peer, error) {
	var client clientHello
	if err := readFrame(h.tls, kindClientHello, &client); err != nil {
		return Peer{}, err
	}
	if !slices.Contains(h.cfg.Protocols, client.Protocol) {
		return Peer{}, fmt.Errorf("%w: asked for %q, offered: %q", ErrProtocol, clean(client.Protocol, MaxProtocol), h.cfg.Protocols)
	}
	h.meet(RoleClient, client.Protocol, h.cfg.Epoch)
	own, err := h.evidence(ctx, client.WantEvidence)
	if err != nil {
		return Peer{}, err
	}
	wants := wantNothing
	switch {
	case h.cfg.Verify != nil && h.cfg.PeerOptional:
		wants = wantOptional
	case h.cfg.Verify != nil:
		wants = wantRequired
	}
	hello := serverHello{ClusterID: h.cfg.ClusterID, Epoch: h.cfg.Epoch, Want: wants, Evidence: own}
	if err := writeFrame(h.tls, kindServerHello, hello); err != nil {
		return Peer{}, err
	}
	var theirs evidenceFrame
	if err := readFrame(h.tls, kindClientEvidence, &theirs); err != nil {
		return Peer{}, err
	}
	peer, err := h.judge(ctx, theirs, wants != wantNothing, wants == wantRequired)
	if err != nil {
		return Peer{}, err
	}
	if err := writeFrame(h.tls, kindAccept, accept{}); err != nil {
		return Peer{}, err
	}
	return peer, nil
}

// meet fills in what both sides' report data is made of.
func (h *handshake) meet(role Role, protocol string, epoch uint64) {
	h.hello = Hello{Role: role, Protocol: protocol, ClusterID: h.cfg.ClusterID, Epoch: epoch, PeerKey: h.peer}
	h.hello.ReportData = h.reportData(role)
}

// reportData is what the evidence of the side named by role must carry on this channel.
func (h *handshake) reportData(role Role) [64]byte {
	b := binding{
		Protocol: h.hello.Protocol, Role: role, ClusterID: h.hello.ClusterID, Epoch: h.hello.Epoch,
		Exporter: h.exporter, ClientKey: h.own, ServerKey: h.peer,
	}
	if h.role == RoleServer {
		b.ClientKey, b.ServerKey = h.peer, h.own
	}
	return b.reportData()
}

// evidence produces this side's own, where the peer wants it and there is any.
func (h *handshake) evidence(ctx context.Context, wanted bool) (evidenceFrame, error) {
	if !wanted || h.cfg.Attest == nil {
		return evidenceFrame{}, nil
	}
	ev, err := h.cfg.Attest(ctx, h.reportData(h.role))
	if err != nil {
		return evidenceFrame{}, fmt.Errorf("%w: %w", ErrAttest, err)
	}
	return frameOf(ev)
}

// judge turns the peer's frame into a Peer: nothing unverified comes out of it.
func (h *handshake) judge(ctx context.Context, f evidenceFrame, asked, required bool) (Peer, error) {
	peer := Peer{Key: h.peer, Protocol: h.hello.Protocol, Epoch: h.hello.Epoch}
	ev, err := evidenceOf(f)
	if err != nil {
		return Peer{}, err
	}
	if len(ev.Quote) == 0 {
		if asked && required {
			return Peer{}, fmt.Errorf("%w: %s of protocol %q must attest", ErrNoEvidence, h.hello.Role, h.hello.Protocol)
		}
		return peer, nil
	}
	if !asked {
		return Peer{}, fmt.Errorf("%w: evidence that nobody asked for", ErrFrame)
	}
	verified, err := h.cfg.Verify(ctx, h.hello, ev)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	if verified == nil {
		return Peer{}, fmt.Errorf("%w: no proof", ErrEvidence)
	}
	if err := checkBound(verified.Claims().ReportData, h.hello.ReportData); err != nil {
		return Peer{}, err
	}
	peer.Evidence, peer.ReportData, peer.Verified = ev.clone(), h.hello.ReportData, verified
	return peer, nil
}
