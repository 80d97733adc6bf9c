package story

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/enclave/sim"
)

// appImage is the app of the demo. Its constraint names exactly this code and accepts no platform that lacks updates.
var appImage = sim.Image{Kind: enclave.SGX, Name: "orders", Version: "1", Signer: "acme", ProdID: 7, SVN: 3}

// demo is the state that the steps hand on.
type demo struct {
	dir     string
	log     *slog.Logger
	cluster *Cluster
	host    *FunctionHost

	appKey   secret.Key // what the app got on machine A; the later ones must equal it
	owner    ed25519.PrivateKey
	client   *functions.Client
	recorder *recorder
	killed   string // slot of the node that was killed
}

// step is one step of the demo: it returns what was seen, or why it does not hold.
type step struct {
	title string
	run   func(context.Context) ([]string, error)
}

// Demo tells the whole story and returns an error if any step of it does not hold.
func Demo(ctx context.Context, out io.Writer, asJSON bool, log *slog.Logger) (err error) {
	dir, err := os.MkdirTemp("", "claviger-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := &demo{dir: dir, log: log}
	defer func() { err = errors.Join(err, d.close()) }()
	if _, d.owner, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	t := NewTeller(out, asJSON)
	for _, s := range d.steps() {
		details, err := s.run(ctx)
		if err != nil {
			err = fmt.Errorf("the demo failed at %q: %w", s.title, err)
			t.Failed(err)
			return err
		}
		t.Step(s.title, details...)
	}
	t.Summary(
		"real Intel evidence verifies offline, with every certificate, list and TCB level checked; a changed bit does not",
		"keys belong to code and not to a machine: app and functions moved, and read what they had stored",
		"a crashed leader costs moments, no key and no data; its next boot joins as a new server",
		"other code, a debug enclave and an old platform get no key, and are told which clause and why",
		"the machines' host saw sealed bytes only",
	)
	return t.Err()
}

func (d *demo) steps() []step {
	return []step{
		{"verify a real, Intel-signed TDX quote at its pinned time", d.verifyReal},
		{"start three key nodes on three simulated machines", d.startCluster},
		{"on machine A an app enclave gets its key and seals data", d.sealOnA},
		{"deploy a password manager as a function; store an entry", d.deployFunction},
		{"kill the leader; the same key again", d.killLeader},
		{"boot the killed node; it rejoins under a new identity", d.rejoin},
		{"move app and functions to machine B; read both back", d.moveToB},
		{"refuse another measurement", d.refuseOtherCode},
		{"refuse a debug enclave", d.refuseDebug},
		{"refuse a platform with an out-of-date TCB", d.refuseOldTCB},
	}
}

func (d *demo) close() error {
	var errs []error
	d.appKey.Destroy()
	if d.host != nil {
		errs = append(errs, d.host.Close())
	}
	if d.cluster != nil {
		errs = append(errs, d.cluster.Close())
	}
	return errors.Join(errs...)
}

func (d *demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// must makes a failed expectation an error of the step.
func must(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrStep, fmt.Sprintf(format, args...))
}
