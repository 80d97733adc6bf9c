package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// The protocols of the peer listener.
const (
	protocolJoin    = "join/1"
	protocolRaft    = "raft/1"
	protocolRecover = "recover/1"
	protocolApp     = "app/1"
)

// ErrJoin wraps every fault of the join protocol.
var ErrJoin = errors.New("node: join")

// A message of join/1 is a 4-byte big-endian length, a kind and canonical CBOR.
//
//	joiner → member: request
//	member → joiner: redirect | refusal | grant
//	joiner → member: ack (the store runs, the secrets are held)
//	member → joiner: target (the joiner is a nonvoter; the index to reach)
//	joiner → member: progress … until target
//	member → joiner: promoted | refusal
type kind uint8

const (
	kindRequest  kind = 1
	kindRedirect kind = 2
	kindRefusal  kind = 3
	kindGrant    kind = 4
	kindAck      kind = 5
	kindTarget   kind = 6
	kindProgress kind = 7
	kindPromoted kind = 8

	maxMessage = api.MaxStatement + 160<<10 // a statement and the secrets
	joinStep   = 15 * time.Second           // for one message, the work before it included
)

type joinRequest struct {
	_        struct{} `cbor:",toarray"`
	Version  uint64   // 1
	Slot     string
	RaftAddr string
	APIAddr  string
	Level    uint64 // highest feature level of the joiner's build
}

type joinRedirect struct {
	_    struct{} `cbor:",toarray"`
	Addr string
}

type joinRefusal struct {
	_          struct{} `cbor:",toarray"`
	Retry      bool
	Superseded bool
	Text       string
}

type joinGrant struct {
	_         struct{} `cbor:",toarray"`
	Statement []byte
	Secrets   []byte // kds.Secrets.Reveal
}

// joinIndex is an ack (0), a target, a progress or a promotion (0).
type joinIndex struct {
	_     struct{} `cbor:",toarray"`
	Index uint64
}

// RefusedError is a member's refusal to admit this node, in its words.
type RefusedError struct {
	Retry      bool // a later attempt may succeed
	Superseded bool // a newer boot has the slot for good, and this one is in no configuration
	Text       string
}

func (e *RefusedError) Error() string { return "node: admission refused: " + e.Text }

// Is makes a refusal for good of a superseded boot an ErrSuperseded.
func (e *RefusedError) Is(target error) bool { return target == ErrSuperseded && e.Superseded }

func send(c net.Conn, k kind, v any) error { return sendUpTo(c, k, v, maxMessage) }

func sendUpTo(c net.Conn, k kind, v any, limit int) error {
	body, err := api.MarshalCanonical(v)
	if err != nil {
		return err
	}
	defer clear(body) // it may hold secrets
	if len(body) > limit {
		return fmt.Errorf("%w: message of %d bytes", ErrJoin, len(body))
	}
	c.SetDeadline(time.Now().Add(joinStep))
	frame := make([]byte, 0, 5+len(body))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(body)))
	frame = append(append(frame, byte(k)), body...)
	defer clear(frame)
	_, err = c.Write(frame)
	return err
}

// receive reads one message. The peer is attested; the bound still comes first.
func receive(c net.Conn) (kind, []byte, error) { return receiveUpTo(c, maxMessage, joinStep) }

func receiveUpTo(c net.Conn, limit int, wait time.Duration) (kind, []byte, error) {
	c.SetDeadline(time.Now().Add(wait))
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(limit) {
		return 0, nil, fmt.Errorf("%w: message of %d bytes, the limit is %d", ErrJoin, n, limit)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(c, body)
	return kind(head[4]), body, err
}

// expect reads a message of one kind; a refusal becomes a *RefusedError.
func expect(c net.Conn, want kind, v any) error {
	k, body, err := receive(c)
	if err != nil {
		return err
	}
	return decode(k, body, want, v)
}

func decode(k kind, body []byte, want kind, v any) error {
	return decodeUpTo(k, body, want, v, maxMessage)
}

func decodeUpTo(k kind, body []byte, want kind, v any, limit int) error {
	defer clear(body)
	if k == kindRefusal && want != kindRefusal {
		var r joinRefusal
		if err := api.UnmarshalCanonical(body, maxMessage, &r); err != nil {
			return fmt.Errorf("%w: %w", ErrJoin, err)
		}
		return &RefusedError{Retry: r.Retry, Superseded: r.Superseded, Text: printable(r.Text)}
	}
	if k != want {
		return fmt.Errorf("%w: message kind %d where %d is due", ErrJoin, k, want)
	}
	if err := api.UnmarshalCanonical(body, limit, v); err != nil {
		return fmt.Errorf("%w: %w", ErrJoin, err)
	}
	return nil
}

// printable keeps a peer's words from doing more in a log than being read.
func printable(s string) string {
	b := []byte(s[:min(len(s), 512)])
	for i, c := range b {
		if c < 0x20 || c > 0x7e {
			b[i] = ' '
		}
	}
	return string(b)
}
