package functions

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"

	"github.com/claviger/claviger/enclave/mail"
	"github.com/claviger/claviger/enclave/persist"
)

// Deploy answers one sealed deployment of a project, as Call does. The code goes
// into force only if the project's owner signed it, for this runtime, under a
// sequence number above the one in force, and it loads. The first deployment makes
// the project's store.
func (h *Host) Deploy(ctx context.Context, id ProjectID, sealed []byte) ([]byte, error) {
	body, sealer, err := h.identity.OpenRequest(deployInfo(h.cfg.Runtime, id), nil, sealed)
	if err != nil {
		return nil, openError(err)
	}
	message, err := decode[deployMessage](body)
	if err != nil {
		return h.refuseDeployment(sealer, refuse(CodeBadBundle, "the sealed deployment is malformed"))
	}
	d, code := &message.Deployment, message.Code
	if refused := d.verify(id, h.cfg.Runtime, code); refused != nil {
		return h.refuseDeployment(sealer, refused)
	}
	if refused := h.admits(d, id); refused != nil {
		return h.refuseDeployment(sealer, refused)
	}
	p, release, err := h.acquire(id, h.cfg.MaxCalls)
	if err != nil {
		return nil, err
	}
	defer release()
	reply := p.deploy(ctx, d, code)
	h.metrics.deployed(reply.Code)
	return sealReply(sealer, reply)
}

func (h *Host) refuseDeployment(sealer *mail.ReplySealer, refused *CallError) ([]byte, error) {
	h.metrics.deployed(refused.Code)
	return sealReply(sealer, refused.reply())
}

// admits decides whether the owner may deploy here and whether there is room,
// before a line of the code is looked at.
func (h *Host) admits(d *Deployment, id ProjectID) *CallError {
	listed := func(k ed25519.PublicKey) bool { return k.Equal(d.Owner) }
	if !h.cfg.OpenToAnyOwner && !slices.ContainsFunc(h.cfg.Owners, listed) {
		return refuse(CodeOwnerNotAllowed, "this function host takes deployments of listed owners only; ask who runs it to list %x", []byte(d.Owner))
	}
	if err := h.disk.room(id); err != nil {
		return refuse(CodeQuota, "%v; ask who runs this host for room", err)
	}
	return nil
}

// deploy puts a verified deployment into force.
func (p *project) deploy(ctx context.Context, d *Deployment, code []byte) *replyMessage {
	program, free, err := p.host.load(ctx, code)
	if errors.Is(err, errMemory) {
		return p.storeRefusal(err).reply()
	}
	if err != nil {
		return p.engineRefusal(err).reply()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.install(ctx, d, code); err != nil {
		free()
		p.closeUnloaded()
		if refused, ok := errors.AsType[*CallError](err); ok {
			reply := refused.reply()
			if p.current != nil {
				reply.Sequence = p.current.Sequence
			}
			return reply
		}
		return p.storeRefusal(err).reply()
	}
	p.current.retire()
	p.current = &deployed{Deployment: *d, program: program, free: free}
	p.host.cfg.Logger.Info("deployed", "project", p.id.String(), "code_hash", d.CodeHash.String(), "sequence", d.Sequence)
	return &replyMessage{Sequence: d.Sequence}
}

// closeUnloaded closes a store that was opened for a deployment which failed, if
// no code is loaded: the next use opens it again and says why. No call can have it.
// The caller holds p.mu.
func (p *project) closeUnloaded() {
	if p.store == nil || p.current != nil {
		return
	}
	if err := p.store.Close(); err != nil {
		p.host.cfg.Logger.Warn("closing a store", "project", p.id.String(), "error", err)
	}
	p.host.budget.Release(p.bytes)
	p.store, p.bytes = nil, 0
}

// install writes the deployment and its code in one transaction, if its sequence
// number is above the stored one. The caller holds p.mu.
func (p *project) install(ctx context.Context, d *Deployment, code []byte) error {
	if err := p.open(ctx, true); err != nil {
		return err
	}
	raw, err := cborEnc.Marshal(d)
	if err != nil {
		return err
	}
	store := p.store
	reserved := int64(len(raw)+len(code)) + 4*entryBytes
	if err := p.host.reserve(ctx, reserved); err != nil {
		return err
	}
	defer func() { p.host.budget.Release(p.settle(store, reserved)) }()
	err = store.Update(ctx, func(tx *persist.Tx) error {
		old, ok, err := tx.Get([]byte(keyDeployment))
		if err != nil {
			return err
		}
		if ok {
			before, err := decode[Deployment](old)
			if err != nil {
				return err
			}
			if d.Sequence <= before.Sequence {
				return refuse(CodeStaleSequence, "sequence %d is in force; sign the deployment with a higher one", before.Sequence)
			}
		}
		return errors.Join(tx.Put([]byte(keyDeployment), raw), tx.Put([]byte(keyCode), code))
	})
	if stopped(err) {
		// The next use opens the store again and finds out what is in force.
		p.current.retire()
		p.host.budget.Release(p.bytes)
		p.store, p.current, p.bytes = nil, nil, 0
		err = errors.Join(err, store.Close())
	}
	return err
}
