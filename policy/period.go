package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bounds of an EXPIRE period: a hundred years, and as many digits per component as the canonical form of that takes in days.
const (
	maxPeriodMonths = 1200
	maxPeriodDays   = 36525
	maxPeriodDigits = 5
)

// period is a calendar period of ISO 8601: whole months and whole days.
type period struct {
	months, days int
}

// parsePeriod reads P[nY][nM][nW][nD]. Time components are refused: TCB info
// is issued daily at most, so hours would only look precise.
func parsePeriod(text string) (period, error) {
	rest, ok := strings.CutPrefix(text, "P")
	if !ok || rest == "" {
		return period{}, fmt.Errorf("an ISO 8601 period begins with P, such as P30D or P1Y6M")
	}
	var p period
	units := "YMWD"
	for rest != "" {
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 1 {
			return period{}, fmt.Errorf("want a number and one of Y, M, W, D at %.8q; hours and smaller are not taken", rest)
		}
		n, err := strconv.Atoi(rest[:end])
		if err != nil || end > maxPeriodDigits || (end > 1 && rest[0] == '0') {
			return period{}, fmt.Errorf("a component has at most %d digits and no leading zero", maxPeriodDigits)
		}
		at := strings.IndexByte(units, rest[end])
		if at < 0 {
			return period{}, fmt.Errorf("want each of Y, M, W, D at most once, in this order, at %.8q", rest[end:])
		}
		p = p.plus(units[at], n)
		units, rest = units[at+1:], rest[end+1:]
	}
	if p == (period{}) || p.months > maxPeriodMonths || p.days > maxPeriodDays {
		return period{}, fmt.Errorf("a period is longer than zero and at most 100 years")
	}
	return p, nil
}

func (p period) plus(unit byte, n int) period {
	switch unit {
	case 'Y':
		p.months += 12 * n
	case 'M':
		p.months += n
	case 'W':
		p.days += 7 * n
	case 'D':
		p.days += n
	}
	return p
}

// String returns the canonical form: years, months below twelve, and days.
func (p period) String() string {
	var b strings.Builder
	b.WriteByte('P')
	for _, part := range []struct {
		n    int
		unit byte
	}{{p.months / 12, 'Y'}, {p.months % 12, 'M'}, {p.days, 'D'}} {
		if part.n != 0 {
			b.WriteString(strconv.Itoa(part.n))
			b.WriteByte(part.unit)
		}
	}
	return b.String()
}

// after returns the instant p after t, by the calendar in UTC.
func (p period) after(t time.Time) time.Time { return t.UTC().AddDate(0, p.months, p.days) }
