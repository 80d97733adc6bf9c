package cli

import (
	"io"
	"strings"
	"unicode"
)

// plain writes text for people: what files, reports and peers put into it moves no cursor, changes no colour and reverses no
// line of the terminal that an operator reads before signing.
type plain struct{ w io.Writer }

// Write takes whole strings, as package fmt writes them.
func (p plain) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, Plain(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Plain replaces all that is neither printable nor a line break or tab.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
