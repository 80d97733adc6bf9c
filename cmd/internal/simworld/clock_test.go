package simworld

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestHostClock: the offset is read anew each time, and what is no offset is none.
func TestHostClock(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "clock")
	clock := hostClock(file)
	for _, tc := range []struct {
		text string
		want time.Duration
	}{
		{"", 0}, {"0", 0}, {"3600\n", time.Hour}, {" -86400 ", -24 * time.Hour}, {"soon", 0}, {"1.5", 0},
		{"99999999999999999999", 0}, {"400000000", 0}, {"-400000000", 0}, {"2592000", 30 * 24 * time.Hour},
	} {
		if tc.text != "" {
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if off := time.Until(clock()) - tc.want; off.Abs() > time.Minute {
			t.Errorf("%q: the clock is %v off what it should be", tc.text, off)
		}
	}
}
