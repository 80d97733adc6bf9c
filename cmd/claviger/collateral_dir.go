package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/claviger/claviger/cmd/internal/cli"
)

// keptSet is one set of a directory: verified, or why not.
type keptSet struct {
	File string `json:"file"`
	OK   bool   `json:"ok"`
	*setReport
	Error  string `json:"error,omitempty"`
	Reason string `json:"reason,omitempty"`
}

var errNotGood = errors.New("sets are not good; fetch or import them again")

// showDirectory verifies every set in a directory and says how long it lasts.
func showDirectory(s *cli.Streams, t *trust, dir string) error {
	list, err := setsIn(dir)
	if err != nil {
		return err
	}
	d, err := t.directory(dir, choiceFlags{})
	if err != nil {
		return err
	}
	kept, bad := make([]keptSet, 0, len(list)), 0
	for _, r := range list {
		k := keptSet{File: r.String() + ".json"}
		set, err := d.Load(r)
		if err == nil {
			k.OK, k.setReport = true, new(t.report(set))
		} else {
			bad++
			k.Error = err.Error()
			if e, ok := errors.AsType[*collateralError](reasoned(err)); ok {
				k.Reason = e.reason
			}
		}
		kept = append(kept, k)
	}
	out := struct {
		Verified bool      `json:"verified"` // always true: what does not verify is not ok
		Sets     []keptSet `json:"sets"`
	}{true, kept}
	err = s.Print(out, func(w io.Writer) { writeKept(w, dir, kept) })
	if err == nil && bad > 0 {
		err = fmt.Errorf("%d of %d %w", bad, len(kept), errNotGood)
	}
	return err
}

func writeKept(w io.Writer, dir string, kept []keptSet) {
	if len(kept) == 0 {
		fmt.Fprintf(w, "%s holds no collateral\n", dir)
	}
	for i, k := range kept {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if k.OK {
			k.write(w)
			continue
		}
		rows{w}.add("set", "%s", k.File)
		rows{w}.add("NOT GOOD", "%s", k.Error)
	}
}
