package functions

import (
	"testing"

	"github.com/claviger/claviger/enclave/functions/engine"
)

// BenchmarkSealedEcho compares, in one run, a warm sealed call of a JavaScript
// function inside the enclave with the engine's own time for the same call. The
// caller's side, sealing and opening, is timed apart.
func BenchmarkSealedEcho(b *testing.B) {
	const code = "export async function echo(x) { return x }"
	runner, err := realRunner()
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, func(c *Config) { c.Runner = runner })
	w.deploy("p", code, 1)
	c := w.client("p", code)
	b.Run("engine", func(b *testing.B) {
		program, err := runner.Load(b.Context(), []byte(code))
		if err != nil {
			b.Fatal(err)
		}
		defer program.Close(b.Context())
		host := &invocation{project: &project{host: w.host}}
		for b.Loop() {
			if _, err := program.Call(b.Context(), "echo", []byte(`["hello, world"]`), host); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("enclave", func(b *testing.B) {
		b.ReportAllocs()
		// Sealed beforehand, within one session.
		sealed := make([][]byte, sessionCalls/4)
		for i := range sealed {
			sealed[i], _ = w.capture(c, "echo", "hello, world")
		}
		b.ResetTimer()
		for i := range b.N {
			if i >= len(sealed) {
				b.Fatalf("run it with -benchtime %dx at most", len(sealed))
			}
			if _, err := w.host.Call(b.Context(), c.Target.Project, "echo", c.Target.Code, sealed[i]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("caller", func(b *testing.B) {
		sealed, opener := w.capture(c, "echo", "hello, world")
		reply, err := w.host.Call(b.Context(), c.Target.Project, "echo", c.Target.Code, sealed)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			w.capture(c, "echo", "hello, world")
			if _, err := opener.OpenReply(reply); err != nil {
				b.Fatal(err)
			}
		}
	})
}

var _ engine.Host = (*invocation)(nil)

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
