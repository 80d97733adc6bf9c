package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binaries is where the commands are built, once for all tests of the package.
var binaries struct {
	once sync.Once
	dir  string
	err  error
}

// laboratory, where the platform has one, says whether this process was started to be the inside of the process chaos, and
// if so runs it and returns its exit code.
var laboratory = func() (code int, inside bool) { return 0, false }

func TestMain(m *testing.M) {
	flag.Parse()
	if code, inside := laboratory(); inside {
		os.Exit(code)
	}
	code := m.Run()
	if binaries.dir != "" {
		if err := os.RemoveAll(binaries.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func binary(t *testing.T, name string) string {
	t.Helper()
	binaries.once.Do(func() {
		if binaries.dir, binaries.err = os.MkdirTemp("", "claviger-integration-"); binaries.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", binaries.dir, "./cmd/...")
		build.Dir = ".."
		if out, err := build.CombinedOutput(); err != nil {
			binaries.err = fmt.Errorf("go build ./cmd/...: %w\n%s", err, out)
		}
	})
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	return filepath.Join(binaries.dir, name)
}

// world is a directory that claviger sim init made, with the processes started from it.
type world struct {
	t     *testing.T
	dir   string
	nodes map[string]*process
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), nodes: map[string]*process{}}
	w.claviger("sim", "init", w.dir, "--port", fmt.Sprint(freePorts(t)))
	return w
}

// freePorts returns a base such that the ports that sim init uses above it are this test's until it ends: whoever looks for
// ports in this way, in this process or another, finds the UDP port of the base taken.
func freePorts(t *testing.T) int {
	t.Helper()
	for base := 20500; base < 32000; base += 500 { // above are the ports that the system hands out by itself
		mark, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", base))
		if err != nil {
			continue
		}
		if portsFree(base) {
			t.Cleanup(func() { mark.Close() })
			return base
		}
		mark.Close()
	}
	t.Fatal("no free ports")
	return 0
}

func portsFree(base int) bool {
	for _, offset := range []int{1, 2, 3, 101, 102, 103, 201, 202, 203, 301, 302} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+offset))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

// run runs a command to its end.
func (w *world) run(args ...string) result {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), binary(w.t, args[0]), args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errs, w.dir
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return result{exit.ExitCode(), out.String(), errs.String()}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return result{0, out.String(), errs.String()}
}

// claviger runs the command line, which must succeed, and returns its standard output.
func (w *world) claviger(args ...string) string {
	w.t.Helper()
	r := w.run(append([]string{"claviger"}, args...)...)
	if r.code != 0 {
		w.t.Fatalf("claviger %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// process is a daemon that runs.
type process struct {
	cmd   *exec.Cmd
	lines chan string // standard error, line by line; closed at its end
	done  chan struct{}
	mu    sync.Mutex
	log   bytes.Buffer
}

// start starts a daemon and waits until a line of its log contains ready.
func (w *world) start(ready string, args ...string) *process {
	w.t.Helper()
	cmd := exec.Command(binary(w.t, args[0]), args[1:]...)
	cmd.Dir = w.dir
	stderr, err := cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	p := &process{cmd: cmd, lines: make(chan string, 64), done: make(chan struct{})}
	go p.follow(stderr)
	w.t.Cleanup(func() {
		p.kill()
		if w.t.Failed() {
			w.t.Logf("log of %s:\n%s", strings.Join(args, " "), p.tail())
		}
	})
	limit := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				w.t.Fatalf("%s ended before it was ready:\n%s", strings.Join(args, " "), p.tail())
			}
			if strings.Contains(line, ready) {
				go func() { // nobody reads on: do not block the daemon
					for range p.lines {
					}
				}()
				return p
			}
		case <-limit:
			w.t.Fatalf("%s is not ready:\n%s", strings.Join(args, " "), p.tail())
		}
	}
}

func (p *process) follow(stderr io.Reader) {
	defer close(p.lines)
	for scan := bufio.NewScanner(stderr); scan.Scan(); {
		p.mu.Lock()
		fmt.Fprintln(&p.log, scan.Text())
		p.mu.Unlock()
		p.lines <- scan.Text()
	}
}

func (p *process) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.log.String()
	return text[max(0, len(text)-4000):]
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	p.wait()
}

// stop asks the process to end and returns its exit code.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait()
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) wait() {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Wait() // the exit code is in ProcessState
		close(p.done)
	}
}

// node starts a key node.
func (w *world) node(slot string, flags ...string) {
	w.t.Helper()
	w.nodes[slot] = w.start("msg=ready", append(append([]string{"clavigerd-sim"}, flags...), slot+".yaml")...)
}

// members asks the cluster for its members.
func (w *world) members() (leader string, voters int) {
	w.t.Helper()
	var c struct {
		Members []struct {
			Slot          string
			Voter, Leader bool
		}
	}
	if err := json.Unmarshal([]byte(w.claviger("cluster", "status", "--sim", "world.json", "--json")), &c); err != nil {
		w.t.Fatal(err)
	}
	for _, m := range c.Members {
		if m.Voter {
			voters++
		}
		if m.Leader {
			leader = m.Slot
		}
	}
	return leader, voters
}

// awaitVoters waits until the cluster has n voters and a leader, and names the leader.
func (w *world) awaitVoters(n int) string {
	w.t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; {
		leader, voters := w.members()
		if leader != "" && voters == n {
			return leader
		}
		if time.Now().After(limit) {
			w.t.Fatalf("%d voters, leader %q, want %d and one", voters, leader, n)
		}
	}
}

// deriveArgs asks for the key of the app "orders" on a machine.
func deriveArgs(machine string, more ...string) []string {
	return append([]string{
		"claviger", "key", "derive", "--json", "--sim", "world.json", "--machine", machine, "--image", "orders",
		"--name", "db", "--purpose", "aes-256",
	}, more...)
}

// key derives the key of the app "orders" on a machine.
func (w *world) key(machine string, more ...string) string {
	w.t.Helper()
	r := w.run(deriveArgs(machine, more...)...)
	if r.code != 0 {
		w.t.Fatalf("key derive: exit code %d: %s", r.code, r.stderr)
	}
	var k struct{ Key string }
	if err := json.Unmarshal([]byte(r.stdout), &k); err != nil || len(k.Key) != 64 {
		w.t.Fatalf("key derive printed %q: %v", r.stdout, err)
	}
	return k.Key
}
