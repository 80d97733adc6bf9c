package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/claviger/claviger/raftstore/archive/bolt"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// A damaged database can also make its reader turn in circles and take gigabytes.
const (
	maxReaderMemory = 1 << 30          // bytes
	maxReaderIdle   = 30 * time.Second // without a record
)

// printRecords writes each record of a database behind its length, 4 bytes, big endian: file.Frames reads that.
func printRecords(w io.Writer, dir string) error {
	out := bufio.NewWriterSize(w, 1<<20)
	for record, err := range bolt.Records(dir) {
		if err != nil {
			return errors.Join(out.Flush(), err)
		}
		if len(record) == 0 || len(record) > remote.MaxRecord {
			return errors.Join(out.Flush(), remote.ErrRecordSize)
		}
		if _, err := out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(record)))); err != nil {
			return err
		}
		if _, err := out.Write(record); err != nil {
			return err
		}
	}
	return out.Flush()
}

// isolated reads records from a process: bbolt maps its file and follows the pointers in it, so a damaged file can crash
// whoever reads it, and this server is what other nodes write to meanwhile.
func isolated(ctx context.Context, idle time.Duration, name string, args ...string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		cmd := exec.CommandContext(ctx, name, args...)
		var said head
		cmd.Stderr = &said
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			cancel()
			yield(nil, err)
			return
		}
		var late atomic.Bool
		watch := time.AfterFunc(idle, func() {
			late.Store(true)
			cancel()
		})
		more := true
		for record, bad := range file.Frames(bufio.NewReaderSize(stdout, 1<<20)) {
			if err = bad; err != nil {
				break
			}
			watch.Stop() // whoever takes the record may take its time
			if more = yield(record, nil); !more {
				break
			}
			watch.Reset(idle)
		}
		watch.Stop()
		if !more || err != nil {
			cancel() // it may be waiting to write more
		}
		exit := cmd.Wait()
		cancel()
		if !more {
			return
		}
		if late.Load() {
			err = fmt.Errorf("the process that reads the database has found no record for %s", idle)
		} else if err == nil && exit != nil || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the process that reads the database ended: %w: %s", exit, said.line())
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// head keeps the begin of what is written to it.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), 1024-len(h.b))]...)
	return len(p), nil
}

// line is the first line that says something.
func (h *head) line() string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(h.b), []byte("\n"))
	return strings.ToValidUTF8(string(line), ".")
}
