package archivetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv holds the argument of a test that runs again in a process of its own.
const childEnv = "CLAVIGER_ARCHIVETEST_CHILD"

// Child returns the argument that [Again] gave, in the process that it started.
func Child() (arg string, ok bool) { return os.LookupEnv(childEnv) }

// Again is a command that runs this test binary's test of that name, which finds arg with [Child].
func Again(ctx context.Context, test, arg string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childEnv+"="+arg)
	return cmd
}

// PrintRecords is what the child of [ReadInChild] does.
func PrintRecords(records iter.Seq2[[]byte, error]) error {
	pipe := os.NewFile(3, "records")
	out := bufio.NewWriter(pipe)
	for r, err := range records {
		status, content := byte(0), r
		if err != nil {
			status, content = 1, []byte(err.Error())
		}
		out.Write(append(binary.BigEndian.AppendUint32([]byte{status}, uint32(len(content))), content...))
		if err := out.Flush(); err != nil { // at once: the next one may crash this process
			return err
		}
	}
	out.Write([]byte{2, 0, 0, 0, 0})
	if err := out.Flush(); err != nil {
		return err
	}
	return pipe.Close()
}

// ReadInChild reads records in a process that may crash, by running test, which
// calls PrintRecords, with arg. Rss, if not nil, learns the most memory such a
// process had, in bytes.
func ReadInChild(t testing.TB, test, arg string, rss *int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd := Again(ctx, test, arg)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, &said, []*os.File{w}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		done := readPrinted(bufio.NewReader(r), yield)
		if !done {
			r.Close()
		}
		exit := cmd.Wait()
		if rss != nil {
			if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
				*rss = max(*rss, int64(u.Maxrss)<<10)
			}
		}
		switch {
		case done:
		case ctx.Err() != nil:
			yield(nil, fmt.Errorf("the reader hangs"))
		default:
			yield(nil, fmt.Errorf("the reader crashed: %w, %s", exit, crashReason(said.String())))
		}
	}
}

// readPrinted hands on what a child prints; done is false if it ended in the middle.
func readPrinted(r io.Reader, yield func([]byte, error) bool) (done bool) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return false
		}
		content := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(r, content); err != nil {
			return false
		}
		switch head[0] {
		case 2:
			return true
		case 1:
			yield(nil, fmt.Errorf("%s", content))
			return true
		}
		if !yield(content, nil) {
			return true
		}
	}
}

// crashReason finds what Go says when a process dies.
func crashReason(output string) string {
	for line := range strings.Lines(output) {
		for _, sign := range []string{"unexpected fault address", "SIGSEGV", "SIGBUS", "panic:", "fatal error", "stack overflow", "out of memory"} {
			if strings.Contains(line, sign) {
				return strings.TrimSpace(line)
			}
		}
	}
	return "no reason given"
}
