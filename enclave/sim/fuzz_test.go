package sim

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzParseFile: whatever parses says the same when it is written again, and no input makes a panic.
func FuzzParseFile(f *testing.F) {
	good := `{"version":1,"seed":"` + strings.Repeat("5e", 32) + `","created":"2026-03-14T00:00:00Z"}`
	for _, text := range []string{good, good + " ", strings.ToUpper(good), good + good, `{"version":1}`, "null", ""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := parseFile(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := parseFile(again); err != nil || same != file {
			t.Fatalf("round trip: %v", err)
		}
		if w, err := file.world(); (w == nil) != (err != nil) {
			t.Fatal("a world beside an error")
		}
	})
}
