package file

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/claviger/claviger/raftstore"
)

const (
	// MaxRecord bounds one sealed record in bytes.
	MaxRecord = raftstore.MaxEntry + 4096
	// SegmentSize is the length in bytes after which a new file begins.
	SegmentSize = 64 << 20

	bufferSize = 1 << 20 // bytes held back until Sync at most
	firstName  = "first" // a file with the number of the first segment, 8 decimal digits
)

var (
	// ErrExists says that this server id already has an archive: it belongs to another boot. It is an fs.ErrExist.
	ErrExists = fmt.Errorf("archive/file: the directory of this server id is there already (%w); an identity lives one boot", fs.ErrExist)
	// ErrRecordSize refuses an empty or oversized record.
	ErrRecordSize = fmt.Errorf("archive/file: a record has 1 to %d bytes", MaxRecord)
	// ErrClosed says that the archive is closed or has failed before.
	ErrClosed = errors.New("archive/file: closed")
	// ErrTorn ends Records at a record that is cut short or has an impossible length.
	ErrTorn = errors.New("archive/file: torn record")
)

// Archive writes one boot's records. It implements raftstore.Archive and is
// for one goroutine at a time.
type Archive struct {
	dir     string
	f       *os.File
	segment int   // number of the file in use
	cut     int   // number of the first file after the last Cut
	oldest  int   // number of the first file that has not been dropped
	off     int64 // of the next write in f
	buf     []byte
	err     error // the first failure is final
}

var _ raftstore.Archive = (*Archive)(nil)

// Create makes root/<server id>, which must not exist, and its first file.
// root is created when missing.
func Create(root string, id raftstore.ServerID) (*Archive, error) {
	if id.IsZero() {
		return nil, fmt.Errorf("archive/file: the server id is zero")
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("archive/file: %w", err)
	}
	a := &Archive{dir: filepath.Join(root, id.String())}
	if err := os.Mkdir(a.dir, 0o700); errors.Is(err, os.ErrExist) {
		return nil, ErrExists
	} else if err != nil {
		return nil, fmt.Errorf("archive/file: %w", err)
	}
	if err := errors.Join(a.next(), SyncDir(root)); err != nil {
		return nil, fmt.Errorf("archive/file: %w", err)
	}
	a.cut, a.oldest = a.segment, a.segment
	return a, nil
}

func segmentName(n int) string { return fmt.Sprintf("%08d.records", n) }

// next begins a new segment after closing the one in use.
func (a *Archive) next() error {
	if a.f != nil {
		if err := errors.Join(a.f.Sync(), a.f.Close()); err != nil {
			return err
		}
	}
	a.segment++
	f, err := os.OpenFile(filepath.Join(a.dir, segmentName(a.segment)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	a.f, a.off = f, 0
	return SyncDir(a.dir)
}

// SyncDir makes new names in a directory durable. Library operating systems that
// cannot sync one say EINVAL or ENOTSUP, which is no error: a loss of power may
// take a whole young file then, which whoever reads it later must bear anyway.
// Windows, where operators may sign, has no such call.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

func (a *Archive) fail(err error) error {
	if a.err == nil {
		a.err = fmt.Errorf("archive/file: %w", err)
	}
	return a.err
}

// Append buffers a record; it is durable after the next Sync.
func (a *Archive) Append(record []byte) error {
	if a.err != nil {
		return a.err
	}
	if len(record) == 0 || len(record) > MaxRecord {
		return a.fail(ErrRecordSize)
	}
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(record)))
	a.buf = append(a.buf, record...)
	if len(a.buf) >= bufferSize {
		return a.flush()
	}
	return nil
}

func (a *Archive) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	if a.off >= SegmentSize {
		if err := a.next(); err != nil {
			return a.fail(err)
		}
	}
	n, err := a.f.WriteAt(a.buf, a.off)
	a.off += int64(n)
	if err != nil {
		return a.fail(err)
	}
	a.buf = a.buf[:0]
	return nil
}

// Sync writes and fsyncs everything appended.
func (a *Archive) Sync() error {
	if a.err != nil {
		return a.err
	}
	if err := a.flush(); err != nil {
		return err
	}
	if err := a.f.Sync(); err != nil {
		return a.fail(err)
	}
	return nil
}

// Cut begins a new file: what is appended from here on does not share one with what was before.
func (a *Archive) Cut() error {
	if a.err != nil {
		return a.err
	}
	if err := a.flush(); err != nil {
		return err
	}
	if err := a.next(); err != nil {
		return a.fail(err)
	}
	a.cut = a.segment
	return nil
}

// Drop removes the files before the last Cut, by name: inside a TEE there may be
// no way to read a directory. Records learns from firstName where to begin. What
// cannot be removed is tried again the next time.
func (a *Archive) Drop() error {
	if a.err != nil {
		return a.err
	}
	if a.oldest == a.cut {
		return nil
	}
	if err := a.writeFirst(); err != nil {
		return fmt.Errorf("archive/file: %w", err)
	}
	for ; a.oldest < a.cut; a.oldest++ {
		if err := os.Remove(filepath.Join(a.dir, segmentName(a.oldest))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("archive/file: %w", err)
		}
	}
	return nil
}

// writeFirst makes durable where Records begins, before anything is removed.
func (a *Archive) writeFirst() error {
	f, err := os.OpenFile(filepath.Join(a.dir, firstName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%08d", a.cut), 0)
	return errors.Join(err, f.Sync(), f.Close(), SyncDir(a.dir))
}

// readFirst is the number of the first file: 1 unless firstName says otherwise.
// One that holds no number was cut short when it was made, by a full disk or a
// loss of power, and then nothing has been removed yet. It is a hint of the
// host's; a wrong one leads to records that do not open.
func readFirst(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, firstName))
	if errors.Is(err, os.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 9))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(raw), 10, 31)
	if err != nil || n == 0 || len(raw) != 8 {
		return 1, nil
	}
	return int(n), nil
}

// Close closes the file without syncing it.
func (a *Archive) Close() error {
	if a.f == nil {
		return nil
	}
	err := a.f.Close()
	a.f = nil
	a.fail(ErrClosed)
	return err
}

// Records reads the archive in dir, root/<server id>, for recovery and tests.
// It is never used on the archive of a running store. Whatever it yields is
// attacker input until a raftstore.Opener has opened it; after an error it ends.
func Records(dir string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		first, err := readFirst(dir)
		if err != nil {
			yield(nil, fmt.Errorf("archive/file: %w", err))
			return
		}
		for n := first; ; n++ {
			f, err := os.Open(filepath.Join(dir, segmentName(n)))
			if errors.Is(err, os.ErrNotExist) && n > first {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("archive/file: %w", err))
				return
			}
			more := true
			for record, err := range Frames(bufio.NewReader(f)) {
				if more = yield(record, err) && err == nil; !more {
					break
				}
			}
			f.Close()
			if !more {
				return
			}
		}
	}
}

// Frames reads records as a file of an archive has them, each behind its length,
// until r ends. An error ends it: ErrTorn, beside the reason. It takes memory for
// one record at a time.
func Frames(r io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			record, err := frame(r)
			if err == io.EOF || !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// frame reads one record; io.EOF says that there is none.
func frame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err == io.EOF {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTorn, err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxRecord {
		return nil, fmt.Errorf("%w: %d bytes; %w", ErrTorn, n, ErrRecordSize)
	}
	record := make([]byte, n)
	if _, err := io.ReadFull(r, record); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", ErrTorn, io.ErrUnexpectedEOF)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTorn, err)
	}
	return record, nil
}
