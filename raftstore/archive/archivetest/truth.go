package archivetest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
)

// truth is what one store has written, from its first record on, whatever was dropped since.
type truth struct {
	key    secret.Key
	chain  raftstore.Chain
	sealed [][]byte
}

func (s *server) truth(t testing.TB) truth {
	return truth{s.boot.archiveKey(t), s.boot.chain(), s.archive.all()}
}

// outcome is what a recovery makes of an archive.
type outcome struct {
	records []raftstore.Record
	first   uint64 // sequence numbers of the records that open; 0 for none
	last    uint64
	of      int // the genuine ones
	why     string
}

func (o outcome) String() string {
	if o.first == 0 {
		return "opens nothing; " + o.why
	}
	return fmt.Sprintf("opens %d to %d of %d; %s", o.first, o.last, o.of, o.why)
}

func (o outcome) whole() bool { return o.last == uint64(o.of) }

// judge opens what was read as a recovery would. Whatever opens must be byte for
// byte the genuine record of its place: anything else is a wrong record.
func judge(t testing.TB, g truth, read [][]byte, ended error) outcome {
	t.Helper()
	o := outcome{of: len(g.sealed), why: "then the archive ends"}
	opener, err := raftstore.NewOpener(g.key, g.chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, sealed := range read {
		r, err := opener.Open(sealed)
		if errors.Is(err, raftstore.ErrRecord) {
			o.why = "then a record is refused"
			return o
		}
		if err != nil {
			t.Errorf("an error that is no refusal: %v", err)
			return o
		}
		o.records = append(o.records, r)
		o.last, _ = opener.Head()
		if o.first == 0 {
			o.first = opener.Begin()
		}
		if o.last == 0 || o.last > uint64(len(g.sealed)) || !bytes.Equal(sealed, g.sealed[o.last-1]) {
			t.Errorf("A WRONG RECORD OPENED as number %d", o.last)
			return o
		}
		if o.last != o.first+uint64(len(o.records))-1 {
			t.Errorf("A GAP: %d records opened from %d to %d", len(o.records), o.first, o.last)
		}
	}
	if ended != nil {
		o.why = "then reading ends with an error"
	}
	return o
}
