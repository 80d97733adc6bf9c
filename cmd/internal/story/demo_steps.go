package story

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
)

const (
	machineA = "machine-a"
	machineB = "machine-b"

	appRecord = "invoice 4711: 12 crates of oranges"
	password  = "correct horse battery staple"
	token     = "the owner's long token"
)

func (d *demo) verifyReal(context.Context) ([]string, error) {
	c, err := verifyRealQuote()
	if err != nil {
		return nil, err
	}
	err = must(c.TEE == attest.TDX && !c.Root.Simulated && !c.Debug && c.TCB.Status == attest.StatusNotSupported,
		"the sample's claims are %s, root %s, debug %t, status %s", c.TEE, c.Root.Name, c.Debug, c.TCB.Status)
	return []string{
		fmt.Sprintf("genuine TDX evidence under Intel's root as of %s, FMSPC %x", realQuoteTime.Format(time.DateOnly), c.Platform.FMSPC),
		fmt.Sprintf("TCB status %s: its microcode is below every level Intel lists, so no policy would accept it", c.TCB.Status),
		"the same quote with one changed bit is refused at stage signature",
	}, err
}

func (d *demo) startCluster(ctx context.Context) ([]string, error) {
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, err
	}
	var err error
	d.cluster, err = StartCluster(ctx, sim.NewWorld(seed, nil), d.path("kds"), d.log)
	if err != nil {
		return nil, err
	}
	members, err := d.cluster.AwaitVoters(ctx, len(slots))
	if err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("cluster %s", d.cluster.Pins.ClusterID),
		fmt.Sprintf("%d voters, %s leads; the roots went from enclave to enclave over attested TLS", len(slots), leaderOf(members)),
	}, nil
}

// leaderOf names the leader's slot.
func leaderOf(members []api.Member) string {
	for _, m := range members {
		if m.Leader {
			return m.Slot
		}
	}
	return ""
}

// appConstraint is what the app's key is bound to: this code, and stricter about the platform than the default.
func appConstraint() string {
	return strings.Replace(appImage.Constraint(), "SEC:STALE", "SEC:SECURE", 1)
}

// ask launches an image on a machine and asks for the app's key.
func (d *demo) ask(ctx context.Context, machine string, outOfDate bool, image sim.Image) (secret.Key, api.KeyReply, error) {
	place, err := simworld.At(d.cluster.World, machine, outOfDate)
	if err != nil {
		return secret.Key{}, api.KeyReply{}, err
	}
	tee, err := place.Machine.Launch(image)
	if err != nil {
		return secret.Key{}, api.KeyReply{}, err
	}
	c, err := d.cluster.Client(tee)
	if err != nil {
		return secret.Key{}, api.KeyReply{}, err
	}
	defer c.Close()
	return c.Key(ctx, api.KeyRequest{Constraint: appConstraint(), Name: "db", Purpose: "aes-256"})
}

func (d *demo) sealOnA(ctx context.Context) ([]string, error) {
	key, reply, err := d.ask(ctx, machineA, false, appImage)
	if err != nil {
		return nil, err
	}
	d.appKey = key
	if err := os.MkdirAll(d.path(machineA, "app"), 0o700); err != nil {
		return nil, err
	}
	store, err := persist.Create(ctx, d.appStore(machineA, key))
	if err != nil {
		return nil, err
	}
	err = store.Update(ctx, func(tx *persist.Tx) error { return tx.Put([]byte("invoice"), []byte(appRecord)) })
	if err != nil {
		return nil, err
	}
	if err := store.Close(); err != nil {
		return nil, err
	}
	if err := d.hiddenOnDisk(d.path(machineA, "app"), appRecord); err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("key %s %q, version %d.%d, bound to this very code on an up-to-date platform",
			reply.Purpose, reply.Name, reply.Version.Generation, reply.Version.Counter),
		fmt.Sprintf("recorded as leaf %d before it was released; the receipt verifies", reply.Receipt.Index),
		"the sealed file does not contain the plain text",
	}, nil
}

func (d *demo) appStore(machine string, key secret.Key) persist.Options {
	return persist.Options{Files: persist.Dir(d.path(machine, "app")), Name: "orders", Key: key, NoFreshnessUnsafe: true}
}

// hiddenOnDisk fails if any file below dir contains the text, or if there is no file at all.
func (d *demo) hiddenOnDisk(dir, text string) error {
	files := 0
	root := os.DirFS(dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := root.Open(e.Name())
		if err != nil {
			return err
		}
		raw, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return err
		}
		if bytes.Contains(raw, []byte(text)) {
			return must(false, "%s contains the plain text", e.Name())
		}
		files++
	}
	return must(files > 0, "nothing was stored in %s", dir)
}

// recorder is the host that carries the calls: it keeps every byte that passes.
type recorder struct {
	mu   sync.Mutex
	seen bytes.Buffer
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		r.keep([]byte(req.URL.String()), body)
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	r.keep(body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

func (r *recorder) keep(parts ...[]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range parts {
		r.seen.Write(p)
	}
}

// sawOnlySealed fails if one of the texts passed in the clear, or if nothing passed.
func (r *recorder) sawOnlySealed(texts ...string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range texts {
		if bytes.Contains(r.seen.Bytes(), []byte(text)) {
			return 0, must(false, "the host saw %q", text)
		}
	}
	return r.seen.Len(), must(r.seen.Len() > 0, "no call passed the host")
}

func (d *demo) deployFunction(ctx context.Context) ([]string, error) {
	var err error
	d.host, err = StartFunctionHost(ctx, d.cluster, machineA, d.path(machineA, "fn"), "", d.log)
	if err != nil {
		return nil, err
	}
	d.recorder = &recorder{}
	if err := d.dialFunctions(ctx); err != nil {
		return nil, err
	}
	sequence, err := d.client.Deploy(ctx, d.owner, "passwords", PasswordManager, 1)
	if err != nil {
		return nil, err
	}
	if err := d.call(ctx, `{"stored":"example.org"}`, "add", token, "example.org", "ada", password); err != nil {
		return nil, err
	}
	seen, err := d.recorder.sawOnlySealed(password, token)
	if err != nil {
		return nil, err
	}
	if err := d.hiddenOnDisk(d.path(machineA, "fn"), password); err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("code hash %s, sequence %d, signed by the owner", d.client.Target.Code, sequence),
		fmt.Sprintf("the host carried %d bytes; neither password nor token is among them or on its disk", seen),
	}, nil
}

func (d *demo) dialFunctions(ctx context.Context) (err error) {
	d.client, err = d.host.Caller(ctx, d.cluster, d.owner.Public().(ed25519.PublicKey), "passwords", PasswordManager, d.recorder)
	return err
}

// call calls a function with text arguments and compares its result.
func (d *demo) call(ctx context.Context, want, function string, args ...string) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	result, err := d.client.Call(ctx, function, raw)
	if err != nil {
		return err
	}
	return must(string(result.Value) == want, "%s returned %s, want %s", function, result.Value, want)
}

func (d *demo) killLeader(ctx context.Context) ([]string, error) {
	members, err := d.cluster.AwaitVoters(ctx, len(slots))
	if err != nil {
		return nil, err
	}
	leader := leaderOf(members)
	if err := d.cluster.Kill(leader); err != nil {
		return nil, err
	}
	d.killed = leader
	start := time.Now()
	key, reply, err := d.ask(ctx, machineA, false, appImage)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	took := time.Since(start)
	return []string{
		fmt.Sprintf("node %s was killed; the key was served again after %.2f s, recorded as leaf %d", leader, took.Seconds(), reply.Receipt.Index),
	}, must(key.Equal(d.appKey), "the key is another one")
}

func (d *demo) rejoin(ctx context.Context) ([]string, error) {
	if err := d.cluster.Start(ctx, d.killed); err != nil {
		return nil, err
	}
	members, err := d.cluster.AwaitVoters(ctx, len(slots))
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(members, func(m api.Member) bool { return m.Slot == d.killed })
	return []string{
		fmt.Sprintf("node %s, incarnation %d: a new server that read nothing from its old disk", d.killed, members[i].Incarnation),
	}, must(members[i].Incarnation == 2, "the incarnation is %d", members[i].Incarnation)
}

func (d *demo) moveToB(ctx context.Context) ([]string, error) {
	if err := d.host.Close(); err != nil {
		return nil, err
	}
	d.host = nil
	if err := os.Rename(d.path(machineA), d.path(machineB)); err != nil {
		return nil, err
	}
	if err := d.sealingKeysDiffer(ctx); err != nil {
		return nil, err
	}
	if err := d.readOnB(ctx); err != nil {
		return nil, err
	}
	var err error
	d.host, err = StartFunctionHost(ctx, d.cluster, machineB, d.path(machineB, "fn"), "", d.log)
	if err != nil {
		return nil, err
	}
	if err := d.dialFunctions(ctx); err != nil {
		return nil, err
	}
	if err := d.call(ctx, `{"user":"ada","password":"`+password+`"}`, "get", token, "example.org"); err != nil {
		return nil, err
	}
	if _, err := d.recorder.sawOnlySealed(password, token); err != nil {
		return nil, err
	}
	return []string{
		"the processor's own sealing key on B is another one: data sealed with it would be lost",
		"with keys from the cluster both the app's record and the function's entry read back",
	}, nil
}

// sealingKeysDiffer shows what the move would have cost without the cluster.
func (d *demo) sealingKeysDiffer(ctx context.Context) error {
	var keys []secret.Key
	for _, machine := range []string{machineA, machineB} {
		place, err := simworld.At(d.cluster.World, machine, false)
		if err != nil {
			return err
		}
		tee, err := place.Machine.Launch(appImage)
		if err != nil {
			return err
		}
		key, err := tee.SealingKey(ctx, "orders")
		if err != nil {
			return err
		}
		defer key.Destroy()
		keys = append(keys, key)
	}
	return must(!keys[0].Equal(keys[1]), "both machines have the same sealing key")
}

func (d *demo) readOnB(ctx context.Context) error {
	key, _, err := d.ask(ctx, machineB, false, appImage)
	if err != nil {
		return err
	}
	defer key.Destroy()
	store, err := persist.Open(ctx, d.appStore(machineB, key))
	if err != nil {
		return err
	}
	var got []byte
	err = store.View(ctx, func(tx *persist.Tx) (err error) {
		got, _, err = tx.Get([]byte("invoice"))
		return err
	})
	if err != nil {
		return err
	}
	if err := must(string(got) == appRecord, "the app read back %q", got); err != nil {
		return err
	}
	return store.Close()
}

// refused asks for the app's key, which must be refused by policy with exactly one failed clause.
func (d *demo) refused(ctx context.Context, outOfDate bool, image sim.Image, clause string) (api.Failure, error) {
	key, _, err := d.ask(ctx, machineB, outOfDate, image)
	key.Destroy()
	if err == nil {
		return api.Failure{}, must(false, "a key was released")
	}
	problem, ok := errors.AsType[*api.Problem](err)
	if !ok || problem.Code != api.CodePolicyDenied {
		return api.Failure{}, fmt.Errorf("%w: refused for another reason: %w", ErrStep, err)
	}
	if len(problem.Failures) != 1 || problem.Failures[0].Clause != clause {
		return api.Failure{}, must(false, "refused by %+v, want clause %s", problem.Failures, clause)
	}
	return problem.Failures[0], nil
}

func (d *demo) refuseOtherCode(ctx context.Context) ([]string, error) {
	other := appImage
	other.Version = "2-with-a-backdoor"
	f, err := d.refused(ctx, false, other, "C")
	return []string{fmt.Sprintf("clause %s: want %.16s…, got %.16s…", f.Clause, f.Want, f.Got), f.Hint}, err
}

func (d *demo) refuseDebug(ctx context.Context) ([]string, error) {
	debug := appImage
	debug.Debug = true
	f, err := d.refused(ctx, false, debug, "SEC:SECURE")
	return []string{fmt.Sprintf("clause %s: want %s, got %s", f.Clause, f.Want, f.Got), f.Hint}, err
}

func (d *demo) refuseOldTCB(ctx context.Context) ([]string, error) {
	f, err := d.refused(ctx, true, appImage, "SEC:SECURE")
	if err == nil {
		err = must(f.Got == string(attest.StatusOutOfDate) && len(f.Advisories) > 0, "the reason is %q with advisories %v", f.Got, f.Advisories)
	}
	return []string{
		fmt.Sprintf("clause %s: want %s, got %s since %s (%s)", f.Clause, f.Want, f.Got, f.TCBDate.Format(time.DateOnly), strings.Join(f.Advisories, ", ")),
		f.Hint,
	}, err
}
