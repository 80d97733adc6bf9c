package remote

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"github.com/claviger/claviger/raftstore"
)

// Options of a client. The zero value is complete.
type Options struct {
	// Timeout bounds each exchange with the server, and for Records and List each
	// of its frames; default 10 s. A server that takes longer has failed.
	Timeout time.Duration
	// Dial makes the connection; default is TCP. Inside EGo the address must be
	// numeric: there is no resolver.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

func (o Options) timeout() time.Duration {
	if o.Timeout <= 0 {
		return 10 * time.Second
	}
	return o.Timeout
}

// link is one connection to a server.
type link struct {
	conn    net.Conn
	r       *bufio.Reader
	timeout time.Duration
}

func (o Options) dial(ctx context.Context, address string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()
	dial := o.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("archive/remote: no connection to the archive server: %w", err)
	}
	return &link{conn: conn, r: bufio.NewReaderSize(conn, 4096), timeout: o.timeout()}, nil
}

// send writes whole frames before the deadline. Where that fails, the server may
// have said why before it closed the connection.
func (l *link) send(frames []byte) error {
	if err := l.conn.SetDeadline(time.Now().Add(l.timeout)); err != nil {
		return err
	}
	_, err := l.conn.Write(frames)
	if err == nil {
		return nil
	}
	l.conn.SetReadDeadline(time.Now().Add(min(l.timeout, time.Second)))
	if _, payload, rerr := readFrame(l.r, nil, frameFault); rerr == nil {
		return parseFault(payload)
	}
	return err
}

// answer reads one frame of the types allowed before the deadline. A fault becomes its error.
func (l *link) answer(allowed ...frameType) (frameType, []byte, error) {
	if err := l.conn.SetReadDeadline(time.Now().Add(l.timeout)); err != nil {
		return 0, nil, err
	}
	t, payload, err := readFrame(l.r, nil, append(allowed, frameFault)...)
	switch {
	case err != nil:
		return 0, nil, unexpected(err)
	case t == frameFault:
		return 0, nil, parseFault(payload)
	}
	return t, payload, nil
}

// Archive writes one boot's records to a server. It implements
// raftstore.Archive and is for one goroutine at a time. The first failure is
// final: nothing is ever sent again.
type Archive struct {
	link  *link
	batch []byte // a frame's header and the records that wait in it
	count uint64 // records taken by Append
	err   error
}

var _ raftstore.Archive = (*Archive)(nil)

// Create asks the server at address (host:port) for a new archive. ErrExists
// says that the name has one. Ctx and the timeout bound the call.
func Create(ctx context.Context, address string, name Name, o Options) (*Archive, error) {
	if err := name.check(); err != nil {
		return nil, err
	}
	l, err := o.dial(ctx, address)
	if err != nil {
		return nil, err
	}
	a := &Archive{link: l}
	if err := a.exchange(appendFrame(nil, frameCreate, hello(&name))); err != nil {
		return nil, errors.Join(err, l.conn.Close())
	}
	return a, nil
}

func (a *Archive) fail(err error) error {
	if a.err == nil {
		a.err = fmt.Errorf("archive/remote: the archive is given up: %w", err)
	}
	return a.err
}

// exchange sends frames and waits for the server to hold as many records as were appended.
func (a *Archive) exchange(frames []byte) error {
	if err := a.link.send(frames); err != nil {
		return a.fail(err)
	}
	_, payload, err := a.link.answer(frameDone)
	if err != nil {
		return a.fail(err)
	}
	if held := count(payload); held != a.count {
		return a.fail(fmt.Errorf("%w: it says it holds %d records, %d were sent", ErrProtocol, held, a.count))
	}
	return nil
}

// Append buffers a record, or sends a batch once there is enough; it is durable after the next Sync.
func (a *Archive) Append(record []byte) error {
	if a.err != nil {
		return a.err
	}
	if len(record) == 0 || len(record) > MaxRecord {
		return a.fail(ErrRecordSize)
	}
	if len(a.batch) == 0 {
		a.batch = append(a.batch, 0, 0, 0, 0, byte(frameAppend))
	}
	a.batch = appendRecord(a.batch, record)
	a.count++
	if len(a.batch) < batchSize {
		return nil
	}
	frames := a.take()
	if err := a.link.send(frames); err != nil {
		return a.fail(err)
	}
	return nil
}

// take finishes the frame with the waiting records; its memory is used again by the next Append.
func (a *Archive) take() []byte {
	frame := a.batch
	if len(frame) > 0 {
		binary.BigEndian.PutUint32(frame, uint32(len(frame)-headerSize))
	}
	a.batch = a.batch[:0]
	return frame
}

// ask sends what waits and a request behind it, and waits for the answer.
func (a *Archive) ask(t frameType) error {
	if a.err != nil {
		return a.err
	}
	return a.exchange(appendCount(a.take(), t, a.count))
}

// Sync returns once the server says that every record appended is durable.
func (a *Archive) Sync() error { return a.ask(frameSync) }

// Cut marks the present end as the place that Drop removes up to.
func (a *Archive) Cut() error { return a.ask(frameCut) }

// Drop lets the server remove what lies before the last Cut. What it cannot
// remove it keeps: that error is not final, and any other is.
func (a *Archive) Drop() error {
	if a.err != nil {
		return a.err
	}
	err := a.ask(frameDrop)
	if kept, ok := errors.AsType[*keptError](err); ok {
		a.err = nil
		return &kept.ServerError
	}
	return err
}

// Close tells the server and ends the connection; records that were not synced may be dropped.
func (a *Archive) Close() error {
	if a.link == nil {
		return nil
	}
	var err error
	if a.err == nil {
		err = a.ask(frameClose)
	}
	err = errors.Join(err, a.link.conn.Close())
	a.link, a.batch = nil, nil
	a.fail(ErrClosed)
	return err
}

// Records reads an archive from the server at address, for recovery. Whatever
// it yields is attacker input until a raftstore.Opener has opened it; after an
// error it ends. One batch is in memory at a time. A record is the caller's to keep.
func Records(ctx context.Context, address string, name Name, o Options) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		fail := func(err error) { yield(nil, fmt.Errorf("archive/remote: reading %s: %w", name, err)) }
		if err := name.check(); err != nil {
			fail(err)
			return
		}
		l, stop, err := o.request(ctx, address, appendFrame(nil, frameRecords, hello(&name)))
		if err != nil {
			fail(err)
			return
		}
		defer stop()
		for n := uint64(0); ; {
			t, payload, err := l.answer(frameBatch, frameEnd)
			if err == nil && t == frameEnd && count(payload) != n {
				err = fmt.Errorf("%w: %d records came, it says %d", ErrProtocol, n, count(payload))
			}
			if err != nil {
				fail(errors.Join(err, ctx.Err()))
				return
			}
			if t == frameEnd {
				return
			}
			for rest := payload; len(rest) > 0; n++ {
				var record []byte
				if record, rest, err = nextRecord(rest); err != nil {
					fail(err)
					return
				}
				if !yield(record, nil) {
					return
				}
			}
		}
	}
}

// request opens a connection with one request on it; it breaks when ctx ends.
func (o Options) request(ctx context.Context, address string, frame []byte) (l *link, stop func(), err error) {
	if l, err = o.dial(ctx, address); err != nil {
		return nil, nil, err
	}
	unwatch := context.AfterFunc(ctx, func() { l.conn.Close() })
	stop = func() {
		unwatch()
		l.conn.Close()
	}
	if err := l.send(frame); err != nil {
		stop()
		return nil, nil, err
	}
	return l, stop, nil
}

// List asks the server which archives it says it has, up to MaxList.
func List(ctx context.Context, address string, o Options) ([]Name, error) {
	l, stop, err := o.request(ctx, address, appendFrame(nil, frameList, hello(nil)))
	if err != nil {
		return nil, err
	}
	defer stop()
	var names []Name
	for {
		t, payload, err := l.answer(frameNames, frameEnd)
		if err != nil {
			return nil, fmt.Errorf("archive/remote: listing: %w", errors.Join(err, ctx.Err()))
		}
		if t == frameEnd {
			if count(payload) != uint64(len(names)) {
				return nil, fmt.Errorf("%w: %d names came, it says %d", ErrProtocol, len(names), count(payload))
			}
			return names, nil
		}
		if names, err = appendNames(names, payload); err != nil {
			return nil, err
		}
	}
}

func appendNames(names []Name, payload []byte) ([]Name, error) {
	if len(payload)%nameSize != 0 || len(names)+len(payload)/nameSize > MaxList {
		return nil, fmt.Errorf("%w: a malformed list, or more than %d archives", ErrProtocol, MaxList)
	}
	for len(payload) > 0 {
		name, rest, err := parseName(payload)
		if err != nil {
			return nil, err
		}
		names, payload = append(names, name), rest
	}
	return names, nil
}
