package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/raftstore"
)

// bundleAge is how long a fetched collateral bundle of our own platform is sent
// along without asking again. Verifiers prefer a newer set where they have one.
const bundleAge = time.Minute

const (
	fetchLimit     = 30 * time.Second // of one question to the source about our own platform
	sourcePatience = 2 * time.Second  // with a source that is slow, where there is something else to go by
)

// boot is the identity of this boot: a P-256 key in memory, never stored.
type boot struct {
	key *ecdsa.PrivateKey
	id  raftstore.ServerID
}

func newBoot() (*boot, error) {
	key, err := ratls.NewKey()
	if err != nil {
		return nil, fmt.Errorf("node: boot key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("node: boot key: %w", err)
	}
	return &boot{key: key, id: sha256.Sum256(spki)}, nil
}

// prover makes this node's evidence. The attachment is the membership statement
// once there is one.
type prover struct {
	cfg      *Config
	verifier *attest.Verifier
	log      *slog.Logger
	fetches  singleflight.Group

	mu         sync.Mutex // never held during I/O
	attachment []byte
	bundle     *attest.Collateral
	raw        []byte // bundle, encoded
	fetched    time.Time
}

func newProver(cfg *Config, v *attest.Verifier, log *slog.Logger) *prover {
	return &prover{cfg: cfg, verifier: v, log: log}
}

func (p *prover) attach(statement []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attachment = statement
}

// prove quotes reportData and adds the collateral bundle.
func (p *prover) prove(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
	quote, err := p.cfg.TEE.Quote(ctx, reportData)
	if err != nil {
		return ratls.Evidence{}, fmt.Errorf("node: quote: %w", err)
	}
	bundle, err := p.collateral(ctx, quote)
	if err != nil {
		return ratls.Evidence{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return ratls.Evidence{Quote: quote, Collateral: bundle, Attachment: p.attachment}, nil
}

// collateral is what goes along with a quote of ours. One fetch serves all who
// wait, each for as long as its own context allows: a source that hangs must
// not hold up raft. When it fails, or is slow, the bundle of before does as
// long as it is in force.
func (p *prover) collateral(ctx context.Context, quote []byte) ([]byte, error) {
	p.mu.Lock()
	old, raw, age := p.bundle, p.raw, time.Since(p.fetched)
	p.mu.Unlock()
	if old != nil && age < bundleAge {
		return raw, nil
	}
	done := p.fetches.DoChan("", func() (any, error) {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchLimit)
		defer cancel()
		return p.fetch(limited, quote)
	})
	limit := fetchLimit
	if old != nil {
		limit = sourcePatience
	}
	patience, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	select {
	case r := <-done:
		if r.Err == nil {
			return r.Val.([]byte), nil
		}
		err = r.Err
	case <-patience.Done():
		err = patience.Err()
	}
	if old != nil && ctx.Err() == nil && p.inForce(old, quote) {
		p.log.Warn("collateral of our own platform could not be renewed; the bundle in hand serves", "reason", err)
		return raw, nil
	}
	return nil, fmt.Errorf("node: collateral of our own platform: %w", err)
}

func (p *prover) fetch(ctx context.Context, quote []byte) ([]byte, error) {
	c, err := p.cfg.Collateral(ctx, quote)
	if err != nil {
		return nil, err
	}
	raw, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bundle, p.raw, p.fetched = c, raw, time.Now()
	return raw, nil
}

// inForce reports whether others would take the bundle for our quote.
func (p *prover) inForce(c *attest.Collateral, quote []byte) bool {
	q, err := attest.Parse(quote)
	if err != nil {
		return false
	}
	clock := p.cfg.Clock
	if clock == nil {
		clock = time.Now
	}
	_, err = p.verifier.Verify(q, c, clock())
	return err == nil
}
