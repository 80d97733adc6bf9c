package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/raftstore"
)

// bundleAge is how long a fetched collateral bundle of our own platform is sent
// along without asking again. Verifiers prefer a newer set where they have one.
const bundleAge = time.Minute

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
	cfg *Config

	mu         sync.Mutex
	attachment []byte
	bundle     []byte
	fetched    time.Time
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

// collateral is serialised on purpose: one fetch serves all who wait.
func (p *prover) collateral(ctx context.Context, quote []byte) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bundle != nil && time.Since(p.fetched) < bundleAge {
		return p.bundle, nil
	}
	c, err := p.cfg.Collateral(ctx, quote)
	if err != nil {
		return nil, fmt.Errorf("node: collateral of our own platform: %w", err)
	}
	raw, err := c.Marshal()
	if err != nil {
		return nil, fmt.Errorf("node: collateral of our own platform: %w", err)
	}
	p.bundle, p.fetched = raw, time.Now()
	return raw, nil
}
