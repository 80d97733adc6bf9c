package simworld

import (
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

const maxClockFile = 64 // bytes

// hostClock is the system's clock, shifted by the seconds in the file. The offset is a jump for whoever watches: an instant
// of it carries no monotonic reading, as if it had come from a host that set its clock.
func hostClock(file string) func() time.Time {
	return func() time.Time {
		seconds := offset(file)
		if seconds == 0 {
			return time.Now()
		}
		return time.Now().Round(0).Add(time.Duration(seconds) * time.Second)
	}
}

// maxOffset is ten years in seconds: more would leave the dates that certificates and collateral can have.
const maxOffset = 10 * 365 * 24 * 3600

// offset reads the file; whatever is not a whole number of seconds within ten years counts as none.
func offset(file string) int64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxClockFile))
	if err != nil {
		return 0
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil || seconds < -maxOffset || seconds > maxOffset {
		return 0
	}
	return seconds
}
