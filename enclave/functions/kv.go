package functions

import (
	"context"
	"errors"
	"time"

	"github.com/claviger/claviger/enclave/persist"
)

// errRedeployed: a deployment came between the start of a call and its first kv
// operation. Old code must not write into data that newer code owns.
var errRedeployed = errors.New("functions: other code was deployed")

// errKey: the key source did not give the project's key.
var errKey = errors.New("functions: no project key")

// invocation is what one running call reaches: the engine's Host. Its transaction
// begins with the first kv operation, so calls that use no kv run side by side, and
// ends with the call. It is used by one goroutine.
type invocation struct {
	project *project
	store   *persist.Map
	current *deployed
	tx      *persist.Tx
	bytes   int64 // of the budget, for what the transaction holds
	err     error // the first error of a kv operation or the key, untold to the script
}

// note keeps the first error for the caller; the script gets a generic one.
func (i *invocation) note(err error) error {
	if err != nil && i.err == nil {
		i.err = err
	}
	return err
}

// begin starts the transaction and checks under it that the code is still the
// one in force.
func (i *invocation) begin(ctx context.Context) (*persist.Tx, error) {
	if i.tx != nil {
		return i.tx, nil
	}
	tx, err := i.store.Begin(ctx)
	if err != nil {
		return nil, i.note(err)
	}
	i.tx = tx
	raw, _, err := tx.Get([]byte(keyDeployment))
	if err != nil {
		return nil, i.note(err)
	}
	d, err := decode[Deployment](raw)
	if err != nil || d.Sequence != i.current.Sequence || d.CodeHash != i.current.CodeHash {
		return nil, i.note(errRedeployed)
	}
	return tx, nil
}

// commit makes the call's changes durable. A function that met a failed kv
// operation and went on as if nothing had happened still fails: its transaction
// would hold half of what it meant.
func (i *invocation) commit(ctx context.Context) error {
	if i.err != nil {
		return i.err
	}
	if i.tx == nil {
		return nil
	}
	return i.note(i.tx.Commit(ctx))
}

func (i *invocation) rollback() {
	if i.tx != nil {
		i.tx.Rollback()
	}
}

// end rolls back what was not committed and settles the bytes.
func (i *invocation) end() {
	i.rollback()
	if i.bytes == 0 {
		return
	}
	i.project.mu.Lock()
	defer i.project.mu.Unlock()
	i.project.host.budget.Release(i.project.settle(i.store, i.bytes))
}

func userKey(key string) []byte { return append([]byte(prefixUser), key...) }

// KVGet implements engine.Host.
func (i *invocation) KVGet(ctx context.Context, key string) ([]byte, bool, error) {
	tx, err := i.begin(ctx)
	if err != nil {
		return nil, false, err
	}
	value, ok, err := tx.Get(userKey(key))
	return value, ok, i.note(err)
}

// KVPut implements engine.Host.
func (i *invocation) KVPut(ctx context.Context, key string, value []byte) error {
	tx, err := i.begin(ctx)
	if err != nil {
		return err
	}
	// All that is put counts until the call has ended, what it replaces included.
	n := int64(len(prefixUser)+len(key)+len(value)) + entryBytes
	if err := i.project.host.reserve(ctx, n); err != nil {
		return i.note(err)
	}
	i.bytes += n
	return i.note(tx.Put(userKey(key), value))
}

// KVDelete implements engine.Host.
func (i *invocation) KVDelete(ctx context.Context, key string) error {
	tx, err := i.begin(ctx)
	if err != nil {
		return err
	}
	return i.note(tx.Delete(userKey(key)))
}

// KVList implements engine.Host.
func (i *invocation) KVList(ctx context.Context, prefix string, limit int) ([]string, error) {
	tx, err := i.begin(ctx)
	if err != nil {
		return nil, err
	}
	keys := []string{}
	if limit <= 0 {
		return keys, nil
	}
	for k := range tx.Keys(userKey(prefix)) {
		keys = append(keys, string(k[len(prefixUser):]))
		if len(keys) == limit {
			break
		}
	}
	return keys, nil
}

// ProjectKey implements engine.Host; the engine wipes the copy.
func (i *invocation) ProjectKey(ctx context.Context) ([]byte, error) {
	key, err := i.project.projectKey(ctx)
	if err != nil {
		return nil, i.note(errors.Join(errKey, err))
	}
	return key.Reveal(), nil
}

// Random implements engine.Host.
func (i *invocation) Random(p []byte) error { return i.project.host.random(p) }

// Now implements engine.Host. The machine's host sets the clock.
func (i *invocation) Now() time.Time { return i.project.host.cfg.Clock() }
