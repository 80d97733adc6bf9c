package node

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

// Messages of recover/1, framed as those of join/1 are. One question for each channel:
//
//	recovering boot → survivor: request, without a statement: who are you, and what do you hold?
//	survivor → recovering boot: refusal | head, records …, end
//
//	recovering boot → survivor: request, with the operators' statement: stop
//	survivor → recovering boot: refusal | stopped (with the secrets, if the statement makes it the source)
const (
	kindSurvive kind = 16
	kindHead    kind = 17
	kindRecords kind = 18
	kindEnd     kind = 19
	kindStopped kind = 20

	maxRecordsMessage = 1 << 20         // a batch, or one entry of raftstore.MaxEntry
	recordsBatch      = 256 << 10       // bytes of records after which a batch is sent
	recordsCount      = 512             // and how many of them
	surviveStep       = 2 * time.Minute // for an answer that needs a replay of the log, and for the store to stop
)

type surviveRequest struct {
	_         struct{}       `cbor:",toarray"`
	Version   uint64         // 1
	Statement []byte         // api.RecoveryStatement; empty: only a look
	Approvals []api.Approval // of it
}

// survivorHead begins the history that a survivor shows. What that is follows
// from the records, by whoever reads them.
type survivorHead struct {
	_       struct{} `cbor:",toarray"`
	Stopped bool     // its store has been stopped for good
}

type survivorRecords struct {
	_       struct{} `cbor:",toarray"`
	Records []raftstore.Record
}

// survivorStopped is the proof that a survivor has stopped: it is an enclave of
// this cluster's node policy that says so, over a channel to its key.
type survivorStopped struct {
	_       struct{}           `cbor:",toarray"`
	Head    api.RecoverySource // after it had stopped
	Secrets []byte             // kds.Secrets.Reveal; empty for all but the source
}

// sendRecords sends records in batches, and the end.
func sendRecords(c net.Conn, list []raftstore.Record) error {
	var batch []raftstore.Record
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := sendUpTo(c, kindRecords, survivorRecords{Records: batch}, maxRecordsMessage)
		batch, size = batch[:0], 0
		return err
	}
	for _, r := range list {
		if size+len(r.Data) > recordsBatch || len(batch) == recordsCount {
			if err := flush(); err != nil {
				return err
			}
		}
		batch, size = append(batch, r), size+len(r.Data)
	}
	if err := flush(); err != nil {
		return err
	}
	return send(c, kindEnd, joinIndex{Index: uint64(len(list))})
}

// receiveRecords yields what sendRecords sends, and an error if it was cut.
func receiveRecords(c net.Conn) iter.Seq2[raftstore.Record, error] {
	return func(yield func(raftstore.Record, error) bool) {
		for count := uint64(0); ; {
			k, body, err := receiveUpTo(c, maxRecordsMessage, joinStep)
			if err == nil && k == kindEnd {
				var end joinIndex
				if err = decode(k, body, kindEnd, &end); err == nil && end.Index == count {
					return
				}
				err = errors.Join(fmt.Errorf("%w: %d records have come, and %d were sent", ErrRecovery, count, end.Index), err)
			}
			var batch survivorRecords
			if err == nil {
				err = decodeUpTo(k, body, kindRecords, &batch, maxRecordsMessage)
			}
			if err == nil && len(batch.Records) == 0 {
				err = fmt.Errorf("%w: an empty batch of records", ErrRecovery)
			}
			if err != nil {
				yield(raftstore.Record{}, err)
				return
			}
			for _, r := range batch.Records {
				count++
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}
