package engine

import (
	"context"
	"testing"
	"time"

	quickjs "github.com/aperturerobotics/go-quickjs-wasi-reactor"
	"github.com/tetratelabs/wazero"
)

const echo = `export async function echo(x) { return x }`

// BenchmarkCallEcho is a whole warm call: instance from the pool, dispatch, JSON both ways, reset to the snapshot. The
// peer, engine, is the same dispatch on one instance that is never reset.
func BenchmarkCallEcho(b *testing.B) {
	p, h, args := load(b, echo), newHost(), []byte(`["hello, world"]`)
	b.Run("call", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Call(b.Context(), "echo", args, h); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	})
	b.Run("engine", func(b *testing.B) {
		in, err := p.take(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer in.close(b.Context())
		st, ctx, cancel := newState(b.Context(), in, h, &p.engine.limits, time.Minute)
		defer cancel()
		env := p.snap.env
		for b.Loop() {
			v, err := st.invoke(ctx, &env, "echo", args)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := in.text(ctx, &env, v, 100); err != nil {
				b.Fatal(err)
			}
			_, _ = in.call(ctx, fnFreeValue, uint64(env.context), v)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	})
	b.Run("restore", func(b *testing.B) {
		in, err := p.take(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer in.close(b.Context())
		for b.Loop() {
			if err := in.restore(p.snap); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkCold is a call that finds no idle instance.
func BenchmarkCold(b *testing.B) {
	p, h := load(b, echo), newHost()
	for b.Loop() {
		if _, err := p.Call(b.Context(), "echo", []byte("[1]"), h); err != nil {
			b.Fatal(err)
		}
		p.Close(b.Context())
	}
}

const fib = `function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2) } fib(22)`

// BenchmarkMetering compares the same script on the instrumented and on the original module.
func BenchmarkMetering(b *testing.B) {
	b.Run("metered", func(b *testing.B) {
		e := engineFor(b)
		in, err := e.newInstance(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer in.close(b.Context())
		if err := in.restore(e.base); err != nil {
			b.Fatal(err)
		}
		_, ctx, cancel := newState(b.Context(), in, nil, &e.limits, time.Minute)
		defer cancel()
		env := e.base.env
		for b.Loop() {
			if _, err := in.eval(ctx, &env, []byte(fib), "fib", evalGlobal); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("original", func(b *testing.B) { plain(b) })
}

// plain runs fib on the module as it was released.
func plain(b *testing.B) {
	r := wazero.NewRuntime(b.Context())
	defer r.Close(context.Background())
	if err := instantiateWASI(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	c, err := r.CompileModule(b.Context(), quickjs.QuickJSWASM)
	if err != nil {
		b.Fatal(err)
	}
	mod, err := r.InstantiateModule(b.Context(), c, wazero.NewModuleConfig().WithStartFunctions())
	if err != nil {
		b.Fatal(err)
	}
	in := &instance{engine: engineFor(b), mod: mod, mem: mod.Memory()}
	for i, name := range exportNames {
		in.fns[i] = mod.ExportedFunction(name)
	}
	ctx := context.WithValue(b.Context(), stateKey{}, &state{in: in, now: time.Unix(0, 0)})
	if _, err := in.call(ctx, fnInitialize); err != nil {
		b.Fatal(err)
	}
	rt, err := in.call(ctx, fnNewRuntime)
	if err != nil {
		b.Fatal(err)
	}
	js, err := in.call(ctx, fnNewContext, rt)
	if err != nil {
		b.Fatal(err)
	}
	env := environment{runtime: uint32(rt), context: uint32(js)}
	for b.Loop() {
		if _, err := in.eval(ctx, &env, []byte(fib), "fib", evalGlobal); err != nil {
			b.Fatal(err)
		}
	}
}
