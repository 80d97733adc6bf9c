package functions

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/enclave/functions/engine"
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
	// Owners are the Ed25519 public keys whose deployments are taken. No owners,
	// no deployments, unless OpenToAnyOwner. Who writes the list decides who may
	// use this machine, and about nothing else: it is not what keeps projects
	// apart, and projects already here go on when their owner leaves the list.
	Owners []ed25519.PublicKey
	// OpenToAnyOwner takes deployments of whoever has a key, up to the quotas:
	// every stranger may then fill them. Owners must be empty.
	OpenToAnyOwner bool
	// Budget is where the bytes of all that is kept between calls come from:
	// snapshots of programs, open stores, idle instances of the Runner if it
	// shares the budget. At least ProjectBytes and one program must fit. Default:
	// one of its own with 512 MiB.
	Budget *engine.Budget
	// ProjectBytes bounds the data of one project, code included, as persist
	// accounts for it in memory: default 64 MiB. Its files may take four times as
	// much and 32 MiB, because a compaction holds old and new beside each other.
	ProjectBytes int64
	// DiskBytes bounds the files of all projects: default 8 GiB.
	DiskBytes int64
	// MaxProjects bounds how many projects there are: default 256. Those beyond
	// it that are here already stay.
	MaxProjects int
	// MaxOpen bounds how many projects are open at once; the longest unused are
	// closed. Default 64.
	MaxOpen int
	// MaxCalls bounds the calls in flight; others are refused as busy. One project
	// gets half of them. Default 64.
	MaxCalls int
	// Registerer gets the metrics: default none.
	Registerer prometheus.Registerer
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
		"Runtime (1 to 4096 bytes)":            len(d.Runtime) == 0 || len(d.Runtime) > MaxRuntime,
		"Registers, or NoFreshnessUnsafe":      (d.Registers == nil) != d.NoFreshnessUnsafe,
		"Owners, or OpenToAnyOwner (not both)": d.OpenToAnyOwner && len(d.Owners) > 0,
		"Owners (Ed25519 public keys)":         slices.ContainsFunc(d.Owners, func(k ed25519.PublicKey) bool { return len(k) != ed25519.PublicKeySize }),
		"limits that are not negative":         d.ProjectBytes < 0 || d.DiskBytes < 0 || d.MaxProjects < 0 || d.MaxOpen < 0 || d.MaxCalls < 0,
	} {
		if missing {
			return d, fmt.Errorf("%w: set %s", ErrConfig, name)
		}
	}
	d.ProjectBytes = orDefault(d.ProjectBytes, 64<<20)
	d.DiskBytes = orDefault(d.DiskBytes, 8<<30)
	d.MaxProjects = orDefault(d.MaxProjects, 256)
	d.MaxOpen = orDefault(d.MaxOpen, 64)
	if d.Budget == nil {
		d.Budget = engine.NewBudget(512 << 20)
	}
	if most := d.ProjectBytes + storeBytes + 2*d.Runner.Largest(); d.Budget.Limit() < most {
		return d, fmt.Errorf("%w: a Budget of %d bytes does not hold one project: %d", ErrConfig, d.Budget.Limit(), most)
	}
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
	budget   *engine.Budget
	bodies   *engine.Budget // of HTTP bodies
	disk     *disk
	metrics  *metrics

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
	h := &Host{
		cfg: cfg, identity: identity, window: newWindow(sessionCalls), budget: cfg.Budget, bodies: engine.NewBudget(bodyBytes),
		slots: make(chan struct{}, cfg.MaxCalls), projects: map[ProjectID]*project{},
	}
	if h.disk, err = openDisk(cfg.Files, cfg.MaxProjects, 4*cfg.ProjectBytes+32<<20, cfg.DiskBytes); err != nil {
		return nil, err
	}
	if h.metrics, err = newMetrics(h, cfg.Registerer); err != nil {
		return nil, err
	}
	return h, nil
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
