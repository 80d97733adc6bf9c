package functions

import (
	"testing"
)

// BenchmarkCall measures what sealing, opening and bookkeeping add to a function:
// the fake engine costs nothing, and the call has no kv operations.
func BenchmarkCall(b *testing.B) {
	benchmark(b, "echo")
}

// BenchmarkPut adds one commit to a store whose fsync costs nothing.
func BenchmarkPut(b *testing.B) {
	benchmark(b, "put", "k", "v")
}

func benchmark(b *testing.B, function string, list ...string) {
	w := newWorld(b)
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	b.ReportAllocs()
	for b.Loop() {
		sealed, opener := w.capture(c, function, list...)
		reply, err := w.host.Call(b.Context(), c.Target.Project, function, c.Target.Code, sealed)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := opener.OpenReply(reply); err != nil {
			b.Fatal(err)
		}
	}
}
