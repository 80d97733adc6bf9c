package archivetest

import (
	"runtime"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

// thread makes calls on one thread of the system, which can be put under a
// filter that the rest of the process does not feel. It ends with its test.
type thread struct{ work chan func() }

// newThread starts a thread, or skips the test where the system has no filters.
func newThread(t testing.TB) *thread {
	t.Helper()
	if !filtersWork {
		t.Skipf("SKIPPED: on %s/%s the kernel is not asked to fail calls (that needs seccomp on linux/amd64 or arm64)", runtime.GOOS, runtime.GOARCH)
	}
	th := &thread{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // and never unlock: a thread under a filter ends with its goroutine
		for f := range th.work {
			f()
		}
	}()
	t.Cleanup(func() { close(th.work) })
	return th
}

func (th *thread) do(f func()) {
	done := make(chan struct{})
	th.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Refuse puts the thread under rules, on top of those it has.
func (th *thread) Refuse(rules []Rule) (err error) {
	th.do(func() { err = install(false, rules) })
	return err
}

// Place makes an archive and all of its calls on the thread.
func (th *thread) Place(f func() (raftstore.Archive, error)) (raftstore.Archive, error) {
	var a raftstore.Archive
	var err error
	th.do(func() { a, err = f() })
	if err != nil {
		return nil, err
	}
	return &placed{th, a}, nil
}

// placed is an archive on a thread.
type placed struct {
	th *thread
	a  raftstore.Archive
}

func (p *placed) call(f func() error) (err error) {
	p.th.do(func() { err = f() })
	return err
}

func (p *placed) Append(record []byte) error {
	return p.call(func() error { return p.a.Append(record) })
}
func (p *placed) Sync() error  { return p.call(p.a.Sync) }
func (p *placed) Cut() error   { return p.call(p.a.Cut) }
func (p *placed) Drop() error  { return p.call(p.a.Drop) }
func (p *placed) Close() error { return p.call(p.a.Close) }
