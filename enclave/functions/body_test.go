package functions

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/enclave/persist/persisttest"
)

// halfRequest is a call whose body stops after some bytes.
func halfRequest(length, sent int) string {
	return fmt.Sprintf("POST /v1/functions/%s/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s",
		strings.Repeat("0", 64), length, strings.Repeat("{", sent))
}

// TestIdleConnectionsTakeNoSlot opens many more connections than there are slots. Each declares the largest body and sends
// nothing, or a part.
func TestIdleConnectionsTakeNoSlot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.MaxCalls = 2 })
	w.deploy("p", "v1", 1)
	for i := range 64 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, halfRequest(maxDocument, i*100)); err != nil {
			t.Fatal(err)
		}
	}
	c := w.client("p", "v1")
	for range 4 {
		if got := call(t, c, "echo", "a"); got != `["a"]` {
			t.Fatalf("echo: %s", got)
		}
	}
	if n := w.host.bodies.Used(); n != 0 {
		t.Errorf("declared bodies take %d bytes", n)
	}
}

// pipeServer serves a host over connections in memory inside a synctest bubble, as the daemons do without their limits.
func pipeServer(t *testing.T, h *Host) (dial func() net.Conn) {
	t.Helper()
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: h.Handler()}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		h.Close()
		time.Sleep(time.Second) // of the bubble: the server lets a refused peer read before it hangs up
	})
	return func() net.Conn {
		ours, theirs := net.Pipe()
		l.conns <- theirs
		return ours
	}
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func newHost(t *testing.T) *Host {
	t.Helper()
	h, err := New(t.Context(), Config{
		Keys: newKeys(t, 'r'), Runtime: testRuntime, Runner: newRunner(), Files: persisttest.NewFiles(),
		NoFreshnessUnsafe: true, OpenToAnyOwner: true, MaxCalls: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestSlowBodiesEnd: a body that stops coming ends with its deadline, and what it had taken of the budget is given back.
func TestSlowBodiesEnd(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		length, sent int
	}{{100, 1}, {maxDocument, 0}, {maxDocument, 3 << 20}} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t)
			c := pipeServer(t, h)()
			defer c.Close()
			began := time.Now()
			go func() { _, _ = io.WriteString(c, halfRequest(tc.length, tc.sent)) }()
			synctest.Wait()
			if used := h.bodies.Used(); (used > 0) != (tc.sent > ownBody) || used > 2*int64(tc.sent) {
				t.Errorf("%d of %d bytes sent: %d taken from the budget", tc.sent, tc.length, used)
			}
			if len(h.slots) != 0 {
				t.Error("an unfinished body holds a slot")
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			took, most := time.Since(began), transferTime(int64(tc.length))
			if resp.StatusCode != http.StatusRequestTimeout || !resp.Close || took > most {
				t.Errorf("%d of %d bytes: status %d after %v, want 408 and the end within %v", tc.sent, tc.length, resp.StatusCode, took, most)
			}
			resp.Body.Close()
			synctest.Wait()
			if used := h.bodies.Used(); used != 0 {
				t.Errorf("%d bytes are still taken", used)
			}
		})
	}
}

// TestLargeBodiesDoNotKeepOutSmallOnes uses up the budget of bodies.
func TestLargeBodiesDoNotKeepOutSmallOnes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	if !w.host.bodies.Reserve(bodyBytes) {
		t.Fatal("bytes are taken while nothing runs")
	}
	c := w.client("p", "v1")
	if got := call(t, c, "echo", "a"); got != `["a"]` {
		t.Errorf("echo: %s", got)
	}
	_, err := c.Call(t.Context(), "echo", args(strings.Repeat("x", 200_000)))
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != CodeBusy || p.Status != http.StatusServiceUnavailable {
		t.Errorf("a large call: %v, want busy", err)
	}
	w.host.bodies.Release(bodyBytes)
	if got := call(t, c, "echo", strings.Repeat("x", 200_000)); len(got) != 200_004 {
		t.Errorf("a large call afterwards: %d bytes", len(got))
	}
	if n := w.host.bodies.Used(); n != 0 {
		t.Errorf("%d bytes are still taken", n)
	}
}

func TestBodiesSayTheirLength(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := w.server.URL + "/v1/functions/" + strings.Repeat("0", 64) + "/x"
	for name, tc := range map[string]struct {
		body io.Reader
		want int
	}{
		"chunked":   {io.MultiReader(strings.NewReader("{}")), http.StatusLengthRequired},
		"too large": {bytes.NewReader(make([]byte, maxDocument+1)), http.StatusRequestEntityTooLarge},
		"none":      {nil, http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, tc.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, tc.want)
		}
	}
}

// TestDeafCallersHoldNoSlot makes a call whose large reply is never read, with a single slot.
func TestDeafCallersHoldNoSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		dial := pipeServer(t, h)
		owner := ownerKey(t)
		code := []byte("v1")
		d, err := SignDeployment(owner, "p", testRuntime, code, 1)
		if err != nil {
			t.Fatal(err)
		}
		id, err := d.ProjectID()
		if err != nil {
			t.Fatal(err)
		}
		sealed, _, err := SealDeployment(h.PublicKey(), d, code)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Deploy(t.Context(), id, sealed); err != nil {
			t.Fatal(err)
		}
		client := func(c net.Conn) *Client {
			return &Client{
				Endpoint: "http://host", HTTP: &http.Client{Transport: &http.Transport{
					DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil },
				}},
				Target: Target{RuntimeKey: h.PublicKey(), Runtime: testRuntime, Project: id, Code: HashCode(code)},
			}
		}
		deaf := dial()
		session, large := Session(h.window.now()), args(strings.Repeat("x", 500_000))
		request, _, err := SealCall(client(deaf).Target, session, "echo", large)
		if err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf(`{"code_hash":%q,"request":%q}`, HashCode(code), base64Strict.EncodeToString(request))
		go fmt.Fprintf(deaf, "POST /v1/functions/%s/echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
		synctest.Wait() // until the reply waits for its reader
		if n := h.bodies.Used(); n == 0 {
			t.Error("a reply that waits takes nothing from the budget")
		}
		hearing := dial()
		defer hearing.Close()
		if res, err := client(hearing).Call(t.Context(), "echo", args("a")); err != nil || string(res.Value) != `["a"]` {
			t.Errorf("beside a deaf caller: %s, %v", res.Value, err)
		}
		time.Sleep(transferTime(2 << 20))
		synctest.Wait()
		if n := h.bodies.Used(); n != 0 {
			t.Errorf("the deaf caller's reply still takes %d bytes", n)
		}
		deaf.Close()
	})
}
