package kds

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Policy, epoch or collateral move between decision and record: Apply rejects
// the record on every node, and there is no key.
func TestRejectedRecordGivesNoKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	day := w.clock
	rounds := 0
	w.replica.before = func(e state.Entry) error {
		if _, is := e.(*state.Release); !is {
			return nil
		}
		rounds++ // a TCB recovery is replicated just before each record
		day = day.AddDate(0, 0, 1)
		c := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, day))
		put := &state.PutCollateral{Epoch: 1, Key: state.CollateralKey{TEE: "sgx", FMSPC: simpki.DefaultFMSPC, CA: "platform"},
			Bundle: must[[]byte](t)(c.Marshal()), Meta: state.CollateralMeta{TCBEvaluation: uint64(1000 + rounds), QEEvaluation: 1000,
				TCBInfoIssue: day.Unix(), QEIdentityIssue: day.Unix(), RootCRLNumber: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, PCKCRLNumber: []byte{0xff, 0xff, 0xff, 0xff, 0xff},
				PCKCRLIssue: day.Unix(), RootCRLIssue: day.Unix(), LatestIssue: day.Unix(), CollateralSHA256: [32]byte{byte(rounds)}}}
		w.replica.mu.Lock()
		defer w.replica.mu.Unlock()
		w.replica.index++
		if err, bad := w.machine.Apply(w.replica.index, must[[]byte](t)(state.Encode(put))).(error); bad {
			t.Fatal(err)
		}
		return nil
	}
	w.refused("collateral moves in every round", ev, request(), api.CodeStale)
	if rounds != attempts {
		t.Errorf("%d rounds, want %d", rounds, attempts)
	}
}

// A set moves once: the release decides again by the new set and succeeds.
func TestReleaseDecidesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	w.clock = w.clock.AddDate(0, 0, 2)
	newer := w.evidence(w.platform("two", ""), app())
	moved := false
	w.replica.before = func(e state.Entry) error {
		if _, is := e.(*state.Release); is && !moved {
			moved = true
			w.release(newer, request()) // another enclave brings newer collateral in between
		}
		return nil
	}
	old := ev
	old.Collateral = nil
	reply := w.release(old, request())
	record, err := reply.CheckReceipt(w.secrets.Identity().Public(), w.id)
	if err != nil || record.Collateral != 2 || !moved {
		t.Fatalf("%+v %v", record, err)
	}
}

// A host keeps the collateral from before a TCB recovery and replays it.
func TestStaleCollateralReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	victim := w.platform("unpatched", "")
	before := w.evidence(victim, app())
	secure := request()
	secure.Constraint = code + " SEC:SECURE"
	w.release(before, secure)
	w.clock = w.clock.AddDate(0, 0, 2)
	if err := w.pki.Recover(w.clock.AddDate(0, 0, -1)); err != nil {
		t.Fatal(err)
	}
	w.release(w.evidence(w.platform("patched", ""), app()), secure) // brings the new collateral
	replayed := w.evidence(victim, app())
	replayed.Collateral = before.Collateral
	p := w.refused("old collateral after a TCB recovery", replayed, secure, api.CodePolicyDenied)
	if len(p.Failures) != 1 || p.Failures[0].Got != "OutOfDate" {
		t.Errorf("failures %+v", p.Failures)
	}
	none := replayed
	none.Collateral = nil
	w.refused("no collateral after a TCB recovery", none, secure, api.CodePolicyDenied)
	if c, _ := w.machine.Collateral(state.CollateralKey{TEE: "sgx", FMSPC: simpki.DefaultFMSPC, CA: "platform"}); c.Version != 2 {
		t.Errorf("collateral version %d: the old set came back", c.Version)
	}
}

// Before anybody has brought newer collateral, evidence that brings its own
// revocation is refused all the same.
func TestOfferedRevocationCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	w.release(w.evidence(p, app()), request())
	w.clock = w.clock.AddDate(0, 0, 1)
	w.pki.Revoke(p, w.clock)
	if got := w.refused("revoked platform", w.evidence(p, app()), request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
}

// An app's host serves an expired bundle: the replicated set decides. Once
// that has expired too, nothing is released until somebody brings a new one.
func TestExpiredCollateral(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	old := w.bundle(w.clock.AddDate(0, 0, -40))
	ev := w.evidence(p, app())
	w.release(ev, request())
	ev.Collateral = old
	w.release(ev, request())
	w.clock = w.clock.AddDate(0, 0, 40)
	if got := w.refused("everything expired", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" && got.Stage != "collateral" {
		t.Errorf("stage %q", got.Stage)
	}
	w.release(w.evidence(p, app()), request())
}

// The host sets the clock back: the time floor, moved by signed times alone,
// keeps expired collateral expired.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	expiring := request()
	expiring.Constraint = constraint + " EXPIRE:P10D"
	old := w.evidence(p, app())
	w.clock = w.clock.AddDate(0, 0, 20)
	tdxQuote := tdx.Body{ReportData: binding}
	binary.LittleEndian.PutUint64(tdxQuote.TDAttributes[:], 1<<28)
	for i := range tdxQuote.MRTD {
		tdxQuote.MRTD[i] = 0xd0
	}
	c := must[*attest.Collateral](t)(w.pki.Collateral(attest.TDX, simpki.DefaultFMSPC, w.clock))
	td := api.Evidence{Quote: must[[]byte](t)(p.QuoteTDX(tdxQuote)), Collateral: must[[]byte](t)(c.Marshal()), Binding: binding}
	req := request()
	req.Constraint = "TD:" + hex.EncodeToString(tdxQuote.MRTD[:]) + " FIRMWARE_ONLY_UNSAFE"
	w.release(td, req) // a TD brings collateral of day 20, which moves the floor
	w.clock = start
	if got := clauses(w.refused("clock set back", old, expiring, api.CodePolicyDenied)); !slices.Equal(got, []string{"EXPIRE"}) {
		t.Errorf("failures %v", got)
	}
	if floor := w.machine.View().TimeFloor; floor.Before(start.AddDate(0, 0, 19)) {
		t.Errorf("time floor %s", floor)
	}
}
