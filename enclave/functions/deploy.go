package functions

import (
	"context"
	"errors"

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
		return sealReply(sealer, refuse(CodeBadBundle, "the sealed deployment is malformed").reply())
	}
	d, code := &message.Deployment, message.Code
	if refused := d.verify(id, h.cfg.Runtime, code); refused != nil {
		return sealReply(sealer, refused.reply())
	}
	p, release, err := h.acquire(id)
	if err != nil {
		return nil, err
	}
	defer release()
	return sealReply(sealer, p.deploy(ctx, d, code))
}

// deploy puts a verified deployment into force.
func (p *project) deploy(ctx context.Context, d *Deployment, code []byte) *replyMessage {
	program, err := p.host.cfg.Runner.Load(ctx, code)
	if err != nil {
		return p.engineRefusal(err).reply()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.install(ctx, d, code); err != nil {
		program.Close(context.Background())
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
	p.current = &deployed{Deployment: *d, program: program}
	p.host.cfg.Logger.Info("deployed", "project", p.id.String(), "code_hash", d.CodeHash.String(), "sequence", d.Sequence)
	return &replyMessage{Sequence: d.Sequence}
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
		p.store, p.current = nil, nil
		err = errors.Join(err, store.Close())
	}
	return err
}
