//go:build linux

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
)

// A site is the directory of a run and all that is in it.
type site struct {
	dir, bin string
	fabric   *fabric
	slots    []*slotHome
	world    *sim.World
	cluster  api.ID
	broken   *complaints

	clones  atomic.Int64 // alarms seen in logs
	shown   atomic.Int64 // impostors shown the door, in logs of theirs
	filled  atomic.Int64 // stores that stopped over a full disk
	mu      sync.Mutex
	rejoins []time.Duration // from start to ready
	boots   int
}

// complaints collects violations; the first ends the run.
type complaints struct {
	mu    sync.Mutex
	list  []string
	first chan struct{} // closed by the first
}

func (c *complaints) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, fmt.Sprintf(format, args...))
	if len(c.list) == 1 {
		close(c.first)
	}
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list
}

// slotHome is a slot of the cluster: the machine it belongs to, and a second place where the host may run a clone.
type slotHome struct {
	name        string
	home, spare *seat
	clock       string       // file with the host's offset
	cloned      atomic.Int64 // when the host last started another claimant, in Unix seconds
}

// A seat is where one process of a slot runs.
type seat struct {
	site        *site
	slot        *slotHome
	name        string
	place       *place
	config      string
	data        string
	api, admin  string
	disk        bool // data is a small disk
	proc        *boot
	mayEnd      atomic.Bool // the host has made trouble that a boot may give up over before it is ready
	mustNotJoin atomic.Bool // whoever runs here has no right to the slot
}

// boot is one process.
type boot struct {
	seat    *seat
	n       int
	cmd     *exec.Cmd
	started time.Time
	killed  atomic.Bool
	ready   atomic.Bool
	stopped atomic.Bool // SIGSTOP
	done    chan struct{}

	mu   sync.Mutex
	tail []string
}

const (
	chaosPeerPort, chaosAPIPort, chaosAdminPort = 7101, 7201, 7301
	chaosDisk                                   = 128 // MiB for each slot
)

// newSite writes a world and configurations for n slots, from what claviger sim init writes.
func newSite(dir, bin string, n int, isolated bool) (*site, error) {
	s := &site{dir: dir, bin: bin, broken: &complaints{first: make(chan struct{})}}
	var err error
	if s.fabric, err = newFabric(isolated); err != nil {
		return nil, err
	}
	for _, sub := range []string{"logs", "clock", "data", "saved"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	if err := chaosCommand(filepath.Join(bin, "claviger"), "sim", "init", dir); err != nil {
		return nil, err
	}
	if s.world, err = sim.OpenWorld(filepath.Join(dir, "world.json")); err != nil {
		return nil, err
	}
	for i := range n {
		if err := s.addSlot(i); err != nil {
			return nil, err
		}
	}
	for i := range s.slots {
		if err := s.configure(i); err != nil {
			return nil, err
		}
	}
	if isolated {
		s.fabric.findTC(s.slots[0].home.place)
	}
	return s, nil
}

func (s *site) addSlot(i int) error {
	slot := &slotHome{name: string(rune('a' + i))}
	slot.clock = filepath.Join(s.dir, "clock", slot.name)
	for _, name := range []string{slot.name, slot.name + "-clone"} {
		port := byte(1 + i)
		if name != slot.name {
			port += 50
		}
		p, err := s.fabric.place(port)
		if err != nil {
			return err
		}
		e := &seat{site: s, slot: slot, name: name, place: p, config: filepath.Join(s.dir, name+".yaml"), data: filepath.Join(s.dir, "data", name),
			api: fmt.Sprintf("%s:%d", p.addr, chaosAPIPort), admin: fmt.Sprintf("%s:%d", p.addr, chaosAdminPort)}
		if err := os.MkdirAll(e.data, 0o700); err != nil {
			return err
		}
		if s.fabric.isolated {
			if err := smallDisk(e.data, chaosDisk); err != nil {
				return err
			}
			e.disk = true
		}
		if slot.home == nil {
			slot.home = e
		} else {
			slot.spare = e
		}
	}
	s.slots = append(s.slots, slot)
	return nil
}

// configure writes the files of a slot: home, clone, and an impostor on another machine, who runs where the clone does.
func (s *site) configure(i int) error {
	slot := s.slots[i]
	base := "b.yaml"
	if i == 0 {
		base = "a.yaml"
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, base))
	if err != nil {
		return err
	}
	var join, endpoints []string
	for _, other := range s.slots {
		if other != slot {
			join = append(join, fmt.Sprintf("%s:%d", other.home.place.addr, chaosPeerPort))
			endpoints = append(endpoints, other.home.api)
		}
	}
	for _, e := range []*seat{slot.home, slot.spare} {
		for _, machine := range []string{"kds-" + slot.name, "evil-" + slot.name} {
			if err := s.writeConfig(e, raw, machine, join, endpoints, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *site) writeConfig(e *seat, template []byte, machine string, join, endpoints []string, i int) error {
	var c map[string]any
	if err := yaml.Unmarshal(template, &c); err != nil {
		return err
	}
	c["slot"] = e.slot.name
	c["listen"] = map[string]any{"peer": fmt.Sprintf("%s:%d", e.place.addr, chaosPeerPort), "api": e.api, "admin": e.admin}
	c["data"] = e.data
	c["archive"] = []string{"file", "bolt"}[i%2]
	c["join"] = join
	c["log"] = map[string]any{"level": "info", "format": "text"}
	c["sim"] = map[string]any{"world": "world.json", "machine": machine, "clock": e.slot.clock}
	if genesis, ok := c["genesis"].(map[string]any); ok {
		genesis["endpoints"] = endpoints
	}
	name := e.config
	if machine != "kds-"+e.slot.name {
		name = strings.TrimSuffix(name, ".yaml") + "-evil.yaml"
	}
	raw, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(name, raw, 0o600)
}

// found starts the first node with --genesis and the others after it, and waits for all of them.
func (s *site) found(limit time.Duration) error {
	for i, slot := range s.slots {
		var args []string
		if i == 0 {
			args = []string{"--genesis"}
		}
		if err := slot.home.start(args...); err != nil {
			return err
		}
		if err := slot.home.awaitReady(limit); err != nil {
			return err
		}
	}
	var file struct {
		ClusterID api.ID `json:"cluster_id"`
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(raw, &file)
	}
	s.cluster = file.ClusterID
	return err
}

// start starts a boot.
func (e *seat) start(args ...string) error { return e.startWith(e.config, args...) }

func (e *seat) startWith(config string, args ...string) error {
	if e.lives() {
		return fmt.Errorf("%s runs already", e.name)
	}
	e.site.mu.Lock()
	e.site.boots++
	n := e.site.boots
	e.site.mu.Unlock()
	log, err := os.Create(filepath.Join(e.site.dir, "logs", fmt.Sprintf("%04d-%s.log", n, e.name)))
	if err != nil {
		return err
	}
	b := &boot{seat: e, n: n, started: time.Now(), done: make(chan struct{})}
	b.cmd = exec.Command(filepath.Join(e.site.bin, "clavigerd-sim"), append(args, config)...)
	b.cmd.Dir = e.site.dir
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // in plain mode there is nothing else to end it with us
	stderr, err := b.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := e.place.do(b.cmd.Start); err != nil {
		return err
	}
	e.proc = b
	go b.follow(stderr, log)
	return nil
}

// follow reads the log to its end and then judges how the process ended.
func (b *boot) follow(stderr io.Reader, log *os.File) {
	defer close(b.done)
	defer log.Close()
	for scan := bufio.NewScanner(stderr); scan.Scan(); {
		b.line(scan.Text(), log)
	}
	err := b.cmd.Wait()
	b.ended(err)
}

func (b *boot) line(text string, log io.Writer) {
	fmt.Fprintln(log, text)
	b.mu.Lock()
	b.tail = append(b.tail, text)
	b.tail = b.tail[max(0, len(b.tail)-60):]
	b.mu.Unlock()
	s := b.seat.site
	switch {
	case strings.Contains(text, "msg=ready ") && !b.ready.Swap(true):
		if b.seat.mustNotJoin.Load() {
			s.broken.add("%s is ready: a machine that the slot does not belong to was admitted", b.seat.name)
		}
		s.mu.Lock()
		s.rejoins = append(s.rejoins, time.Since(b.started))
		s.mu.Unlock()
	case strings.Contains(text, "CLONE ALARM"):
		s.clones.Add(1)
	case b.seat.mustNotJoin.Load() && strings.Contains(text, "admission refused"):
		s.shown.Add(1)
	case strings.Contains(text, `msg="the store stops"`):
		if s.filled.Add(1); !strings.Contains(text, syscall.ENOSPC.Error()) {
			s.broken.add("boot %d of %s: %s", b.n, b.seat.name, text)
		}
	case strings.HasPrefix(text, "panic:"), strings.HasPrefix(text, "fatal error:"), strings.Contains(text, "DATA RACE"), strings.HasPrefix(text, "SIG"):
		s.broken.add("boot %d of %s: %s", b.n, b.seat.name, text)
	}
}

// chaosSuperseded is what a boot says that ends because a newer one has its slot.
const chaosSuperseded = "a newer boot has this slot"

// ended decides whether the process was allowed to end.
func (b *boot) ended(err error) {
	if b.killed.Load() {
		return
	}
	text := b.text()
	switch {
	case strings.Contains(text, chaosSuperseded) && time.Now().Unix()-b.seat.slot.cloned.Load() < 300:
	case b.seat.mustNotJoin.Load():
	case !b.ready.Load() && b.seat.mayEnd.Load():
	default:
		b.seat.site.broken.add("boot %d of %s ended by itself (ready: %t): %v\n%s", b.n, b.seat.name, b.ready.Load(), err, text)
	}
}

func (b *boot) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.tail, "\n")
}

// lives reports whether a process of the seat runs, stopped or not.
func (e *seat) lives() bool {
	if e.proc == nil {
		return false
	}
	select {
	case <-e.proc.done:
		return false
	default:
		return true
	}
}

func (e *seat) isReady() bool { return e.lives() && e.proc.ready.Load() }

func (e *seat) awaitReady(limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if e.isReady() {
			return nil
		}
		if !e.lives() {
			return fmt.Errorf("%s ended before it was ready:\n%s", e.name, e.proc.text())
		}
	}
	return fmt.Errorf("%s is not ready after %v:\n%s", e.name, limit, e.proc.text())
}

// kill is kill -9.
func (e *seat) kill() {
	if !e.lives() {
		return
	}
	e.proc.killed.Store(true)
	_ = e.proc.cmd.Process.Kill() // it may just have ended
	<-e.proc.done
}

// stop is a graceful end.
func (e *seat) stop(limit time.Duration) {
	if !e.lives() {
		return
	}
	e.proc.killed.Store(true)
	_ = e.proc.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.proc.done:
	case <-time.After(limit):
		e.kill()
	}
}

// freeze and thaw are SIGSTOP and SIGCONT.
func (e *seat) freeze() {
	if e.lives() && !e.proc.stopped.Swap(true) {
		_ = e.proc.cmd.Process.Signal(syscall.SIGSTOP)
	}
}

func (e *seat) thaw() {
	if e.lives() && e.proc.stopped.Swap(false) {
		_ = e.proc.cmd.Process.Signal(syscall.SIGCONT)
	}
}

// close ends everything.
func (s *site) close() {
	for _, slot := range s.slots {
		slot.home.kill()
		slot.spare.kill()
	}
}

// setClock sets the host's clock of a slot, relative to the right time.
func (slot *slotHome) setClock(offset time.Duration) error {
	return os.WriteFile(slot.clock, fmt.Append(nil, int64(offset/time.Second)), 0o600)
}
