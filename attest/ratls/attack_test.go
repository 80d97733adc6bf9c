package ratls

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
)

// Each test here is an attack by the host, who owns the network and may run genuine enclaves of its own, and ends with the
// refusal that defeats it.

// A host ends both TLS sessions with keys of its own and passes the frames, evidence included, between two genuine
// enclaves. Were it to work, it would read everything.
func TestManInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	serverAddr, server := serve(t, serverConfig(b, "node"))
	l := loopback(t)
	go func() {
		victim, err := l.Accept()
		if err != nil {
			return
		}
		own, _ := newLeaf(nil)
		in := tls.Server(victim, own.tlsConfig(&Config{}))
		out, _ := rawTLS(t, serverAddr, nil)
		go func() { io.Copy(in, out); in.Close() }()
		io.Copy(out, in)
		out.Close()
	}()
	conn, err := Client(t.Context(), dial(t, l.Addr().String()), clientConfig(b, "app"))
	wantRefusal(t, outcome{conn, err}, <-server, ErrUnbound, CodeUnbound)
}

// stolen attests with what another channel to a genuine enclave yielded: the host asks the enclave on its own connection
// and passes the answer on.
func stolen(t *testing.T, addr string) func(context.Context, [64]byte) (Evidence, error) {
	return func(context.Context, [64]byte) (Evidence, error) {
		conn, _ := rawTLS(t, addr, nil)
		return serverEvidence(conn)
	}
}

// serverEvidence drives the client's first frame by hand and returns what the server sent about itself.
func serverEvidence(conn *tls.Conn) (Evidence, error) {
	if err := writeFrame(conn, kindClientHello, clientHello{Protocol: "app/1", WantEvidence: true}); err != nil {
		return Evidence{}, err
	}
	var hello serverHello
	if err := readFrame(conn, kindServerHello, &hello); err != nil {
		return Evidence{}, err
	}
	return evidenceOf(hello.Evidence)
}

// Relay: a host without an enclave poses as the server, its evidence fetched live from a genuine one.
func TestRelayOfServerEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	genuine, _ := serve(t, serverConfig(b, "node"))
	host := serverConfig(b, "node")
	host.Attest, host.Verify = stolen(t, genuine), nil
	c, s := meet(t, clientConfig(b, "app"), host)
	wantRefusal(t, c, s, ErrUnbound, CodeUnbound)
}

// Relay the other way: a host lures a genuine client to itself, and presents its evidence to a node to get its keys.
func TestRelayOfClientEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	lured := make(chan Evidence, 1)
	lure := serverConfig(b, "host") // the host's own enclave is genuine too: the client does accept it
	lure.Verify = capture(b, lured)
	if c, s := meet(t, clientConfig(b, "app"), lure); c.err != nil || s.err != nil {
		t.Fatalf("the lure itself failed: client %v, server %v", c.err, s.err)
	}
	host := clientConfig(b, "app")
	host.Attest = func(context.Context, [64]byte) (Evidence, error) { return <-lured, nil }
	c, s := meet(t, host, serverConfig(b, "node"))
	wantRefusal(t, s, c, ErrUnbound, CodeUnbound)
}

// Diversion: the connection meant for one node ends at another genuine enclave of the same measurement, which the host
// keeps on a machine where it is strong.
func TestDiversionToSameMeasurement(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	meant, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := KeyHash(meant.Public())
	if err != nil {
		t.Fatal(err)
	}
	client := clientConfig(b, "app")
	client.PeerKey = &hash
	c, s := meet(t, client, serverConfig(b, "node")) // same image, own key
	if !errors.Is(c.err, ErrPeerKey) || !errors.Is(s.err, ErrTLS) {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
}

// Diversion of evidence: what a genuine enclave made for one node is presented, by a host holding the same leaf key (an
// attestation oracle would do), to another node of the same measurement.
func TestDiversionOfEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan Evidence, 1)
	first := serverConfig(b, "node")
	first.Verify = capture(b, seen)
	client := clientConfig(b, "app")
	client.Key = key
	if c, s := meet(t, client, first); c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	client.Attest = func(context.Context, [64]byte) (Evidence, error) { return <-seen, nil }
	c, s := meet(t, client, serverConfig(b, "node"))
	wantRefusal(t, s, c, ErrUnbound, CodeUnbound)
}

// Replay: the same two keys, the same machines, evidence of an earlier connection. Only the exporter differs.
func TestReplayOfOldEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client, server := clientConfig(b, "app"), serverConfig(b, "node")
	var err error
	if client.Key, err = NewKey(); err != nil {
		t.Fatal(err)
	}
	if server.Key, err = NewKey(); err != nil {
		t.Fatal(err)
	}
	old := make(chan Evidence, 1)
	server.Verify = capture(b, old)
	if c, s := meet(t, client, server); c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	client.Attest = func(context.Context, [64]byte) (Evidence, error) { return <-old, nil }
	server.Verify = b.verify
	c, s := meet(t, client, server)
	wantRefusal(t, s, c, ErrUnbound, CodeUnbound)
}

// Reflection: the server's own evidence comes back to it as the client's.
func TestReflection(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	addr, server := serve(t, serverConfig(b, "node"))
	conn, _ := rawTLS(t, addr, nil)
	ev, err := serverEvidence(conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(conn, kindClientEvidence, evidenceFrame{Quote: ev.Quote, Collateral: ev.Collateral}); err != nil {
		t.Fatal(err)
	}
	err = readFrame(conn, kindAccept, &accept{})
	wantRefusal(t, <-server, outcome{err: err}, ErrUnbound, CodeUnbound)
}

// Reflection of the whole connection: the host joins a node to itself, so both ends hold one key.
func TestSameKeyOnBothSides(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	client, server := clientConfig(b, "node"), serverConfig(b, "node")
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	client.Key, server.Key = key, key
	c, s := meet(t, client, server)
	if !errors.Is(c.err, ErrSameKey) || !errors.Is(s.err, ErrTLS) {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
}

// A genuine enclave signs whatever report data its own program chose; each field of the binding is changed in turn, and
// nothing but the exact binding passes.
func TestEveryFieldIsBound(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	changes := map[string]func(*binding){
		"role":       func(x *binding) { x.Role = RoleServer },
		"protocol":   func(x *binding) { x.Protocol = "join/1" },
		"cluster":    func(x *binding) { x.ClusterID[31] ^= 1 },
		"epoch":      func(x *binding) { x.Epoch-- },
		"exporter":   func(x *binding) { x.Exporter[0] ^= 1 },
		"client key": func(x *binding) { x.ClientKey[0] ^= 1 },
		"server key": func(x *binding) { x.ServerKey[0] ^= 1 },
		"both keys":  func(x *binding) { x.ClientKey, x.ServerKey = x.ServerKey, x.ClientKey },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told, found := attestBy(t, b, change)
			wantRefusal(t, found, told, ErrUnbound, CodeUnbound)
		})
	}
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		if told, found := attestBy(t, b, func(*binding) {}); told.err != nil || found.err != nil {
			t.Fatalf("the unchanged binding is refused: client %v, server %v", told.err, found.err)
		}
	})
}

// attestBy speaks the client's part by hand, with a quote over a changed binding.
func attestBy(t *testing.T, b *bed, change func(*binding)) (client, server outcome) {
	t.Helper()
	addr, out := serve(t, serverConfig(b, "node"))
	conn, own := rawTLS(t, addr, nil)
	if _, err := serverEvidence(conn); err != nil {
		t.Fatal(err)
	}
	cs := conn.ConnectionState()
	exporter, err := exporterOf(cs)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := peerKeyHash(cs.PeerCertificates)
	if err != nil {
		t.Fatal(err)
	}
	bound := binding{Protocol: "app/1", Role: RoleClient, ClusterID: cluster, Epoch: 3, Exporter: exporter, ClientKey: own, ServerKey: peer}
	change(&bound)
	ev, err := b.attester("app")(t.Context(), bound.reportData())
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(conn, kindClientEvidence, evidenceFrame{Quote: ev.Quote, Collateral: ev.Collateral}); err != nil {
		t.Fatal(err)
	}
	client.err = readFrame(conn, kindAccept, &accept{})
	server = <-out
	if server.conn != nil {
		server.conn.Close()
	}
	return client, server
}
