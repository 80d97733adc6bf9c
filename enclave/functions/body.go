package functions

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// A connection holds its own small buffer; what is larger comes out of a budget
// for all, byte by byte as it arrives: declaring a body takes nothing. A body has a
// deadline that its declared size prolongs. So connections that send slowly take
// neither a call's slot nor memory, and those that send much cannot keep out
// small calls.
const (
	ownBody   = 64 << 10 // bytes of a connection's body or reply outside the budget
	bodyBytes = 64 << 20 // the budget
	bodyGrace = 5 * time.Second
	bodyRate  = 256 << 10 // bytes per second, at least, beyond the grace
)

var (
	errLength  = errors.New("functions: a request says the length of its body")
	errTimeout = errors.New("functions: the body came too slowly")
	errBodies  = errors.New("functions: the bodies of other requests take the room")
)

func transferTime(n int64) time.Duration {
	return bodyGrace + time.Duration(n)*time.Second/bodyRate
}

// readBody reads the whole body, at most maxDocument bytes. The caller gives its
// bytes back with free, also after an error.
func (h *Host) readBody(w http.ResponseWriter, r *http.Request) (body []byte, free func(), err error) {
	taken := int64(0)
	free = func() { h.bodies.Release(taken) }
	n := r.ContentLength
	switch {
	case n < 0:
		return nil, free, errLength
	case n > maxDocument:
		return nil, free, fmt.Errorf("%w: the body has %d bytes of %d", ErrTooLarge, n, maxDocument)
	}
	// Writers without deadlines are those of tests.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(transferTime(n)))
	body = make([]byte, 0, min(n, ownBody))
	for int64(len(body)) < n {
		if len(body) == cap(body) {
			size := min(n, 2*int64(cap(body)))
			more := size - int64(cap(body))
			if !h.bodies.Reserve(more) {
				return nil, free, errBodies
			}
			taken += more
			body = append(make([]byte, 0, size), body...)
		}
		k, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+k]
		if err != nil && int64(len(body)) < n {
			return nil, free, bodyError(err)
		}
	}
	// The connection is now watched for the caller going away, which must not end
	// with the body's deadline.
	_ = control.SetReadDeadline(time.Time{})
	return body, free, nil
}

func bodyError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errTimeout
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrFormat, err)
}
