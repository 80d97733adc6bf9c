//go:build linux

package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// A place is where processes run: a network namespace with one address, or in plain mode just a loopback address. All that
// happens in it happens on one thread, which is in the namespace and lives as long as the run.
type place struct {
	port byte   // last octet of the address
	addr string // IPv4
	jobs chan func()
}

// do runs f on the place's thread: what f starts is in the namespace.
func (p *place) do(f func() error) error {
	done := make(chan error)
	p.jobs <- func() { done <- f() }
	return <-done
}

// command runs a program in the place to its end.
func (p *place) command(args ...string) error {
	return p.do(func() error { return chaosCommand(args...) })
}

func chaosCommand(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", args, err, bytes.TrimSpace(out))
	}
	return nil
}

// A wire is what happens to packets from one port to another.
type wire struct {
	cut        bool
	loss, dup  float64       // of 1
	delay, jit time.Duration // each packet waits delay plus up to jit, so that packets overtake each other
}

// A fabric is the switch between the places: IP packets come from one TUN device and go to another, or do not. It is a
// program and not netem, so that it can be one-way, differs for each pair, and works on kernels without that module.
type fabric struct {
	isolated bool // false: plain mode, nothing to switch

	mu    sync.RWMutex
	ports [256]*os.File
	wires map[[2]byte]wire
	tc    string // netem, or tbf where the kernel lacks it, or empty

	passed, dropped, delayed atomic.Uint64
}

const (
	chaosNetwork = "10.77.0."
	chaosHub     = 200 // port of the clients
	chaosMTU     = 1400
)

// newFabric makes the switch and the clients' port.
func newFabric(isolated bool) (*fabric, error) {
	f := &fabric{isolated: isolated, wires: map[[2]byte]wire{}}
	if !isolated {
		return f, nil
	}
	// Mounts of ours shall not be seen outside, nor the other way round.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	return f, f.plug(chaosHub)
}

// place makes a place with a port of its own.
func (f *fabric) place(port byte) (*place, error) {
	p := &place{port: port, addr: fmt.Sprintf("127.77.%d.%d", os.Getpid()%256, port), jobs: make(chan func())}
	if f.isolated {
		p.addr = fmt.Sprint(chaosNetwork, port)
	}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread belongs to the namespace
		var err error
		if f.isolated {
			if err = syscall.Unshare(syscall.CLONE_NEWNET); err == nil {
				err = f.plug(port)
			}
		}
		ready <- err
		for job := range p.jobs {
			job()
		}
	}()
	return p, <-ready
}

// plug gives the namespace of the calling thread a TUN device at a port of the switch.
func (f *fabric) plug(port byte) error {
	tun, err := openTUN("tun0")
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "addr", "add", fmt.Sprintf("%s%d/24", chaosNetwork, port), "dev", "tun0"},
		{"ip", "link", "set", "tun0", "mtu", fmt.Sprint(chaosMTU), "up"},
	} {
		if err := chaosCommand(args...); err != nil {
			tun.Close()
			return err
		}
	}
	f.mu.Lock()
	f.ports[port] = tun
	f.mu.Unlock()
	go f.pump(port, tun)
	return nil
}

// openTUN makes a TUN device in the calling thread's namespace. The file may be used from everywhere.
func openTUN(name string) (*os.File, error) {
	const tunSetIff, iffTun, iffNoPI = 0x400454ca, 0x0001, 0x1000 // linux/if_tun.h
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	var request [40]byte // struct ifreq
	copy(request[:15], name)
	*(*uint16)(unsafe.Pointer(&request[16])) = iffTun | iffNoPI
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), tunSetIff, uintptr(unsafe.Pointer(&request))); errno != 0 {
		syscall.Close(fd)
		return nil, fmt.Errorf("TUNSETIFF: %w", errno)
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

// pump reads what a port sends.
func (f *fabric) pump(from byte, tun *os.File) {
	buf := make([]byte, 65536)
	for {
		n, err := tun.Read(buf)
		if err != nil {
			return
		}
		if n < 20 || buf[0]>>4 != 4 || !bytes.Equal(buf[16:19], []byte{10, 77, 0}) {
			continue // IPv6 neighbours and the like
		}
		f.forward(from, buf[19], buf[:n])
	}
}

func (f *fabric) forward(from, to byte, packet []byte) {
	f.mu.RLock()
	w, out := f.wires[[2]byte{from, to}], f.ports[to]
	f.mu.RUnlock()
	if out == nil {
		return
	}
	if w.cut || w.loss > 0 && rand.Float64() < w.loss {
		f.dropped.Add(1)
		return
	}
	copies := 1
	if w.dup > 0 && rand.Float64() < w.dup {
		copies = 2
	}
	for range copies {
		f.passed.Add(1)
		if w.delay+w.jit == 0 {
			_, _ = out.Write(packet) // a full queue drops, as queues do
			continue
		}
		f.delayed.Add(1)
		held := bytes.Clone(packet)
		time.AfterFunc(w.delay+time.Duration(rand.Float64()*float64(w.jit)), func() { _, _ = out.Write(held) })
	}
}

// set changes the wires from each of some ports to each of others.
func (f *fabric) set(from, to []byte, change func(*wire)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range from {
		for _, b := range to {
			if a == b {
				continue
			}
			w := f.wires[[2]byte{a, b}]
			change(&w)
			f.wires[[2]byte{a, b}] = w
		}
	}
}

// both changes the wires between two groups of ports, in both directions.
func (f *fabric) both(a, b []byte, change func(*wire)) {
	f.set(a, b, change)
	f.set(b, a, change)
}

// heal makes all wires whole.
func (f *fabric) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.wires)
}

// findTC looks for what this kernel's tc can do to a device.
func (f *fabric) findTC(p *place) {
	for _, kind := range []string{"netem", "tbf"} {
		f.tc = kind
		if p.command(f.tcArgs()...) == nil {
			if p.command("tc", "qdisc", "del", "dev", "tun0", "root") == nil {
				return
			}
		}
	}
	f.tc = ""
}

// tcArgs is a bad link: with netem slow, lossy and out of order; with tbf narrow, so that queues build up and overflow.
func (f *fabric) tcArgs() []string {
	args := []string{"tc", "qdisc", "add", "dev", "tun0", "root"}
	if f.tc == "netem" {
		return append(args, "netem", "delay", "60ms", "30ms", "loss", "5%", "reorder", "20%", "50%", "duplicate", "1%")
	}
	return append(args, "tbf", "rate", "400kbit", "burst", "4kb", "latency", "300ms")
}

// chaosProbe tries in the namespaces what a run needs.
func chaosProbe() int {
	f, err := newFabric(true)
	if err == nil {
		_, err = f.place(1)
	}
	if err == nil {
		err = smallDisk(os.Getenv(chaosDirEnv), 1)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// smallDisk mounts an empty disk of some MiB.
func smallDisk(dir string, mib int) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=700", mib)); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	return nil
}
