package sim_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/policy"
)

var (
	now  = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)
	seed = [32]byte{4, 2}
)

func newWorld() *sim.World { return sim.NewWorld(seed, func() time.Time { return now }) }

func launch(t *testing.T, w *sim.World, machine string, image sim.Image, options ...sim.MachineOption) *sim.Enclave {
	t.Helper()
	m, err := w.Machine(machine, options...)
	if err != nil {
		t.Fatal(err)
	}
	e, err := m.Launch(image)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// verify takes the enclave's evidence through the production verifier.
func verify(t *testing.T, w *sim.World, e *sim.Enclave) (*attest.Verified, error) {
	t.Helper()
	raw, err := e.Quote(t.Context(), [64]byte{1, 63: 2})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Collateral(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	v, err := attest.NewVerifier(attest.Config{Root: w.Root()})
	if err != nil {
		t.Fatal(err)
	}
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(q, c, w.Now())
}

func mustVerify(t *testing.T, w *sim.World, e *sim.Enclave) *attest.Verified {
	t.Helper()
	v, err := verify(t, w, e)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var images = []sim.Image{
	{Kind: enclave.SGX, Name: "app", Version: "1", Signer: "acme", ProdID: 7, SVN: 3},
	{Kind: enclave.TDX, Name: "app", Version: "1"},
	{Kind: enclave.SGX, Name: "app", Version: "1", Signer: "acme", Debug: true},
	{Kind: enclave.TDX, Name: "app", Version: "1", Debug: true},
}

func TestEvidence(t *testing.T) {
	w := newWorld()
	for _, image := range images {
		e := launch(t, w, "a", image)
		c := mustVerify(t, w, e).Claims()
		if c.Debug != image.Debug || c.ReportData != [64]byte{1, 63: 2} || c.TCB.Status != attest.StatusUpToDate {
			t.Errorf("%+v: %+v", image, c)
		}
		if c.Platform.ID() != e.Machine().PlatformID() || !c.Root.Simulated {
			t.Errorf("%+v: platform or root", image)
		}
		switch image.Kind {
		case enclave.SGX:
			if s := c.SGX; s == nil || s.MREnclave != image.MREnclave() || s.MRSigner != image.MRSigner() ||
				s.ISVProdID != image.ProdID || s.ISVSVN != image.SVN {
				t.Errorf("%+v: SGX claims %+v", image, c.SGX)
			}
		case enclave.TDX:
			d := c.TDX
			if d == nil || d.MRTD != image.MRTD() {
				t.Fatalf("%+v: TDX claims %+v", image, d)
			}
			for n := range d.RTMR {
				if d.RTMR[n] != image.RTMR(n) {
					t.Errorf("%+v: RTMR%d", image, n)
				}
			}
			if d.TDAttributes[3] != 0x10 || d.RTMR[3] != [48]byte{} {
				t.Errorf("%+v: attributes %x", image, d.TDAttributes)
			}
		}
		if e.Kind() != enclave.Sim || e.Image() != image {
			t.Errorf("kind %q of %+v", e.Kind(), e.Image())
		}
	}
}

// An image's constraint is canonical, accepts that image on any machine, and refuses every other image.
func TestConstraint(t *testing.T) {
	w := newWorld()
	others := append([]sim.Image{
		{Kind: enclave.SGX, Name: "app", Version: "2", Signer: "acme", ProdID: 7, SVN: 3},
		{Kind: enclave.SGX, Name: "spp", Version: "1", Signer: "acme", ProdID: 7, SVN: 3},
		{Kind: enclave.TDX, Name: "app", Version: "2"},
		{Kind: enclave.TDX, Name: "spp", Version: "1"},
	}, images...)
	checks := 0
	for _, image := range images {
		c, err := policy.ParseConstraint(image.Constraint())
		if err != nil {
			t.Fatalf("%q: %v", image.Constraint(), err)
		}
		if c.String() != image.Constraint() {
			t.Errorf("not canonical: %q, want %q", image.Constraint(), c)
		}
		if c.Insecure() != image.Debug {
			t.Errorf("%q: insecure %t", c, c.Insecure())
		}
		for _, machine := range []string{"a", "b"} {
			for _, other := range others {
				err := c.Check(mustVerify(t, w, launch(t, w, machine, other)), now)
				same := image.Kind == other.Kind && image.Name == other.Name && image.Version == other.Version && image.Debug == other.Debug
				if denied, ok := errors.AsType[*policy.Denied](err); same != (err == nil) || !same && (!ok || len(denied.Failures) == 0) {
					t.Errorf("%+v under the constraint of %+v: %v", other, image, err)
				}
				checks++
			}
		}
	}
	if checks != 64 {
		t.Errorf("%d checks ran", checks)
	}
	if got := (sim.Image{Name: "app"}).Constraint(); got != "" {
		t.Errorf("an image of no kind has constraint %q", got)
	}
	if _, err := policy.ParseConstraint(""); err == nil {
		t.Error("and policy takes it")
	}
}

func TestMeasurementsSeparate(t *testing.T) {
	seen := map[[32]byte]string{}
	for _, image := range []sim.Image{{Name: "a"}, {Name: "ab"}, {Name: "a", Version: "b"}, {Name: "", Version: "ab"}, {Version: "a"}} {
		if before, dup := seen[image.MREnclave()]; dup {
			t.Errorf("%+v measures as %s", image, before)
		}
		seen[image.MREnclave()] = fmt.Sprintf("%+v", image)
	}
	a, b := sim.Image{Name: "a", Version: "1"}, sim.Image{Name: "a", Version: "2"}
	if a.MRTD() != b.MRTD() || a.RTMR(1) != b.RTMR(1) || a.RTMR(2) == b.RTMR(2) {
		t.Error("a new version must show in RTMR2 and only there")
	}
	if (sim.Image{Signer: "a"}).MRSigner() == (sim.Image{Signer: "b"}).MRSigner() {
		t.Error("signers")
	}
}

func sealingKey(t *testing.T, e *sim.Enclave, label string) string {
	t.Helper()
	k, err := e.SealingKey(t.Context(), label)
	if err != nil || k.Len() != enclave.SealingKeySize {
		t.Fatalf("%d bytes, %v", k.Len(), err)
	}
	return hex.EncodeToString(k.Reveal())
}

func TestSealingKeys(t *testing.T) {
	w, app := newWorld(), images[0]
	key := sealingKey(t, launch(t, w, "a", app), "store")
	newer, debug := app, app
	newer.Version, debug.Debug = "2", true
	for name, other := range map[string]string{
		"machine": sealingKey(t, launch(t, w, "b", app), "store"),
		"version": sealingKey(t, launch(t, w, "a", newer), "store"),
		"debug":   sealingKey(t, launch(t, w, "a", debug), "store"),
		"label":   sealingKey(t, launch(t, w, "a", app), "stor"),
		"world":   sealingKey(t, launch(t, sim.NewWorld([32]byte{1}, time.Now), "a", app), "store"),
	} {
		if other == key {
			t.Errorf("another %s gets the same key", name)
		}
	}
	for name, same := range map[string]string{
		"relaunch":       sealingKey(t, launch(t, w, "a", app), "store"),
		"other process":  sealingKey(t, launch(t, newWorld(), "a", app), "store"),
		"firmware state": sealingKey(t, launch(t, w, "a", app, sim.OutOfDateTCB()), "store"),
	} {
		if same != key {
			t.Errorf("%s: the key is lost", name)
		}
	}
	if k, err := launch(t, w, "a", images[1]).SealingKey(t.Context(), "x"); !errors.Is(err, enclave.ErrUnsupported) || !k.IsZero() {
		t.Errorf("a TD seals: %v", err)
	}
	if k, err := launch(t, w, "a", app).SealingKey(t.Context(), ""); !errors.Is(err, enclave.ErrLabel) || !k.IsZero() {
		t.Errorf("empty label: %v", err)
	}
}

func TestMachineStates(t *testing.T) {
	w := newWorld()
	for name, c := range map[string]struct {
		option sim.MachineOption
		want   attest.Status
	}{
		"out of date": {sim.OutOfDateTCB(), attest.StatusOutOfDate},
		"hardening":   {sim.WithTCB(attest.StatusSWHardeningNeeded), attest.StatusSWHardeningNeeded},
		"revoked":     {sim.WithTCB(attest.StatusRevoked), attest.StatusRevoked},
		"QE":          {sim.WithQE(attest.StatusOutOfDate), attest.StatusOutOfDate},
		"module":      {sim.WithModule(attest.StatusRevoked), attest.StatusRevoked},
		"family":      {sim.WithFMSPC([6]byte{9}), attest.StatusUpToDate},
		"processor":   {sim.WithProcessorCA(), attest.StatusUpToDate},
	} {
		e := launch(t, w, "m", images[1], c.option)
		if got := mustVerify(t, w, e).Claims(); got.TCB.Status != c.want || got.Platform.ID() != e.Machine().PlatformID() {
			t.Errorf("%s: %s, want %s", name, got.TCB.Status, c.want)
		}
	}
	e := launch(t, w, "m", images[0])
	mustVerify(t, w, e)
	e.Machine().Revoke()
	_, err := verify(t, w, e)
	if refusal, ok := errors.AsType[*attest.Error](err); !ok || refusal.Stage != attest.StageRevocation {
		t.Errorf("revoked machine: %v", err)
	}
}

func TestExpiredCollateral(t *testing.T) {
	w := newWorld()
	e := launch(t, w, "a", images[0])
	raw, err := e.Quote(t.Context(), [64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.CollateralAt(t.Context(), raw, now.Add(-31*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	v, _ := attest.NewVerifier(attest.Config{Root: w.Root()})
	q, _ := attest.Parse(raw)
	if _, err := v.Verify(q, c, now); err == nil {
		t.Error("collateral that expired yesterday passes")
	}
	for name, bad := range map[string][]byte{"nil": nil, "short": raw[:100], "junk": bytes.Repeat([]byte{3}, 5000)} {
		if c, err := w.Collateral(t.Context(), bad); err == nil || c != nil {
			t.Errorf("%s: collateral for no quote", name)
		}
	}
}

// Fake clocks start in 2000, and certificates change their encoding of times in 2050.
func TestOtherTimes(t *testing.T) {
	for _, year := range []int{2000, 2026, 2049, 2070} {
		clock := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		w := sim.NewWorld(seed, func() time.Time { return clock })
		for range 3 { // at birth, and a year and two later
			for _, image := range images[:2] {
				if got := mustVerify(t, w, launch(t, w, "a", image)).Claims().TCB.Status; got != attest.StatusUpToDate {
					t.Errorf("%s: %s", clock, got)
				}
			}
			clock = clock.AddDate(1, 0, 0)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld()
	for _, name := range []string{"", strings.Repeat("m", 256)} {
		if m, err := w.Machine(name); err == nil || m != nil {
			t.Errorf("machine with a name of %d bytes", len(name))
		}
	}
	m, err := w.Machine(strings.Repeat("m", 255))
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string]sim.Image{
		"zero": {}, "kind": {Kind: enclave.Sim, Name: "x"}, "no name": {Kind: enclave.SGX},
		"name": {Kind: enclave.SGX, Name: strings.Repeat("x", 256)}, "signer": {Kind: enclave.SGX, Name: "x", Signer: strings.Repeat("x", 256)},
		"version": {Kind: enclave.SGX, Name: "x", Version: strings.Repeat("x", 256)},
	} {
		if e, err := m.Launch(image); !errors.Is(err, sim.ErrImage) || e != nil {
			t.Errorf("%s: %v, want ErrImage", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := launch(t, w, "a", images[0])
	if _, err := e.Quote(ctx, [64]byte{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Quote: %v", err)
	}
	if _, err := e.SealingKey(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("SealingKey: %v", err)
	}
	if _, err := w.Collateral(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Collateral: %v", err)
	}
}

// Two processes that open one file are in one world.
func TestWorldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world.json")
	a, err := sim.CreateWorld(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file mode %v, %v", info.Mode(), err)
	}
	b, err := sim.OpenWorld(path)
	if err != nil {
		t.Fatal(err)
	}
	if a.Root().ID() != b.Root().ID() {
		t.Error("two roots")
	}
	if sealingKey(t, launch(t, a, "m", images[0]), "x") != sealingKey(t, launch(t, b, "m", images[0]), "x") {
		t.Error("two machines of one name")
	}
	mustVerify(t, b, launch(t, a, "m", images[1]))
	before, _ := os.ReadFile(path)
	if w, err := sim.CreateWorld(path); !errors.Is(err, fs.ErrExist) || w != nil {
		t.Errorf("creating it twice: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the file was overwritten")
	}
	other, err := sim.CreateWorld(filepath.Join(t.TempDir(), "world.json"))
	if err != nil || other.Root().ID() == a.Root().ID() {
		t.Errorf("two worlds share a root (%v)", err)
	}
}

func TestWorldFileStrict(t *testing.T) {
	path := filepath.Join(t.TempDir(), "world.json")
	secretSeed := strings.Repeat("5e", 32)
	good := `{"version":1,"seed":"` + secretSeed + `","created":"2026-03-14T00:00:00Z"}`
	write := func(text string) error {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := sim.OpenWorld(path)
		if (w == nil) != (err != nil) {
			t.Errorf("%.40q: a world and an error", text)
		}
		return err
	}
	for _, text := range []string{good, "\n " + strings.ReplaceAll(good, ",", ",\n\t") + "\n"} {
		if err := write(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for name, text := range map[string]string{
		"empty":         "",
		"null":          "null",
		"array":         "[" + good + "]",
		"truncated":     good[:len(good)-1],
		"trailing":      good + "{}",
		"unknown key":   strings.Replace(good, `"version"`, `"extra":1,"version"`, 1),
		"repeated key":  strings.Replace(good, `"version":1`, `"version":1,"version":1`, 1),
		"other case":    strings.Replace(good, `"seed"`, `"Seed"`, 1),
		"missing key":   strings.Replace(good, `,"created":"2026-03-14T00:00:00Z"`, "", 1),
		"version":       strings.Replace(good, `:1,`, `:2,`, 1),
		"short seed":    strings.Replace(good, "5e5e", "5e", 1),
		"upper seed":    strings.Replace(good, "5e", "5E", 1),
		"not hex":       strings.Replace(good, "5e", "zz", 1),
		"number seed":   strings.Replace(good, `"`+secretSeed+`"`, "5", 1),
		"bad time":      strings.Replace(good, "2026-03-14T", "14.3.2026 ", 1),
		"zero time":     strings.Replace(good, "2026-03-14", "0001-01-01", 1),
		"other zone":    strings.Replace(good, "00Z", "00+01:00", 1),
		"fraction":      strings.Replace(good, "00Z", "00.5Z", 1),
		"raw seed text": `{"version":1,"seed":` + secretSeed + `}`,
		"oversized":     good + strings.Repeat(" ", 4096),
	} {
		err := write(text)
		if !errors.Is(err, sim.ErrFile) {
			t.Errorf("%s: %v, want ErrFile", name, err)
		}
		if strings.Contains(fmt.Sprint(err), "5e5e") {
			t.Errorf("%s: the error shows the seed: %v", name, err)
		}
	}
	if w, err := sim.OpenWorld(path + ".absent"); !errors.Is(err, fs.ErrNotExist) || w != nil {
		t.Errorf("absent file: %v", err)
	}
}
