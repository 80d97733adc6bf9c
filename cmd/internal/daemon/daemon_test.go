package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
)

func TestLogger(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		log  Log
		json bool
		want string // part of a warning; "" means refused
	}{
		{Log{}, false, "level=WARN"},
		{Log{}, true, `"level":"WARN"`},
		{Log{Level: "debug", Format: "text"}, true, `"level":"WARN"`},
		{Log{Level: "warn", Format: "json"}, false, `"level":"WARN"`},
		{Log{Level: "loud"}, false, ""},
		{Log{Format: "xml"}, false, ""},
	} {
		var errs bytes.Buffer
		log, err := tc.log.Logger(&cli.Streams{Err: &errs, JSON: tc.json})
		if tc.want == "" {
			if !errors.Is(err, ErrConfig) || log != nil {
				t.Errorf("%+v: got %v, %v, want ErrConfig", tc.log, log, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", tc.log, err)
			continue
		}
		if log.Warn("seen"); !strings.Contains(errs.String(), tc.want) {
			t.Errorf("%+v logged %q", tc.log, &errs)
		}
	}
	var errs bytes.Buffer
	log, err := Log{Level: "error"}.Logger(&cli.Streams{Err: &errs})
	if err != nil {
		t.Fatal(err)
	}
	if log.Warn("unseen"); errs.Len() != 0 {
		t.Errorf("level error logged %q", &errs)
	}
}

func TestAddressAndPath(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"127.0.0.1:1", "[::1]:443", ":8080", "host.example:80"} {
		if err := Address("k", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "host", "host:", "a b:1", strings.Repeat("x", 300) + ":1", "1:2:3"} {
		if err := Address("k", bad); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v, want ErrConfig", bad, err)
		}
	}
	if _, err := Path("data", "", "/x"); !errors.Is(err, ErrConfig) {
		t.Errorf("an empty path: %v", err)
	}
	if p, err := Path("data", "d", "/x"); err != nil || p != filepath.FromSlash("/x/d") {
		t.Errorf("got %q, %v", p, err)
	}
}

type sample struct {
	Name string `yaml:"name"`
	dir  string
}

func (s *sample) Resolve(dir string) error {
	s.dir = dir
	if s.Name == "" {
		return ErrConfig
	}
	return nil
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	usage := func(what string, err error) {
		t.Helper()
		if _, ok := errors.AsType[*cli.UsageError](err); !ok {
			t.Errorf("%s: %v, want wrong usage", what, err)
		}
	}
	_, err := Load[sample](file)
	usage("no file", err)
	write("name: a\nother: b\n")
	_, err = Load[sample](file)
	usage("unknown key", err)
	write("name: \"\"\n")
	_, err = Load[sample](file)
	usage("refused by Resolve", err)
	write("name: a\n")
	if c, err := Load[sample](file); err != nil || c.Name != "a" || c.dir != dir {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestServe: the end of the context lets a request in progress finish, and ends with the context's error.
func TestServe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered, leave := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		_, _ = io.WriteString(w, "done")
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	answered := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answered <- string(body)
	}()
	<-entered
	cancel()
	close(leave)
	if got := <-answered; got != "done" {
		t.Errorf("the request in progress got %q", got)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve ended with %v", err)
	}
	// A listener that is gone is a failure, not a stop.
	if err := Serve(t.Context(), l, h, slog.New(slog.DiscardHandler)); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("on a closed listener: %v", err)
	}
}

func TestCollateral(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	if err := (&Collateral{Dir: "d", URL: "https://x", Offline: true}).Resolve("/x"); !errors.Is(err, ErrConfig) {
		t.Errorf("offline with a URL: %v", err)
	}
	for _, bad := range []Collateral{
		{},
		{Dir: t.TempDir(), URL: "http://pccs.example"},
		{Dir: t.TempDir(), URL: "::"},
	} {
		if source, _, err := bad.Open(attest.IntelRoot(), log); !errors.Is(err, ErrConfig) || source != nil {
			t.Errorf("%+v: %v, want ErrConfig", bad, err)
		}
	}
	c := Collateral{Dir: "new", Offline: true}
	if err := c.Resolve(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	source, stop, err := c.Open(attest.IntelRoot(), log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source(t.Context(), []byte("no quote")); err == nil {
		t.Error("an empty directory has collateral for anything")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	online := Collateral{Dir: t.TempDir(), URL: "http://pccs.example", PlainHTTPUnsafe: true}
	if _, stop, err = online.Open(attest.IntelRoot(), log); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
