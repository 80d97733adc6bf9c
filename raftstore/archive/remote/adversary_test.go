package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"iter"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/archivetest"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// The disk is behind the server; what it damages comes through the protocol.
func TestAdversary(t *testing.T) {
	k := kindFile
	k.Stride = 23
	archivetest.Adversary(t, k)
}

// TestServeInChild is a server in a process of its own that opens databases
// itself, which claviger-archive does not do.
func TestServeInChild(t *testing.T) {
	root, ok := archivetest.Child()
	if !ok {
		t.Skip("this is the other half of TestAdversaryCrashesTheServer")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: 512 << 20, Max: 512 << 20}); err != nil {
		t.Log("memory is not limited: ", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(os.NewFile(3, "address"), l.Addr())
	remote.NewServer(onBolt(root, nil), nil).Serve(t.Context(), l)
}

// A hostile database takes its server's process with it. The client, which is
// what runs inside the TEE, gets an error and lives on.
func TestAdversaryCrashesTheServer(t *testing.T) {
	if archivetest.RaceDetector {
		t.Skip("SKIPPED: every read is a process of its own, in which nothing races; it runs without the race detector")
	}
	k, crashes := kindBolt, 0
	k.Stride = 2039
	k.Records = func(t testing.TB, root string, id raftstore.ServerID) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			address, end := serveInChild(t, root)
			for r, err := range remote.Records(t.Context(), address, first(id), remote.Options{Timeout: 8 * time.Second}) {
				crashed := err != nil && end()
				if crashed {
					crashes++
					err = fmt.Errorf("the reader crashed, and the client says: %w", err)
				}
				if !yield(r, err) {
					break
				}
			}
			end()
		}
	}
	archivetest.Adversary(t, k)
	t.Logf("the server crashed %d times, its client never", crashes)
	if crashes == 0 {
		t.Error("no file crashed the server: the test shows nothing")
	}
}

// serveInChild starts a server on root; end says whether it died by itself, or stops it.
func serveInChild(t testing.TB, root string) (address string, end func() (crashed bool)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := archivetest.Again(ctx, "TestServeInChild", root)
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer r.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dead := make(chan bool, 1)
	go func() { dead <- cmd.Wait() != nil && ctx.Err() == nil }()
	ended := false
	return strings.TrimSpace(line), func() (crashed bool) {
		if ended {
			return false
		}
		ended = true
		select {
		case crashed = <-dead:
			cancel()
		case <-time.After(100 * time.Millisecond): // it lives: the error came through the protocol
			cancel()
			<-dead
		}
		return crashed
	}
}

// liar is a server that says what the test wants it to say.
func liar(t *testing.T, say func(conn net.Conn)) remote.Options {
	t.Helper()
	return remote.Options{Timeout: 300 * time.Millisecond, Dial: func(context.Context, string) (net.Conn, error) {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		go say(b)
		return a, nil
	}}
}

func frame(t byte, payload ...byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), t}, payload...)
}

func done(n byte) []byte { return frame(0x40, 0, 0, 0, 0, 0, 0, 0, n) }

// after answers the client's frames one by one, whatever they say, and then stays silent.
func after(answers ...[]byte) func(net.Conn) {
	return func(conn net.Conn) {
		buf := make([]byte, 1<<16)
		for _, a := range answers {
			if _, err := conn.Read(buf); err != nil {
				return
			}
			if _, err := conn.Write(a); err != nil {
				return
			}
		}
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}
}

// A server may say anything. The client believes an acknowledgement, as it must
// believe a disk, and nothing else; what breaks the protocol ends the archive.
func TestLyingServer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers [][]byte
		says    string // of the error
	}{
		"acknowledges less":        {[][]byte{done(0), done(0)}, "keep to the protocol"},
		"acknowledges more":        {[][]byte{done(0), done(2)}, "keep to the protocol"},
		"answers with records":     {[][]byte{done(0), frame(0x42, 0, 0, 0, 1, 7)}, "keep to the protocol"},
		"an unknown frame":         {[][]byte{done(0), frame(0x99)}, "keep to the protocol"},
		"an oversized frame":       {[][]byte{done(0), {0xff, 0xff, 0xff, 0xff, 0x40}}, "keep to the protocol"},
		"half a frame":             {[][]byte{done(0), done(1)[:7]}, "timeout"},
		"nothing at all":           {[][]byte{done(0)}, "timeout"},
		"an answer ahead of time":  {[][]byte{append(done(0), done(7)...)}, "keep to the protocol"},
		"a full disk":              {[][]byte{done(0), frame(0x41, 4, 'f', 'u', 'l', 'l')}, "full"},
		"a fault with control":     {[][]byte{done(0), frame(0x41, 0, 0x1b, '[', '2', 'J', '\n')}, ".[2J."},
		"a kept drop without drop": {[][]byte{done(0), frame(0x41, 5, 'x')}, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := remote.Create(t.Context(), "server", first(raftstore.ServerID{1}), liar(t, after(c.answers...)))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if err := a.Append([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := a.Sync(); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want an error with %q", err, c.says)
			}
			for call, err := range map[string]error{"Append": a.Append([]byte("y")), "Sync": a.Sync(), "Cut": a.Cut(), "Drop": a.Drop()} {
				if err == nil {
					t.Errorf("%s succeeds after it", call)
				}
			}
		})
	}
}

// What a lying server can do to a recovery: it can end the archive early, and
// nothing that it makes up gets further than the Opener. The stream is bounded.
func TestLyingServerOfRecords(t *testing.T) {
	t.Parallel()
	one := frame(0x42, 0, 0, 0, 1, 7)
	end := func(n byte) []byte { return frame(0x44, 0, 0, 0, 0, 0, 0, 0, n) }
	for name, c := range map[string]struct {
		answer []byte
		n      int
		says   string // of the error; "" for none
	}{
		"the truth":                 {append(one, end(1)...), 1, ""},
		"an empty archive":          {end(0), 0, ""},
		"counts wrongly":            {append(one, end(2)...), 1, "keep to the protocol"},
		"an empty batch":            {frame(0x42), 0, "keep to the protocol"},
		"an empty record":           {frame(0x42, 0, 0, 0, 0, 1), 0, "keep to the protocol"},
		"a record beyond its batch": {frame(0x42, 0, 0, 0, 9, 1), 0, "keep to the protocol"},
		"a cut batch":               {frame(0x42, 0, 0, 0, 1, 7, 0, 0), 1, "keep to the protocol"},
		"a batch of 4 GiB":          {[]byte{0xff, 0xff, 0xff, 0xff, 0x42}, 0, "keep to the protocol"},
		"an acknowledgement":        {done(0), 0, "keep to the protocol"},
		"missing":                   {frame(0x41, 2), 0, "no archive"},
		"in use":                    {frame(0x41, 3), 0, "in use"},
		"stops in the middle":       {one, 1, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, last := 0, error(nil)
			for _, err := range remote.Records(t.Context(), "server", first(raftstore.ServerID{1}), liar(t, after(c.answer))) {
				if last = err; err == nil {
					n++
				}
			}
			if n != c.n || (c.says == "") != (last == nil) || last != nil && !strings.Contains(last.Error(), c.says) {
				t.Fatalf("%d records, then %v; want %d and %q", n, last, c.n, c.says)
			}
		})
	}
}

// A server that goes on for ever is read for as long as the caller wants to.
func TestEndlessServer(t *testing.T) {
	t.Parallel()
	o := liar(t, func(conn net.Conn) {
		for buf := make([]byte, 1024); ; {
			if _, err := conn.Read(buf); err != nil {
				return
			}
			for {
				if _, err := conn.Write(frame(0x42, 0, 0, 0, 1, 7)); err != nil {
					return
				}
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	n, last := 0, error(nil)
	for _, err := range remote.Records(ctx, "server", first(raftstore.ServerID{1}), o) {
		last = err
		n++
	}
	if n < 10 || last == nil {
		t.Fatalf("%d records, then %v", n, last)
	}
}

// A list of names is bounded, and names that are none are refused.
func TestLyingServerOfNames(t *testing.T) {
	t.Parallel()
	name := append([]byte{0, 1}, make([]byte, 32)...)
	name[33] = 9
	for what, answer := range map[string][]byte{
		"attempt zero":     append(frame(0x43, append([]byte{0, 0}, name[2:]...)...), frame(0x44, 0, 0, 0, 0, 0, 0, 0, 1)...),
		"the zero id":      append(frame(0x43, make([]byte, 34)...), frame(0x44, 0, 0, 0, 0, 0, 0, 0, 1)...),
		"a name cut short": append(frame(0x43, append(name, 1)...), frame(0x44, 0, 0, 0, 0, 0, 0, 0, 1)...),
		"counts wrongly":   append(frame(0x43, name...), frame(0x44, 0, 0, 0, 0, 0, 0, 0, 2)...),
	} {
		if names, err := remote.List(t.Context(), "server", liar(t, after(answer))); err == nil || names != nil {
			t.Errorf("%s: %v, %v", what, names, err)
		}
	}
	names, err := remote.List(t.Context(), "server", liar(t, after(append(frame(0x43, name...), frame(0x44, 0, 0, 0, 0, 0, 0, 0, 1)...))))
	if err != nil || len(names) != 1 || names[0].Attempt != 1 {
		t.Errorf("a sound list: %v, %v", names, err)
	}
}

// telling says when records arrive.
type telling struct {
	raftstore.Archive
	arrived chan struct{}
}

func (a telling) Append(record []byte) error {
	err := a.Archive.Append(record)
	close(a.arrived)
	return err
}

// What was appended and never synced is kept all the same by a server that is stopped: relaxed stores have no more than that.
func TestAStoppedServerKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	root, arrived := filepath.Join(t.TempDir(), "archives"), make(chan struct{})
	on := onFiles(root, nil)
	plain := on.Make
	on.Make = func(root string, id raftstore.ServerID) (raftstore.Archive, error) {
		a, err := plain(root, id)
		return telling{a, arrived}, err
	}
	address, stop := serve(t, on)
	a, err := remote.Create(t.Context(), address, first(raftstore.ServerID{4}), remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	record := bytes.Repeat([]byte("x"), remote.MaxRecord) // more than a batch: it is sent at once
	if err := a.Append(record); err != nil {
		t.Fatal(err)
	}
	<-arrived
	stop()
	again, _ := serve(t, onFiles(root, nil))
	n := 0
	for got, err := range remote.Records(t.Context(), again, first(raftstore.ServerID{4}), remote.Options{}) {
		if n++; err != nil || !bytes.Equal(got, record) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if n != 1 {
		t.Errorf("%d records are left", n)
	}
}

// The server's own life: it lists and reads what it keeps, refuses to read what
// is being written, and ends with its context while a client is connected.
func TestServer(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "archives")
	address, stop := serve(t, onBolt(root, nil))
	id := raftstore.ServerID{3}
	second := remote.Name{Attempt: 2, Server: id}
	write := func(n remote.Name, content string) *remote.Archive {
		t.Helper()
		a, err := remote.Create(t.Context(), address, n, remote.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		if err := a.Append([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := a.Sync(); err != nil {
			t.Fatal(err)
		}
		return a
	}
	read := func(n remote.Name) (out string, err error) {
		for r, e := range remote.Records(t.Context(), address, n, remote.Options{}) {
			out, err = out+string(r), e
		}
		return out, err
	}
	a := write(first(id), "one")
	if out, err := read(first(id)); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("an archive that is being written was read: %q, %v", out, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := read(first(id)); err != nil || out != "one" {
		t.Errorf("read %q, %v", out, err)
	}
	if out, err := read(second); err == nil || !strings.Contains(err.Error(), "no archive") {
		t.Errorf("an archive that is not there: %q, %v", out, err)
	}
	b := write(second, "two")
	names, err := remote.List(t.Context(), address, remote.Options{})
	if err != nil || fmt.Sprint(names) != fmt.Sprint([]remote.Name{first(id), second}) {
		t.Errorf("listed %v, %v", names, err)
	}
	stop()
	if err := b.Append([]byte("x")); err == nil {
		err = b.Sync()
		if err == nil {
			t.Error("a stopped server acknowledges")
		}
	}
}
