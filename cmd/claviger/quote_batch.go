package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

// maxLine bounds one line of batch input, in bytes.
const maxLine = 64 << 10

var errUnjudged = errors.New("lines could not be judged; their output lines have stage \"input\" and say why")

// batchLine is one line of batch input. At is RFC 3339 text, or whole seconds since 1970 as a number.
type batchLine struct {
	ID string `json:"id"`
	evidenceFiles
	At json.RawMessage `json:"at"`
}

// batch judges every line and writes one line for each, in order. It stops early only when it can neither read nor write.
func (j *judge) batch(name string) error {
	in := j.s.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return &cli.UsageError{Err: err}
		}
		defer f.Close()
		in = f
	}
	lines, unjudged := bufio.NewReaderSize(in, maxLine), 0
	for {
		raw, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			break
		}
		var v *verdict
		switch {
		case errors.Is(err, cli.ErrTooLarge):
			v = refused(err)
		case err != nil:
			return fmt.Errorf("read %s: %w", name, err)
		case len(raw) == 0:
			continue
		default:
			v = j.line(raw)
		}
		if v.Stage == "input" {
			unjudged++
		}
		if err := j.s.PrintJSON(v); err != nil {
			return err
		}
	}
	if unjudged > 0 {
		return fmt.Errorf("%d %w", unjudged, errUnjudged)
	}
	return nil
}

// readLine returns the next line without its end. A line over maxLine is consumed and reported as cli.ErrTooLarge.
func readLine(r *bufio.Reader) ([]byte, error) {
	raw, more, err := r.ReadLine()
	if err != nil || !more {
		return raw, err
	}
	for more && err == nil {
		_, more, err = r.ReadLine()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return nil, fmt.Errorf("%w: a line has more than %d bytes", cli.ErrTooLarge, maxLine)
}

func (j *judge) line(raw []byte) *verdict {
	var line batchLine
	if err := api.DecodeJSON(raw, maxLine, &line); err != nil {
		return refused(fmt.Errorf("line is not one JSON object with the known keys: %w", err))
	}
	v := j.judgeLine(&line)
	v.ID = line.ID
	return v
}

func (j *judge) judgeLine(line *batchLine) *verdict {
	if err := line.missing(func(key string) string { return fmt.Sprintf("%q", key) }); err != nil {
		return refused(err)
	}
	text := string(line.At)
	if len(line.At) > 0 && line.At[0] == '"' {
		if err := json.Unmarshal(line.At, &text); err != nil {
			return refused(err)
		}
	}
	if text == "" || text == "null" {
		return refused(errors.New(`"at" is missing; write the time to verify at, as in "2026-01-31T12:00:00Z"`))
	}
	at, err := parseInstant(text)
	if err != nil {
		return refused(err)
	}
	quote, collateral, err := line.read(j.s, j.base)
	if err != nil {
		return refused(err)
	}
	return j.decide(quote, collateral, at)
}
