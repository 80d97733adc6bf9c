package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/claviger/claviger/raftstore"
)

// MaxRecord bounds one sealed record in bytes.
const MaxRecord = raftstore.MaxEntry + 4096

const (
	fileName   = "archive.bolt"
	maxPending = 1 << 20         // bytes held back until Sync at most, one record more or less
	lockTime   = 2 * time.Second // to wait for a database that another process has open
)

var (
	// ErrExists says that this server id already has an archive: it belongs to another boot. It is an fs.ErrExist.
	ErrExists = fmt.Errorf("archive/bolt: the directory of this server id is there already (%w); an identity lives one boot", fs.ErrExist)
	// ErrRecordSize refuses an empty or oversized record.
	ErrRecordSize = fmt.Errorf("archive/bolt: a record has 1 to %d bytes", MaxRecord)
	// ErrClosed says that the archive is closed or has failed before.
	ErrClosed = errors.New("archive/bolt: closed")
)

// Archive writes one boot's records. It implements raftstore.Archive and is
// for one goroutine at a time.
type Archive struct {
	db      *raftboltdb.BoltStore
	next    uint64 // key of the next record, from 1
	cut     uint64 // key of the first record after the last Cut
	oldest  uint64 // key of the first record that has not been dropped
	pending []*raft.Log
	bytes   int   // in pending
	err     error // the first failure is final
}

var _ raftstore.Archive = (*Archive)(nil)

// Create makes root/<server id>, which must not exist, and a database in it.
func Create(root string, id raftstore.ServerID) (*Archive, error) {
	if id.IsZero() {
		return nil, fmt.Errorf("archive/bolt: the server id is zero")
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("archive/bolt: %w", err)
	}
	dir := filepath.Join(root, id.String())
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
		return nil, ErrExists
	} else if err != nil {
		return nil, fmt.Errorf("archive/bolt: %w", err)
	}
	db, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, fileName), MsgpackUseNewTimeFormat: true,
		BoltOptions: &bbolt.Options{Timeout: lockTime}})
	if err != nil {
		return nil, fmt.Errorf("archive/bolt: %w", err)
	}
	return &Archive{db: db, next: 1, cut: 1, oldest: 1}, nil
}

// Append holds a record back until Sync.
func (a *Archive) Append(record []byte) error {
	if a.err != nil {
		return a.err
	}
	if len(record) == 0 || len(record) > MaxRecord {
		a.err = ErrRecordSize
		return a.err
	}
	a.pending = append(a.pending, &raft.Log{Index: a.next, Data: append([]byte(nil), record...)})
	a.next++
	if a.bytes += len(record); a.bytes >= maxPending || len(a.pending) >= 1024 {
		return a.Sync()
	}
	return nil
}

// Sync commits everything appended in one transaction.
func (a *Archive) Sync() error {
	if a.err != nil || len(a.pending) == 0 {
		return a.err
	}
	if err := a.db.StoreLogs(a.pending); err != nil {
		a.err = fmt.Errorf("archive/bolt: %w", err)
		return a.err
	}
	clear(a.pending)
	a.pending, a.bytes = a.pending[:0], 0
	return nil
}

// Cut notes the present end as the place that Drop removes up to.
func (a *Archive) Cut() error {
	if err := a.Sync(); err != nil { // nothing below the cut may be written after a Drop
		return err
	}
	a.cut = a.next
	return nil
}

// Drop deletes the records before the last Cut. The file does not shrink; bbolt
// uses its pages again.
//
// A write that fails, as on a full disk, is undone and changes nothing. Any other
// failure is final: the kernel may show a head that the disk does not have, by
// which the pages of the head on the disk are free, and the next commit would
// write over them before it has a head of its own there.
func (a *Archive) Drop() error {
	if a.err != nil {
		return a.err
	}
	if a.oldest == a.cut {
		return nil
	}
	if err := a.db.DeleteRange(a.oldest, a.cut-1); err != nil {
		failed := fmt.Errorf("archive/bolt: %w", err)
		if e, ok := errors.AsType[*fs.PathError](err); !ok || e.Op != "write" {
			a.err = failed
		}
		return failed
	}
	a.oldest = a.cut
	return nil
}

// Close closes the database; records that were not synced are dropped.
func (a *Archive) Close() error {
	if a.db == nil {
		return nil
	}
	err := a.db.Close()
	a.db = nil
	if a.err == nil {
		a.err = ErrClosed
	}
	return err
}

// Records reads the archive in dir, root/<server id>, for recovery and tests,
// outside an enclave only, and in a process of its own where others depend on
// this one: a hostile file can crash whoever reads it. Whatever it yields is
// attacker input until a raftstore.Opener has opened it; after an error it ends.
func Records(dir string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		db, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, fileName),
			BoltOptions: &bbolt.Options{ReadOnly: true, Timeout: lockTime}})
		if err != nil {
			yield(nil, fmt.Errorf("archive/bolt: %w", err))
			return
		}
		defer db.Close()
		first, err := db.FirstIndex()
		if err != nil {
			yield(nil, fmt.Errorf("archive/bolt: %w", err))
			return
		}
		last, err := db.LastIndex()
		if err != nil {
			yield(nil, fmt.Errorf("archive/bolt: %w", err))
			return
		}
		for i := max(first, 1); i <= last; i++ {
			var l raft.Log
			if err := db.GetLog(i, &l); err != nil {
				yield(nil, fmt.Errorf("archive/bolt: record %d: %w", i, err))
				return
			}
			if !yield(l.Data, nil) {
				return
			}
		}
	}
}
