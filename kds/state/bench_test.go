package state

import (
	"fmt"
	"io"
	"testing"
)

// What replication waits for at a snapshot, and what runs beside it.
func BenchmarkSnapshot(b *testing.B) {
	for _, sets := range []int{1, MaxCollateralSets} {
		m := run(b, genesis(b))
		for i := range sets {
			e := put(1)
			e.Key.FMSPC[4], e.Key.FMSPC[5] = byte(i>>8), byte(i)
			e.Bundle = make([]byte, 16<<10)
			m.Apply(m.View().Applied+1, encode(b, e))
		}
		b.Run(fmt.Sprintf("freeze/sets=%d", sets), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.Snapshot(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("write/sets=%d", sets), func(b *testing.B) {
			for b.Loop() {
				w, err := m.Snapshot()
				if err != nil {
					b.Fatal(err)
				}
				n, err := w.WriteTo(io.Discard)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
