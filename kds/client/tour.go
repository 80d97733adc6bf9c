package client

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// tour decides which endpoint a call asks next: round after round over those that may still answer, with a pause between
// rounds, and out of turn the leader that a node named.
type tour struct {
	all    []string
	round  []string // not yet asked in this round
	hint   string
	hops   int // hints followed in this round
	pause  time.Duration
	errs   map[string]error // last error by endpoint
	barred map[string]bool  // did not prove to be a node
}

func newTour(endpoints []string) *tour {
	return &tour{all: endpoints, round: slices.Clone(endpoints), errs: map[string]error{}, barred: map[string]bool{}}
}

// next returns the endpoint to ask after pause, or false when none is left.
func (t *tour) next() (endpoint string, pause time.Duration, ok bool) {
	if t.hint != "" {
		endpoint, t.hint = t.hint, ""
		t.hops++
		t.round = slices.DeleteFunc(t.round, func(e string) bool { return e == endpoint })
		return endpoint, 0, true
	}
	if len(t.round) == 0 {
		t.round = slices.DeleteFunc(slices.Clone(t.all), func(e string) bool { return t.barred[e] })
		if len(t.round) == 0 {
			return "", 0, false
		}
		t.hops = 0
		pause = t.backoff()
	}
	endpoint, t.round = t.round[0], t.round[1:]
	return endpoint, pause, true
}

// backoff doubles up to lastPause, with half of it at random: clients that failed together must not return together.
func (t *tour) backoff() time.Duration {
	t.pause = min(max(2*t.pause, firstPause), lastPause)
	return t.pause/2 + rand.N(t.pause/2)
}

// failed takes note of an error that is not final.
func (t *tour) failed(endpoint string, err error) {
	t.errs[endpoint] = err
	if fateOf(err) == unproved {
		t.barred[endpoint] = true
		return
	}
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Code != api.CodeNotLeader || p.Leader == nil || t.hops >= maxHops {
		return
	}
	// A hint is only an address: whoever answers there proves itself like any other.
	if to := p.Leader.APIAddr; to != endpoint && validEndpoint(to) && !t.barred[to] {
		t.hint = to
	}
}

// cut takes note of an attempt that the end of the call cut short. That says nothing of the endpoint: what it said before, such
// as that there is no quorum, tells the caller more.
func (t *tour) cut(endpoint string, err error) {
	if t.errs[endpoint] == nil {
		t.errs[endpoint] = err
	}
}

// failures is everything that stood in the way, in the order of the endpoints.
func (t *tour) failures() error {
	var errs []error
	names := make([]string, 0, len(t.errs))
	for e := range t.errs {
		names = append(names, e)
	}
	slices.Sort(names)
	for _, e := range names {
		errs = append(errs, t.errs[e])
	}
	return errors.Join(errs...)
}
