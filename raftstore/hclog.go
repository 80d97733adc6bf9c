package raftstore

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hclogAdapter lets raft log through slog. Raft's messages name servers,
// indexes and terms, never the content of an entry. Its levels are lowered by
// one: what it calls an error is mostly a peer that is down.
type hclogAdapter struct {
	log     *slog.Logger
	name    string
	implied []any
	once    *onceIn
}

// repeatEvery is how often one warning of raft's is shown: it repeats them with
// every attempt to reach a peer that is down.
const repeatEvery = 10 * time.Second

type onceIn struct {
	mu   sync.Mutex
	last map[string]time.Time // by message, of which raft has a few dozen, or by peer
}

// maxRemembered bounds last; beyond it everything is news again.
const maxRemembered = 1024

func (o *onceIn) again(msg string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Sub(o.last[msg]) < repeatEvery {
		return true
	}
	if len(o.last) >= maxRemembered {
		clear(o.last)
	}
	o.last[msg] = now
	return false
}

func newHclog(log *slog.Logger) *hclogAdapter {
	return &hclogAdapter{log: log, name: "raft", once: &onceIn{last: map[string]time.Time{}}}
}

var _ hclog.Logger = (*hclogAdapter)(nil)

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (h *hclogAdapter) enabled(l hclog.Level) bool {
	return h.log.Enabled(context.Background(), slogLevel(l))
}

// Log passes one message on; hclog.Format values are rendered first.
func (h *hclogAdapter) Log(l hclog.Level, msg string, args ...any) {
	if l == hclog.Off || !h.enabled(l) {
		return
	}
	out := make([]any, 0, len(args)+1)
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			a = renderFormat(v)
		case fmt.Stringer:
			a = v.String()
		}
		if i%2 == 0 {
			a = fmt.Sprint(a)
		}
		out = append(out, a)
	}
	level := slogLevel(l)
	if level >= slog.LevelWarn && h.once.again(msg, time.Now()) {
		level = slog.LevelDebug
	}
	h.log.Log(context.Background(), level, msg, out...)
}

func renderFormat(v hclog.Format) string {
	if len(v) > 0 {
		if f, ok := v[0].(string); ok {
			return fmt.Sprintf(f, v[1:]...)
		}
	}
	return fmt.Sprint([]any(v)...)
}

func (h *hclogAdapter) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }
func (h *hclogAdapter) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hclogAdapter) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hclogAdapter) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hclogAdapter) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hclogAdapter) IsTrace() bool { return h.enabled(hclog.Trace) }
func (h *hclogAdapter) IsDebug() bool { return h.enabled(hclog.Debug) }
func (h *hclogAdapter) IsInfo() bool  { return h.enabled(hclog.Info) }
func (h *hclogAdapter) IsWarn() bool  { return h.enabled(hclog.Warn) }
func (h *hclogAdapter) IsError() bool { return h.enabled(hclog.Error) }

func (h *hclogAdapter) ImpliedArgs() []any { return h.implied }

func (h *hclogAdapter) With(args ...any) hclog.Logger {
	all := append(append([]any(nil), h.implied...), args...)
	return &hclogAdapter{log: h.log.With(args...), name: h.name, implied: all, once: h.once}
}

func (h *hclogAdapter) Name() string { return h.name }

func (h *hclogAdapter) Named(name string) hclog.Logger { return h.ResetNamed(h.name + name) }

func (h *hclogAdapter) ResetNamed(name string) hclog.Logger {
	return &hclogAdapter{log: h.log, name: name, implied: h.implied, once: h.once}
}

// SetLevel does nothing: the slog handler decides.
func (h *hclogAdapter) SetLevel(hclog.Level) {}

func (h *hclogAdapter) GetLevel() hclog.Level {
	for _, l := range []hclog.Level{hclog.Debug, hclog.Warn} {
		if h.enabled(l) {
			return l
		}
	}
	return hclog.Error
}

func (h *hclogAdapter) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(h.log.Handler(), slog.LevelInfo)
}

func (h *hclogAdapter) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return h.StandardLogger(o).Writer()
}
