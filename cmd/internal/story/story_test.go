package story

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"testing"

	"github.com/claviger/claviger/attest"
)

// TestDemo runs the whole demo, with its steps as JSON events.
func TestDemo(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := Demo(t.Context(), &out, true, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	steps, summaries := 0, 0
	for dec := json.NewDecoder(&out); ; {
		var e Event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch e.Kind {
		case "step":
			if steps++; e.Step != steps || e.Title == "" || len(e.Details) == 0 {
				t.Errorf("event %d is %+v", steps, e)
			}
		case "summary":
			summaries++
		default:
			t.Errorf("event %+v", e)
		}
	}
	if want := len((&demo{}).steps()); steps != want || summaries != 1 {
		t.Errorf("%d steps and %d summaries, want %d and 1", steps, summaries, want)
	}
}

func TestRealQuote(t *testing.T) {
	t.Parallel()
	claims, err := verifyRealQuote()
	if err != nil {
		t.Fatal(err)
	}
	if claims.TEE != attest.TDX || claims.Root.Simulated || claims.Debug || claims.TCB.Status != attest.StatusNotSupported {
		t.Errorf("claims of the sample: %s, root %s, debug %t, status %q", claims.TEE, claims.Root.Name, claims.Debug, claims.TCB.Status)
	}
	t.Logf("%s, evaluation %d", claims.TCB.Status, claims.TCB.EvaluationNumber)
}
