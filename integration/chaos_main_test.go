//go:build linux

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// Limits. They are for machines that have other work; what was seen is in the report.
const (
	chaosHealLimit  = 60 * time.Second // from the last fault's end until every slot has a ready boot
	chaosServeLimit = 20 * time.Second // from there until a release
	chaosGapLimit   = 30 * time.Second // without a release in a tolerated round
)

// laboratoryRun is one run.
type laboratoryRun struct {
	site    *site
	crowd   *crowd
	nemesis *nemesis
	gaps    *gaps
	rounds  int
	wild    int
	heals   []time.Duration
	serves  []time.Duration
}

// chaosMain is the inside of the test.
func chaosMain(isolated bool) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := &laboratoryRun{gaps: newGaps()}
	err := run.all(ctx, isolated)
	if run.crowd != nil {
		run.crowd.disperse()
	}
	if run.site != nil {
		run.site.close()
		err = errors.Join(err, run.verdict())
		run.report(err)
	}
	if err != nil {
		fmt.Printf("chaos: FAILED with seed %d: %v\n", *chaosSeed, err)
		return 1
	}
	return 0
}

func (r *laboratoryRun) verdict() error {
	var errs []error
	for _, c := range r.site.broken.all() {
		errs = append(errs, errors.New(c))
	}
	return errors.Join(errs...)
}

func (r *laboratoryRun) all(ctx context.Context, isolated bool) (err error) {
	fmt.Printf("chaos: seed %d, %d nodes, %.1f minutes\n", *chaosSeed, *chaosNodes, *chaosMinutes)
	if r.site, err = newSite(os.Getenv(chaosDirEnv), os.Getenv(chaosBinEnv), *chaosNodes, isolated); err != nil {
		return err
	}
	if err := r.site.found(chaosHealLimit); err != nil {
		return err
	}
	switch {
	case !isolated:
		fmt.Println("chaos: loopback addresses, no namespaces: nothing happens to packets, and no disk is full")
	case r.site.fabric.tc == "netem":
		fmt.Println("chaos: each node in a network namespace, on a switch of ours; tc netem works too")
	default:
		fmt.Printf("chaos: each node in a network namespace, on a switch of ours that loses, delays, reorders and cuts; this kernel's tc has no netem, so the fault tc is %q\n", r.site.fabric.tc)
	}
	if r.crowd, err = gather(r.site, r.gaps); err != nil {
		return err
	}
	r.nemesis = newNemesis(r.site, *chaosSeed, *chaosOnly)
	r.nemesis.leader = r.leader
	watch, unwatch := context.WithCancel(ctx)
	defer unwatch()
	for _, slot := range r.site.slots {
		go r.watchSlot(watch, slot)
	}
	for end := time.Now().Add(time.Duration(*chaosMinutes * float64(time.Minute))); time.Now().Before(end) && ctx.Err() == nil; {
		if err := r.round(ctx); err != nil {
			return err
		}
	}
	r.gaps.fault("")
	return ctx.Err()
}

// round is faults, healing, and a look at everything.
func (r *laboratoryRun) round(ctx context.Context) error {
	r.rounds++
	begin := time.Now()
	if err := r.nemesis.keepCopies(); err != nil {
		return err
	}
	err := r.nemesis.strike(func(kind string) {
		if r.nemesis.wild {
			kind += wildly
		}
		r.gaps.fault(kind)
	})
	if err != nil {
		return err
	}
	if r.nemesis.wild {
		r.wild++
	}
	kind := map[bool]string{true: "wild", false: "tolerated"}[r.nemesis.wild]
	fmt.Printf("round %d, %s, victims %s: %s\n", r.rounds, kind, r.nemesis.names(), strings.Join(r.nemesis.story, "; "))
	healed := time.Now()
	if err := r.nemesis.heal(); err != nil {
		return err
	}
	if err := r.settle(healed); err != nil {
		return err
	}
	before := r.crowd.ledger.counts()
	if err := r.crowd.barrier(r.inspect); err != nil {
		return err
	}
	fmt.Printf("  %.1f s, healed in %.1f s, served after %.1f s; %s\n", time.Since(begin).Seconds(), r.heals[len(r.heals)-1].Seconds(),
		r.serves[len(r.serves)-1].Seconds(), before)
	select {
	case <-r.site.broken.first:
		return errors.New("a violation")
	case <-ctx.Done():
		return ctx.Err()
	default:
		return nil
	}
}

// settle waits until every slot has a ready boot at home, and a release has been served since.
func (r *laboratoryRun) settle(healed time.Time) error {
	for {
		waiting := r.unready()
		if waiting == "" {
			break
		}
		if time.Since(healed) > chaosHealLimit {
			return fmt.Errorf("not ready %v after everything was healed: %s", chaosHealLimit, waiting)
		}
		select {
		case <-r.site.broken.first:
			return errors.New("a violation")
		case <-time.After(20 * time.Millisecond):
		}
		if err := r.reviveEnded(); err != nil {
			return err
		}
	}
	r.heals = append(r.heals, time.Since(healed))
	for ready := time.Now(); !r.gaps.since().After(ready); time.Sleep(10 * time.Millisecond) {
		if time.Since(ready) > chaosServeLimit {
			return fmt.Errorf("all slots are ready and no key was released within %v", chaosServeLimit)
		}
	}
	r.serves = append(r.serves, time.Since(healed)-r.heals[len(r.heals)-1])
	if gap := r.gaps.tolerated(); gap > chaosGapLimit {
		return fmt.Errorf("no key for %v while a majority was well", gap)
	}
	return nil
}

// reviveEnded restarts what ended late, as it may: a boot that learns only now that it was superseded by its clone, or that
// gave up on joining while the host still made trouble. After that it must not end again.
func (r *laboratoryRun) reviveEnded() error {
	for _, slot := range r.site.slots {
		switch {
		case slot.home.lives() && slot.home.failed(): // of a full disk, and only noticed now
			slot.home.kill()
		case slot.home.isReady() && strings.Contains(slot.home.readyz(), chaosSuperseded):
			slot.home.kill() // its clone was admitted and is gone: it waits for its operator
		case slot.home.lives():
			continue
		}
		slot.home.mayEnd.Store(false)
		if err := slot.home.start(); err != nil {
			return err
		}
	}
	return nil
}

// unready names the slots without a ready boot.
func (r *laboratoryRun) unready() string {
	var list []string
	for _, slot := range r.site.slots {
		if !slot.home.lives() || !slot.home.proc.ready.Load() {
			list = append(list, slot.name)
		} else if why := slot.home.readyz(); why != "" {
			list = append(list, slot.name+": "+why)
		}
	}
	return strings.Join(list, "; ")
}

var chaosHTTP = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// get asks the admin listener of a seat.
func (e *seat) get(path string) (status int, body string, err error) {
	res, err := chaosHTTP.Get("http://" + e.admin + path)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, string(raw), err
}

// readyz is empty when the boot says that it is ready.
func (e *seat) readyz() string {
	status, body, err := e.get("/readyz")
	if err != nil {
		return err.Error()
	}
	if status != http.StatusOK {
		return strings.TrimSpace(body)
	}
	return ""
}

// metrics returns the plain numbers that a node exports.
func (e *seat) metrics() (map[string]float64, error) {
	_, body, err := e.get("/metrics")
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if number, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(line, "#") {
			out[name] = number
		}
	}
	return out, nil
}

// failed reports whether the store has stopped by itself.
func (e *seat) failed() bool {
	m, err := e.metrics()
	return err == nil && m["claviger_raft_failed"] != 0
}

// leader is the slot that leads by its own account, or empty.
func (r *laboratoryRun) leader() string {
	for _, slot := range r.site.slots {
		if m, err := slot.home.metrics(); err == nil && m["claviger_raft_leader"] == 1 {
			return slot.name
		}
	}
	return ""
}

// inspect is called while everything is whole and nobody calls. What must be true then may take a moment to be seen.
func (r *laboratoryRun) inspect() error {
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = r.agreement(); err != nil {
			continue
		}
		if err = r.members(); err == nil {
			return nil
		}
	}
	return err
}

// agreement: one leader, one term, the same configuration, everything applied everywhere, nothing failed or halted.
func (r *laboratoryRun) agreement() error {
	var first map[string]float64
	leaders := 0.0
	for _, slot := range r.site.slots {
		if slot.spare.lives() {
			return fmt.Errorf("%s has two processes", slot.name)
		}
		m, err := slot.home.metrics()
		if err != nil {
			return err
		}
		leaders += m["claviger_raft_leader"]
		if first == nil {
			first = m
		}
		for _, name := range []string{"claviger_raft_term", "claviger_raft_applied_index", "claviger_raft_commit_index"} {
			if m[name] != first[name] || m[name] == 0 {
				return fmt.Errorf("%s is %v at %s and %v at %s", name, first[name], r.site.slots[0].name, m[name], slot.name)
			}
		}
		if m["claviger_raft_members"] != float64(len(r.site.slots)) || m["claviger_raft_failed"]+m["claviger_raft_halted"] != 0 {
			return fmt.Errorf("%s has %v members, failed %v, halted %v", slot.name, m["claviger_raft_members"], m["claviger_raft_failed"], m["claviger_raft_halted"])
		}
	}
	if leaders != 1 {
		return fmt.Errorf("%v leaders", leaders)
	}
	return nil
}

// watchSlot sees to it that two boots of a slot never both stay ready. For a moment they may: a boot that was removed goes by
// what it has heard.
func (r *laboratoryRun) watchSlot(ctx context.Context, slot *slotHome) {
	since := time.Now()
	for ctx.Err() == nil {
		if slot.spare.readyz() != "" || slot.home.readyz() != "" {
			since = time.Now()
		}
		if time.Since(since) > 5*time.Second {
			r.site.broken.add("two boots of slot %s have been ready for 5 s", slot.name)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// members asks every node for the cluster: all must have the same log, of which each slot is a voter once.
func (r *laboratoryRun) members() error {
	type head struct {
		epoch, size uint64
		root        api.ID
	}
	var want head
	for i, slot := range r.site.slots {
		cl, err := r.site.clientOf("shop-inspector", chaosImage, slot.home.api)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		c, err := cl.Cluster(ctx)
		cancel()
		cl.Close()
		if err != nil {
			return err
		}
		got := head{c.Epoch, c.LogSize, c.LogRoot}
		if i == 0 {
			want = got
		}
		if got != want {
			return fmt.Errorf("%s has log %+v, %s has %+v", r.site.slots[0].name, want, slot.name, got)
		}
		if err := r.oneVoterEach(c); err != nil {
			return fmt.Errorf("%s says: %w", slot.name, err)
		}
	}
	return nil
}

func (r *laboratoryRun) oneVoterEach(c api.Cluster) error {
	seen, leaders := map[string]int{}, 0
	for _, m := range c.Members {
		if m.Voter {
			seen[m.Slot]++
		}
		if m.Leader {
			leaders++
		}
	}
	for _, slot := range r.site.slots {
		if seen[slot.name] != 1 {
			return fmt.Errorf("slot %s has %d voters: %+v", slot.name, seen[slot.name], c.Members)
		}
	}
	if len(c.Members) != len(r.site.slots) || leaders != 1 {
		return fmt.Errorf("%d members and %d leaders", len(c.Members), leaders)
	}
	return nil
}

// counts is a line about the clients.
func (l *ledger) counts() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("so far %d releases, %d reads, %d unknown of which %d happened, %d intruders refused", l.releases, l.reads, l.unknown, l.ghosts, l.refused)
}

// report prints what the run has been.
func (r *laboratoryRun) report(failed error) {
	fmt.Printf("chaos: seed %d, %d nodes: %d rounds, %d of them wild\n", *chaosSeed, *chaosNodes, r.rounds, r.wild)
	if r.nemesis == nil || r.crowd == nil || r.crowd.ledger == nil {
		return
	}
	l := r.crowd.ledger
	var kinds []string
	total := 0
	for kind, n := range r.nemesis.counts {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, n))
		total += n
	}
	slices.Sort(kinds)
	fmt.Printf("  faults: %d (%s)\n", total, strings.Join(kinds, ", "))
	fmt.Printf("  requests: %d releases and %d reads answered, %d attempts with unknown outcome of which %d had happened, %d reads failed, %d intruders refused\n",
		l.releases, l.reads, l.unknown, l.ghosts, l.failed, l.refused)
	fmt.Printf("  histories checked by porcupine: %d, without a violation: %t\n", l.windows, failed == nil)
	fmt.Printf("  longest time without a release: %.2f s in tolerated rounds, %.2f s in all (%s); boots: %d\n",
		r.gaps.tolerated().Seconds(), r.gaps.longest.Seconds(), r.gaps.worst, r.site.boots)
	fmt.Printf("  clone alarms: %d; impostors refused at the door: %d times; stores that stopped over a full disk: %d\n",
		r.site.clones.Load(), r.site.shown.Load(), r.site.filled.Load())
	fmt.Printf("  start to ready: %s\n  healed to all ready: %s\n  all ready to first release: %s\n", spread(r.site.rejoins), spread(r.heals), spread(r.serves))
	names := make([]string, 0, len(r.gaps.byKind))
	for kind := range r.gaps.byKind {
		names = append(names, kind)
	}
	slices.Sort(names)
	for _, kind := range names {
		fmt.Printf("  longest gap after %-23s %s\n", kind, spread(r.gaps.byKind[kind]))
	}
	if f := r.site.fabric; f.isolated {
		fmt.Printf("  packets: %d passed, %d dropped, %d delayed\n", f.passed.Load(), f.dropped.Load(), f.delayed.Load())
	}
	if failed != nil {
		r.tails()
	}
}

// tails prints the end of the last log of each seat.
func (r *laboratoryRun) tails() {
	for _, slot := range r.site.slots {
		for _, e := range []*seat{slot.home, slot.spare} {
			if e.proc != nil {
				fmt.Printf("--- last lines of %s\n%s\n", filepath.Join(r.site.dir, "logs", fmt.Sprintf("%04d-%s.log", e.proc.n, e.name)), e.proc.text())
			}
		}
	}
}
