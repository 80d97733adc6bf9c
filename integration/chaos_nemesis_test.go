//go:build linux

package integration

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A nemesis breaks a site. In a tolerated round everything that can cost a node its roots, or its part in the cluster,
// happens to at most a minority of slots, the victims. In a wild round the same minority may lose its roots, and beyond that
// all nodes may be frozen, cut off and told wrong times.
type nemesis struct {
	site    *site
	rand    *rand.Rand
	bag     []fault // kinds not yet used since all were
	wildBag []fault
	only    []string
	victims []*slotHome
	wild    bool
	counts  map[string]int
	saved   map[string]bool // slots with a copy of an earlier directory
	leader  func() string
	story   []string
}

// A fault breaks something. What it leaves broken, heal mends.
type fault struct {
	kind  string
	needs func(*site) bool
	apply func(*nemesis, *slotHome) (string, error)
}

func switched(s *site) bool   { return s.fabric.isolated }
func withTC(s *site) bool     { return s.fabric.tc != "" }
func smallDisks(s *site) bool { return s.fabric.isolated }

// faults are those of tolerated rounds; each meets one victim.
var faults = []fault{
	{"kill", nil, (*nemesis).killFault},
	{"storm", nil, (*nemesis).stormFault},
	{"stop", nil, (*nemesis).stopFault},
	{"pause", nil, (*nemesis).pauseFault},
	{"loss", switched, (*nemesis).lossFault},
	{"delay", switched, (*nemesis).delayFault},
	{"tc", withTC, (*nemesis).tcFault},
	{"isolate", switched, (*nemesis).isolateFault},
	{"halves", switched, (*nemesis).halvesFault},
	{"one-way", switched, (*nemesis).oneWayFault},
	{"rollback", nil, (*nemesis).rollbackFault},
	{"wipe", nil, (*nemesis).wipeFault},
	{"swap", nil, (*nemesis).swapFault},
	{"clone", nil, (*nemesis).cloneFault},
	{"impostor", nil, (*nemesis).impostorFault},
	{"clock", nil, (*nemesis).clockFault},
	{"disk-full", smallDisks, (*nemesis).diskFault},
}

// wildFaults meet everybody.
var wildFaults = []fault{
	{"all-paused", nil, (*nemesis).allPaused},
	{"all-cut", switched, (*nemesis).allCut},
	{"all-clocks", nil, (*nemesis).allClocks},
	{"all-lossy", switched, (*nemesis).allLossy},
	{"killed-while-cut", switched, (*nemesis).killedWhileCut},
}

func newNemesis(s *site, seed uint64, only string) *nemesis {
	n := &nemesis{site: s, rand: rand.New(rand.NewPCG(seed, 4)), counts: map[string]int{}, saved: map[string]bool{}}
	if only != "" {
		n.only = strings.Split(only, ",")
	}
	return n
}

// draw takes a kind out of a bag that holds each possible one once, so that none is forgotten.
func (n *nemesis) draw(bag *[]fault, kinds []fault) (fault, bool) {
	if len(*bag) == 0 {
		for _, f := range kinds {
			if (f.needs == nil || f.needs(n.site)) && (n.only == nil || slices.Contains(n.only, f.kind)) {
				*bag = append(*bag, f)
			}
		}
		n.rand.Shuffle(len(*bag), func(i, j int) { (*bag)[i], (*bag)[j] = (*bag)[j], (*bag)[i] })
	}
	if len(*bag) == 0 {
		return fault{}, false
	}
	f := (*bag)[0]
	*bag = (*bag)[1:]
	return f, true
}

// strike is the faults of one round. Told hears of each as it begins.
func (n *nemesis) strike(told func(kind string)) error {
	n.story = nil
	n.wild = n.rand.IntN(4) == 0
	n.choose()
	for range 1 + n.rand.IntN(3) {
		f, ok := fault{}, false
		if n.wild && n.rand.IntN(2) == 0 {
			f, ok = n.draw(&n.wildBag, wildFaults)
		}
		if !ok {
			f, ok = n.draw(&n.bag, faults)
		}
		if !ok {
			return fmt.Errorf("no kind of fault is called %q", n.only)
		}
		victim := n.target()
		n.counts[f.kind]++
		told(f.kind)
		what, err := f.apply(n, victim)
		if err != nil {
			return fmt.Errorf("%s: %w", f.kind, err)
		}
		n.story = append(n.story, strings.TrimSpace(f.kind+" "+what))
		n.sleep(300, 2500)
	}
	return nil
}

// choose picks a minority of slots, in half of the rounds with the leader.
func (n *nemesis) choose() {
	slots := slices.Clone(n.site.slots)
	n.rand.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	if n.rand.IntN(2) == 0 {
		leader := n.leader()
		slices.SortStableFunc(slots, func(a, b *slotHome) int { return order(b.name == leader) - order(a.name == leader) })
	}
	n.victims = slots[:1+n.rand.IntN((len(slots)-1)/2)]
}

// target is who the next fault meets: often whoever leads now, if that is a victim or may become one.
func (n *nemesis) target() *slotHome {
	if n.rand.IntN(5) < 2 {
		leader := n.leader()
		at := slices.IndexFunc(n.site.slots, func(s *slotHome) bool { return s.name == leader })
		if at >= 0 && slices.Contains(n.victims, n.site.slots[at]) {
			return n.site.slots[at]
		}
		if at >= 0 && len(n.victims) < (len(n.site.slots)-1)/2 {
			n.victims = append(slices.Clone(n.victims), n.site.slots[at])
			return n.site.slots[at]
		}
	}
	return n.victims[n.rand.IntN(len(n.victims))]
}

func order(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sleep waits for a random number of milliseconds.
func (n *nemesis) sleep(least, most int) time.Duration {
	d := time.Duration(least+n.rand.IntN(most-least)) * time.Millisecond
	select {
	case <-time.After(d):
	case <-n.site.broken.first:
	}
	return d
}

func (n *nemesis) names() string {
	var list []string
	for _, v := range n.victims {
		list = append(list, v.name)
	}
	return strings.Join(list, "+")
}

// ports of the homes of some slots, and of all others.
func (n *nemesis) split(in func(*slotHome) bool) (some, others []byte) {
	for _, slot := range n.site.slots {
		if in(slot) {
			some = append(some, slot.home.place.port, slot.spare.place.port)
		} else {
			others = append(others, slot.home.place.port, slot.spare.place.port)
		}
	}
	return some, others
}

func only(v *slotHome) func(*slotHome) bool { return func(s *slotHome) bool { return s == v } }

// restart starts what has been killed. Which makes a new boot, whatever is on its disk.
func (n *nemesis) restart(v *slotHome) error {
	if v.home.lives() {
		return nil
	}
	if err := v.home.tidy(); err != nil {
		return err
	}
	return v.home.start()
}

func (n *nemesis) killFault(v *slotHome) (string, error) {
	v.home.kill()
	d := n.sleep(0, 2000)
	return fmt.Sprintf("%s, back after %v", v.name, d), n.restart(v)
}

// stormFault kills boots while they are being admitted.
func (n *nemesis) stormFault(v *slotHome) (string, error) {
	times := 2 + n.rand.IntN(5)
	for range times {
		v.home.kill()
		if err := n.restart(v); err != nil {
			return "", err
		}
		n.sleep(10, 250)
	}
	return fmt.Sprintf("%s killed %d times while it joins", v.name, times), nil
}

func (n *nemesis) stopFault(v *slotHome) (string, error) {
	v.home.thaw()
	v.home.stop(10 * time.Second)
	return v.name, n.restart(v)
}

func (n *nemesis) pauseFault(v *slotHome) (string, error) {
	v.home.freeze()
	d := n.sleep(300, 5000)
	v.home.thaw()
	return fmt.Sprintf("%s for %v", v.name, d), nil
}

func (n *nemesis) lossFault(v *slotHome) (string, error) {
	loss := 0.02 + 0.4*n.rand.Float64()
	some, others := n.split(only(v))
	n.site.fabric.both(some, append(others, chaosHub), func(w *wire) { w.loss = loss })
	return fmt.Sprintf("%.0f %% around %s", 100*loss, v.name), nil
}

func (n *nemesis) delayFault(v *slotHome) (string, error) {
	delay, jitter := time.Duration(n.rand.IntN(150))*time.Millisecond, time.Duration(n.rand.IntN(150))*time.Millisecond
	some, others := n.split(only(v))
	n.site.fabric.both(some, others, func(w *wire) { w.delay, w.jit, w.dup = delay, jitter, 0.05 })
	return fmt.Sprintf("%v to %v around %s, out of order and twice", delay, delay+jitter, v.name), nil
}

func (n *nemesis) tcFault(v *slotHome) (string, error) {
	_ = v.home.place.command("tc", "qdisc", "del", "dev", "tun0", "root") // it may have met this victim before
	return n.site.fabric.tc + " at " + v.name, v.home.place.command(n.site.fabric.tcArgs()...)
}

func (n *nemesis) isolateFault(v *slotHome) (string, error) {
	some, others := n.split(only(v))
	text := v.name
	if n.rand.IntN(2) == 0 {
		others = append(others, chaosHub)
		text += ", from clients too"
	}
	n.site.fabric.both(some, others, func(w *wire) { w.cut = true })
	return text, nil
}

func (n *nemesis) halvesFault(*slotHome) (string, error) {
	some, others := n.split(func(s *slotHome) bool { return slices.Contains(n.victims, s) })
	n.site.fabric.both(some, others, func(w *wire) { w.cut = true })
	return n.names() + " and the rest", nil
}

func (n *nemesis) oneWayFault(v *slotHome) (string, error) {
	some, others := n.split(only(v))
	if n.rand.IntN(2) == 0 {
		n.site.fabric.set(some, others, func(w *wire) { w.cut = true })
		return v.name + " is not heard", nil
	}
	n.site.fabric.set(others, some, func(w *wire) { w.cut = true })
	return v.name + " does not hear", nil
}

func (n *nemesis) savedDir(v *slotHome) string { return filepath.Join(n.site.dir, "saved", v.name) }

// keepCopies takes copies of all directories, as a host does that means to bring them back one day.
func (n *nemesis) keepCopies() error {
	for _, slot := range n.site.slots {
		if n.saved[slot.name] && n.rand.IntN(3) != 0 {
			continue
		}
		if err := copyData(n.savedDir(slot), slot.home.data); err != nil {
			return err
		}
		n.saved[slot.name] = true
	}
	return nil
}

// redisk restarts a slot on another directory.
func (n *nemesis) redisk(v *slotHome, change func() error) error {
	v.home.kill()
	if err := v.home.freeDisk(); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return n.restart(v)
}

func (n *nemesis) rollbackFault(v *slotHome) (string, error) {
	return v.name, n.redisk(v, func() error { return copyData(v.home.data, n.savedDir(v)) })
}

func (n *nemesis) wipeFault(v *slotHome) (string, error) {
	return v.name, n.redisk(v, func() error { return empty(v.home.data) })
}

func (n *nemesis) swapFault(v *slotHome) (string, error) {
	other := n.site.slots[n.rand.IntN(len(n.site.slots))]
	return v.name + " starts on the directory of " + other.name, n.redisk(v, func() error {
		from := n.savedDir(other)
		if other != v && n.rand.IntN(2) == 0 {
			from = other.home.data
		}
		return copyData(v.home.data, from)
	})
}

// cloneFault starts a second process with slot, machine and a copy of the directory while the first lives.
func (n *nemesis) cloneFault(v *slotHome) (string, error) {
	if v.spare.lives() {
		v.spare.kill()
	}
	if err := copyData(v.spare.data, v.home.data); err != nil {
		return "", err
	}
	v.cloned.Store(time.Now().Unix())
	v.spare.mustNotJoin.Store(false)
	v.spare.mayEnd.Store(true)
	return v.name, v.spare.start()
}

// impostorFault starts a process for the slot on a machine that the slot does not belong to, with a copy of its directory.
func (n *nemesis) impostorFault(v *slotHome) (string, error) {
	if v.spare.lives() {
		return "waits: a clone runs there", nil
	}
	if err := copyData(v.spare.data, v.home.data); err != nil {
		return "", err
	}
	v.spare.mustNotJoin.Store(true)
	return "for " + v.name, v.spare.startWith(strings.TrimSuffix(v.spare.config, ".yaml") + "-evil.yaml")
}

// jump is a wrong time: hours or days, forwards or backwards.
func (n *nemesis) jump() time.Duration {
	d := time.Duration(1+n.rand.IntN(24)) * time.Hour
	if n.rand.IntN(2) == 0 {
		d = time.Duration(1+n.rand.IntN(60)) * 24 * time.Hour
	}
	if n.rand.IntN(2) == 0 {
		return -d
	}
	return d
}

func (n *nemesis) clockFault(v *slotHome) (string, error) {
	d := n.jump()
	n.everybodyMayEnd() // a leader whose clock is weeks ahead takes the collateral of all who join for expired
	text := fmt.Sprintf("of %s by %+.0f h", v.name, d.Hours())
	if err := v.setClock(d); err != nil || n.rand.IntN(2) == 0 {
		return text, err
	}
	v.home.kill()
	return text + ", and it restarts", n.restart(v)
}

// diskFault fills the disk under a running node, and lets it start on the full one, too.
func (n *nemesis) diskFault(v *slotHome) (string, error) {
	v.home.mayEnd.Store(true)
	if err := v.home.fillDisk(); err != nil {
		return "", err
	}
	if n.rand.IntN(2) == 0 {
		return "of " + v.name, nil
	}
	n.sleep(0, 1000)
	v.home.kill()
	if err := v.home.start(); err != nil {
		return "", err
	}
	if n.rand.IntN(2) == 0 {
		return "of " + v.name + ", which restarts on it", nil
	}
	n.sleep(500, 1500) // it may get room again while it tries to join
	return "of " + v.name + ", which restarts on it and gets room again", v.home.freeDisk()
}

func (n *nemesis) allPaused(*slotHome) (string, error) {
	for _, slot := range n.site.slots {
		slot.home.freeze()
	}
	d := n.sleep(500, 4000)
	for _, i := range n.rand.Perm(len(n.site.slots)) {
		n.site.slots[i].home.thaw()
		n.sleep(0, 400)
	}
	return fmt.Sprint("for ", d), nil
}

func (n *nemesis) allCut(*slotHome) (string, error) {
	for _, slot := range n.site.slots {
		some, others := n.split(only(slot))
		n.site.fabric.both(some, others, func(w *wire) { w.cut = true })
	}
	d := n.sleep(500, 5000)
	n.site.fabric.heal()
	return fmt.Sprint("from each other for ", d), nil
}

func (n *nemesis) everybodyMayEnd() {
	for _, slot := range n.site.slots {
		slot.home.mayEnd.Store(true)
	}
}

func (n *nemesis) allClocks(*slotHome) (string, error) {
	n.everybodyMayEnd()
	for _, slot := range n.site.slots {
		if err := slot.setClock(n.jump()); err != nil {
			return "", err
		}
	}
	d := n.sleep(500, 3000)
	for _, slot := range n.site.slots {
		if err := slot.setClock(0); err != nil {
			return "", err
		}
	}
	return fmt.Sprint("wrong, each by another time, for ", d), nil
}

func (n *nemesis) allLossy(*slotHome) (string, error) {
	loss := 0.1 + 0.4*n.rand.Float64()
	for _, slot := range n.site.slots {
		some, others := n.split(only(slot))
		n.site.fabric.both(some, append(others, chaosHub), func(w *wire) { w.loss, w.jit, w.dup = loss, 50*time.Millisecond, 0.1 })
	}
	return fmt.Sprintf("%.0f %%", 100*loss), nil
}

// killedWhileCut restarts the victims while nobody hears anybody.
func (n *nemesis) killedWhileCut(v *slotHome) (string, error) {
	for _, slot := range n.site.slots {
		some, others := n.split(only(slot))
		n.site.fabric.both(some, others, func(w *wire) { w.cut = true })
	}
	n.sleep(0, 1000)
	for _, victim := range n.victims {
		victim.home.kill()
		if err := n.restart(victim); err != nil {
			return "", err
		}
	}
	n.sleep(500, 2000)
	n.site.fabric.heal()
	return n.names(), nil
}

// heal mends everything, and starts every slot at home that does not run there in good order.
func (n *nemesis) heal() error {
	n.site.fabric.heal()
	for _, slot := range n.site.slots {
		if n.site.fabric.tc != "" {
			_ = slot.home.place.command("tc", "qdisc", "del", "dev", "tun0", "root") // there may be none
		}
		if err := slot.setClock(0); err != nil {
			return err
		}
		if err := slot.home.freeDisk(); err != nil {
			return err
		}
		slot.home.thaw()
		slot.spare.kill()
		if slot.home.lives() && slot.home.failed() {
			slot.home.kill()
		}
		if slot.home.isReady() {
			slot.home.mayEnd.Store(false)
		}
		if !slot.home.lives() {
			if err := slot.home.tidy(); err != nil {
				return err
			}
			slot.home.mayEnd.Store(false)
			if err := slot.home.start(); err != nil {
				return err
			}
		}
	}
	return nil
}
