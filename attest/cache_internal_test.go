package attest

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func key(parts ...string) (c content) {
	for i, p := range parts {
		c[i] = []byte(p)
	}
	return c
}

// TestCacheComparesContent: a hash chooses where to look, the bytes decide. Parts do not run together.
func TestCacheComparesContent(t *testing.T) {
	t.Parallel()
	c := newCache[int](8, 1<<20)
	long := bytes.Repeat([]byte("x"), 100<<10)
	c.put(content{long}, 1)
	c.put(key("ab", "c"), 2)
	for i := 0; i < len(long); i += 997 {
		other := bytes.Clone(long)
		other[i]++
		if _, ok := c.get(content{other}); ok {
			t.Fatalf("byte %d does not count", i)
		}
	}
	for _, other := range []content{key("a", "bc"), key("abc"), key("ab", "", "c"), key("ab", "c", "d"), key("ab"), key("", "ab", "c"), {}} {
		if v, ok := c.get(other); ok {
			t.Errorf("%q found as %d", other, v)
		}
	}
	if v, ok := c.get(content{long}); !ok || v != 1 {
		t.Error("the long one is lost")
	}
	if v, ok := c.get(key("ab", "c")); !ok || v != 2 {
		t.Error("the short one is lost")
	}
}

// TestCacheCopies: what a caller does to its bytes afterwards does not reach the entry.
func TestCacheCopies(t *testing.T) {
	t.Parallel()
	c := newCache[int](8, 100)
	raw := []byte("genuine")
	c.put(content{raw}, 1)
	copy(raw, "forgery")
	if _, ok := c.get(content{raw}); ok {
		t.Fatal("the entry changed with the caller's bytes")
	}
	if _, ok := c.get(key("genuine")); !ok {
		t.Fatal("the entry is lost")
	}
}

func TestCacheBounds(t *testing.T) {
	t.Parallel()
	c := newCache[int](20, 100)
	for i := range 10_000 {
		c.put(key(fmt.Sprint(i)), i)
		c.put(key(fmt.Sprint(i)), i)
	}
	s := c.stats()
	if s.Capacity != 32 || s.Entries > s.Capacity || s.Entries < ways || s.Evictions != uint64(10_000-s.Entries) {
		t.Errorf("%+v", s)
	}
	c.put(key(string(make([]byte, 101))), 1)
	if _, ok := c.get(key(string(make([]byte, 101)))); ok {
		t.Error("kept more than its limit")
	}
	for i := range 10_000 {
		if v, ok := c.get(key(fmt.Sprint(i))); ok && v != i {
			t.Fatalf("%d found as %d", i, v)
		}
	}
	off := newCache[int](-1, 100)
	off.put(key("a"), 1)
	if _, ok := off.get(key("a")); ok || off.stats() != (CacheStats{}) {
		t.Error("a cache that is off remembers")
	}
}

// TestCacheKeepsWhatIsUsed: a stream of content that nobody asks for again does not displace what is asked for.
func TestCacheKeepsWhatIsUsed(t *testing.T) {
	t.Parallel()
	c := newCache[int](ways, 100)
	c.put(key("used"), 1)
	for i := range 1000 {
		c.put(key(fmt.Sprint(i)), i)
		if _, ok := c.get(key("used")); !ok {
			t.Fatalf("displaced by entry %d", i)
		}
	}
}

// TestCacheConcurrent is for the race detector, and sees that no reader gets a value of other content.
func TestCacheConcurrent(t *testing.T) {
	t.Parallel()
	c := newCache[int](16, 100)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				n := (i*7 + worker) % 64
				if v, ok := c.get(key(fmt.Sprint(n))); ok && v != n {
					t.Errorf("%d found as %d", n, v)
				}
				c.put(key(fmt.Sprint(n)), n)
			}
		})
	}
	wg.Wait()
	if s := c.stats(); s.Hits+s.Misses != 16_000 || s.Entries > s.Capacity {
		t.Errorf("%+v", s)
	}
}

// TestCacheAllUsed: when everything in a slot is in use something has to go, and what is new stays.
func TestCacheAllUsed(t *testing.T) {
	t.Parallel()
	c := newCache[int](ways, 100)
	for i := range 100 {
		for old := range i {
			c.get(key(fmt.Sprint(old)))
		}
		c.put(key(fmt.Sprint(i)), i)
		if v, ok := c.get(key(fmt.Sprint(i))); !ok || v != i {
			t.Fatalf("entry %d is lost at once", i)
		}
	}
	if s := c.stats(); s.Entries != ways {
		t.Errorf("%+v", s)
	}
}

// TestNoPoint: a quoting enclave that vouches for bytes which are no key vouches for no report.
func TestNoPoint(t *testing.T) {
	t.Parallel()
	if err := new(qeHalf).verifyReport(nil, nil); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
}

// TestEarliestExpiry: the chain of the platform may end before the collateral does.
func TestEarliestExpiry(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := collateralSet{facts: CollateralClaims{EarliestExpiry: at}}
	for _, end := range []time.Time{at.Add(-time.Hour), at, at.Add(time.Hour)} {
		want := at
		if end.Before(at) {
			want = end
		}
		if got := s.claims(end).EarliestExpiry; !got.Equal(want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// TestASN1 compares the encoding of signatures with that of encoding/asn1, at the edges and in between.
func TestASN1(t *testing.T) {
	t.Parallel()
	edge := rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff})
	rapid.Check(t, func(t *rapid.T) {
		var raw [64]byte
		for _, half := range [][]byte{raw[:32], raw[32:]} {
			n := rapid.IntRange(0, 32).Draw(t, "size")
			copy(half[32-n:], rapid.SliceOfN(rapid.OneOf(edge, rapid.Byte()), n, n).Draw(t, "number"))
		}
		want, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])})
		if err != nil {
			t.Fatal(err)
		}
		if got := appendASN1([]byte("before"), &raw); !bytes.Equal(got[6:], want) || len(want) > maxASN1 {
			t.Fatalf("%x is %x, not %x", raw, got[6:], want)
		}
	})
}
