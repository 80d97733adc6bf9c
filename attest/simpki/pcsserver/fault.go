package pcsserver

import (
	"bytes"
	"net/http"
	"strconv"
	"time"
)

// Answer is what a fault changes before it is sent.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Delay  time.Duration // before the first byte; ended by the client's leaving
	Cut    int           // bytes of Body that are declared and not sent
}

// Fault is one way for an answer to go wrong. The zero Fault is none.
type Fault struct {
	at     time.Time // the answer is of this instant
	change func(*Answer)
}

// Change is a fault of the caller's making.
func Change(f func(*Answer)) Fault { return Fault{change: f} }

// AsOf answers what was right at another instant: more than 30 days back, it has expired.
func AsOf(at time.Time) Fault { return Fault{at: at} }

// Slow lets d pass before the answer.
func Slow(d time.Duration) Fault { return Change(func(a *Answer) { a.Delay = d }) }

// Truncated declares the whole body, sends half of it and closes the connection.
func Truncated() Fault { return Change(func(a *Answer) { a.Cut = len(a.Body) - len(a.Body)/2 }) }

// WrongSignature changes the last digit of a signed document's signature, or the last bit of a revocation list's.
func WrongSignature() Fault {
	return Change(func(a *Answer) {
		a.Body = bytes.Clone(a.Body)
		switch end := len(a.Body) - 3; {
		case !bytes.HasSuffix(a.Body, []byte(`"}`)):
			a.Body[len(a.Body)-1] ^= 1
		case a.Body[end] == '0':
			a.Body[end] = '1'
		default:
			a.Body[end] = '0'
		}
	})
}

// Status answers with a status code and no body.
func Status(code int) Fault {
	return Change(func(a *Answer) { *a = Answer{Status: code, Header: http.Header{}} })
}

// RetryAfter answers with a status code and asks for patience; value is a number of seconds or a date.
func RetryAfter(code int, value string) Fault {
	return Change(func(a *Answer) {
		*a = Answer{Status: code, Header: http.Header{"Retry-After": {value}}}
	})
}

// Oversized answers with n bytes of JSON.
func Oversized(n int) Fault {
	return Change(func(a *Answer) { a.Body = append(append([]byte(`{"x":"`), bytes.Repeat([]byte{'x'}, n)...), `"}`...) })
}

// Content answers with another body under a content type, such as a login page.
func Content(kind, body string) Fault {
	return Change(func(a *Answer) {
		a.Header.Set("Content-Type", kind)
		a.Body = []byte(body)
	})
}

// Header sets a header, or removes it if value is empty.
func Header(name, value string) Fault {
	return Change(func(a *Answer) {
		a.Header.Del(name)
		if value != "" {
			a.Header.Set(name, value)
		}
	})
}

// Redirect sends the client elsewhere.
func Redirect(url string) Fault {
	return Change(func(a *Answer) { *a = Answer{Status: http.StatusFound, Header: http.Header{"Location": {url}}} })
}

// write sends the answer.
func (a *Answer) write(w http.ResponseWriter, r *http.Request) {
	if a.Delay > 0 {
		timer := time.NewTimer(a.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	// An error means that the client has gone. After fewer bytes than declared, net/http closes the connection.
	_, _ = w.Write(a.Body[:len(a.Body)-min(a.Cut, len(a.Body))])
}
