package functions

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/secret"
)

// Keys of a project's store. The functions' own keys all have the prefix user, so
// no key of theirs is one of the host's.
const (
	keyDeployment = "s/deployment"
	keyCode       = "s/code"
	prefixUser    = "u/"
)

// project is one open project. Lock order: Host.mu before project.mu.
type project struct {
	host *Host
	id   ProjectID
	uses int    // calls and deployments under way; guarded by Host.mu
	last uint64 // Host.clock at the last use; guarded by Host.mu

	mu      sync.Mutex // guards the rest, and held while opening and deploying
	store   *persist.Map
	bytes   int64 // of the budget, for store
	current *deployed

	running chan struct{} // a token per call that runs or waits for an instance

	keyMu sync.Mutex // guards key; a running call takes it, so never under mu
	key   secret.Key // of the functions; zero until one asks
}

// deployed is a verified deployment with its loaded code. project.mu guards the
// last two: the program is closed when it is retired and its last call has ended.
type deployed struct {
	Deployment
	program Program
	free    func() // closes the program
	calls   int
	retired bool
}

func (d *deployed) retire() {
	if d == nil {
		return
	}
	d.retired = true
	if d.calls == 0 {
		d.free()
	}
}

// done ends a call that inForce began.
func (p *project) done(d *deployed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.calls--
	if d.retired {
		d.retire()
	}
}

// acquire returns a project for one use and the function that ends the use. At most
// most uses go on at once: a crowd of callers keeps out neither other projects nor
// the project's own owner.
func (h *Host) acquire(id ProjectID, most int) (*project, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, errClosed
	}
	p := h.projects[id]
	if p == nil {
		if len(h.projects) >= h.cfg.MaxOpen && !h.closeIdle() {
			return nil, nil, errBusy
		}
		p = &project{host: h, id: id, running: make(chan struct{}, max(1, h.cfg.Runner.Concurrency()/2))}
		h.projects[id] = p
	}
	if p.uses >= most {
		return nil, nil, errCrowded
	}
	h.clock++
	p.uses, p.last = p.uses+1, h.clock
	return p, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		p.uses--
	}, nil
}

// known reports whether the project is open or has files. Calls of projects that
// are not there must neither displace those that are nor cost the key service.
func (h *Host) known(id ProjectID) (bool, error) {
	h.mu.Lock()
	p := h.projects[id]
	h.mu.Unlock()
	if p != nil {
		return true, nil
	}
	return persist.Exists(h.cfg.Files, storeName(id))
}

func storeName(id ProjectID) string { return "project-" + id.String() }

var (
	errBusy    = errors.New("functions: too many projects are in use")
	errCrowded = errors.New("functions: too many calls of the project are in flight")
)

// closeIdle closes the project that was not in use for longest and reports whether
// there was one. The caller holds h.mu.
func (h *Host) closeIdle() bool {
	var idle *project
	for _, p := range h.projects {
		if p.uses == 0 && (idle == nil || p.last < idle.last) {
			idle = p
		}
	}
	if idle == nil {
		return false
	}
	delete(h.projects, idle.id)
	h.metrics.evictions.Inc()
	if err := idle.close(); err != nil {
		h.cfg.Logger.Warn("closing an idle project", "project", idle.id.String(), "error", err)
	}
	return true
}

// close closes the store; the next use opens it again.
func (p *project) close() error { return p.closeStore(nil) }

// closeStore closes the store, or with only set, the store if it still is that
// one. It waits for the store's writer without p.mu, which others need meanwhile.
func (p *project) closeStore(only *persist.Map) error {
	p.mu.Lock()
	store, current := p.store, p.current
	if store == nil || only != nil && store != only {
		p.mu.Unlock()
		return nil
	}
	bytes := p.bytes
	p.store, p.current, p.bytes = nil, nil, 0
	current.retire()
	p.mu.Unlock()
	defer p.host.budget.Release(bytes)
	return store.Close()
}

// inForce returns the project's store and what is deployed in it, for one call
// that ends with done.
func (p *project) inForce(ctx context.Context) (*persist.Map, *deployed, *CallError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.open(ctx, false); err != nil {
		return nil, nil, p.storeRefusal(err)
	}
	if p.current == nil {
		return nil, nil, refuse(CodeProjectNotFound, "deploy the project first")
	}
	p.current.calls++
	return p.store, p.current, nil
}

// open opens the store, unless it is open, and loads what is deployed. To deploy,
// it makes a store that does not exist and lets code pass that does not load any
// more. The caller holds p.mu.
func (p *project) open(ctx context.Context, deploy bool) error {
	if p.store != nil {
		return nil
	}
	h := p.host
	if ok, err := persist.Exists(h.cfg.Files, storeName(p.id)); err != nil || !ok && !deploy {
		return errors.Join(persist.ErrNotFound, err)
	}
	key, err := h.cfg.Keys.Key(ctx, "functions/store/"+p.id.String(), "aes-256")
	if err != nil {
		return fmt.Errorf("functions: getting the store's key: %w", err)
	}
	defer key.Destroy()
	files, err := h.disk.admit(p.id)
	if err != nil {
		return err
	}
	bytes := h.estimate(h.disk.size(p.id))
	if err := h.reserve(ctx, bytes); err != nil {
		files.abandon()
		return err
	}
	files.begin()
	store, err := p.openStore(ctx, files, key, deploy)
	if err != nil {
		h.budget.Release(bytes)
		files.abandon()
		return err
	}
	// A store from the time of a higher limit is larger than the estimate.
	if more := storeBytes + store.Bytes() - bytes; more > 0 {
		if err := h.reserve(ctx, more); err != nil {
			h.budget.Release(bytes)
			return errors.Join(err, store.Close())
		}
		bytes += more
	}
	current, err := p.load(ctx, store)
	if err != nil && !(deploy && errors.Is(err, errLoad)) {
		h.budget.Release(bytes)
		return errors.Join(err, store.Close())
	}
	p.store, p.current, p.bytes = store, current, bytes
	_ = p.settle(store, 0)
	return nil
}

func (p *project) openStore(ctx context.Context, files persist.Files, key secret.Key, create bool) (*persist.Map, error) {
	cfg := &p.host.cfg
	o := persist.Options{
		Files: files, Name: storeName(p.id), Key: key, NoFreshnessUnsafe: cfg.NoFreshnessUnsafe,
		Limits: persist.Limits{Store: cfg.ProjectBytes},
	}
	if cfg.Registers != nil {
		o.Register = cfg.Registers(p.id)
	}
	store, err := persist.Open(ctx, o)
	if create && errors.Is(err, persist.ErrNotFound) {
		return persist.Create(ctx, o)
	}
	return store, err
}

// errLoad: what is deployed does not load, for what its code is or for limits that
// were lowered. The owner can deploy again.
var errLoad = errors.New("functions: loading the stored deployment")

// load reads and verifies the stored deployment and loads its code; nil when
// nothing is deployed.
func (p *project) load(ctx context.Context, store *persist.Map) (*deployed, error) {
	var raw, code []byte
	err := store.View(ctx, func(tx *persist.Tx) (err error) {
		if raw, _, err = tx.Get([]byte(keyDeployment)); err != nil {
			return err
		}
		code, _, err = tx.Get([]byte(keyCode))
		return err
	})
	if err != nil || raw == nil {
		return nil, err
	}
	d, err := decode[Deployment](raw)
	if err != nil {
		return nil, fmt.Errorf("functions: the stored deployment: %w", err)
	}
	if refused := d.verify(p.id, p.host.cfg.Runtime, code); refused != nil {
		return nil, fmt.Errorf("functions: the stored deployment: %w", refused)
	}
	program, free, err := p.host.load(ctx, code)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLoad, err)
	}
	return &deployed{Deployment: d, program: program, free: free}, nil
}

func notFound(id ProjectID) *CallError {
	return refuse(CodeProjectNotFound, "this runtime's host has no files of project %s", id)
}

// storeRefusal says to the caller what became of the store. The texts of the
// errors name sizes and versions, never contents.
func (p *project) storeRefusal(err error) *CallError {
	switch {
	case errors.Is(err, persist.ErrNotFound):
		return notFound(p.id)
	case errors.Is(err, persist.ErrRolledBack), errors.Is(err, persist.ErrConflict):
		return refuse(CodeStorageRolledBack, "%v", err)
	case errors.Is(err, persist.ErrTooLarge):
		return refuse(CodeStorageFull, "%v", err)
	case errors.Is(err, errDisk):
		return refuse(CodeStorageFull, "%v", errDisk)
	case errors.Is(err, errProjects):
		return refuse(CodeQuota, "%v; ask who runs this host for room", err)
	case errors.Is(err, errMemory):
		return refuse(CodeBusy, "%v; try again", errMemory)
	case errors.Is(err, errLoad):
		return p.engineRefusal(err)
	}
	p.host.cfg.Logger.Warn("a project's store", "project", p.id.String(), "error", err)
	return refuse(CodeStorage, "%v", err)
}

// projectKey returns the key that the project's functions share.
func (p *project) projectKey(ctx context.Context) (secret.Key, error) {
	p.keyMu.Lock()
	defer p.keyMu.Unlock()
	if !p.key.IsZero() {
		return p.key, nil
	}
	key, err := p.host.cfg.Keys.Key(ctx, "functions/project/"+p.id.String(), "raw/32")
	if err != nil {
		return secret.Key{}, fmt.Errorf("functions: getting the project's key: %w", err)
	}
	p.key = key
	return key, nil
}
