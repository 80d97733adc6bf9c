package functions

import (
	"crypto/rand"
	"sync"
)

// sessionCalls is how many invocations one session takes.
const sessionCalls = 1 << 15

// window makes every invocation happen at most once. It knows the ids of two
// sessions, the current one and the one before; a request that names any other is
// refused. So memory is bounded, yet no id is forgotten while a request with it
// could still be accepted; and since sessions are random and live in one process's
// memory, a replay after a restart, or to a clone, names a session unknown there.
type window struct {
	mu            sync.Mutex
	limit         int
	current, last session
}

type session struct {
	id   [idSize]byte
	seen map[[idSize]byte]struct{}
}

func newSession() session {
	s := session{seen: map[[idSize]byte]struct{}{}}
	_, _ = rand.Read(s.id[:]) // never fails
	return s
}

func newWindow(limit int) *window {
	// last has an id that nobody was told, so that the zero id matches nothing.
	return &window{limit: limit, current: newSession(), last: newSession()}
}

// now returns the session for new requests.
func (w *window) now() [idSize]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current.id
}

// use takes an invocation, once.
func (w *window) use(id, invocation [idSize]byte) *CallError {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.current
	if id == w.last.id {
		s = &w.last
	}
	if id != s.id {
		return refuse(CodeStaleSession, "ask the runtime for its session and seal the call again")
	}
	if _, ok := s.seen[invocation]; ok {
		return refuse(CodeDuplicate, "the runtime has taken this invocation already")
	}
	if len(s.seen) >= w.limit { // stragglers have filled the old session
		return refuse(CodeStaleSession, "ask the runtime for its session and seal the call again")
	}
	s.seen[invocation] = struct{}{}
	if s == &w.current && len(s.seen) >= w.limit/2 {
		w.last, w.current = w.current, newSession()
	}
	return nil
}
