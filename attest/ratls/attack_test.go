package ratls

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"reflect"
	"testing"
)

// channelAttacks are aimed at the channel-bound mode.
var channelAttacks = []attack{
	{"proxy in the middle", "ends both TLS sessions with keys of its own and passes on the frames, evidence included", attackMiddle},
	{"relay of a server", "poses as a server, with evidence fetched live from a genuine one", attackRelayServer},
	{"relay of a client", "lures a client to its own genuine enclave, and takes the client's evidence to a node to get its keys", attackRelayClient},
	{"diversion", "lets a connection meant for one node end at another genuine enclave of the same measurement", attackDiversion},
	{"diversion of evidence", "takes what an enclave made for one node to another, under the same leaf key", attackDivertEvidence},
	{"replay", "presents evidence of an earlier connection of the same two keys", attackReplay},
	{"reflection", "sends a server's evidence back to it as the client's", attackReflection},
	{"same key on both sides", "joins a node to itself", attackSameKey},
	{"evidence for another key", "presents a quote made for this very connection, but for another client key", attackBinding(func(x *binding) { x.ClientKey[0] ^= 1 })},
	{"swapped role", "presents a quote made for this very connection, but for the other end of it", attackBinding(func(x *binding) { x.Role = RoleServer })},
	{"swapped keys", "presents a quote that names the two ends the wrong way round", attackBinding(func(x *binding) { x.ClientKey, x.ServerKey = x.ServerKey, x.ClientKey })},
	{"another protocol", "presents a quote made to join, to get an app's keys", attackBinding(func(x *binding) { x.Protocol = "join/1" })},
	{"another cluster", "presents a quote made for another cluster", attackBinding(func(x *binding) { x.ClusterID[31] ^= 1 })},
	{"an earlier epoch", "presents a quote made for the cluster before its recovery", attackBinding(func(x *binding) { x.Epoch-- })},
	{"another exporter", "presents a quote that fits but for the connection", attackBinding(func(x *binding) { x.Exporter[0] ^= 1 })},
	{"no evidence", "presents a key and nothing else", attackNoEvidence},
	{"session resumption", "issues a ticket on one connection and resumes it on the next, which would show no certificate", attackResumption},
	{"ALPN rewritten", "changes the protocol's name in the client's first message", attackALPNRewritten},
	{"ALPN left out", "is a server that negotiates none", attackALPNLeftOut},
	{"TLS talked down", "is a server that knows TLS 1.2 only", attackTLS12},
}

// The attacks that the threat model names, each a test of its own.

func TestManInTheMiddle(t *testing.T)             { perform(t, attackMiddle) }
func TestRelayOfServerEvidence(t *testing.T)      { perform(t, attackRelayServer) }
func TestRelayOfClientEvidence(t *testing.T)      { perform(t, attackRelayClient) }
func TestDiversionToSameMeasurement(t *testing.T) { perform(t, attackDiversion) }
func TestDiversionOfEvidence(t *testing.T)        { perform(t, attackDivertEvidence) }
func TestReplayOfOldEvidence(t *testing.T)        { perform(t, attackReplay) }
func TestReflection(t *testing.T)                 { perform(t, attackReflection) }
func TestSameKeyOnBothSides(t *testing.T)         { perform(t, attackSameKey) }

func perform(t *testing.T, run func(*testing.T, *bed) []refusal) {
	t.Helper()
	t.Parallel()
	for _, r := range run(t, newBed(t)) {
		if err := r.check(); err != nil {
			t.Error(err)
		}
	}
}

// A genuine enclave signs whatever report data its own program chose; each field of the binding is changed in turn, and
// nothing but the exact binding passes.
func TestEveryFieldIsBound(t *testing.T) {
	t.Parallel()
	changes := map[string]func(*binding){
		"Protocol":  func(x *binding) { x.Protocol = "join/1" },
		"Role":      func(x *binding) { x.Role = RoleServer },
		"ClusterID": func(x *binding) { x.ClusterID[31] ^= 1 },
		"Epoch":     func(x *binding) { x.Epoch-- },
		"Exporter":  func(x *binding) { x.Exporter[0] ^= 1 },
		"ClientKey": func(x *binding) { x.ClientKey[0] ^= 1 },
		"ServerKey": func(x *binding) { x.ServerKey[0] ^= 1 },
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[binding]()) {
		if field.Name == "_" || field.Name == "Label" { // the label is a constant; the known answer covers it
			continue
		}
		t.Run(field.Name, func(t *testing.T) {
			change := changes[field.Name]
			if change == nil {
				t.Fatal("a field that nobody attacks")
			}
			perform(t, attackBinding(change))
		})
	}
}

// Were it to work, the host would read everything.
func attackMiddle(t *testing.T, b *bed) []refusal {
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
	return both("client", "server", outcome{conn, err}, <-server, ErrUnbound, CodeUnbound)
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

func attackRelayServer(t *testing.T, b *bed) []refusal {
	genuine, _ := serve(t, serverConfig(b, "node"))
	host := serverConfig(b, "node")
	host.Attest, host.Verify = stolen(t, genuine), nil
	c, s := meet(t, clientConfig(b, "app"), host)
	return both("client", "host", c, s, ErrUnbound, CodeUnbound)
}

// The host's own enclave is genuine too: the client does accept it.
func attackRelayClient(t *testing.T, b *bed) []refusal {
	lured := make(chan Evidence, 1)
	lure := serverConfig(b, "host")
	lure.Verify = capture(b, lured)
	if c, s := meet(t, clientConfig(b, "app"), lure); c.err != nil || s.err != nil {
		t.Fatalf("the lure itself failed: client %v, server %v", c.err, s.err)
	}
	host := clientConfig(b, "app")
	host.Attest = func(context.Context, [64]byte) (Evidence, error) { return <-lured, nil }
	c, s := meet(t, host, serverConfig(b, "node"))
	return both("server", "host", s, c, ErrUnbound, CodeUnbound)
}

// The other enclave is on a machine where the host is strong; the client names the key that it means.
func attackDiversion(t *testing.T, b *bed) []refusal {
	hash := must(KeyHash(must(NewKey()).Public()))
	client := clientConfig(b, "app")
	client.PeerKey = &hash
	c, s := meet(t, client, serverConfig(b, "node")) // same image, own key
	return []refusal{found("client", c.err, ErrPeerKey), found("other enclave", s.err, ErrTLS)}
}

// An enclave that attests whatever it is asked to would let the host hold its leaf key.
func attackDivertEvidence(t *testing.T, b *bed) []refusal {
	seen := make(chan Evidence, 1)
	first := serverConfig(b, "node")
	first.Verify = capture(b, seen)
	client := clientConfig(b, "app")
	client.Key = must(NewKey())
	if c, s := meet(t, client, first); c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	client.Attest = func(context.Context, [64]byte) (Evidence, error) { return <-seen, nil }
	c, s := meet(t, client, serverConfig(b, "node"))
	return both("second node", "host", s, c, ErrUnbound, CodeUnbound)
}

// Same keys, same machines: only the exporter differs.
func attackReplay(t *testing.T, b *bed) []refusal {
	client, server := clientConfig(b, "app"), serverConfig(b, "node")
	client.Key, server.Key = must(NewKey()), must(NewKey())
	old := make(chan Evidence, 1)
	server.Verify = capture(b, old)
	if c, s := meet(t, client, server); c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	client.Attest = func(context.Context, [64]byte) (Evidence, error) { return <-old, nil }
	server.Verify = b.verify
	c, s := meet(t, client, server)
	return both("server", "host", s, c, ErrUnbound, CodeUnbound)
}

func attackReflection(t *testing.T, b *bed) []refusal {
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
	return both("server", "host", <-server, outcome{err: err}, ErrUnbound, CodeUnbound)
}

func attackSameKey(t *testing.T, b *bed) []refusal {
	client, server := clientConfig(b, "node"), serverConfig(b, "node")
	key := must(NewKey())
	client.Key, server.Key = key, key
	c, s := meet(t, client, server)
	return []refusal{found("client", c.err, ErrSameKey), found("server", s.err, ErrTLS)}
}

// attackBinding has a genuine enclave sign report data in which one field is not that of the connection.
func attackBinding(change func(*binding)) func(*testing.T, *bed) []refusal {
	return func(t *testing.T, b *bed) []refusal {
		c, s := attestBy(t, b, change)
		return both("server", "host", s, c, ErrUnbound, CodeUnbound)
	}
}

func attackNoEvidence(t *testing.T, b *bed) []refusal {
	client := clientConfig(b, "app")
	client.Attest = nil
	c, s := meet(t, client, serverConfig(b, "node"))
	return both("server", "host", s, c, ErrNoEvidence, CodeNoEvidence)
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
	bound := binding{Protocol: "app/1", Role: RoleClient, ClusterID: cluster, Epoch: 3,
		Exporter: must(exporterOf(cs)), ClientKey: own, ServerKey: must(peerKeyHash(cs.PeerCertificates))}
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

// The attacks above mean something only because the binding unchanged is accepted.
func TestUnchangedBindingPasses(t *testing.T) {
	t.Parallel()
	if c, s := attestBy(t, newBed(t), func(*binding) {}); c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
}

// attackResumption breaks this side's own precautions first, since against them there is nothing to resume: tickets are
// switched on, and the client gets a session cache. What is left is the check in VerifyConnection.
func attackResumption(t *testing.T, b *bed) []refusal {
	client, server := must(newLeaf(nil)), must(newLeaf(nil))
	careless := client.tlsConfig(&Config{})
	careless.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	careless.ServerName = "node"
	careless.SessionTicketsDisabled = false
	host := server.tlsConfig(&Config{})
	host.SessionTicketsDisabled, host.VerifyConnection = false, nil
	byClient, _ := twice(t, careless, host)
	careless.VerifyConnection = nil // now the client is the host's
	own := server.tlsConfig(&Config{})
	own.SessionTicketsDisabled = false
	_, byServer := twice(t, careless, own)
	return []refusal{found("client", byClient, ErrTLS), found("server", byServer, ErrTLS)}
}

// twice connects two times, the second time with the first one's ticket, and returns what both sides end with then.
func twice(t *testing.T, client, server *tls.Config) (cerr, serr error) {
	t.Helper()
	l := loopback(t)
	for range 2 {
		done := make(chan error, 1)
		go func() {
			raw, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			defer raw.Close()
			s := tls.Server(raw, server)
			if err = s.Handshake(); err == nil {
				_, err = s.Write([]byte{1}) // the ticket goes before it
			}
			done <- err
			io.Copy(io.Discard, raw)
		}()
		c := tls.Client(dial(t, l.Addr().String()), client)
		if cerr = c.Handshake(); cerr == nil {
			_, cerr = io.ReadFull(c, make([]byte, 1))
		}
		c.Close()
		serr = <-done
	}
	return cerr, serr
}

// There is nothing to resume in the first place: neither side of ours keeps or issues a ticket.
func TestNoTickets(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		addr, out := serve(t, serverConfig(b, "node"))
		conn, _ := rawTLS(t, addr, func(c *tls.Config) { c.ClientSessionCache, c.ServerName = cache, "node" })
		if _, err := serverEvidence(conn); err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the server resumed a session")
		}
		if s, ok := cache.Get("node"); ok && s != nil {
			t.Error("the server issued a ticket")
		}
		conn.Close()
		<-out
	}
	if must(newLeaf(nil)).tlsConfig(&Config{}).ClientSessionCache != nil {
		t.Error("the client keeps sessions")
	}
}

// through is a proxy that changes the first bytes from the client.
func through(t *testing.T, addr string, change func([]byte) []byte) string {
	t.Helper()
	l := loopback(t)
	go func() {
		victim, err := l.Accept()
		if err != nil {
			return
		}
		defer victim.Close()
		node, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer node.Close()
		go func() { io.Copy(victim, node); victim.Close() }()
		first := make([]byte, 16<<10)
		n, err := victim.Read(first)
		if err != nil {
			return
		}
		node.Write(change(first[:n]))
		io.Copy(node, victim)
	}()
	return l.Addr().String()
}

// Both ends refuse what they do not know; were the host to write a name that the server knows, the transcript would differ.
func attackALPNRewritten(t *testing.T, b *bed) []refusal {
	addr, server := serve(t, serverConfig(b, "node"))
	proxy := through(t, addr, func(hello []byte) []byte {
		out := bytes.Replace(hello, []byte(alpn), []byte("claviger/0"), 1)
		if bytes.Equal(out, hello) {
			t.Error("there was no ALPN to rewrite")
		}
		return out
	})
	_, err := Client(t.Context(), dial(t, proxy), clientConfig(b, "app"))
	return []refusal{found("client", err, ErrTLS), found("server", (<-server).err, ErrTLS)}
}

// foreignServer is a TLS server of the host's own making, with its own key.
func foreignServer(t *testing.T, change func(*tls.Config)) string {
	t.Helper()
	l, cfg := loopback(t), must(newLeaf(nil)).tlsConfig(&Config{})
	cfg.VerifyConnection = nil
	change(cfg)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, cfg)
		conn.Handshake()
		io.Copy(io.Discard, conn)
	}()
	return l.Addr().String()
}

func attackALPNLeftOut(t *testing.T, b *bed) []refusal {
	addr := foreignServer(t, func(c *tls.Config) { c.NextProtos = nil })
	_, err := Client(t.Context(), dial(t, addr), clientConfig(b, "app"))
	return []refusal{found("client", err, ErrALPN)}
}

func attackTLS12(t *testing.T, b *bed) []refusal {
	addr := foreignServer(t, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	_, err := Client(t.Context(), dial(t, addr), clientConfig(b, "app"))
	return []refusal{found("client", err, ErrTLS)}
}
