package story

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/http"

	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/cmd/internal/fnd"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/kds/api"
)

// FunctionHost is a function runtime on a simulated machine, serving on loopback.
type FunctionHost struct {
	URL        string
	Constraint string // of the runtime, which callers name

	service *fnd.Service
	cancel  context.CancelFunc
	done    chan error
}

// StartFunctionHost starts the runtime on a machine. Its stores are in dir, which may come from another machine. An empty
// address takes any free port.
func StartFunctionHost(ctx context.Context, c *Cluster, machine, dir, address string, log *slog.Logger) (*FunctionHost, error) {
	place, err := simworld.At(c.World, machine, false)
	if err != nil {
		return nil, err
	}
	tee, err := place.Machine.Launch(simworld.RuntimeImage)
	if err != nil {
		return nil, err
	}
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	service, err := fnd.Open(ctx, fnd.Params{
		Platform:  fnd.Platform{TEE: tee, Root: c.World.Root(), Attest: simworld.Attest(c.World, tee)},
		ClusterID: c.Pins.ClusterID, Endpoints: c.Endpoints(), Data: dir, Mode: engine.Compiler, Log: log,
		Access: fnd.Access{Anyone: true}, // on loopback, for a demonstration
	})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h := &FunctionHost{
		URL: "http://" + listener.Addr().String(), Constraint: service.Constraint,
		service: service, cancel: cancel, done: make(chan error, 1),
	}
	go func() { h.done <- daemon.Serve(life, listener, service.Handler(), log) }()
	return h, nil
}

// Close stops serving and closes the stores.
func (h *FunctionHost) Close() error {
	h.cancel()
	err := <-h.done
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, h.service.Close())
}

// Caller returns a client of a project on the host. The runtime's key comes from the cluster, under its signature, and
// not from the host.
func (h *FunctionHost) Caller(ctx context.Context, c *Cluster, owner ed25519.PublicKey, project string, code []byte, transport http.RoundTripper) (*functions.Client, error) {
	cl, err := c.Client(nil)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	key, err := cl.PublicKey(ctx, api.PublicKeyRequest{
		Constraint: simworld.RuntimeImage.Constraint(), Name: "functions/invoke", Purpose: "x25519", Version: api.Version{Generation: api.FirstGeneration},
	})
	if err != nil {
		return nil, err
	}
	id, err := functions.ProjectIDOf(owner, project)
	if err != nil {
		return nil, err
	}
	return &functions.Client{
		Endpoint: h.URL, HTTP: &http.Client{Transport: transport},
		Target: functions.Target{
			RuntimeKey: key.PublicKey, Runtime: key.Constraint, Project: id, Code: functions.HashCode(code),
		},
	}, nil
}
