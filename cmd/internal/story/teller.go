package story

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Event is one line of the story in JSON. Kind is "step", "summary" or "failed".
type Event struct {
	Kind    string   `json:"event"`
	Step    int      `json:"step,omitempty"`
	Title   string   `json:"title,omitempty"`
	Details []string `json:"details,omitempty"`
	Millis  int64    `json:"ms"` // of the step; for summary and failed, since the start
	Error   string   `json:"error,omitempty"`
}

// Teller prints the story: for people, or as one JSON event per line.
type Teller struct {
	out   io.Writer
	json  bool
	start time.Time
	last  time.Time
	step  int
	err   error // the first failure to write
}

// NewTeller returns a Teller that starts counting time now.
func NewTeller(out io.Writer, asJSON bool) *Teller {
	now := time.Now()
	return &Teller{out: out, json: asJSON, start: now, last: now}
}

// Step reports that a step held. Each detail is one line of what was seen.
func (t *Teller) Step(title string, details ...string) {
	t.step++
	took := time.Since(t.last)
	t.last = time.Now()
	if t.json {
		t.write(Event{Kind: "step", Step: t.step, Title: title, Details: details, Millis: took.Milliseconds()})
		return
	}
	t.printf("%2d  %-66s %6.2f s\n", t.step, title, took.Seconds())
	for _, d := range details {
		t.printf("      %s\n", d)
	}
}

// Summary closes the story.
func (t *Teller) Summary(lines ...string) {
	total := time.Since(t.start)
	if t.json {
		t.write(Event{Kind: "summary", Details: lines, Millis: total.Milliseconds()})
		return
	}
	t.printf("\nAll %d steps held, in %.1f s:\n", t.step, total.Seconds())
	for _, l := range lines {
		t.printf("  - %s\n", l)
	}
}

// Failed reports the step that did not hold.
func (t *Teller) Failed(err error) {
	if t.json {
		t.write(Event{Kind: "failed", Step: t.step + 1, Error: err.Error(), Millis: time.Since(t.start).Milliseconds()})
	}
}

// Err returns the first error of writing, if any: a story that nobody could read was not told.
func (t *Teller) Err() error { return t.err }

func (t *Teller) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(t.out, format, args...); err != nil && t.err == nil {
		t.err = err
	}
}

func (t *Teller) write(e Event) {
	enc := json.NewEncoder(t.out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil && t.err == nil {
		t.err = err
	}
}
