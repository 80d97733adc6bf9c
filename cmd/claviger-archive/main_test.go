package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// asCommand makes this test binary the command itself: the server starts its own executable to read a database.
const asCommand = "CLAVIGER_ARCHIVE_AS_COMMAND"

func TestMain(m *testing.M) {
	switch os.Getenv(asCommand) {
	case "yes":
		os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
	case "crash":
		os.Stdout.Write([]byte{0, 0, 0, 1, 'x'})
		panic("as a damaged database makes it")
	case "hang":
		os.Stdout.Write([]byte{0, 0, 0, 1, 'x'})
		time.Sleep(time.Minute)
	case "rubbish":
		os.Stdout.Write([]byte{0xff, 0xff, 0xff, 0xff, 'x'})
		time.Sleep(time.Minute)
	case "endless":
		for {
			if _, err := os.Stdout.Write([]byte{0, 0, 0, 1, 'x'}); err != nil {
				os.Exit(1)
			}
		}
	}
	os.Setenv(asCommand, "yes")
	os.Exit(m.Run())
}

// buffer is a standard error that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start runs the server until the test ends and returns where it listens.
func start(t *testing.T, kind string) (dir, address string) {
	t.Helper()
	dir = t.TempDir()
	config := filepath.Join(dir, "archive.yaml")
	if err := os.WriteFile(config, []byte("listen: 127.0.0.1:0\ndata: data\narchive: "+kind+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var log buffer
	var done sync.WaitGroup
	done.Go(func() {
		if code := run(ctx, []string{config}, nil, nil, &log, &log); code != 0 {
			t.Errorf("the server ended with %d:\n%s", code, &log)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	listens := regexp.MustCompile(`listen=(\S+)`)
	for range 1000 {
		if m := listens.FindStringSubmatch(log.String()); m != nil {
			return filepath.Join(dir, "data"), m[1]
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the server is not ready:\n%s", &log)
	return "", ""
}

func name(b byte) remote.Name { return remote.Name{Attempt: 1, Server: raftstore.ServerID{b}} }

func create(t *testing.T, address string, n remote.Name) *remote.Archive {
	t.Helper()
	a, err := remote.Create(t.Context(), address, n, remote.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func add(t *testing.T, a *remote.Archive, record string) {
	t.Helper()
	if err := errors.Join(a.Append([]byte(record)), a.Sync()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, address string, n remote.Name) (records []string, err error) {
	for r, e := range remote.Records(t.Context(), address, n, remote.Options{}) {
		if e != nil {
			return records, e
		}
		records = append(records, string(r))
	}
	return records, nil
}

func TestWriteListRead(t *testing.T) {
	for _, kind := range []string{kindBolt, kindFile} {
		t.Run(kind, func(t *testing.T) {
			_, address := start(t, kind)
			a := create(t, address, name(1))
			add(t, a, "one")
			add(t, a, "two")
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := read(t, address, name(1)); err != nil || strings.Join(got, " ") != "one two" {
				t.Errorf("read %q, %v", got, err)
			}
			var out, errs bytes.Buffer
			if code := run(t.Context(), []string{"list", "--json", address}, nil, nil, &out, &errs); code != 0 {
				t.Fatalf("list: %d %s", code, &errs)
			}
			var list []listed
			if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 1 || list[0] != (listed{name(1).Server.String(), 1}) {
				t.Errorf("listed %s, %v", &out, err)
			}
		})
	}
}

// The attack: a database from a disk that was not looked after crashes whoever
// reads it, while other nodes write to this server. Only the reader dies.
func TestDamagedDatabaseCrashesItsReaderOnly(t *testing.T) {
	data, address := start(t, kindBolt)
	writer := create(t, address, name(2))
	add(t, writer, "before")
	a := create(t, address, name(1))
	for range 20 {
		add(t, a, strings.Repeat("x", 2000))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(data, name(1).Server.String(), "archive.bolt")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 2 * 4096; i+16 <= len(raw); i += 4096 {
		copy(raw[i+8:], []byte{0x77, 0, 0xff, 0xff}) // pages of no type with 65535 elements
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = read(t, address, name(1))
	if err == nil || !strings.Contains(err.Error(), "the process that reads the database ended") {
		t.Fatalf("reading a damaged database: %v", err)
	}
	t.Logf("the recovery is told: %v", err)
	add(t, writer, "after")
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, address, name(2)); err != nil || strings.Join(got, " ") != "before after" {
		t.Errorf("the other archive: %q, %v", got, err)
	}
}

func TestReadersThatMisbehave(t *testing.T) {
	for how, says := range map[string]string{"crash": "as a damaged database makes it", "hang": "no record for", "rubbish": "1 to"} {
		t.Run(how, func(t *testing.T) {
			t.Setenv(asCommand, how)
			n, last := 0, error(nil)
			for _, err := range isolated(t.Context(), 2*time.Second, os.Args[0]) {
				if last = err; err == nil {
					n++
				}
			}
			if n > 1 || last == nil || !strings.Contains(last.Error(), says) {
				t.Fatalf("%d records, then %v", n, last)
			}
		})
	}
	t.Run("endless", func(t *testing.T) {
		t.Setenv(asCommand, "endless")
		n := 0
		for _, err := range isolated(t.Context(), 2*time.Second, os.Args[0]) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 1000 {
				break // and the process is ended
			}
		}
	})
}

func TestConfigurations(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"listen: here\ndata: d\n", "listen"},
		{"listen: 127.0.0.1:0\n", "data is missing"},
		{"listen: 127.0.0.1:0\ndata: d\narchive: tape\n", "bolt or file"},
		{"listen: 127.0.0.1:0\ndata: d\nlevel: info\n", "level"},
		{"listen: 127.0.0.1:0\ndata: d\nlog: {level: loud}\n", "log.level"},
	} {
		file := filepath.Join(t.TempDir(), "archive.yaml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		if code := run(t.Context(), []string{file}, nil, nil, &errs, &errs); code != 2 || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%q: exit code %d, %s", c.text, code, &errs)
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, nil, nil, &out, &out); code != 0 || !strings.Contains(out.String(), "archive: bolt") {
		t.Errorf("--help: %d, %s", code, &out)
	}
	if code := run(t.Context(), []string{"list", "127.0.0.1:1"}, nil, nil, &out, &out); code != 1 {
		t.Errorf("listing nobody: exit code %d", code)
	}
}
