package functions

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/claviger/claviger/enclave/mail"
	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/secret"
)

// KeySource gives the runtime the keys that the key service binds to its own
// measurement. Purposes are those of the key service: "x25519" gives the raw
// private key, "raw/32" and "aes-256" give 32 bytes.
type KeySource interface {
	Key(ctx context.Context, name, purpose string) (secret.Key, error)
}

// Config assembles a Host. Fields without a default are required.
type Config struct {
	// Keys is where all keys come from.
	Keys KeySource
	// Runtime is the canonical constraint of this runtime, to which Keys binds
	// them; callers and deployments name it.
	Runtime string
	// Runner runs the bundles.
	Runner Runner
	// Files holds the projects' stores, two files and a lock each.
	Files persist.Files
	// Registers gives the freshness register of a project's store. Each project
	// needs its own.
	Registers func(ProjectID) persist.Register
	// NoFreshnessUnsafe must be set when Registers is nil. It accepts that the
	// machine's host can bring back an older state of a project, its deployment
	// included.
	NoFreshnessUnsafe bool
	// ProjectBytes bounds the store of one project, code included: default 64 MiB.
	ProjectBytes int64
	// MaxProjects bounds how many projects are open at once; the longest unused
	// are closed. Default 64.
	MaxProjects int
	// MaxCalls bounds the calls in flight; others are refused as busy. Default 64.
	MaxCalls int
	// Clock is what functions see as the time: default time.Now. Nothing here
	// depends on it.
	Clock func() time.Time
	// Logger gets what the machine's host may know: default none.
	Logger *slog.Logger
}

func (c *Config) withDefaults() (Config, error) {
	d := *c
	for name, missing := range map[string]bool{
		"Keys": d.Keys == nil, "Runner": d.Runner == nil, "Files": d.Files == nil,
		"Runtime (1 to 4096 bytes)":                            len(d.Runtime) == 0 || len(d.Runtime) > MaxRuntime,
		"Registers, or NoFreshnessUnsafe":                      (d.Registers == nil) != d.NoFreshnessUnsafe,
		"ProjectBytes, MaxProjects or MaxCalls (not negative)": d.ProjectBytes < 0 || d.MaxProjects < 0 || d.MaxCalls < 0,
	} {
		if missing {
			return d, fmt.Errorf("%w: set %s", ErrConfig, name)
		}
	}
	d.ProjectBytes = orDefault(d.ProjectBytes, 64<<20)
	d.MaxProjects = orDefault(d.MaxProjects, 64)
	d.MaxCalls = orDefault(d.MaxCalls, 64)
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	return d, nil
}

func orDefault[T int | int64](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// Host is the runtime inside the enclave. It is safe for concurrent use.
type Host struct {
	cfg      Config
	identity *mail.Identity
	window   *window
	slots    chan struct{} // one token per call in flight

	mu       sync.Mutex // guards the rest
	projects map[ProjectID]*project
	clock    uint64 // counts uses of projects
	closed   bool
}

// New gets the invocation key and assembles a Host. It opens no project.
func New(ctx context.Context, cfg Config) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	key, err := cfg.Keys.Key(ctx, "functions/invoke", "x25519")
	if err != nil {
		return nil, fmt.Errorf("functions: getting the invocation key: %w", err)
	}
	defer key.Destroy()
	identity, err := mail.NewIdentity(key)
	if err != nil {
		return nil, fmt.Errorf("functions: the invocation key: %w", err)
	}
	return &Host{
		cfg: cfg, identity: identity, window: newWindow(sessionCalls),
		slots: make(chan struct{}, cfg.MaxCalls), projects: map[ProjectID]*project{},
	}, nil
}

// PublicKey returns the raw X25519 key that calls are sealed to. Clients do not
// take it from here but from the key service.
func (h *Host) PublicKey() []byte { return h.identity.Recipient().Bytes() }

var errClosed = errors.New("functions: the runtime is shutting down")

// Close closes all projects' stores. Calls in flight end first; later ones fail.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	var list []*project
	for id, p := range h.projects {
		list = append(list, p)
		delete(h.projects, id)
	}
	h.mu.Unlock()
	var errs []error
	for _, p := range list {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

func (h *Host) random(p []byte) error {
	_, err := rand.Read(p)
	return err
}
