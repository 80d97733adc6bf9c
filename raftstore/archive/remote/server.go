package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/claviger/claviger/raftstore"
)

const (
	maxConns  = 256              // at once
	stepTime  = 30 * time.Second // for the rest of a frame once it has begun, and to write an answer
	firstTime = 10 * time.Second // for the first frame of a connection
	drainTime = time.Second      // in which the client may read the fault that ended its connection
	stopTime  = 10 * time.Second // for requests under way when the server stops
)

// Backend is where a server keeps archives. Its methods may be called at the
// same time for different names; the server never reads what it writes.
type Backend interface {
	// Create makes an archive for a name that has none; fs.ErrExist otherwise.
	Create(Name) (raftstore.Archive, error)
	// Records reads an archive from its begin; ErrMissing where there is none.
	Records(context.Context, Name) iter.Seq2[[]byte, error]
	// List names what there is.
	List() ([]Name, error)
}

// Server keeps archives for stores. It runs on the host, outside any TEE, and is
// trusted with nothing: see the package's documentation.
type Server struct {
	backend Backend
	log     *slog.Logger

	mu    sync.Mutex
	conns map[net.Conn]bool
	inUse map[Name]bool // being written
	ended bool
}

// NewServer makes a server; log may be nil.
func NewServer(b Backend, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{backend: b, log: log, conns: map[net.Conn]bool{}, inUse: map[Name]bool{}}
}

// Serve accepts connections on l until ctx ends, and closes l. Requests that
// are under way then are finished and answered; every archive is synced and
// closed before Serve returns. Stores that still write here stop for good.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var work sync.WaitGroup
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.interrupt()
	})
	var err error
	for {
		var conn net.Conn
		if conn, err = l.Accept(); err != nil {
			break
		}
		if !s.enter(conn) {
			s.log.Warn("a connection is refused: there are too many", "from", conn.RemoteAddr())
			conn.Close()
			continue
		}
		work.Go(func() {
			defer s.leave(conn)
			s.serve(ctx, conn)
		})
	}
	if stop() { // the listener failed by itself
		l.Close()
		s.interrupt()
	} else {
		err = nil
	}
	late := time.AfterFunc(stopTime, s.cut)
	work.Wait()
	late.Stop()
	return err
}

func (s *Server) enter(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.conns) >= maxConns {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *Server) leave(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// interrupt wakes everyone who waits for a next frame.
func (s *Server) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if n := len(s.inUse); n > 0 {
		s.log.Warn("stopping while stores write here: they stop for good", "archives", n)
	}
	for conn := range s.conns {
		conn.SetReadDeadline(time.Now())
	}
}

// cut ends what has not ended by itself.
func (s *Server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
	}
}

// next reads a frame; how long the client takes to begin one is its own affair, or first.
func (s *Server) next(conn net.Conn, r io.Reader, first time.Duration, allowed ...frameType) (frameType, []byte, error) {
	idle := time.Time{}
	if first > 0 {
		idle = time.Now().Add(first)
	}
	s.mu.Lock()
	if s.ended {
		idle = time.Now()
	}
	err := conn.SetReadDeadline(idle)
	s.mu.Unlock()
	if err != nil {
		return 0, nil, err
	}
	return readFrame(r, func() { conn.SetReadDeadline(time.Now().Add(stepTime)) }, allowed...)
}

func write(conn net.Conn, frame []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(stepTime)); err != nil {
		return err
	}
	_, err := conn.Write(frame)
	return err
}

// refuse tells the client why its connection ends, and gives it a moment to
// read that: bytes of its that nobody reads would make the system discard it.
func refuse(conn net.Conn, err error) {
	if write(conn, appendFrame(nil, frameFault, fault(err))) != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.CloseWrite()
	}
	conn.SetReadDeadline(time.Now().Add(drainTime))
	io.CopyN(io.Discard, conn, maxBatch)
}

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	log := s.log.With("from", conn.RemoteAddr().String())
	r := bufio.NewReaderSize(conn, 64<<10)
	t, payload, err := s.next(conn, r, firstTime, frameCreate, frameRecords, frameList)
	if err != nil {
		log.Debug("a connection without a request", "reason", err)
		return
	}
	name, err := parseHello(payload)
	if err != nil {
		refuse(conn, err)
		return
	}
	switch log = log.With("archive", name.String()); t {
	case frameCreate:
		err = s.keep(conn, r, name, log)
	case frameRecords:
		err = s.sendRecords(ctx, conn, name)
	case frameList:
		err = s.sendNames(conn)
	}
	if err != nil && ctx.Err() != nil {
		err = errStopping
	}
	if err != nil {
		log.Warn("the connection ends", "reason", err)
		refuse(conn, err)
	}
}

var errStopping = errors.New("the archive server is stopping")

// take reserves a name for one connection.
func (s *Server) take(name Name) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse[name] {
		return false
	}
	s.inUse[name] = true
	return true
}

func (s *Server) release(name Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inUse, name)
}

func (s *Server) writing(name Name) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse[name]
}

// keep writes one archive until its client closes it or is gone.
func (s *Server) keep(conn net.Conn, r io.Reader, name Name, log *slog.Logger) error {
	held, closed, err := s.receive(conn, r, name, log)
	if err != nil {
		return err
	}
	if !closed {
		log.Info("the client is gone", "records", held)
		return nil
	}
	log.Info("the archive is closed", "records", held)
	return write(conn, appendCount(nil, frameDone, held)) // now that it can be read
}

func (s *Server) receive(conn net.Conn, r io.Reader, name Name, log *slog.Logger) (held uint64, closed bool, err error) {
	if !s.take(name) {
		return 0, false, ErrExists
	}
	defer s.release(name)
	archive, err := s.backend.Create(name)
	if err != nil {
		return 0, false, err
	}
	log.Info("a new archive")
	if err := write(conn, appendCount(nil, frameDone, 0)); err != nil {
		return 0, false, errors.Join(err, archive.Close())
	}
	held, closed, err = s.follow(conn, r, archive, log)
	// What a client appended and did not sync may be kept, however this has ended; it was never told that it is.
	if failed := archive.Sync(); err == nil {
		err = failed
	}
	return held, closed, errors.Join(err, archive.Close())
}

// follow does what the client asks for until it asks for close, or is gone.
func (s *Server) follow(conn net.Conn, r io.Reader, archive raftstore.Archive, log *slog.Logger) (held uint64, closed bool, err error) {
	for {
		t, payload, err := s.next(conn, r, 0, frameAppend, frameSync, frameCut, frameDrop, frameClose)
		if errors.Is(err, io.EOF) {
			return held, false, nil
		}
		if err != nil {
			return held, false, err
		}
		if t == frameAppend {
			if held, err = appendBatch(archive, payload, held); err != nil {
				return held, false, err
			}
			continue
		}
		if count(payload) != held {
			return held, false, fmt.Errorf("%w: the client has sent %d records, %d are here", ErrProtocol, count(payload), held)
		}
		if t == frameClose {
			return held, true, nil
		}
		answer := appendCount(nil, frameDone, held)
		if err := s.do(archive, t, log); err != nil {
			if _, kept := errors.AsType[*keptError](err); !kept {
				return held, false, err
			}
			answer = appendFrame(nil, frameFault, fault(err))
		}
		if err := write(conn, answer); err != nil {
			return held, false, err
		}
	}
}

func appendBatch(archive raftstore.Archive, batch []byte, held uint64) (uint64, error) {
	for len(batch) > 0 {
		record, rest, err := nextRecord(batch)
		if err != nil {
			return held, err
		}
		if err := archive.Append(record); err != nil {
			return held, err
		}
		held, batch = held+1, rest
	}
	return held, nil
}

func (s *Server) do(archive raftstore.Archive, t frameType, log *slog.Logger) error {
	switch t {
	case frameSync:
		return archive.Sync()
	case frameCut:
		return archive.Cut()
	case frameDrop:
		if err := archive.Drop(); err != nil {
			log.Warn("the archive was not trimmed and goes on growing", "reason", err)
			return &keptError{ServerError{Text: err.Error()}}
		}
	}
	return nil
}

// sendRecords streams an archive that nobody writes.
func (s *Server) sendRecords(ctx context.Context, conn net.Conn, name Name) error {
	if s.writing(name) {
		return ErrBusy
	}
	batch, n := []byte(nil), uint64(0)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := write(conn, appendFrame(nil, frameBatch, batch))
		batch = batch[:0]
		return err
	}
	for record, err := range s.backend.Records(ctx, name) {
		if err == nil && (len(record) == 0 || len(record) > MaxRecord) {
			err = ErrRecordSize
		}
		if err != nil {
			return errors.Join(flush(), err) // what could be read comes first
		}
		batch = appendRecord(batch, record)
		n++
		if len(batch) < batchSize {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return write(conn, appendCount(nil, frameEnd, n))
}

func (s *Server) sendNames(conn net.Conn) error {
	names, err := s.backend.List()
	if err != nil {
		return err
	}
	if len(names) > MaxList {
		return fmt.Errorf("archive/remote: more than %d archives; move old ones away", MaxList)
	}
	for rest := names; len(rest) > 0; {
		n := min(len(rest), maxNames)
		var payload []byte
		for _, name := range rest[:n] {
			payload = name.append(payload)
		}
		if err := write(conn, appendFrame(nil, frameNames, payload)); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return write(conn, appendCount(nil, frameEnd, uint64(len(names))))
}
