package functions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/mail"
	"github.com/claviger/claviger/enclave/persist"
)

// errCannotOpen: a request is not sealed to this runtime for what it came with.
var errCannotOpen = errors.New("functions: the request does not open: it was altered, sealed for another function, project, code or runtime, or to another key")

// Call answers one sealed call of a function, with what came beside it in the
// clear. An error is for the host's eyes and means that nothing ran; every other
// outcome is in the sealed reply.
func (h *Host) Call(ctx context.Context, id ProjectID, function string, code CodeHash, sealed []byte) ([]byte, error) {
	if err := checkFunction(function); err != nil {
		return nil, err
	}
	body, sealer, err := h.identity.OpenRequest(callInfo(h.cfg.Runtime, id, function, code), nil, sealed)
	if err != nil {
		return nil, openError(err)
	}
	known, err := h.known(id)
	if err != nil {
		return nil, fmt.Errorf("functions: looking for the project: %w", err)
	}
	if !known {
		h.metrics.called(CodeProjectNotFound, 0)
		return sealReply(sealer, notFound(id).reply())
	}
	p, release, err := h.acquire(id, max(1, h.cfg.MaxCalls/2))
	if err != nil {
		return nil, err
	}
	defer release()
	start := time.Now()
	reply, usage := p.call(ctx, function, code, body)
	h.account(id, code, reply.Code, time.Since(start), usage)
	return sealReply(sealer, reply)
}

func openError(err error) error {
	if errors.Is(err, mail.ErrOpen) {
		return errCannotOpen
	}
	return fmt.Errorf("%w: %w", ErrFormat, err)
}

func sealReply(sealer *mail.ReplySealer, reply *replyMessage) ([]byte, error) {
	raw, err := cborEnc.Marshal(reply)
	if err != nil {
		return nil, fmt.Errorf("functions: encoding a reply: %w", err)
	}
	return sealer.Seal(nil, raw)
}

func (e *CallError) reply() *replyMessage {
	return &replyMessage{Code: e.Code, Message: e.Message, Name: e.Name, Stack: e.Stack, Logs: packLogs(e.Logs)}
}

// call decides, runs and commits one invocation.
func (p *project) call(ctx context.Context, function string, code CodeHash, body []byte) (*replyMessage, engine.Usage) {
	message, err := decode[callMessage](body)
	if err != nil || len(message.Args) > MaxArgs {
		return refuse(CodeBadArguments, "the sealed call is malformed or its arguments exceed %d bytes", MaxArgs).reply(), engine.Usage{}
	}
	store, current, refused := p.inForce(ctx)
	if refused != nil {
		return refused.reply(), engine.Usage{}
	}
	defer p.done(current)
	if current.CodeHash != code {
		return p.mismatch(current).reply(), engine.Usage{}
	}
	if refused := p.host.window.use(message.Session, message.Invocation); refused != nil {
		return refused.reply(), engine.Usage{}
	}
	// One project runs in half of the instances at most, so that calls of another
	// find one however long those of this one take.
	select {
	case p.running <- struct{}{}:
		defer func() { <-p.running }()
	case <-ctx.Done():
		return refuse(CodeDeadline, "the call waited too long for others of the project").reply(), engine.Usage{}
	}
	inv := &invocation{project: p, store: store, current: current}
	defer inv.end()
	result, err := current.program.Call(ctx, function, message.Args, inv)
	if err == nil {
		err = inv.commit(ctx)
	}
	reply := &replyMessage{Value: result.Value}
	if err != nil {
		inv.rollback()
		reply = p.failure(inv, err).reply()
	}
	reply.Logs, reply.Truncated = packLogs(result.Logs), result.LogsTruncated
	return reply, result.Usage
}

func (p *project) mismatch(current *deployed) *CallError {
	return refuse(CodeHashMismatch, "the code in force is %s under sequence %d", current.CodeHash, current.Sequence)
}

// failure turns what ended a call into the caller's answer.
func (p *project) failure(inv *invocation, err error) *CallError {
	if inv.err == nil {
		return p.engineRefusal(err)
	}
	err = inv.err // what stood behind the engine's generic error
	switch {
	case errors.Is(err, errRedeployed):
		return refuse(CodeHashMismatch, "other code was deployed while the call ran")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return refuse(CodeDeadline, "the call ended while it waited for the project's data")
	case errors.Is(err, errMemory):
		return refuse(CodeBusy, "%v; try again", errMemory)
	case errors.Is(err, errKey):
		return refuse(CodeInternal, "the key service did not give the project's key; try again")
	case stopped(err):
		if err := p.closeStore(inv.store); err != nil {
			p.host.cfg.Logger.Warn("closing a failed store", "project", p.id.String(), "error", err)
		}
	}
	return p.storeRefusal(err)
}

// stopped reports whether a store must be opened again before it goes on.
func stopped(err error) bool {
	return errors.Is(err, persist.ErrFailed) || errors.Is(err, persist.ErrConflict) || errors.Is(err, persist.ErrClosed)
}

// engineRefusal turns an error of the engine's into the caller's or owner's
// answer.
func (p *project) engineRefusal(err error) *CallError {
	// A limit that the script ran into counts more than the exception it became.
	for _, c := range []struct {
		is   error
		code Code
	}{
		{engine.ErrDeadline, CodeDeadline}, {engine.ErrMemory, CodeMemory}, {engine.ErrStack, CodeStack},
		{engine.ErrNoFunction, CodeFunctionNotFound}, {engine.ErrArguments, CodeBadArguments},
		{engine.ErrTooLarge, CodeTooLarge}, {engine.ErrUnsettled, CodeUnsettled},
	} {
		if errors.Is(err, c.is) {
			return refuse(c.code, "%v", c.is)
		}
	}
	if script, ok := errors.AsType[*engine.ScriptError](err); ok {
		return &CallError{Code: CodeScript, Name: script.Name, Message: script.Message, Stack: script.Stack}
	}
	if errors.Is(err, engine.ErrSnapshot) {
		return refuse(CodeSnapshot, "%v", err)
	}
	if errors.Is(err, engine.ErrNoExports) {
		return refuse(CodeBadBundle, "%v", engine.ErrNoExports)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return refuse(CodeDeadline, "%v", engine.ErrDeadline)
	}
	p.host.cfg.Logger.Warn("a call failed inside the runtime", "project", p.id.String(), "kind", fmt.Sprintf("%T", err))
	return refuse(CodeInternal, "the runtime failed; try again")
}

// account tells the machine's host what it may know: what ran, and what it cost,
// rounded up to powers of two.
func (h *Host) account(id ProjectID, code CodeHash, outcome Code, d time.Duration, u engine.Usage) {
	h.metrics.called(outcome, d)
	h.cfg.Logger.Info("call", "project", id.String(), "code_hash", code.String(),
		"milliseconds", bucket(d.Milliseconds()), "memory", bucket(int64(u.Memory)))
}

func bucket(n int64) int64 {
	b := int64(1)
	for b < n && b < 1<<62 {
		b *= 2
	}
	return b
}
