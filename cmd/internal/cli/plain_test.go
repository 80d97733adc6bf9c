package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A report, a peer or a file that an operator reads before signing says nothing to the terminal itself.
func TestTextMovesNoCursor(t *testing.T) {
	t.Parallel()
	evil := "fine\x1b[2J\x1b]0;x\x07\r\u009b1A\x7f\u202eenif\u2028…"
	var out, errs bytes.Buffer
	s := &Streams{Out: &out, Err: &errs}
	if err := s.Print(nil, func(w io.Writer) { fmt.Fprintf(w, "row\t%s\n", evil) }); err != nil {
		t.Fatal(err)
	}
	cmd := &cobra.Command{Use: "x", RunE: func(*cobra.Command, []string) error { return errors.New(evil) }}
	if code := Run(context.Background(), cmd, s, nil); code != ExitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, text := range []string{out.String(), errs.String()} {
		if strings.ContainsAny(text, "\x1b\x07\r\u009b\x7f\u202e\u2028") || !strings.Contains(text, "fine") || !strings.Contains(text, "…") {
			t.Errorf("%q", text)
		}
	}
	if !strings.HasPrefix(out.String(), "row\t") || !strings.HasSuffix(out.String(), "\n") {
		t.Errorf("tabs and line breaks are ours: %q", out.String())
	}
}
