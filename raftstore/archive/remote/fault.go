package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

var (
	// ErrExists says that this name already has an archive: it belongs to another boot. It is an fs.ErrExist.
	ErrExists = fmt.Errorf("archive/remote: the server has an archive of this server id (%w); an identity lives one boot", fs.ErrExist)
	// ErrMissing says that the server has no such archive.
	ErrMissing = errors.New("archive/remote: the server has no archive of this server id")
	// ErrBusy says that the archive is being written, so it cannot be read, or that the server has too many connections.
	ErrBusy = errors.New("archive/remote: the archive is in use, or the server has too many connections")
	// ErrRecordSize refuses an empty or oversized record.
	ErrRecordSize = fmt.Errorf("archive/remote: a record has 1 to %d bytes", MaxRecord)
	// ErrClosed says that the archive is closed.
	ErrClosed = errors.New("archive/remote: closed")
)

// ServerError is what the server says went wrong there. Its text is the host's
// and means nothing to a program; a full disk also is a syscall.ENOSPC.
type ServerError struct {
	Text string // printable ASCII, at most 200 bytes
	full bool
}

func (e *ServerError) Error() string {
	return fmt.Sprintf("archive/remote: the server failed: %s", e.Text)
}

// Is makes a full disk over there a full disk here.
func (e *ServerError) Is(target error) bool { return e.full && target == syscall.ENOSPC }

// keptError answers a drop that did not remove everything; the archive goes on.
type keptError struct{ ServerError }

// Codes of a fault; any other is codeFailed.
const (
	codeFailed  byte = 0
	codeExists  byte = 1
	codeMissing byte = 2
	codeBusy    byte = 3
	codeFull    byte = 4
	codeKept    byte = 5 // in answer to a drop only
)

// fault encodes err as the payload of a fault.
func fault(err error) []byte {
	code := codeFailed
	_, kept := errors.AsType[*keptError](err)
	switch {
	case kept:
		code = codeKept
	case errors.Is(err, fs.ErrExist):
		code = codeExists
	case errors.Is(err, ErrMissing):
		code = codeMissing
	case errors.Is(err, ErrBusy):
		code = codeBusy
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = codeFull
	}
	text := printable(err.Error())
	return append([]byte{code}, text...)
}

// parseFault is the reverse, for a payload of at least one byte.
func parseFault(payload []byte) error {
	switch payload[0] {
	case codeExists:
		return ErrExists
	case codeMissing:
		return ErrMissing
	case codeBusy:
		return ErrBusy
	}
	e := ServerError{Text: printable(string(payload[1:])), full: payload[0] == codeFull}
	if payload[0] == codeKept {
		return &keptError{e}
	}
	return &e
}

// printable is s as it may stand in a log: the text is the other side's.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, s)
	return s[:min(len(s), maxText)]
}
