package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// submitted is the result of a Submit.
type submitted struct {
	index  uint64
	result any
	err    error
}

// submitting starts a Submit and returns its result to come.
func submitting(ctx context.Context, n *testNode, entry string) <-chan submitted {
	done := make(chan submitted, 1)
	go func() {
		index, result, err := n.Submit(ctx, []byte(entry))
		done <- submitted{index, result, err}
	}()
	return done
}

func unanswered(t *testing.T, done <-chan submitted, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-done:
		t.Fatalf("%s, and the submitter was answered: %+v", why, got)
	default:
	}
}

func count(list []string, entry string) (n int) {
	for _, e := range list {
		if e == entry {
			n++
		}
	}
	return n
}

func follows(t *testing.T, n, leader *testNode) {
	t.Helper()
	eventually(t, n.addr+" follows", func() bool { id, _, ok := n.Leader(); return ok && id == leader.id })
}

func TestSubmitAndReadOnAnyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		var last uint64
		for i, e := range entries("any", 30) {
			n := nodes[i%3]
			follows(t, n, nodes[0])
			start := time.Now()
			index, result, err := n.Submit(t.Context(), []byte(e))
			if err != nil || result != i+1 || index <= last {
				t.Fatalf("entry %d: index %d after %d, result %v, error %v", i, index, last, result, err)
			}
			if d := time.Since(start); d >= 20*time.Millisecond {
				t.Errorf("entry %d took %v in a network without latency: the answer's commit index was not used", i, d)
			}
			last = index
			reader := nodes[(i+1)%3]
			if err := reader.Read(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := reader.machine.list(); len(got) != i+1 || got[i] != e {
				t.Fatalf("a read after the write saw %d entries of %d", len(got), i+1)
			}
		}
		for name, c := range map[string]struct {
			entry []byte
			want  error
		}{"nil": {nil, ErrEmptyEntry}, "empty": {[]byte{}, ErrEmptyEntry}, "oversized": {make([]byte, MaxEntry+1), ErrEntryTooLarge}} {
			if _, _, err := nodes[1].Submit(t.Context(), c.entry); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, _, err := nodes[1].Submit(t.Context(), make([]byte, MaxEntry)); err != nil {
			t.Errorf("the largest entry: %v", err)
		}
	})
}

// Many submitters at once: frames are shared, and each gets its own result.
func TestSubmitsShareFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		follows(t, nodes[1], nodes[0])
		var frames, tooMany, inflight atomic.Int64
		net.dropping(func(from, _ ServerID, b []byte) bool {
			if len(b) > 4 && frameType(b[4]) == frameForward && from == nodes[1].id {
				frames.Add(1)
			}
			if _, n, _ := nodes[1].forwards.counts(); n > maxForwardsInFlight {
				tooMany.Add(1)
			} else {
				inflight.Store(max(inflight.Load(), int64(n)))
			}
			return false
		})
		release := net.hold(nodes[1].id)
		var clients sync.WaitGroup
		var places sync.Map
		for i := range 1000 {
			clients.Go(func() {
				_, at, err := nodes[1].Submit(t.Context(), fmt.Appendf(nil, "client-%d", i))
				if err != nil {
					t.Error(err)
					return
				}
				if _, twice := places.LoadOrStore(at, i); twice {
					t.Errorf("two submitters got the result %v", at)
				}
				if list := nodes[1].machine.list(); list[at.(int)-1] != fmt.Sprintf("client-%d", i) {
					t.Errorf("submitter %d got the result of another", i)
				}
			})
		}
		synctest.Wait()
		release()
		clients.Wait()
		if f := frames.Load(); f == 0 || f > 60 {
			t.Errorf("1000 entries took %d frames", f)
		}
		if tooMany.Load() != 0 || inflight.Load() < 2 {
			t.Errorf("at most %d frames were in flight; %d times too many", inflight.Load(), tooMany.Load())
		}
	})
}

// Many submitters of equal entries get a result each, also where more of them are applied than have been answered.
func TestEqualEntriesKeepTheirResults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		b := nodes[1]
		follows(t, b, nodes[0])
		release := net.hold(b.id)
		var clients sync.WaitGroup
		var places sync.Map
		const submitters = 2 * maxForwardsInFlight * maxForwardEntries
		for range submitters {
			clients.Go(func() {
				_, at, err := b.Submit(t.Context(), []byte("equal"))
				if err != nil {
					t.Error(err)
				}
				if _, twice := places.LoadOrStore(at, true); twice {
					t.Errorf("two submitters got the result %v", at)
				}
			})
		}
		eventually(t, "all that may be in flight is applied here", func() bool {
			return len(b.machine.list()) > maxForwardsInFlight*maxForwardEntries/2
		})
		release()
		clients.Wait()
		if got := count(b.machine.list(), "equal"); got != submitters {
			t.Errorf("%d entries of %d submitters", got, submitters)
		}
	})
}

func TestReadsOfAFollowerShareAQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		asked, rounds := b.asks.count(), a.reads.count()
		release := net.hold(b.id)
		var readers sync.WaitGroup
		for range 200 {
			readers.Go(func() {
				if err := b.Read(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		release()
		readers.Wait()
		if q, r := b.asks.count()-asked, a.reads.count()-rounds; q > 2 || r > 2 {
			t.Fatalf("200 reads took %d questions and %d rounds", q, r)
		}
	})
}

// Clients write to and read from every server, whoever leads, under the same
// adversary as TestEqualIndexMeansEqualChain.
func TestForwardedReadsAndWritesAreLinearizable(t *testing.T) {
	t.Parallel()
	var reads, writes, forwarded int
	for i := range churnSeeds {
		seed := uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, n := forwardRun(t, seed, churnRounds)
				forwarded += n
				if err := checkHistory(h); err != nil {
					t.Errorf("seed %d: the history is not linearizable: %v", seed, err)
				}
				for _, o := range h {
					if o.Write {
						writes++
					} else {
						reads++
					}
				}
			})
		})
	}
	t.Logf("%d seeds, %d rounds each, %d reads and %d writes checked, %d of them by servers that did not lead", churnSeeds, churnRounds, reads, writes, forwarded)
	if reads < 50*churnSeeds || writes < 50*churnSeeds || forwarded < 50*churnSeeds {
		t.Errorf("%d reads, %d writes, %d forwarded: the test has not tested", reads, writes, forwarded)
	}
}

func forwardRun(t *testing.T, seed uint64, rounds int) ([]operation, int) {
	c := &chaos{t: t, net: newTestNet(), rand: rand.New(rand.NewPCG(seed, 11))}
	names := []string{"a", "b", "c"}
	for i := range rounds {
		names = append(names, fmt.Sprint("boot-", i+1))
	}
	for _, name := range names {
		d := time.Duration(1+7*c.rand.IntN(2)) * 100 * time.Millisecond
		c.net.timeouts[name] = Timeouts{Heartbeat: d, Election: d, Lease: d, RPC: 2 * time.Second}
	}
	c.nodes = c.net.cluster(t, "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	rec, forwarded := &recorder{}, atomic.Int64{}
	var clients sync.WaitGroup
	for id := range 4 {
		clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				n := c.live()[i%3]
				call, end := context.WithTimeout(ctx, 500*time.Millisecond)
				rec.record(id, id%2 == 0, func() (position int, ok bool) {
					led := n.IsLeader()
					var err error
					if id%2 == 0 {
						var at any
						_, at, err = n.Submit(call, fmt.Appendf(nil, "%d-%d", id, i))
						position, _ = at.(int)
					} else {
						err = n.Read(call)
						position = len(n.machine.list())
					}
					if err != nil && !refused(err) && !errors.Is(err, ErrStopped) && call.Err() == nil {
						t.Errorf("a call failed with %v", err)
					}
					if err == nil && !led {
						forwarded.Add(1)
					}
					return position, err == nil
				})
				end()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for range rounds {
		undo := c.fault()
		time.Sleep(time.Duration(c.rand.IntN(500)) * time.Millisecond)
		undo()
		time.Sleep(time.Duration(c.rand.IntN(200)) * time.Millisecond)
	}
	cancel()
	clients.Wait()
	c.check()
	return rec.done, int(forwarded.Load())
}
