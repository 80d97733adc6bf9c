package persist_test

import (
	"fmt"
	"testing"

	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

// filled returns a store of n keys over a file layer whose fsync costs nothing,
// so that the numbers are the package's own.
func filled(b *testing.B, n int) *persist.Map {
	m := mustCreate(b, unsafeOptions(b, persisttest.NewFiles()))
	const batch = 1000
	for i := 0; i < n; i += batch {
		err := m.Update(b.Context(), func(tx *persist.Tx) error {
			for j := i; j < min(i+batch, n); j++ {
				if err := tx.Put(fmt.Appendf(nil, "key/%08d", j), []byte("a value of some bytes")); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return m
}

func BenchmarkGet(b *testing.B) {
	m := filled(b, 100_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_ = m.View(b.Context(), func(tx *persist.Tx) error {
			_, ok, err := tx.Get(fmt.Appendf(nil, "key/%08d", i%100_000))
			if !ok || err != nil {
				b.Fatal(ok, err)
			}
			return nil
		})
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := mustCreate(b, unsafeOptions(b, persist.Dir(b.TempDir())))
			src := filled(b, n)
			err := src.View(b.Context(), func(from *persist.Tx) error {
				return m.Update(b.Context(), func(tx *persist.Tx) error {
					for k, v := range from.Scan(nil, nil) {
						if err := tx.Put(k, v); err != nil {
							return err
						}
					}
					return nil
				})
			})
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				if err := put(b.Context(), m, fmt.Sprintf("key/%08d", i*7919%n), "another value"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
