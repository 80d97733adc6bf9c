package fnd

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
)

// cluster gives keys as a key service does, of the generation that is asked for, or the current one.
type cluster struct{ generation uint64 }

func (c *cluster) Key(_ context.Context, r api.KeyRequest) (secret.Key, api.KeyReply, error) {
	if r.Version.Generation == 0 {
		r.Version.Generation = c.generation
	}
	k, err := secret.New(fmt.Append(nil, r.Constraint, r.Name, r.Purpose, r.Version.Generation))
	return k, api.KeyReply{}, err
}

// The cluster is recovered, and has a new root generation: what the functions have stored still opens.
func TestKeysOutliveARecovery(t *testing.T) {
	t.Parallel()
	c := &cluster{generation: 1}
	source := keySource{c, "C:00"}
	get := func(name string) []byte {
		k, err := source.Key(t.Context(), name, "aes-256")
		if err != nil {
			t.Fatal(err)
		}
		return k.Reveal()
	}
	before := get("functions/store/1")
	c.generation = 2
	if !bytes.Equal(before, get("functions/store/1")) {
		t.Error("the store's key is another one after a recovery")
	}
	if bytes.Equal(before, get("functions/store/2")) {
		t.Error("two stores have one key")
	}
}
