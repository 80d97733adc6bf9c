package ratls

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// cluster is the id that tests pin.
var cluster = [32]byte{0xc1, 0xa7}

// clientConfig and serverConfig attest both ways; tests break what they attack.
func clientConfig(b *bed, machine string) *Config {
	return &Config{
		Protocols: []string{"app/1"}, ClusterID: cluster, Epoch: 3,
		Attest: b.attester(machine), Verify: b.verify, HandshakeTimeout: 10 * time.Second,
	}
}

func serverConfig(b *bed, machine string) *Config {
	c := clientConfig(b, machine)
	c.Protocols = []string{"app/1", "join/1"}
	return c
}

// outcome is one side's end of a handshake.
type outcome struct {
	conn *Conn
	err  error
}

// serve runs one server handshake on a loopback listener and returns its address and, later, its outcome.
func serve(t *testing.T, cfg *Config) (string, <-chan outcome) {
	t.Helper()
	l := loopback(t)
	out := make(chan outcome, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			out <- outcome{err: err}
			return
		}
		conn, err := Server(context.Background(), raw, cfg)
		out <- outcome{conn, err}
	}()
	return l.Addr().String(), out
}

func loopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return raw
}

// meetings runs a client against a server and returns both ends.
func meet(t *testing.T, client, server *Config) (c, s outcome) {
	t.Helper()
	addr, out := serve(t, server)
	conn, err := Client(t.Context(), dial(t, addr), client)
	c, s = outcome{conn, err}, <-out
	for _, o := range []outcome{c, s} {
		if (o.conn == nil) == (o.err == nil) {
			t.Fatalf("conn %v with error %v", o.conn, o.err)
		}
		if o.conn != nil {
			t.Cleanup(func() { o.conn.Close() })
		}
	}
	return c, s
}

// wantRefusal checks that this side found cause, and that the peer was told code.
func wantRefusal(t *testing.T, finder, told outcome, cause error, code Code) {
	t.Helper()
	if !errors.Is(finder.err, cause) {
		t.Errorf("finder: got %v, want %v", finder.err, cause)
	}
	r, ok := errors.AsType[*RefusedError](told.err)
	if !ok {
		t.Fatalf("told: got %v, want a refusal", told.err)
	}
	if r.Code != code || r.Message == "" {
		t.Errorf("told: got %q %q, want code %q and a message", r.Code, r.Message, code)
	}
}

func TestMutual(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c, s := meet(t, clientConfig(b, "app"), serverConfig(b, "node"))
	if c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	cp, sp := c.conn.Peer(), s.conn.Peer()
	if cp.Verified == nil || sp.Verified == nil {
		t.Fatal("a side has no proof of the other")
	}
	if cp.Verified.Claims().ReportData != cp.ReportData || sp.Verified.Claims().ReportData != sp.ReportData {
		t.Error("report data of the claims is not that of the channel")
	}
	if cp.ReportData == sp.ReportData || cp.ReportData == [64]byte{} {
		t.Error("both roles are bound to the same report data")
	}
	if cp.Protocol != "app/1" || sp.Protocol != "app/1" || cp.Epoch != 3 || sp.Epoch != 3 {
		t.Errorf("protocol and epoch: client sees %q %d, server %q %d", cp.Protocol, cp.Epoch, sp.Protocol, sp.Epoch)
	}
	if cp.Key == sp.Key || cp.Key == [32]byte{} {
		t.Error("peer keys are not two keys")
	}
	echo(t, c.conn, s.conn)
}

// echo proves that application data passes and that no deadline was left behind.
func echo(t *testing.T, a, b net.Conn) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(b, b, 5)
		done <- err
	}()
	buf := make([]byte, 5)
	if _, err := a.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("echo: %q, %v", buf, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOneSided(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client, server := clientConfig(b, "app"), serverConfig(b, "node")
	client.Attest, server.PeerOptional = nil, true
	c, s := meet(t, client, server)
	if c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	if c.conn.Peer().Verified == nil {
		t.Error("client accepted a server without proof")
	}
	if p := s.conn.Peer(); p.Verified != nil || len(p.Evidence.Quote) != 0 || p.ReportData != [64]byte{} {
		t.Error("server holds evidence of a client that sent none")
	}
}

func TestKeyOnly(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client, server := clientConfig(b, "app"), serverConfig(b, "node")
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := KeyHash(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	server.Key, server.Verify = key, nil
	server.Attest = func(context.Context, [64]byte) (Evidence, error) {
		t.Error("evidence was produced for a client that wants none")
		return Evidence{}, errors.New("not wanted")
	}
	client.Attest, client.Verify, client.PeerKey = nil, nil, &hash
	c, s := meet(t, client, server)
	if c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	if c.conn.Peer().Key != hash || c.conn.Peer().Verified != nil {
		t.Error("the client does not know its peer by key alone")
	}
}

func TestConfigDenies(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	long := string(make([]byte, MaxProtocol+1))
	tests := map[string]*Config{
		"nil":                nil,
		"zero":               {},
		"no protocol":        {Verify: b.verify},
		"empty protocol":     {Verify: b.verify, Protocols: []string{""}},
		"long protocol":      {Verify: b.verify, Protocols: []string{long}},
		"two protocols":      {Verify: b.verify, Protocols: []string{"a", "b"}},
		"would trust anyone": {Protocols: []string{"app/1"}},
	}
	for name, cfg := range tests {
		near, far := net.Pipe()
		if _, err := Client(t.Context(), near, cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: got %v, want ErrConfig", name, err)
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: the connection was left open or used: %v", name, err)
		}
	}
	near, _ := net.Pipe()
	if _, err := Server(t.Context(), near, &Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("server: got %v, want ErrConfig", err)
	}
	l := NewListener(loopback(t), &Config{})
	defer l.Close()
	if _, err := l.Accept(); !errors.Is(err, ErrConfig) {
		t.Errorf("listener: got %v, want ErrConfig", err)
	}
	if _, err := (&Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, ErrConfig) {
		t.Errorf("dialer: got %v, want ErrConfig", err)
	}
}

func TestProtocolMismatch(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client := clientConfig(b, "app")
	client.Protocols = []string{"raft/1"}
	c, s := meet(t, client, serverConfig(b, "node"))
	wantRefusal(t, s, c, ErrProtocol, CodeProtocol)
}

func TestOtherCluster(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	server := serverConfig(b, "node")
	server.ClusterID = [32]byte{1}
	c, s := meet(t, clientConfig(b, "app"), server)
	wantRefusal(t, c, s, ErrClusterID, CodeCluster)
}

func TestZeroClusterIsNoWildcard(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client := clientConfig(b, "app")
	client.ClusterID = [32]byte{}
	c, s := meet(t, client, serverConfig(b, "node"))
	wantRefusal(t, c, s, ErrClusterID, CodeCluster)
}

func TestEpochRolledBack(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	server := serverConfig(b, "node")
	server.Epoch = 2
	c, s := meet(t, clientConfig(b, "app"), server)
	wantRefusal(t, c, s, ErrEpoch, CodeEpoch)

	server.Epoch = 4 // a later one is fine
	if c, s := meet(t, clientConfig(b, "app"), server); c.err != nil || s.err != nil || s.conn.Peer().Epoch != 4 {
		t.Errorf("later epoch: client %v, server %v", c.err, s.err)
	}
}

func TestNoEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client := clientConfig(b, "app")
	client.Attest = nil
	c, s := meet(t, client, serverConfig(b, "node"))
	wantRefusal(t, s, c, ErrNoEvidence, CodeNoEvidence)

	server := serverConfig(b, "node")
	server.Attest = nil
	server.PeerOptional = true
	client = clientConfig(b, "app")
	client.PeerOptional = true // must not weaken a client
	c, s = meet(t, client, server)
	wantRefusal(t, c, s, ErrNoEvidence, CodeNoEvidence)
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	denied := errors.New("measurement 00ff is not on the list\x1b[31m")
	client, server := clientConfig(b, "app"), serverConfig(b, "node")
	server.PeerOptional = true // evidence that is sent must still verify
	server.Verify = refusing(denied)
	c, s := meet(t, client, server)
	wantRefusal(t, s, c, denied, CodeEvidence)
	if r, _ := errors.AsType[*RefusedError](c.err); r != nil && clean(r.Message, maxMessage) != r.Message {
		t.Errorf("refusal carries control characters: %q", r.Message)
	}

	server.Verify = refusing(&RefusedError{Code: "policy_denied", Message: "C: want 00, got ff"})
	c, s = meet(t, client, server)
	wantRefusal(t, s, c, ErrEvidence, "policy_denied")

	server.Verify = noProof
	c, s = meet(t, client, server)
	wantRefusal(t, s, c, ErrEvidence, CodeEvidence)
}

func TestAttestFails(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	inner := errors.New("quoting enclave is gone: secret detail")
	server := serverConfig(b, "node")
	server.Attest = func(context.Context, [64]byte) (Evidence, error) { return Evidence{}, inner }
	c, s := meet(t, clientConfig(b, "app"), server)
	wantRefusal(t, s, c, inner, CodeInternal)
	if r, _ := errors.AsType[*RefusedError](c.err); r != nil && r.Message != "the peer could not complete the handshake; try again" {
		t.Errorf("this side's own trouble was told to the peer: %q", r.Message)
	}

	server.Attest = func(context.Context, [64]byte) (Evidence, error) {
		return Evidence{Quote: []byte{1}, Attachment: make([]byte, MaxEvidence)}, nil
	}
	if _, s := meet(t, clientConfig(b, "app"), server); !errors.Is(s.err, ErrAttest) {
		t.Errorf("oversized own evidence: %v", s.err)
	}
}

func TestLargestEvidencePasses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	server := serverConfig(b, "node")
	attestNode := server.Attest
	var size int
	server.Attest = func(ctx context.Context, rd [64]byte) (Evidence, error) {
		ev, err := attestNode(ctx, rd)
		ev.Attachment = make([]byte, MaxEvidence-ev.size())
		size = ev.size()
		return ev, err
	}
	c, s := meet(t, clientConfig(b, "app"), server)
	if c.err != nil || s.err != nil || c.conn.Peer().Evidence.size() != size {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
}

// rawTLS is a client that speaks our TLS but not necessarily our frames: the attacker's own enclave-less program.
func rawTLS(t *testing.T, addr string, change func(*tls.Config)) (*tls.Conn, [32]byte) {
	t.Helper()
	l, err := newLeaf(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := l.tlsConfig(&Config{})
	cfg.VerifyConnection = nil // an attacker checks nothing
	if change != nil {
		change(cfg)
	}
	conn := tls.Client(dial(t, addr), cfg)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn, l.hash
}
