package engine

import (
	"bytes"
	"strings"
)

// logBuffer keeps a bounded number of lines and bytes; what does not fit is dropped and noted.
type logBuffer struct {
	lines     []LogLine
	maxLines  int
	bytesLeft int
	truncated bool
}

func (l *logBuffer) add(level string, text []byte) {
	text = bytes.TrimRight(text, "\n")
	if len(text) > maxLogLine {
		text, l.truncated = text[:maxLogLine], true
	}
	if len(l.lines) >= l.maxLines || l.bytesLeft <= 0 {
		l.truncated = true
		return
	}
	if len(text) > l.bytesLeft {
		text, l.truncated = text[:l.bytesLeft], true
	}
	l.bytesLeft -= len(text)
	l.lines = append(l.lines, LogLine{Level: level, Text: strings.ToValidUTF8(string(text), "\uFFFD")})
}

// clip bounds a tenant's text and makes it valid UTF-8.
func clip(s string, max int) string {
	if len(s) > max {
		s = s[:max]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
