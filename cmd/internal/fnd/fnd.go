// Package fnd is the function runtime as a process: a configuration file on one side, enclave/functions on the other, with
// keys from a cluster. What differs between hardware and simulator comes in as a Platform, so that the production binary
// and the simulated one run the same code.
package fnd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/kds/httpapi"
	"github.com/claviger/claviger/policy"
)

// Platform is the machine that a runtime runs on.
type Platform struct {
	TEE  enclave.TEE
	Root attest.Root
	// Attest produces evidence for a channel to the cluster.
	Attest func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error)
	// Pinned is the cluster id in the measured binary. If it is set, the cluster file must agree.
	Pinned api.ID
}

// keyTimeout bounds the start: the runtime cannot serve before it has its invocation key.
const keyTimeout = time.Minute

// Params assemble a Service.
type Params struct {
	Platform  Platform
	ClusterID api.ID
	Endpoints []string
	Data      string // directory of the projects' stores; made if it does not exist
	Mode      engine.Mode
	MaxCalls  int
	Access    Access
	Limits    Limits
	Log       *slog.Logger
}

// Service is a running function runtime without its listeners. Close it when done.
type Service struct {
	// Constraint is the canonical constraint that the runtime's keys are bound to: exactly this measurement.
	Constraint string

	host     *functions.Host
	engine   *engine.Engine
	client   *client.Client
	registry *prometheus.Registry
	log      *slog.Logger
}

// Open starts the engine and gets the runtime's invocation key from the cluster.
func Open(ctx context.Context, p Params) (*Service, error) {
	constraint, err := Constraint(ctx, p.Platform.TEE)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.Data, 0o700); err != nil {
		return nil, err
	}
	if err := p.Limits.check(); err != nil {
		return nil, err
	}
	s := &Service{Constraint: constraint, registry: prometheus.NewRegistry(), log: p.Log}
	s.client, err = client.New(client.Config{
		ClusterID: p.ClusterID, Endpoints: p.Endpoints, Root: p.Platform.Root, Attest: p.Platform.Attest,
	})
	if err != nil {
		return nil, err
	}
	// One budget for all that is kept between calls: what projects need, idle instances give up.
	budget := engine.NewBudget(int64(p.Limits.MemoryMiB) << 20)
	s.engine, err = engine.New(ctx, engine.Config{Mode: p.Mode, Budget: budget, Limits: engine.Limits{Snapshot: p.Limits.SnapshotMiB << 20}})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	keyCtx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	s.host, err = functions.New(keyCtx, functions.Config{
		Keys: keySource{s.client, constraint}, Runtime: constraint, Runner: functions.NewRunner(s.engine),
		Files: persist.Dir(p.Data), NoFreshnessUnsafe: true, MaxCalls: p.MaxCalls, Logger: p.Log,
		Owners: p.Access.Owners, OpenToAnyOwner: p.Access.Anyone, Budget: budget, Registerer: s.registry,
		ProjectBytes: int64(p.Limits.ProjectMiB) << 20, DiskBytes: int64(p.Limits.DiskMiB) << 20, MaxProjects: p.Limits.Projects,
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Handler returns the API.
func (s *Service) Handler() http.Handler { return s.host.Handler() }

// Close ends the calls in flight and closes the stores.
func (s *Service) Close() error {
	var errs []error
	if s.host != nil {
		errs = append(errs, s.host.Close())
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close(context.Background()))
	}
	return errors.Join(append(errs, s.client.Close())...)
}

// keySource asks the cluster for keys bound to the runtime's own measurement, of the first root generation: stores and what
// projects have sealed must open after a recovery of the cluster too, which adds a generation, and callers ask for that one.
type keySource struct {
	client interface {
		Key(context.Context, api.KeyRequest) (secret.Key, api.KeyReply, error)
	}
	constraint string
}

func (k keySource) Key(ctx context.Context, name, purpose string) (secret.Key, error) {
	key, _, err := k.client.Key(ctx, api.KeyRequest{Constraint: k.constraint, Name: name, Purpose: purpose, Version: api.Version{Generation: api.FirstGeneration}})
	return key, err
}

var errDebug = errors.New("this is a debug enclave, whose host reads its memory: start a production build")

// Constraint returns the constraint that exactly the running code satisfies, from its own quote. A host that forges the
// quote gains nothing: the cluster verifies the evidence of the channel, and callers name the constraint themselves.
func Constraint(ctx context.Context, tee enclave.TEE) (string, error) {
	raw, err := tee.Quote(ctx, [enclave.ReportDataSize]byte{})
	if err != nil {
		return "", err
	}
	q, err := attest.Parse(raw)
	if err != nil {
		return "", err
	}
	var text string
	if x := q.SGX(); x != nil {
		if x.Report.Debug() {
			return "", errDebug
		}
		text = "C:" + hex.EncodeToString(x.Report.MREnclave[:])
	} else {
		b := &q.TDX().Body
		if b.Debug() {
			return "", errDebug
		}
		text = fmt.Sprintf("TD:%x RTMR1:%x RTMR2:%x", b.MRTD, b.RTMR[1], b.RTMR[2])
	}
	c, err := policy.ParseConstraint(text)
	return c.String(), err
}

// Run opens the service and serves it on the configured addresses until ctx ends.
func Run(ctx context.Context, c *Config, p Platform, log *slog.Logger) error {
	params := Params{Platform: p, Data: c.Data, MaxCalls: c.MaxCalls, Limits: c.Limits, Log: log}
	file, err := clusterfile.ReadPinned(c.Cluster, p.Pinned)
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Usagef("%s does not exist; copy the cluster file here, or found a cluster with clavigerd --genesis", c.Cluster)
	}
	if err != nil {
		return err
	}
	params.ClusterID, params.Endpoints = file.ClusterID, file.Endpoints
	if params.Mode, err = c.mode(); err != nil {
		return &cli.UsageError{Err: err}
	}
	if params.Access, err = c.access(); err != nil {
		return &cli.UsageError{Err: err}
	}
	switch {
	case params.Access.Anyone:
		log.Warn("open_to_any_owner: whoever reaches this host may deploy, and fill it up to its limits")
	case len(params.Access.Owners) == 0:
		log.Warn("owners is empty: nobody may deploy; list owners in the configuration")
	}
	listener, err := net.Listen("tcp", c.Listen.API)
	if err != nil {
		return err
	}
	defer listener.Close()
	admin, err := net.Listen("tcp", c.Listen.Admin)
	if err != nil {
		return err
	}
	defer admin.Close()
	s, err := Open(ctx, params)
	if err != nil {
		return err
	}
	log.Info("ready", "api", listener.Addr(), "constraint", s.Constraint, "cluster", params.ClusterID)
	return errors.Join(s.serve(ctx, listener, admin), s.Close())
}

// serve runs both listeners until ctx ends or one of them fails.
func (s *Service) serve(ctx context.Context, listener, admin net.Listener) error {
	ended := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "claviger_fn_instances_ended_total", Help: "Idle instances ended to make room.",
	}, func() float64 { return float64(s.engine.Ended()) })
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claviger_fn_http_requests_total", Help: "Requests to the function API by method and HTTP status.",
	}, []string{"method", "code"})
	s.registry.MustRegister(requests, ended, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return daemon.Serve(ctx, listener, promhttp.InstrumentHandlerCounter(requests, s.Handler()), s.log)
	})
	// The runtime listens only once it has its keys, so it is always ready.
	ready := func(context.Context) error { return nil }
	group.Go(func() error { return daemon.Serve(ctx, admin, httpapi.Admin(ready, s.registry, s.log), s.log) })
	return group.Wait()
}
