package raftstore

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// call is what a client asks: opSet and opAppend of a value, or a read (0).
type call struct {
	op         byte
	key, value string
}

// answer is what it got; known is false where it cannot know whether its write happened.
type answer struct {
	value string
	known bool
}

// registers is the specification: every key holds a string, which is set,
// appended to or read; a write answers with what it made. A history is checked
// key by key, which is as good as at once, linearizability being local.
var registers = porcupine.Model{
	Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
		byKey, order := map[string][]porcupine.Operation{}, []string{}
		for _, o := range h {
			k := o.Input.(call).key
			if byKey[k] == nil {
				order = append(order, k)
			}
			byKey[k] = append(byKey[k], o)
		}
		var parts [][]porcupine.Operation
		for _, k := range order {
			parts = append(parts, byKey[k])
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(string), input.(call), output.(answer)
		switch in.op {
		case opSet:
			now = in.value
		case opAppend:
			now += in.value
		}
		return !out.known || out.value == now, now
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(call), output.(answer)
		if !out.known {
			out.value = "?"
		}
		return fmt.Sprintf("%s %s %q → %q", map[byte]string{opSet: "set", opAppend: "append", 0: "read"}[in.op], in.key, in.value, out.value)
	},
}

// history collects what the clients of a world saw. Its clock ticks at every
// call and return and so orders also what happens at one instant of the bubble.
type history struct {
	mu    sync.Mutex
	clock int64
	done  []porcupine.Operation
}

func newHistory() *history { return &history{} }

func (h *history) tick() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

func (h *history) add(o porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, o)
}

// The limits of a check in real time: a history that could not be decided in
// the first is given the second; then the test fails.
const (
	checkSoon = 5 * time.Second
	checkLate = 90 * time.Second
)

// verify is called outside the bubble, whose clock stands still while it computes.
func (h *history) verify() (string, error) {
	h.done = decided(h.done)
	result := porcupine.CheckOperationsTimeout(registers, h.done, checkSoon)
	if result == porcupine.Unknown {
		result = porcupine.CheckOperationsTimeout(registers, h.done, checkLate)
	}
	switch result {
	case porcupine.Ok:
		return "", nil
	case porcupine.Unknown:
		return "", fmt.Errorf("%d operations could not be checked in %v", len(h.done), checkLate)
	}
	return h.culprit(), errors.New("the history is not linearizable")
}

// decided makes a history quicker to check and changes nothing about its being
// linearizable. Every write has a token of its own, which stays in the value
// until the next set. A write of unknown outcome whose token nobody has seen may
// as well not have happened; one whose token was seen happened before whoever
// saw it first had returned.
func decided(h []porcupine.Operation) []porcupine.Operation {
	type token struct{ key, text string }
	seen := map[token]int64{}
	for _, o := range h {
		out := o.Output.(answer)
		if !out.known {
			continue
		}
		for text := range strings.SplitSeq(out.value, ",") {
			k := token{o.Input.(call).key, text}
			if first, ok := seen[k]; !ok || o.Return < first {
				seen[k] = o.Return
			}
		}
	}
	var out []porcupine.Operation
	for _, o := range h {
		if !o.Output.(answer).known {
			in := o.Input.(call)
			first, ok := seen[token{in.key, strings.TrimSuffix(in.value, ",")}]
			if !ok {
				continue
			}
			o.Return = max(first, o.Call)
		}
		out = append(out, o)
	}
	return out
}

// culprit is the operations on the first key whose part of the history is not
// linearizable, up to the first return at which it no longer is.
func (h *history) culprit() string {
	for _, part := range registers.Partition(h.done) {
		if porcupine.CheckOperationsTimeout(registers, part, checkSoon) == porcupine.Ok {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
		n := len(part)
		for i := range part {
			if porcupine.CheckOperationsTimeout(registers, upTo(part, i+1), checkSoon) == porcupine.Illegal {
				n = i + 1
				break
			}
		}
		text := ""
		for _, o := range upTo(part, n) {
			text += fmt.Sprintf("  [%d, %d] client %d, %v: %s\n", o.Call, o.Return, o.ClientId, o.Metadata, registers.DescribeOperation(o.Input, o.Output))
		}
		return text
	}
	return ""
}

// upTo is the history as it stood at the return of operation n-1: what had been
// called by then and not returned is of unknown outcome.
func upTo(byReturn []porcupine.Operation, n int) []porcupine.Operation {
	part := slices.Clone(byReturn[:n])
	end := part[n-1].Return
	for _, o := range byReturn[n:] {
		if o.Call < end && o.Input.(call).op != 0 {
			o.Return, o.Output = math.MaxInt64, answer{}
			part = append(part, o)
		}
	}
	return part
}

func TestHistoryChecker(t *testing.T) {
	t.Parallel()
	op := func(op byte, call_, ret int64, value, out string) porcupine.Operation {
		o := porcupine.Operation{Input: call{op, "k", value}, Output: answer{out, true}, Call: call_, Return: ret}
		if ret == 0 {
			o.Return, o.Output = math.MaxInt64, answer{}
		}
		return o
	}
	add := func(c, r int64, v, out string) porcupine.Operation { return op(opAppend, c, r, v, out) }
	set := func(c, r int64, v string) porcupine.Operation { return op(opSet, c, r, v, v) }
	get := func(c, r int64, out string) porcupine.Operation { return op(0, c, r, "", out) }
	other := get(3, 4, "")
	other.Input = call{0, "another", ""}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		good    bool
	}{
		"empty":                         {nil, true},
		"one after the other":           {[]porcupine.Operation{add(1, 2, "a,", "a,"), get(3, 4, "a,"), add(5, 6, "b,", "a,b,"), get(7, 8, "a,b,")}, true},
		"a read during a write, either": {[]porcupine.Operation{add(1, 6, "a,", "a,"), get(2, 3, ""), get(4, 5, "a,")}, true},
		"writes at once, any order":     {[]porcupine.Operation{add(1, 4, "a,", "b,a,"), add(2, 3, "b,", "b,")}, true},
		"a stale read":                  {[]porcupine.Operation{set(1, 2, "a,"), get(3, 4, "")}, false},
		"a stale read of another key":   {[]porcupine.Operation{set(1, 2, "a,"), other}, true},
		"reads that go back":            {[]porcupine.Operation{add(1, 8, "a,", "a,"), get(2, 3, "a,"), get(4, 5, "")}, false},
		"a read of the future":          {[]porcupine.Operation{get(1, 2, "a,"), set(3, 4, "a,")}, false},
		"a lost write":                  {[]porcupine.Operation{add(1, 2, "a,", "a,"), add(3, 4, "b,", "b,")}, false},
		"a write that happened twice":   {[]porcupine.Operation{add(1, 2, "a,", "a,"), get(3, 4, "a,a,")}, false},
		"unknown, and it happened":      {[]porcupine.Operation{add(1, 0, "a,", ""), get(3, 4, ""), get(5, 6, "a,")}, true},
		"unknown, and it did not":       {[]porcupine.Operation{add(1, 0, "a,", ""), add(3, 4, "b,", "b,")}, true},
		"unknown, and seen early":       {[]porcupine.Operation{get(1, 2, "a,"), add(3, 0, "a,", "")}, false},
		"unknown, and overwritten":      {[]porcupine.Operation{add(1, 0, "a,", ""), set(3, 4, "b,"), get(5, 6, "b,")}, true},
		"unknown, and late":             {[]porcupine.Operation{add(1, 0, "a,", ""), set(3, 4, "b,"), get(5, 6, "b,"), get(7, 8, "b,a,")}, true},
		"unknown, and it was undone":    {[]porcupine.Operation{add(1, 0, "a,", ""), get(3, 4, "a,"), get(5, 6, "")}, false},
	} {
		h := &history{done: c.history}
		text, err := h.verify()
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && text == "" {
			t.Errorf("%s: no operation is named", name)
		}
	}
}
