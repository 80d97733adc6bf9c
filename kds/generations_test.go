package kds

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha512"
	"errors"
	"slices"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
)

// sameIdentity are secrets of the same identity key with other roots: what a recovery makes that skips an epoch, or somebody
// who has held the identity key.
func sameIdentity(t *testing.T, s *Secrets, roots ...byte) *Secrets {
	t.Helper()
	var list []secret.Key
	for _, r := range roots {
		list = append(list, must[secret.Key](t)(secret.New(bytes.Repeat([]byte{r}, rootSize))))
	}
	return must[*Secrets](t)(newSecrets(s.seed, list...))
}

// The id of a root is what HKDF-Expand makes of it under a label of its own, computed here from HMAC alone: it is kept beside
// sealed data for ever.
func TestGenerationIDIsFrozen(t *testing.T) {
	t.Parallel()
	s := sameIdentity(t, must[*Secrets](t)(GenerateSecrets()), 7)
	const outer, label = "claviger/secret/derive/v1", "claviger/root-id/v1"
	info := slices.Concat([]byte{0, byte(len(outer))}, []byte(outer), []byte{0, byte(len(label))}, []byte(label), []byte{0, 32})
	mac := hmac.New(sha512.New, bytes.Repeat([]byte{7}, rootSize))
	mac.Write(append(info, 1))
	if got := s.GenerationIDs()[0]; [32]byte(mac.Sum(nil)[:32]) != got {
		t.Errorf("the id is %x", got)
	}
}

// Ids come along with the roots, and tell those apart that have the same number.
func TestGenerationIDsTellRootsApart(t *testing.T) {
	t.Parallel()
	s := must[*Secrets](t)(GenerateSecrets())
	one, two := must[*Secrets](t)(s.NextGeneration()), must[*Secrets](t)(s.NextGeneration())
	again := must[*Secrets](t)(ParseSecrets(must[[]byte](t)(one.Reveal()), one.Identity().Public()))
	ids := one.GenerationIDs()
	if !slices.Equal(ids, again.GenerationIDs()) || len(ids) != 2 || ids[0] != s.GenerationIDs()[0] {
		t.Errorf("%x", ids)
	}
	ids[0][0]++ // a copy
	for name, c := range map[string]struct {
		held      *Secrets
		committed [][32]byte
		ok        bool
	}{
		"nothing committed":      {one, nil, true},
		"all of them":            {one, again.GenerationIDs(), true},
		"later ones are held":    {one, s.GenerationIDs(), true},
		"one is missing":         {s, one.GenerationIDs(), false},
		"the other epoch's":      {two, one.GenerationIDs(), false},
		"another first root":     {sameIdentity(t, s, 1), s.GenerationIDs(), false},
		"in another order":       {one, [][32]byte{one.ids[1], one.ids[0]}, false},
		"none held, none wanted": {new(Secrets), nil, true},
		"none held":              {new(Secrets), s.GenerationIDs(), false},
	} {
		if err := c.held.Check(c.committed); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRoots) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A client names the root that it means. A number that has another root here is not found, and no key of it goes out.
func TestVersionsNameTheirRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	want := w.release(ev, request())
	other := sameIdentity(t, w.secrets, 1).GenerationIDs()[0]
	for _, v := range []api.Version{w.version(1), {GenerationID: w.version(1).GenerationID}, {Generation: 1}} {
		req := request()
		req.Version = v
		if got := w.release(ev, req); got.Version != w.version(1) || !bytes.Equal(got.Key, want.Key) {
			t.Errorf("%+v: version %+v", v, got.Version)
		}
		req.Purpose = "x25519"
		reply, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest(req))
		if err != nil || reply.Version != w.version(1) || reply.Verify(w.secrets.Identity().Public(), w.id) != nil {
			t.Errorf("%+v: public half: %+v, %v", v, reply.Version, err)
		}
	}
	for _, v := range []api.Version{{Generation: 1, GenerationID: other}, {GenerationID: other}, {Generation: 2, GenerationID: w.version(1).GenerationID}} {
		req := request()
		req.Version = v
		w.refused("another root", ev, req, api.CodeNotFound)
		req.Purpose = "x25519"
		if _, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest(req)); !errors.Is(err, &api.Problem{Code: api.CodeNotFound}) {
			t.Errorf("%+v: public half: %v", v, err)
		}
	}
	if c, err := w.service.Cluster(t.Context()); err != nil || !slices.Equal(c.GenerationIDs, []api.ID{w.version(1).GenerationID}) {
		t.Errorf("the cluster shows %v, %v", c.GenerationIDs, err)
	}
}

// A node that was handed other roots under the same identity key serves nothing: its keys would be nobody's.
func TestOtherRootsServeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	c := w.config()
	c.Secrets = sameIdentity(t, w.secrets, 1)
	w.service = must[*Service](t)(New(c))
	w.refused("other roots", ev, request(), api.CodeInternal)
	if _, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest{Constraint: constraint, Name: "db", Purpose: "x25519"}); err == nil {
		t.Error("the public half of another root's key")
	}
}
