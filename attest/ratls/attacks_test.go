package ratls

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// refusal is what one side of an attacked connection ended with: the error that this package must return there, or the
// refusal that the peer sent it.
type refusal struct {
	side string
	err  error
	want error // matched with errors.Is
	code Code  // of the *RefusedError that this side was told, where want is nil
}

// found is the refusal on the side that saw through the attack, told the one on the side that heard of it.
func found(side string, err, want error) refusal { return refusal{side: side, err: err, want: want} }
func told(side string, err error, code Code) refusal {
	return refusal{side: side, err: err, code: code}
}
func both(by, to string, f, o outcome, w error, c Code) []refusal {
	return []refusal{found(by, f.err, w), told(to, o.err, c)}
}

func (r refusal) check() error {
	if r.err == nil {
		return fmt.Errorf("the attack succeeded against the %s", r.side)
	}
	if r.want != nil {
		if !errors.Is(r.err, r.want) {
			return fmt.Errorf("%s: got %v, want %v", r.side, r.err, r.want)
		}
		return nil
	}
	got, ok := errors.AsType[*RefusedError](r.err)
	if !ok || got.Code != r.code || got.Message == "" {
		return fmt.Errorf("%s: got %v, want to be told %q and why", r.side, r.err, r.code)
	}
	return nil
}

// attack is the host at work: it owns the network, and may run genuine enclaves of its own.
type attack struct {
	name string // of the attack
	does string // by the host
	run  func(*testing.T, *bed) []refusal
}

// TestAttacks performs each attack on attested TLS and sees it refused. go test -v -run TestAttacks prints the table.
func TestAttacks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, mode := range []struct {
		name    string
		attacks []attack
	}{{"channel-bound", channelAttacks}, {"key-bound", keyAttacks}, {"between the modes", modeAttacks}} {
		var table strings.Builder
		for _, a := range mode.attacks {
			t.Run(mode.name+"/"+a.name, func(t *testing.T) {
				refusals := a.run(t, b)
				if len(refusals) == 0 {
					t.Fatal("the attack proves nothing")
				}
				fmt.Fprintf(&table, "\n  %s: %s\n", a.name, a.does)
				for _, r := range refusals {
					if err := r.check(); err != nil {
						t.Error(err)
					}
					fmt.Fprintf(&table, "      %s: %v\n", r.side, r.err)
				}
			})
		}
		t.Logf("%s, %d attacks:\n%s", mode.name, len(mode.attacks), table.String())
	}
}
