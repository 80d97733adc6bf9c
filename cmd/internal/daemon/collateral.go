package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/cmd/internal/cli"
)

// Collateral is the collateral section of a production daemon's configuration: where TCB info, identities and revocation
// lists come from. They are signed by Intel and verified on every use; the host can withhold them, and no more.
type Collateral struct {
	// Dir is a directory that keeps what was fetched; made if it does not exist. Offline it is the whole source: files named
	// <tee>-<fmspc>-<ca>.json, carried there by people.
	Dir string `yaml:"dir"`
	// URL is a PCCS, such as https://pccs.example:8081; empty means Intel's own service.
	URL string `yaml:"url"`
	// Update is standard, the default, or early: which data of a TCB recovery counts. Evaluation numbers never fall in a
	// cluster, so early is for ever until standard has caught up.
	Update pcs.Update `yaml:"update"`
	// Offline serves from Dir alone.
	Offline bool `yaml:"offline"`
	// PlainHTTPUnsafe allows an http:// URL beyond loopback. Whoever is on the path can then watch, withhold, and serve
	// what is old but still valid.
	PlainHTTPUnsafe bool `yaml:"plain_http_unsafe"`
}

// Resolve checks the section and makes its path absolute.
func (c *Collateral) Resolve(dir string) error {
	if c.Offline && (c.URL != "" || c.PlainHTTPUnsafe) {
		return fmt.Errorf("%w: collateral.offline goes without collateral.url", ErrConfig)
	}
	if c.Update != "" && c.Update != pcs.Early && c.Update != pcs.Standard {
		return fmt.Errorf("%w: collateral.update is %q; use %s or %s", ErrConfig, c.Update, pcs.Standard, pcs.Early)
	}
	if c.Dir == "" {
		return nil // simulated, or refused by Open
	}
	c.Dir = cli.Below(dir, c.Dir)
	return nil
}

// Open returns the source and a function that ends it.
func (c *Collateral) Open(root attest.Root, log *slog.Logger) (source func(context.Context, []byte) (*attest.Collateral, error), stop func() error, err error) {
	if c.Dir == "" {
		return nil, nil, fmt.Errorf("%w: collateral.dir is missing; name a directory to keep collateral in", ErrConfig)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, nil, err
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: root})
	if err != nil {
		return nil, nil, err
	}
	if c.Offline {
		d, err := pcs.OpenDirectory(pcs.DirectoryConfig{Path: c.Dir, Verifier: verifier, Update: c.Update})
		if err != nil {
			return nil, nil, err
		}
		return d.Collateral, func() error { return nil }, nil
	}
	client, err := pcs.NewClient(pcs.Config{Verifier: verifier, BaseURL: c.URL, PlainHTTPUnsafe: c.PlainHTTPUnsafe})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: collateral.url: %w", ErrConfig, err)
	}
	s, err := pcs.NewSource(pcs.SourceConfig{Fetcher: client, Verifier: verifier, Dir: c.Dir, Update: c.Update, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	return recent(s, c.Update, recentAge, log), s.Close, nil
}

// recentAge is how old an answer may be for a node that asks: it asks seldom, and when it does, about who may hold root
// secrets. A revocation of this morning must count this evening.
const recentAge = 10 * time.Minute

// recent asks the service again where what the source keeps is older than age, and falls back to that.
func recent(s *pcs.Source, update pcs.Update, age time.Duration, log *slog.Logger) func(context.Context, []byte) (*attest.Collateral, error) {
	return func(ctx context.Context, quote []byte) (*attest.Collateral, error) {
		r, err := pcs.RequestFor(quote)
		if err != nil {
			return nil, err
		}
		r.Update = update
		set, err := s.Get(ctx, r)
		if err != nil {
			return nil, err
		}
		if time.Since(set.Fetched) > age {
			fresh, err := s.Refresh(ctx, r)
			if err == nil {
				return fresh.Collateral, nil
			}
			log.WarnContext(ctx, "collateral could not be renewed; what is kept serves", "request", r.String(), "error", err)
		}
		return set.Collateral, nil
	}
}
